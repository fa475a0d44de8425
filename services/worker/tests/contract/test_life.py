"""Started, stopped, killed, and started again; on an engine of its own."""

import asyncio
import contextvars
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from inferbus_worker.engine import EngineDiedError, Finish, Sampling

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, SEA, Answer, Driver

STORY = "Write a long story."
# gRPC's own tasks for a call.
_GRPCS = ("_AioCall.", "StreamStreamCall.")


@pytest.fixture(scope="module")
async def idle(here: Any, model_cache: Path) -> AsyncIterator[Any]:
    """Not started, with its servers running."""
    async with here.made(model_cache, **getattr(here, "UNLOADS", {})) as made:
        yield made


@pytest.fixture
async def tasks() -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Those that the test begins, and what these begin. The engine that all tests share runs beside it."""
    loop, ours = asyncio.get_running_loop(), contextvars.ContextVar("ours", default=False)
    begun: list[asyncio.Task[Any]] = []

    def begin(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **more)
        if ours.get():
            begun.append(task)
        return task

    loop.set_task_factory(begin)
    ours.set(True)
    yield begun
    loop.set_task_factory(None)


async def held(here: Any, engine: Any) -> int:
    """How many things outside of this process the engine has."""
    count = getattr(here, "held", None)
    return 0 if count is None else await count(engine)


@shows("unload")
async def test_what_it_held_is_free_when_it_is_stopped(
    idle: Any, here: Any, sea: Answer, tasks: list[asyncio.Task[Any]]
) -> None:
    await idle.stop()
    before = await held(here, idle)
    for _ in range(2):
        tasks.clear()
        driver = Driver(idle, here)
        await driver.start()
        assert (await driver.ask(SEA)).text == sea.text
        running = driver.submit(STORY, Sampling(max_tokens=1000))
        await driver.begun(running)
        assert not hasattr(here, "held") or await held(here, idle) > before
        await driver.stop()
        assert tasks
        left = {task for task in tasks if not task.done()}
        assert all(getattr(task.get_coro(), "__qualname__", "").startswith(_GRPCS) for task in left), left
        if left:  # of calls that gRPC has cancelled: it tells nobody but them when its thread has seen their end
            assert not (await asyncio.wait(left, timeout=60))[1]
        await driver.stop()
        assert driver.reader.done()
        assert driver.reader.exception() is None, "the end of its steps, and no death"
        assert running.end is None
        assert await held(here, idle) == before


@shows("death")
async def test_it_is_said_and_what_ran_goes_on_after_a_new_start(idle: Any, here: Any) -> None:
    driver = Driver(idle, here)
    await driver.start()
    answer = driver.submit(STORY, Sampling(temperature=0.0, max_tokens=5000))
    await driver.begun(answer, 3)
    await here.kill(idle)
    with pytest.raises(EngineDiedError):
        await asyncio.wait_for(driver.reader, 60)
    assert answer.end is None
    await idle.stop()
    again = Driver(idle, here)
    await again.start()
    begun = answer.begun(len(answer.ids))
    rest = await again.ask(STORY, Sampling(temperature=0.0, max_tokens=len(answer.ids) + 3), **begun)
    assert (len(rest.ids), rest.reason) == (3, Finish.LENGTH)
    assert (await again.ask(STORY, GREEDY)).ids
    await again.stop()
