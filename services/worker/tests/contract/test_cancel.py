"""One cancel: closing."""

import asyncio

from inferbus_worker.engine import Finish, Sampling

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, Answer, Driver

LONG = Sampling(temperature=0.0, max_tokens=5000)


async def cancel(engine: Driver, answer: Answer) -> None:
    engine.close(answer)
    engine.close(answer)
    await engine.until(lambda: answer.end is not None, timeout=5)
    assert answer.reason is Finish.CANCELLED
    engine.close(answer)


@shows("cancel")
async def test_in_mid_stream_within_a_step(engine: Driver) -> None:
    gone, other = engine.submit("Write a long story.", LONG), engine.submit("Write a long poem.", LONG)
    await engine.until(lambda: len(gone.ids) >= 3 and len(other.ids) >= 3)
    count = len(other.deltas)
    await cancel(engine, gone)
    assert len(other.deltas) <= count + 2, "its neighbour made a step at most, and one was on its way"
    await engine.until(lambda: len(other.deltas) >= count + 3)
    await cancel(engine, other)


@shows("cancel")
async def test_in_prefill(engine: Driver) -> None:
    answer = engine.submit("word " * engine.here.PREFILL_WORDS)
    await asyncio.sleep(0.05)
    assert not answer.ids
    await cancel(engine, answer)
    after = await engine.ask("Say hi", Sampling(temperature=0.0, max_tokens=1))
    assert after.reason in (Finish.LENGTH, Finish.STOP)


@shows("cancel")
async def test_of_one_that_waits(engine: Driver) -> None:
    """Those that run are not touched, and those behind it move up."""
    capacity = engine.info.capacity
    ahead = [engine.submit("Write a long story.", LONG) for _ in range(capacity)]
    waits, behind = engine.submit("Say hi", GREEDY), engine.submit("Say hi", GREEDY)
    await engine.until(lambda: any(answer.ids for answer in ahead))
    await cancel(engine, waits)
    assert not waits.ids
    for answer in ahead:
        await cancel(engine, answer)
    await engine.ended(behind)
    assert behind.ids
