"""What the generations of an engine say on its way out: deltas that come stream by stream, sent off as steps."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sized

from inferbus_runtime import clock

from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.engine import EngineDiedError, Finished, Step, TokenLogprob, Vector

# Deltas of one engine step arrive within this time; a step in which everybody moved does not wait for it.
_COALESCE_SECONDS = 0.001
_BUFFERED_TOKENS = 4096
_STEP_BYTES = 448 * 1024
_BUFFERED_BYTES = 4 * _STEP_BYTES


class Outbox:
    """Of an engine from one start to its stop. One consumer, who takes :meth:`steps`.

    ``room``: cleared while the consumer does not keep up; generations pause until it is set.
    """

    def __init__(self, moving: Sized, on_room: Callable[[], None] | None = None) -> None:
        """``moving``: the generations that may have a delta in a step. ``on_room``: told when there is room again."""
        self.room = asyncio.Event()
        self.room.set()
        self.death = ""
        self._moving = moving
        self._on_room = on_room
        self._ready = asyncio.Event()
        self._steps = StepBuilder()
        self._vectors: deque[Vector] = deque()
        self._vector_bytes = 0
        self._beats = False
        self._timer: asyncio.TimerHandle | None = None
        self._open = False

    def open(self) -> None:
        """The engine has started. What was put in before waits for it."""
        self._open = True

    def add(self, key: bytes, token_ids: list[int], text: str, logprobs: list[TokenLogprob] | None = None) -> None:
        """A delta. ``logprobs``: one a token, if they were asked for."""
        self._steps.add(key, token_ids, text.encode(), logprobs)
        if self._steps.tokens >= _BUFFERED_TOKENS:
            self.room.clear()
        self._moved()

    def add_vectors(self, vectors: list[Vector]) -> None:
        self._vectors.extend(vectors)
        self._vector_bytes += sum(len(vector.values) for vector in vectors)
        if self._vector_bytes >= _BUFFERED_BYTES:
            self.room.clear()
        self._ready.set()

    def beat(self) -> None:
        """A sign of life: the next step comes even if it is empty."""
        self._beats = True
        self._moved()

    def finish(self, finished: Finished) -> None:
        """The end of one that is no longer among those that move."""
        self._steps.finish(finished)
        self._moved()

    def die(self, why: str) -> None:
        """Ends the steps with EngineDiedError. The first reason counts."""
        self.death = self.death or why
        self._ready.set()

    def close(self) -> None:
        """Ends the steps, with whatever is left."""
        self._open = False
        self._cancel_timer()
        self._ready.set()

    async def steps(self) -> AsyncIterator[Step]:
        """Until :meth:`close`; none before :meth:`open`. Raises EngineDiedError after a death, when all from before it
        was taken."""
        while self._open:
            await self._ready.wait()
            self._ready.clear()
            if (step := self._take()) is not None:
                yield step
                self._make_room()
            if self.death and not self._vectors and self._open:
                raise EngineDiedError(self.death)

    def _take(self) -> Step | None:
        """Vectors first, half a megabyte of them at most: no end comes before its generation's last vector."""
        if not self._open:
            return None
        self._cancel_timer()
        if not self._steps and not self._vectors and not self._beats:
            return None
        vectors = self._take_vectors()
        if self._vectors:
            self._ready.set()
            return Step(clock.now_us(), embeddings=vectors)
        self._beats = False
        step = self._steps.take(clock.now_us())
        step.embeddings = vectors
        return step

    def _take_vectors(self) -> list[Vector]:
        taken, size = [], 0
        while self._vectors and (not size or size + len(self._vectors[0].values) <= _STEP_BYTES):
            vector = self._vectors.popleft()
            size += len(vector.values)
            taken.append(vector)
        self._vector_bytes -= size
        return taken

    def _make_room(self) -> None:
        """The consumer asks for more."""
        full = self._steps.tokens >= _BUFFERED_TOKENS or self._vector_bytes >= _BUFFERED_BYTES
        if not self.room.is_set() and not full:
            self.room.set()
            if self._on_room is not None:
                self._on_room()

    def _moved(self) -> None:
        """Ready at once if everybody has moved, else when the rest of this engine step had time to arrive."""
        if self._steps.moved() >= len(self._moving):
            self._ready.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COALESCE_SECONDS, self._ready.set)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
