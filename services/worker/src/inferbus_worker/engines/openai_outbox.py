"""Deltas of many streams on their way out, as steps."""

import asyncio
from collections import deque

from inferbus_runtime import clock

from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.engine import Finished, Step, Vector
from inferbus_worker.engines.openai_writer import Out

# Events of one step of the upstream arrive within this time; a step in which everybody moved does not wait for it.
_COALESCE_SECONDS = 0.001
_BUFFERED_TOKENS = 4096
_STEP_BYTES = 448 * 1024


class Outbox:
    """``ready``: there is something. ``room``: cleared while the consumer does not keep up."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self._steps = StepBuilder()
        self._vectors: deque[Vector] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, key: bytes, out: Out, running: int) -> None:
        """``running``: how many generations may move in this step."""
        if not (out.ids or out.text):
            return
        self._steps.add(key, out.ids, out.text.encode(), out.logprobs)
        if self._steps.tokens >= _BUFFERED_TOKENS:
            self.room.clear()
        if self._steps.moved() >= running:
            self.ready.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COALESCE_SECONDS, self.ready.set)

    def add_vectors(self, vectors: list[Vector]) -> None:
        self._vectors.extend(vectors)
        self.ready.set()

    def finish(self, finished: Finished) -> None:
        self._steps.finish(finished)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(0, self.ready.set)

    def take(self) -> Step | None:
        """The next step: vectors before the end of their generation, and half a megabyte of them at most."""
        self.cancel()
        if self._vectors:
            step, size = Step(clock.now_us()), 0
            while self._vectors and (not size or size + len(self._vectors[0].values) <= _STEP_BYTES):
                vector = self._vectors.popleft()
                size += len(vector.values)
                step.embeddings.append(vector)
            self.ready.set()
            return step
        if not self._steps:
            return None
        step = self._steps.take(clock.now_us())
        self.room.set()
        return step

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
