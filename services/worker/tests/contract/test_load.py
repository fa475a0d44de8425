"""More than it has room for, and what it says of that."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_worker.engine import Finish, Prompt, Sampling

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, SEA, Driver
from services.worker.tests.contract.test_refusals import INTERNALS

STORY = Prompt("Once upon a time, in a land far away, there")


@shows("hundred", "completions")
async def test_a_hundred_at_once(engine: Driver) -> None:
    questions = [Prompt(f"The number {number} is") for number in range(100)]
    answers = [engine.submit(question, replace(GREEDY, max_tokens=2)) for question in questions]
    await engine.ended(*answers)
    assert [(len(answer.ids), answer.reason) for answer in answers] == [(2, Finish.LENGTH)] * 100


@shows("overload", "overload")
async def test_a_server_without_room_is_to_be_tried_again(here: Any, model_cache: Path) -> None:
    async with here.crowded(model_cache) as made:
        driver = Driver(made, here)
        await driver.start()
        answers = [driver.submit(STORY, replace(GREEDY, max_tokens=24)) for _ in range(8)]
        await driver.ended(*answers)
        refused = [answer for answer in answers if answer.error is not None]
        assert 1 <= len(refused) < 8
        for answer in refused:
            assert answer.error.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
            assert answer.error.retry_after >= timedelta(seconds=1)
            assert not INTERNALS.search(answer.error.message)
            assert not answer.ids
        assert all(len(answer.ids) == 24 for answer in answers if answer.error is None)
        await driver.stop()


@shows("statistics")
async def test_what_runs_and_what_waits_is_said(engine: Driver) -> None:
    quiet = engine.engine.statistics()
    assert (quiet.running, quiet.waiting) == (0, 0)
    capacity = engine.info.capacity
    answers = [engine.submit(SEA, Sampling(temperature=0.0, max_tokens=3000)) for _ in range(capacity + 5)]
    await engine.until(lambda: any(answer.ids for answer in answers))
    busy = engine.engine.statistics()
    assert busy.running + busy.waiting == capacity + 5
    assert busy.waiting == 5
    for answer in reversed(answers):
        engine.close(answer)
    await engine.ended(*answers)
    after = engine.engine.statistics()
    assert (after.running, after.waiting) == (0, 0)


@shows("blocks", "blocks")
async def test_how_full_its_cache_is(engine: Driver) -> None:
    """Maybe read from the server's own page, which is a while behind."""
    answer = engine.submit(Prompt("The sea is wide. " * 60), Sampling(temperature=0.0, max_tokens=2000))
    await engine.until(lambda: bool(answer.ids))

    def told() -> bool:
        now = engine.engine.statistics()
        return bool(now.kv_blocks_used and now.kv_blocks_used * (now.kv_block_tokens or 1) >= 300)

    await engine.until(told, timeout=20)
    now = engine.engine.statistics()
    assert now.kv_blocks_used <= now.kv_blocks_total
    assert now.kv_blocks_total * now.kv_block_tokens >= engine.info.context_length
    engine.close(answer)
    await engine.ended(answer)
