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
