"""Where an answer goes: into an event stream, or into the body of a unary answer.

All take the same calls, from the bus callback: ``open``, ``write`` for each delta, ``binary``, ``close`` for each
choice, then ``finish`` or ``fail``. ``write`` returns why the client can get no more, or None. ``model``: which one
answers, maybe a fallback; empty: the one that was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from inferbus.bus.v1.frame_pb2 import Close, TokenLogprob
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_dialect import sse
from inferbus_dialect.form import DONE, Form
from inferbus_dialect.translate import FINISH_REASONS, add_usage, completion_body
from inferbus_runtime.errors import InferBusError

from inferbus_edge.wire import Line, Wire

_NEVER = -1.0


class Sink(Protocol):
    """See the module."""

    @property
    def started(self) -> bool:
        """Something of the answer is out: its status cannot change any more."""
        ...

    def open(self, choice: int, revision: str, model: str = "") -> None: ...

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None: ...

    def binary(self, index: int, data: bytes) -> None: ...

    def close(self, choice: int, revision: str, close: Close, now: float, model: str = "") -> None: ...

    def finish(self, now: float) -> None: ...

    def fail(self, error: InferBusError, now: float) -> None: ...

    def silent_since(self, now: float) -> float:
        """Seconds since something was sent; less than 0 if nobody listens for it."""
        ...

    def keepalive(self, now: float) -> str | None:
        """Send a comment line."""
        ...

    def abort(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ChatFacts:
    """What a plain chat answer says about its request. ``created`` in Unix seconds."""

    request_id: bytes
    created: int
    model: str
    include_usage: bool
    choices: int


class ChatStream:
    """A chat stream of nothing but text: the case that must be cheap."""

    __slots__ = ("_ending", "_facts", "_forms", "_models", "_revision", "_usage", "_wire")

    def __init__(self, facts: ChatFacts, line: Line, now: float) -> None:
        self._facts = facts
        self._wire = Wire(line, now)
        self._forms: list[sse.Template | None] = [None] * facts.choices
        self._models = [facts.model] * facts.choices
        self._ending: list[bytes] = []
        self._revision = ""
        self._usage = Usage()

    @property
    def started(self) -> bool:
        return self._wire.started

    @property
    def begun(self) -> bool:
        return self._wire.begun

    def open(self, choice: int, revision: str, model: str = "") -> None:
        """Text of ``revision`` follows. The role goes out with the first of it."""
        self._models[choice] = model or self._models[choice]
        facts = self._of(revision, choice)
        if self._forms[choice] is None:
            self._wire.lead(self._wire.events((sse.role_event(facts, choice),)))
        self._forms[choice] = sse.template(facts, choice, chunked=self._wire.chunked)

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None:
        wire, form = self._wire, self._forms[choice]
        assert form is not None  # noqa: S101 (open comes first)
        wire.number = number = wire.number + 1
        if number <= wire.after:
            return None
        return wire.send(sse.delta_event(form, number, escaped), now)

    def binary(self, index: int, data: bytes) -> None:
        """A chat has nothing but text."""

    def close(self, choice: int, revision: str, close: Close, now: float, model: str = "") -> None:
        if self._forms[choice] is None:
            self.open(choice, revision, model)
        self._revision = revision
        add_usage(self._usage, close.usage)
        end = sse.end_event(self._of(revision, choice), choice, FINISH_REASONS[close.finish_reason])
        if self._facts.choices > 1:
            self._wire.send(self._wire.events((end,)), now)
        else:
            self._ending = [end]  # one write for all of the end

    def finish(self, now: float) -> None:
        if self._facts.include_usage:
            self._ending.append(sse.usage_event(self._of(self._revision, 0), self._usage))
        self._wire.send(self._wire.events((*self._ending, DONE)) + self._wire.end(), now)

    def fail(self, error: InferBusError, now: float) -> None:
        """Before the first byte nothing is written: whoever waits for the end answers with the error's own status."""
        if self._wire.begun:
            self._wire.send(self._wire.framed(sse.error_event(error)) + self._wire.end(), now)

    def uncork(self, now: float) -> str | None:
        return self._wire.uncork(now)

    def silent_since(self, now: float) -> float:
        return now - self._wire.last_write

    def keepalive(self, now: float) -> str | None:
        return self._wire.send(self._wire.framed(sse.KEEPALIVE), now)

    def abort(self) -> None:
        self._wire.abort()

    def _of(self, revision: str, choice: int) -> sse.StreamFacts:
        facts = self._facts
        return sse.StreamFacts(facts.request_id, facts.created, self._models[choice], revision, facts.include_usage)


class FormStream:
    """An event stream in the form of any API."""

    __slots__ = ("_form", "_wire")

    def __init__(self, form: Form, line: Line, now: float) -> None:
        self._form = form
        self._wire = Wire(line, now)

    @property
    def body(self) -> bytes:
        """The answer in one piece, for the store."""
        return self._form.body()

    @property
    def started(self) -> bool:
        return self._wire.started

    @property
    def begun(self) -> bool:
        return self._wire.begun

    def accept(self, now: float) -> str | None:
        """The head and what the form says before there is a token: for an answer that may wait for long."""
        return self._wire.send(self._wire.events(self._form.accept()), now)

    def open(self, choice: int, revision: str, model: str = "") -> None:
        self._wire.lead(self._wire.events(self._form.open(choice, revision, model)))

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None:
        data = self._wire.events(self._form.delta(choice, text.decode(), count, logprobs))
        return self._wire.send(data, now) if data or self._wire.leads else None

    def binary(self, index: int, data: bytes) -> None:
        self._form.binary(index, data)

    def close(self, choice: int, revision: str, close: Close, now: float, model: str = "") -> None:
        data = self._wire.events(self._form.close(choice, revision, close, model))
        if data:
            self._wire.send(data, now)

    def finish(self, now: float) -> None:
        self._wire.send(self._wire.events(self._form.finish()) + self._wire.end(), now)

    def fail(self, error: InferBusError, now: float) -> None:
        events = self._form.fail(error)  # also for the store, whatever the client gets
        if self._wire.begun:
            self._wire.send(self._wire.framed(b"".join(events)) + self._wire.end(), now)

    def uncork(self, now: float) -> str | None:
        return self._wire.uncork(now)

    def silent_since(self, now: float) -> float:
        return now - self._wire.last_write

    def keepalive(self, now: float) -> str | None:
        return self._wire.send(self._wire.framed(sse.KEEPALIVE), now)

    def abort(self) -> None:
        self._wire.abort()


class ChatBody:
    """The text of a plain unary chat answer, kept until its end."""

    __slots__ = ("_created", "_model", "_parts", "_request_id", "body")
    started = False

    def __init__(self, facts: ChatFacts) -> None:
        """For one choice."""
        self._request_id = facts.request_id
        self._created = facts.created
        self._model = facts.model
        self._parts: list[bytes] = []
        self.body = b""

    def open(self, choice: int, revision: str, model: str = "") -> None:
        """Nothing to say before the end."""

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None:
        self._parts.append(escaped)
        return None

    def binary(self, index: int, data: bytes) -> None:
        """A chat has nothing but text."""

    def close(self, choice: int, revision: str, close: Close, now: float, model: str = "") -> None:
        self.body = completion_body(
            request_id=self._request_id,
            created=self._created,
            model=model or self._model,
            revision=revision,
            escaped=b"".join(self._parts),
            finish_reason=FINISH_REASONS[close.finish_reason],
            usage=close.usage,
        )

    def finish(self, now: float) -> None:
        """The body is made already."""

    def fail(self, error: InferBusError, now: float) -> None:
        """The error is the answer; whoever waits for the end gives it."""

    def silent_since(self, now: float) -> float:
        return _NEVER

    def keepalive(self, now: float) -> str | None:
        return None

    def abort(self) -> None:
        """Nobody reads this yet."""


class FormBody:
    """A unary answer in the form of any API."""

    __slots__ = ("form",)
    started = False

    def __init__(self, form: Form) -> None:
        self.form = form

    @property
    def body(self) -> bytes:
        """What is there so far; all of it after the end."""
        return self.form.body()

    def open(self, choice: int, revision: str, model: str = "") -> None:
        self.form.open(choice, revision, model)

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None:
        self.form.delta(choice, text.decode(), count, logprobs)
        return None

    def binary(self, index: int, data: bytes) -> None:
        self.form.binary(index, data)

    def close(self, choice: int, revision: str, close: Close, now: float, model: str = "") -> None:
        self.form.close(choice, revision, close, model)

    def finish(self, now: float) -> None:
        self.form.finish()

    def fail(self, error: InferBusError, now: float) -> None:
        self.form.fail(error)

    def silent_since(self, now: float) -> float:
        return _NEVER

    def keepalive(self, now: float) -> str | None:
        return None

    def abort(self) -> None:
        """Nobody reads this yet."""


class Nowhere:
    """For an answer that goes on without its client: only what it uses is of interest."""

    started = True

    def open(self, choice: int, revision: str, model: str = "") -> None: ...

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None:
        return None

    def binary(self, index: int, data: bytes) -> None: ...

    def close(self, choice: int, revision: str, close: Close, now: float, model: str = "") -> None: ...

    def finish(self, now: float) -> None: ...

    def fail(self, error: InferBusError, now: float) -> None: ...

    def silent_since(self, now: float) -> float:
        return _NEVER

    def keepalive(self, now: float) -> str | None:
        return None

    def abort(self) -> None: ...


NOWHERE = Nowhere()
Stream = ChatStream | FormStream
Body = ChatBody | FormBody
