"""Generations for diagnosis: straight into the engine, past bus and bill."""

import asyncio
from collections.abc import AsyncIterator

from inferbus_runtime.errors import InferBusError

from inferbus_worker.engine import Engine, Finish, Finished, Generation, Step

Item = tuple[list[int], bytes] | Finished
"""Ids and text of a delta, or the end."""


class Direct:
    """Shares the engine with the running set, which hands over every step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queues: dict[bytes, asyncio.Queue[Item]] = {}

    @property
    def open(self) -> int:
        """How many have not ended."""
        return len(self._queues)

    async def generate(self, generation: Generation) -> AsyncIterator[Item]:
        """Deltas, then one Finished. Leaving early closes the generation."""
        queue: asyncio.Queue[Item] = asyncio.Queue()
        self._queues[generation.key] = queue
        self._engine.submit(generation)
        try:
            while True:
                item = await queue.get()
                yield item
                if isinstance(item, Finished):
                    return
        finally:
            if self._queues.pop(generation.key, None) is not None:
                self._engine.close(generation.key)

    def take(self, step: Step) -> None:
        """Picks its own out of a step."""
        if not self._queues:
            return
        position = 0
        for key, count, text in zip(step.keys, step.counts, step.texts, strict=True):
            queue = self._queues.get(key)
            if queue is not None:
                queue.put_nowait((step.token_ids[position : position + count], text))
            position += count
        for finished in step.finished:
            queue = self._queues.pop(finished.key, None)
            if queue is not None:
                queue.put_nowait(finished)

    def fail(self, error: InferBusError) -> None:
        """Ends all: the engine died."""
        queues, self._queues = self._queues, {}
        for key, queue in queues.items():
            queue.put_nowait(Finished(key, Finish.ERROR, 0, error=error))
