"""Tables for people: as wide as the terminal, or as wide as they are where nobody looks (a pipe, a file)."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNBOUNDED = 100_000


def terminal() -> Console:
    """Standard output. In a pipe nothing is cut or folded to a width that nobody sees."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_UNBOUNDED)


def table_of(left: Sequence[str], right: Sequence[str] = ()) -> Table:
    """An empty table with its text columns, then its number columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, name in enumerate(left):
        # The first names the row: it is copied into other commands, so it stays in one piece.
        table.add_column(Text(name), overflow="fold", no_wrap=position == 0)
    for name in right:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table


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
        one = Table(box=None, show_header=False, pad_edge=False)
        one.add_column(style="dim", no_wrap=True)
        one.add_column(overflow="fold")
        for name, cell in zip(names, row, strict=True):
            one.add_row(Text(name), cell)
        console.print(one, "")
