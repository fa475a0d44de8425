"""The synthetic engine with nothing around it: what of the worker's CPU is not the platform's."""

import time
from datetime import timedelta

from inferbus_worker.config import Config, SyntheticConfig
from inferbus_worker.engine import Chat, Generation, Message, Sampling
from inferbus_worker.engines.synthetic import Synthetic


async def run(streams: int, itl: float, seconds: float) -> None:
    """Prints CPU microseconds a token with ``streams`` generations at once."""
    config = Config(name="bench", engine="synthetic", synthetic=SyntheticConfig(itl=timedelta(seconds=itl)))
    engine = Synthetic.from_config(config)
    await engine.start()
    numbers = iter(range(1 << 30))

    def submit() -> None:
        key = next(numbers).to_bytes(16, "big")
        engine.submit(Generation(key, Chat((Message("user", "word " * 100),)), Sampling(max_tokens=128)))

    for _ in range(streams):
        submit()
    tokens = 0
    cpu = time.process_time()
    end = time.monotonic() + seconds
    async for step in engine.steps():
        tokens += len(step.token_ids)
        for _ in step.finished:
            submit()
        if time.monotonic() > end:
            break
    print((time.process_time() - cpu) * 1e6 / max(tokens, 1))
    await engine.stop()
