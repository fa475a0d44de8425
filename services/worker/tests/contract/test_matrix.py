"""That the table of docs/engines.md leaves nothing out. Whether it is true, all other tests of this folder show."""

import inspect
from importlib import import_module
from pathlib import Path

from inferbus_worker.engines import ENGINES

from services.worker.tests.contract import matrix
from services.worker.tests.contract.behaviours import BEHAVIOURS, FEATURES
from services.worker.tests.contract.engines import columns, has
from services.worker.tests.contract.test_lacks import CHECKS, REQUESTS

# Its contract is in test_minilm.py: it makes vectors, and no text.
OTHERS = {"minilm"}


def test_every_behaviour_is_shown_by_a_test() -> None:
    shown = matrix.tests()
    assert [behaviour for behaviour in BEHAVIOURS if not shown[behaviour]] == []


def test_every_test_says_what_it_shows() -> None:
    for path in Path(__file__).parent.glob("test_*.py"):
        module = import_module(f"services.worker.tests.contract.{path.stem}")
        for name, test in vars(module).items():
            if name.startswith("test_") and "engine" in inspect.signature(test).parameters:
                assert hasattr(test, "shows"), f"{path.name}::{name}"


def test_every_lack_is_checked() -> None:
    assert CHECKS.keys() | REQUESTS.keys() == FEATURES.keys()
    assert not CHECKS.keys() & REQUESTS.keys()
    assert {name for name in REQUESTS if not FEATURES[name].param} == set()


def test_every_engine_has_a_column() -> None:
    assert {module.NAME for module in columns().values()} == set(ENGINES) - OTHERS


def test_a_cell_is_what_the_tests_need() -> None:
    head, rows, notes = matrix.matrix()
    cells = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
    by_title = {matrix.title(module): module for module in columns().values()}
    for name, row in cells.items():
        for title, cell in row.items():
            word = cell.partition(" (")[0]
            assert word in ("yes", "no", "refused", "in part", "never run"), (name, title)
            assert (word == "yes") == (cell == word), "all else says why"
    for title, module in by_title.items():
        never = bool(getattr(module, "NEVER_RUN", ""))
        assert (cells[BEHAVIOURS["logprobs"]][title] == "yes") == ("logprobs" in has(module) and not never)
    assert len(set(notes)) == len(notes)
