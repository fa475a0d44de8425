"""The contract's tests run on each engine that has what they need, one engine after the other, each started once."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inferbus_worker.engines.llama_cpp_model import default_cache

from services.worker.tests.contract.behaviours import FEATURES, Shown
from services.worker.tests.contract.driver import GREEDY, SEA, Answer, Driver
from services.worker.tests.contract.engines import columns, has

_COLUMNS = columns()
_FOLDER = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which engines a test runs on: those that have what it needs; a test of a lack, on those that lack it."""
    if "here" not in metafunc.fixturenames:
        return
    shown: Shown = metafunc.function.shows
    if "lacking" in metafunc.fixturenames:
        pairs = [(name, lack) for name in _COLUMNS for lack in FEATURES if lack not in has(_COLUMNS[name])]
        metafunc.parametrize(("here", "lacking"), pairs, indirect=["here"], scope="session")
        return
    names = [name for name in _COLUMNS if shown.needs <= has(_COLUMNS[name])]
    soaked = [name for name in names if shown.behaviour in getattr(_COLUMNS[name], "SOAK", ())]
    params = [pytest.param(name, marks=pytest.mark.soak if name in soaked else ()) for name in names]
    metafunc.parametrize("here", params, indirect=True, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One engine after the other: pytest groups tests by the place of a parameter, which differs from test to test."""
    places = [at for at, item in enumerate(items) if _FOLDER in item.path.parents and _column(item)]
    ordered = sorted((items[at] for at in places), key=lambda item: list(_COLUMNS).index(_column(item)))
    for at, item in zip(places, ordered, strict=True):
        items[at] = item


def _column(item: pytest.Item) -> str:
    callspec = getattr(item, "callspec", None)
    return "" if callspec is None else str(callspec.params.get("here", ""))


@pytest.fixture(scope="session")
def model_cache() -> Path:
    """The user's cache, which the install step has filled; made here (5 s) if not."""
    return default_cache()


@pytest.fixture(scope="session")
def here(request: pytest.FixtureRequest) -> Any:
    """The module of the engine under test."""
    module = _COLUMNS[request.param]
    if missing := module.missing():
        pytest.skip(f"{request.param}: {missing}")
    return module


@pytest.fixture(scope="session")
async def engine(here: Any, model_cache: Path) -> AsyncIterator[Driver]:
    """Started, for all tests of one engine."""
    async with here.made(model_cache) as made:
        driver = Driver(made, here)
        await driver.start()
        yield driver
        await driver.stop()


@pytest.fixture(scope="session")
async def sea(engine: Driver) -> Answer:
    """A greedy text that many tests compare with."""
    answer = await engine.ask(SEA, GREEDY)
    assert len(answer.ids) == GREEDY.max_tokens
    return answer
