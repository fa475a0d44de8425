"""Tables for people: as wide as the terminal, or as wide as they are where nobody looks (a pipe, a file)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 100_000


def terminal() -> Console:
    """Standard output. In a pipe nothing is cut or folded to a width that nobody sees."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_UNBOUNDED)


@dataclass(frozen=True, slots=True)
class Column:
    """``spare``: 0 stays; where the terminal is too narrow, the column with the highest number goes first.

    ``folds``: may take several lines, broken between words. All else (ids, names that are copied into other commands)
    is shown in one piece or not at all.
    """

    name: str
    number: bool = False
    spare: int = 0
    folds: bool = False


class Rows:
    """A table that fits: it leaves out spare columns and says which, and as the last resort shows each row as lines of
    ``name  value``. Its cells are plain text. ``dim``: rows that matter less."""

    def __init__(self, *columns: Column) -> None:
        self._columns = columns
        self._cells: list[Sequence[str]] = []
        self._dim: list[bool] = []

    def add(self, *cells: str, dim: bool = False) -> None:
        self._cells.append(cells)
        self._dim.append(dim)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(range(len(self._columns)))
        while self._width(shown) > options.max_width:
            droppable = [at for at in shown if self._columns[at].spare]
            if not droppable:
                yield from self._lines()
                return
            shown.remove(max(droppable, key=lambda at: self._columns[at].spare))
        yield self._table(shown, options.max_width)
        hidden = [column.name for at, column in enumerate(self._columns) if at not in shown]
        if hidden:
            yield Text(f"In a wider terminal, and with --json: {', '.join(hidden)}.", style="dim")

    def _width(self, shown: Sequence[int]) -> int:
        """The least number of characters in which these columns stand beside each other."""
        # One more at each end, and a gap of two between neighbours.
        return 2 + sum(map(self._least_width, shown)) + 2 * (len(shown) - 1)

    def _whole_width(self, at: int) -> int:
        return max(map(cell_len, (self._columns[at].name, *(cells[at] for cells in self._cells))))

    def _least_width(self, at: int) -> int:
        """Of one column: its longest word if it folds, else its longest text."""
        column = self._columns[at]
        texts = (column.name, *(cells[at] for cells in self._cells))
        words = (word for text in texts for word in (text.split() if column.folds else (text,)))
        return max(map(cell_len, words), default=0)

    def _table(self, shown: Sequence[int], width: int) -> Table:
        left = width - self._width(shown)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for at in shown:
            column, least = self._columns[at], self._least_width(at)
            # What is left over unfolds columns, the first ones first.
            more = min(left, self._whole_width(at) - least)
            left -= more
            table.add_column(
                Text(column.name),
                justify="right" if column.number else "left",
                no_wrap=not column.folds,
                overflow="fold",
                width=least + more,
            )
        for cells, dim in zip(self._cells, self._dim, strict=True):
            table.add_row(*(Text(cells[at]) for at in shown), style="dim" if dim else None)
        return table

    def _lines(self) -> Iterable[Table | str]:
        for cells in self._cells:
            yield _one_under_the_other([column.name for column in self._columns], [Text(cell) for cell in cells])
            yield ""


def _one_under_the_other(names: Sequence[str], cells: Sequence[Text]) -> Table:
    one = Table(box=None, show_header=False, pad_edge=False)
    one.add_column(style="dim", no_wrap=True)
    one.add_column(overflow="fold")
    for name, cell in zip(names, cells, strict=True):
        one.add_row(Text(name), cell)
    return one


def print_rows(console: Console, names: Sequence[str], numeric: Sequence[bool], rows: Iterable[Sequence[str]]) -> None:
    """``rows`` as a table, or one under the other as ``name  value`` if they do not fit beside each other."""
    held = [[Text(cell) for cell in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, is_number in zip(names, numeric, strict=True):
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    for row in held:
        table.add_row(*row)
    if len(names) == 1 or Console(width=_UNBOUNDED).measure(table).maximum <= console.width:
        console.print(table)
        return
    for row in held:
        console.print(_one_under_the_other(names, row), "")
