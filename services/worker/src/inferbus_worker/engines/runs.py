"""Who runs in an engine and who waits for a place in it, and how one ends."""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.engine import EngineStatistics, Finish

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class End:
    """How a generation ends. ``error``: with ERROR."""

    reason: Finish
    error: InferBusError | None = None


class Follows(Protocol):
    """The state of an output in its form."""

    def takes(self, text: str) -> bool:
        """Whether the output may go on with ``text``."""
        ...

    def complete(self) -> bool:
        """Whether it may end here."""
        ...

    def broken(self) -> InferBusError:
        """What is said of one that did neither."""
        ...


class _Run(Protocol):
    """A submitted generation. ``task``: what drives it, while it runs."""

    task: asyncio.Task[None] | None

    @property
    def key(self) -> bytes: ...


RunT = TypeVar("RunT", bound=_Run)


class Runs(Generic[RunT]):
    """At most ``capacity`` are ``running``, by key, in the order of their begin; the rest is ``waiting``."""

    def __init__(self, capacity: int) -> None:
        self.running: dict[bytes, RunT] = {}
        self.waiting: deque[RunT] = deque()
        self.capacity = capacity

    def next(self) -> RunT | None:
        """Who is to begin, if there is a place."""
        return self.waiting[0] if self.waiting and len(self.running) < self.capacity else None

    def begin(self, run: RunT, drive: Coroutine[Any, Any, None]) -> None:
        """``run``, which is :meth:`next`, has the place from now on."""
        self.waiting.popleft()
        self.running[run.key] = run
        run.task = asyncio.create_task(drive, name="generation")

    def has(self, run: RunT) -> bool:
        """Whether it runs still: what comes for one that was closed meanwhile is for nobody."""
        return self.running.get(run.key) is run

    def take(self, key: bytes) -> RunT | None:
        """The one of ``key``, which leaves its place, or the queue; its task goes on. None: there is none."""
        run = self.running.pop(key, None)
        if run is None:
            run = next((waiting for waiting in self.waiting if waiting.key == key), None)
            if run is not None:
                self.waiting.remove(run)
        return run

    def leave(self, run: RunT) -> bool:
        """It has its end, whatever ended it: its task is cancelled, unless that is what calls. Whether it was."""
        self.running.pop(run.key, None)
        return cancel(run.task)

    def step_back(self, run: RunT) -> None:
        """It gives up its place, and is the next to have one. Its task ends, also if that is what calls: else it
        would go on reading beside its next one."""
        del self.running[run.key]
        if run.task is not None:
            run.task.cancel()
            run.task = None
        self.waiting.appendleft(run)

    def tasks(self) -> list[asyncio.Task[None]]:
        return [run.task for run in self.running.values() if run.task is not None]

    def statistics(self) -> EngineStatistics:
        """All that is known of an engine that says nothing itself."""
        return EngineStatistics(len(self.running), len(self.waiting))


def cancel(task: asyncio.Task[None] | None) -> bool:
    """Unless it is the one that calls."""
    return task is not None and task is not asyncio.current_task() and task.cancel()


def left_form(follower: Follows | None, tokens: int) -> End:
    """Of an output that did not keep the form that its ``follower`` knows, after so many tokens."""
    assert follower is not None  # noqa: S101  (without a form there is none to leave)
    error = follower.broken()
    log.warning("an output left its form", extra={"tokens": tokens, "error": error.diagnostic})
    return End(Finish.ERROR, error)


def differs() -> End:
    """Of a generation that was made again from its first token, and did not say again what was delivered."""
    return End(Finish.ERROR, engine_failed("a generation made again in its form came out differently"))


def not_up() -> InferBusError:
    """Of an engine between its stop and its next start."""
    return engine_failed("it is not started, or about to be started again")
