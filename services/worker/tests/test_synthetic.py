"""The engine ``synthetic`` on an event loop: its timers are not exact, its steps are where the timing model says."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from datetime import timedelta
from typing import Any

from inferbus_worker.config import Config, SyntheticConfig
from inferbus_worker.engine import Generation, Prompt, Sampling
from inferbus_worker.engines.synthetic import Synthetic


class Hasty(asyncio.SelectorEventLoop):
    """Its timers are as early as those of an event loop that counts in milliseconds may be."""

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_later(delay - 0.001, callback, *args, context=context)


async def first_token() -> bytes:
    timing = SyntheticConfig(itl=timedelta(hours=1), prefill_rate=1000.0)
    engine = Synthetic.from_config(Config(name="early", engine="synthetic", synthetic=timing))
    await engine.start()
    engine.submit(Generation(b"one", Prompt((0,) * 20), Sampling(max_tokens=2)))
    try:
        async with asyncio.timeout(20):
            step = await anext(engine.steps())
            return step.keys[0]
    finally:
        await engine.stop()


def test_a_prompt_that_was_read_does_not_wait_for_another_step_where_a_timer_is_early() -> None:
    with asyncio.Runner(loop_factory=Hasty) as runner:
        assert runner.run(first_token()) == b"one"


async def test_a_part_of_the_generations_fails_before_its_first_token_and_none_that_goes_on() -> None:
    timing = SyntheticConfig(itl=timedelta(milliseconds=1), fails=0.25)
    engine = Synthetic.from_config(Config(name="failing", engine="synthetic", synthetic=timing))
    await engine.start()
    for number in range(40):
        resumed = (0,) if number % 2 else ()
        engine.submit(Generation(bytes([number]), Prompt("hello"), Sampling(max_tokens=3), resume_ids=resumed))
    failed, began, ended = set[bytes](), set[bytes](), 0
    async with asyncio.timeout(20):
        async for step in engine.steps():
            began |= set(step.keys)
            failed |= {one.key for one in step.finished if one.error and one.error.reason == "engine_failed"}
            ended += len(step.finished)
            if ended == 40:
                break
    await engine.stop()
    assert sorted(failed) == [bytes([number]) for number in (6, 14, 22, 30, 38)], "each fourth of the twenty new ones"
    assert not failed & began
