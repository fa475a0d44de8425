"""The engine seam: what a worker asks of the software on its GPU.

An engine yields *steps*: the deltas of all generations that moved in one engine step, so that a frame costs one
message however many generations run. Closing a generation is its cancel; there is no second abort path.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from inferbus_runtime.errors import InferBusError


class Finish(Enum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; None: the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Generation:
    """One attempt as the engine sees it. ``key`` (16 bytes) names it in every step.

    ``resume_ids`` are output tokens that an earlier attempt has already delivered: the engine goes on after them and
    yields only what is new. ``sampling.max_tokens`` counts from the first token of the request, those included.
    """

    key: bytes
    messages: tuple[Message, ...]
    sampling: Sampling
    resume_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine serves. ``capacity``: generations that it runs at once."""

    engine: str
    model: str
    revision: str
    capacity: int
    context_length: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a generation. Output tokens are not counted here: they are the tokens of its deltas.

    The end-of-turn token is no delta: nobody receives it. ``error`` is set exactly if ``reason`` is ERROR.
    """

    key: bytes
    reason: Finish
    input_tokens: int
    cached_input_tokens: int = 0
    error: InferBusError | None = None


@dataclass(slots=True)
class Step:
    """Columns, one entry a delta, in generation order; a key appears at most once.

    ``token_ids`` holds ``counts[i]`` ids for delta ``i``, one after the other. A delta's text is valid UTF-8 by itself
    (an engine holds back half characters and what may become a stop string); ``counts[i]`` may be 0 with text, or a
    text empty with tokens.
    """

    time_us: int
    keys: list[bytes] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)


class EngineDiedError(Exception):
    """The engine is gone with all its generations; stop it, start it again, submit what was running."""


class Engine(Protocol):
    """One engine. Calls come from one event loop; none of them blocks it."""

    async def start(self) -> EngineInfo:
        """Ready for :meth:`submit` when it returns. May be called again after :meth:`stop`."""
        ...

    def submit(self, generation: Generation) -> None:
        """Begin; returns at once. All that follows, bad input included, comes as a step ending in one Finished.

        More than ``capacity`` at once is allowed; the rest waits inside.
        """
        ...

    def close(self, key: bytes) -> None:
        """End a generation now: its Finished (CANCELLED) comes within 100 ms. Unknown or ended: nothing happens."""
        ...

    def steps(self) -> AsyncIterator[Step]:
        """Steps of all generations, until :meth:`stop`. Raises EngineDiedError when the engine is gone.

        One consumer. While it does not ask, generation pauses as soon as a bounded buffer is full.
        """
        ...

    async def stop(self) -> None:
        """Free everything. Safe twice, and after a failed start."""
        ...


def token_total(step: Step) -> int:
    return sum(step.counts)


def texts_of(steps: Sequence[Step], key: bytes) -> bytes:
    """All text of one generation, in order: what tests compare."""
    return b"".join(text for step in steps for k, text in zip(step.keys, step.texts, strict=True) if k == key)
