"""The hot path: frames from the bus into the answers of this edge's clients, all inside the bus callback."""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Protocol

from inferbus.bus.v1.frame_pb2 import Close, Embedding, Frame, Output
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import choice_id, is_detached, uuid_text
from inferbus_dialect.frames import deltas, opening_context
from inferbus_dialect.order import Verdict, judge
from inferbus_dialect.translate import add_usage, error_of
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError

from inferbus_edge.measure import Timing, record
from inferbus_edge.sinks import NOWHERE, Sink
from inferbus_edge.wire import SLOW_CLIENT

log = logging.getLogger(__name__)


class Part:
    """One choice of an answer: how far it is on the log."""

    __slots__ = ("answer", "attempt", "choice", "closed", "index", "opened", "request_id", "sink", "timing")

    def __init__(self, answer: "Answer", choice: int) -> None:
        self.answer = answer
        self.choice = choice
        self.request_id = choice_id(answer.first, choice)
        self.sink = answer.sink
        self.timing = answer.timing
        self.attempt = 0  # anything of a lower one is void
        self.opened = 0  # the attempt whose deltas the sink gets; 0: none, or the last one was fenced off
        self.index = 0  # tokens delivered
        self.closed = False


class Answer:
    """What one client is owed: ``choices`` parts into one sink. ``done`` ends when nothing more comes; then ``error``
    says how. ``first``: the id of the first choice, which names the whole."""

    __slots__ = (
        "attended", "delivered", "done", "error", "expires", "first", "goes_on", "gone", "hold", "on_log",
        "output_bytes", "parts", "resumed", "settle", "sink", "timing", "usage",
    )  # fmt: skip

    def __init__(self, first: bytes, choices: int, sink: Sink, timing: Timing, hold: float = 0.0) -> None:
        """``hold``: seconds that its generations go on for a client that has vanished."""
        self.first = first
        self.sink = sink
        self.timing = timing
        self.hold = hold
        self.on_log = False  # its end, good or bad
        self.attended = True  # by a client: its generations are wanted
        self.resumed = False  # from the log: it has been counted in the metrics before
        self.parts = [Part(self, choice) for choice in range(choices)]
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: InferBusError | None = None
        # How its delivery ended, told once, while parts and sink still show it. Empty: all of it went out.
        self.delivered: Callable[[Answer, str], None] | None = None
        self.output_bytes = 0  # of tensors, of all attempts
        self.usage: Usage | None = None  # of all choices, once they have ended
        self.gone = False  # the client is: nothing can be said to it
        self.goes_on = False  # the client is gone and its generations are not
        # What its generations have used is known now: called once, however it ends. Somebody waits for that until
        # ``expires`` (monotonic seconds), with or without a client.
        self.settle: Callable[[], None] | None = None
        self.expires = math.inf

    @property
    def ids(self) -> tuple[bytes, ...]:
        return tuple(part.request_id for part in self.parts)

    @property
    def output_tokens(self) -> int:
        """Delivered so far."""
        return sum(part.index for part in self.parts)


class Listener(Protocol):
    """Who wants to know what becomes of the answers of some :class:`Streams`."""

    def stray(self, request_id: bytes, now: float) -> None:
        """A delta that nobody in these streams waits for."""
        ...

    def left(self, answer: Answer, reason: str) -> bool:
        """Its client is gone or does not read. True if its generations go on all the same."""
        ...

    def broken(self, answer: Answer, reason: str) -> None:
        """It was failed by this edge: its generations are wanted by nobody."""
        ...

    def ended(self, answer: Answer) -> None:
        """Its last choice has ended on the log."""
        ...


class Streams:
    """Answers by the ids of their choices, and the delivery of frames to them."""

    def __init__(self, listener: Listener, on_size: Callable[[int], None] = lambda size: None) -> None:
        self._listener = listener
        self._on_size = on_size
        self._parts: dict[bytes, Part] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._parts)

    def __contains__(self, request_id: bytes) -> bool:
        return request_id in self._parts

    def answers(self) -> list[Answer]:
        return list({id(part.answer): part.answer for part in self._parts.values()}.values())

    def add(self, answer: Answer) -> None:
        """Deliver to ``answer`` from now on. Before the publish: frames may be faster than its ack."""
        for part in answer.parts:
            self._parts[part.request_id] = part
        self._on_size(len(self._parts))
        self._idle.clear()

    async def idle(self) -> None:
        """Returns when no answer is owed."""
        await self._idle.wait()

    def fence(self, request_id: bytes, attempt: int) -> None:
        """From now on anything of an attempt below is void."""
        part = self._parts.get(request_id)
        if part is not None and attempt > part.attempt:
            part.attempt, part.opened = attempt, 0

    def on_frame(self, frame: Frame, _sequence: int) -> None:
        """Deliver one frame. Never raises, never waits."""
        try:
            rows = deltas(frame)
        except InferBusError as error:
            log.error("a frame is broken", extra={"reason": error.reason, "diagnostic": error.diagnostic})
            return
        now, now_us = clock.monotonic(), clock.now_us()
        parts = self._parts
        for fence in frame.fences:
            self.fence(fence.request_id, fence.attempt)
        for request_id, context, attempt, first_index, count, text, escaped, logprobs in rows:
            part = parts.get(request_id)
            if part is None:
                self._listener.stray(request_id, now)
                continue
            if (attempt != part.opened or first_index != part.index) and not self._judged(
                part, frame.contexts[context], attempt, first_index, count
            ):
                continue
            part.index = first_index + count
            timing = part.timing
            if timing.first_us == 0:
                timing.first_us = now_us
            timing.last_us = now_us
            trouble = part.sink.write(part.choice, count, text, escaped, logprobs, now)
            if trouble is not None:
                self.leave(part.answer, trouble)
        for vector in frame.embeddings:
            part = parts.get(vector.request_id)
            if part is not None and self._wanted(part, vector, frame):
                part.sink.binary(vector.index, vector.values)
        for output in frame.outputs:
            part = parts.get(output.request_id)
            if part is not None and self._wanted(part, output, frame):
                part.answer.output_bytes += len(output.data)
                part.sink.binary(output.index, output.data)
        for close in frame.closes:
            self._close(close, frame.contexts[close.context_index], now)

    def _judged(self, part: Part, context: RequestContext, attempt: int, first_index: int, count: int) -> bool:
        """Whether an unexpected delta is delivered: the first of an attempt is, a repeated or void one is not."""
        verdict = judge(part.attempt, part.index, attempt, first_index, count)
        if verdict is Verdict.GAP:
            self._break(part, f"attempt {attempt} gives index {first_index}")
        elif attempt >= part.attempt and attempt != part.opened:
            self._open(part, attempt, context)
        return verdict is Verdict.ACCEPT

    def _wanted(self, part: Part, found: Embedding | Output, frame: Frame) -> bool:
        """Whether a vector, or a part of what an inference call gives, is delivered: a void one is not."""
        attempt = found.attempt or 1
        if attempt >= part.attempt and attempt != part.opened:
            self._open(part, attempt, opening_context(frame, found.request_id))
        return attempt == part.attempt

    @staticmethod
    def _open(part: Part, attempt: int, context: RequestContext) -> None:
        part.attempt = part.opened = attempt
        part.timing.model = context.model or part.timing.model  # maybe a fallback
        part.sink.open(part.choice, context.revision, context.model)

    def _close(self, close: Close, context: RequestContext, now: float) -> None:
        part = self._parts.get(close.request_id)
        if part is None or part.closed or close.attempt < part.attempt:
            return
        error = error_of(close)
        if error is not None:
            part.answer.on_log = True
            self.fail(part.answer, error, cancel="choice_failed" if len(part.answer.parts) > 1 else None)
            return
        if close.usage.output_tokens > part.index:
            self._break(part, f"the end counts {close.usage.output_tokens} tokens")
            return
        if close.usage.output_tokens < part.index:
            log.error("a request ended with fewer tokens than were delivered", extra=_fields(part))
        if close.attempt != part.opened:
            self._open(part, close.attempt, context)  # one that made nothing: what an earlier one left is void
        part.closed = True
        answer = part.answer
        part.sink.close(part.choice, context.revision, close, now, context.model)
        answer.usage = answer.usage or Usage()
        add_usage(answer.usage, close.usage)
        if all(one.closed for one in answer.parts):
            answer.on_log = True
            answer.sink.finish(now)
            self._end(answer, None)
            self._listener.ended(answer)

    def _break(self, part: Part, detail: str) -> None:
        """Tokens are missing: a law of the log is broken, and nothing right can follow."""
        log.error("tokens are missing in a stream", extra={**_fields(part), "detail": detail})
        error = InferBusError(ErrorClass.ERROR_CLASS_INTERNAL, "token_gap", "The stream was interrupted; retry.")
        self.fail(part.answer, error, cancel="token_gap")

    def fail(self, answer: Answer, error: InferBusError, *, cancel: str | None) -> None:
        """End ``answer`` with ``error``, and its generations for the reason ``cancel`` unless they have ended."""
        if self._parts.get(answer.first) not in answer.parts:
            return
        self._end(answer, error)
        if cancel is None:
            self._listener.ended(answer)
        else:
            self._listener.broken(answer, cancel)

    def leave(self, answer: Answer, reason: str) -> None:
        """The client is gone, or does not read. Nothing happens after the end."""
        if self._parts.get(answer.first) not in answer.parts or answer.gone:
            return
        answer.gone = True
        (metrics.STREAM_STALLS if reason == SLOW_CLIENT else metrics.CLIENT_CANCELS).inc()
        _tell(answer, reason)
        answer.sink.abort()
        answer.goes_on = self._listener.left(answer, reason) and answer.settle is not None
        error = InferBusError(ErrorClass.ERROR_CLASS_CANCELLED, reason, "The client left.")
        if answer.goes_on:
            answer.sink = NOWHERE
            for part in answer.parts:
                part.sink = NOWHERE
            self._done(answer, error)
        else:
            self._end(answer, error)

    def release(self, answer: Answer) -> None:
        """Deliver nothing more to it; its generations go on."""
        for part in answer.parts:
            if self._parts.get(part.request_id) is part:
                del self._parts[part.request_id]
        self._on_size(len(self._parts))
        if not self._parts:
            self._idle.set()

    def _end(self, answer: Answer, error: InferBusError | None) -> None:
        for part in answer.parts:
            del self._parts[part.request_id]
        if not answer.goes_on:
            self._done(answer, error)
        if answer.settle is not None:
            answer.settle()
            answer.settle = None
        self._on_size(len(self._parts))
        if not self._parts:
            self._idle.set()

    @staticmethod
    def _done(answer: Answer, error: InferBusError | None) -> None:
        """For whoever waits for it."""
        answer.error = error
        _tell(answer, error.reason if error is not None else "")
        if error is not None and not answer.gone:
            answer.sink.fail(error, clock.monotonic())
        if not answer.done.done():  # cancelled with the handler that waited for it
            answer.done.set_result(None)
        if not answer.resumed:
            record(answer.timing, error.reason if error else "", answer.usage, clock.now_us())

    def keep_alive(self, seconds: float, now: float) -> None:
        """A comment line for each stream that was silent for ``seconds``. What goes on without a client and has not
        ended in its time is not waited for any longer."""
        for answer in self.answers():
            if answer.goes_on and now > answer.expires:
                error = InferBusError(ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED, "request_deadline", "It took too long.")
                self.fail(answer, error, cancel="deadline")
                continue
            if answer.sink.silent_since(now) >= seconds:
                trouble = answer.sink.keepalive(now)
                if trouble is not None:
                    self.leave(answer, trouble)

    def fail_all(self, error: InferBusError, cancel: str | None) -> None:
        """Detached ones run on: they are found again from the log."""
        for answer in self.answers():
            self.fail(answer, error, cancel=None if is_detached(answer.first) else cancel)


def _tell(answer: Answer, why: str) -> None:
    if answer.delivered is not None:
        delivered, answer.delivered = answer.delivered, None
        delivered(answer, why)


def _fields(part: Part) -> dict[str, object]:
    return {"request_id": uuid_text(part.request_id), "attempt": part.attempt, "index": part.index}
