"""The table of engines and behaviours, by what the tests of this folder show and what each engine's module says it has.

No engine is started for it: that each has what its module says is what the tests check.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from services.worker.tests.contract.behaviours import BEHAVIOURS, FEATURES, Shown
from services.worker.tests.contract.engines import columns, has, title

_FOLDER = Path(__file__).parent

Rows = list[list[str]]


def tests() -> dict[str, list[tuple[str, Shown]]]:
    """By behaviour: the tests that show it, each as (file::name, what it needs)."""
    found: dict[str, list[tuple[str, Shown]]] = {behaviour: [] for behaviour in BEHAVIOURS}
    for path in sorted(_FOLDER.glob("test_*.py")):
        for name, test in vars(import_module(f"services.worker.tests.contract.{path.stem}")).items():
            if name.startswith("test_") and hasattr(test, "shows"):
                found[test.shows.behaviour].append((f"{path.name}::{name}", test.shows))
    return found


def matrix() -> tuple[list[str], Rows, list[str]]:
    """(head, rows, notes). A cell ends with the numbers of its notes, counted from 1."""
    engines, notes = columns(), list[str]()
    rows = []
    for behaviour, shown in tests().items():
        cells = [_cell(module, [one for _, one in shown], notes) for module in engines.values()]
        rows.append([BEHAVIOURS[behaviour], *cells])
    return ["", *map(title, engines.values())], rows, notes


def proofs() -> tuple[list[str], Rows]:
    """(head, rows): which tests show what."""
    rows = [
        [BEHAVIOURS[behaviour], " · ".join(_plain(name) for name, _ in shown), ", ".join(_files(shown))]
        for behaviour, shown in tests().items()
    ]
    return ["", "tests", "in"], rows


def _cell(module: Any, shown: list[Shown], notes: list[str]) -> str:
    if never := getattr(module, "NEVER_RUN", ""):
        return f"never run{_numbers([never], notes)}"
    own = has(module)
    runs = [one for one in shown if one.needs <= own]
    if runs:
        lacking = frozenset[str]().union(*(one.needs | one.widened for one in shown)) - own
        return f"in part{_numbers(_said(module, lacking), notes)}" if lacking else "yes"
    lacking = frozenset.intersection(*(one.needs for one in shown)) - own
    word = "refused" if all(FEATURES[name].param for name in lacking) else "no"
    return f"{word}{_numbers(_said(module, lacking), notes)}"


def _said(module: Any, lacking: frozenset[str]) -> Iterator[str]:
    why: dict[str, str] = getattr(module, "WHY", {})
    for name in FEATURES:
        if name in lacking:
            yield FEATURES[name].lack + (f": {why[name]}" if name in why else "")


def _numbers(said: Any, notes: list[str]) -> str:
    """Of notes that are there already, or are added."""
    numbers = []
    for note in said:
        if note not in notes:
            notes.append(note)
        numbers.append(notes.index(note) + 1)
    return f" ({', '.join(map(str, sorted(numbers)))})"


def _plain(name: str) -> str:
    return name.partition("::test_")[2].replace("_", " ")


def _files(shown: list[tuple[str, Shown]]) -> list[str]:
    return list(dict.fromkeys(f"`{name.partition('::')[0]}`" for name, _ in shown))
