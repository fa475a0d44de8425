"""The hot path: frames from the bus into the answers of this edge's clients, all inside the bus callback."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta

from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import uuid_text
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_edge.core.frames import deltas
from inferbus_edge.core.order import Verdict, judge
from inferbus_edge.core.translate import FINISH_REASONS, error_of
from inferbus_edge.measure import Timing, record
from inferbus_edge.sinks import CLIENT_GONE, SLOW_CLIENT, EventStream, Sink

log = logging.getLogger(__name__)

# Deltas of a request that nobody here waits for: say so again, but not for each of them.
_CANCEL_AGAIN_SECONDS = 1.0
_MAX_STRAYS = 10_000
_RETRY_AFTER = timedelta(seconds=1)


class Reply:
    """What one client is owed. ``done`` ends when nothing more comes; then ``error`` says how."""

    __slots__ = ("attempt", "done", "error", "gone", "index", "request_id", "revision", "sink", "timing", "usage")

    def __init__(self, request_id: bytes, sink: Sink, timing: Timing) -> None:
        self.request_id = request_id
        self.sink = sink
        self.timing = timing
        self.attempt = 0
        self.index = 0  # tokens delivered
        self.revision = ""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error: InferBusError | None = None
        self.usage: Usage | None = None  # from its end on the log
        self.gone = False  # the client is: nothing can be said to it


class Replies:
    """All requests that this edge is answering; the one mutable thing of the room.

    ``send`` publishes a Cancel without acknowledgement.
    """

    def __init__(self, *, send: Callable[[Cancel], None], max_active: int) -> None:
        self._send = send
        self._max_active = max_active
        self._replies: dict[bytes, Reply] = {}
        self._strays: OrderedDict[bytes, float] = OrderedDict()
        self._idle = asyncio.Event()
        self._idle.set()
        self.draining = False

    def admit(self) -> None:
        """Raises InferBusError UNAVAILABLE if no request can be taken now."""
        if self.draining:
            raise unavailable("draining", "This server is stopping; retry.", retry_after=_RETRY_AFTER)
        if len(self._replies) >= self._max_active:
            raise unavailable("edge_full", "The server is overloaded; retry later.", retry_after=_RETRY_AFTER)

    def add(self, reply: Reply) -> None:
        """Deliver to ``reply`` from now on. Before the publish: frames may be faster than its ack."""
        self._replies[reply.request_id] = reply
        metrics.STREAMS_ACTIVE.set(len(self._replies))
        self._idle.clear()

    def on_frame(self, frame: Frame, _sequence: int) -> None:
        """Deliver one frame. Never raises, never waits."""
        try:
            rows = deltas(frame)
        except InferBusError as error:
            log.error("a frame is broken", extra={"reason": error.reason, "diagnostic": error.diagnostic})
            return
        now, now_us = clock.monotonic(), clock.now_us()
        replies = self._replies
        for request_id, context, attempt, first_index, count, text in rows:
            reply = replies.get(request_id)
            if reply is None:
                self._stray(request_id, now)
                continue
            if attempt != reply.attempt or first_index != reply.index:
                revision = frame.contexts[context].revision
                if not self._judged(reply, revision, attempt, first_index, count):
                    continue
            reply.index = index = first_index + count
            timing = reply.timing
            if timing.first_us == 0:
                timing.first_us = now_us
            timing.last_us = now_us
            trouble = reply.sink.write(index, text, now)
            if trouble is not None:
                self.abandon(reply, trouble)
        for close in frame.closes:
            self._close(close, frame.contexts[close.context_index].revision, now)

    def _judged(self, reply: Reply, revision: str, attempt: int, first_index: int, count: int) -> bool:
        """Whether an unexpected delta is delivered: the first of an attempt is, a repeated or void one is not."""
        verdict = judge(reply.attempt, reply.index, attempt, first_index, count)
        if verdict is Verdict.GAP:
            self._break(reply, f"attempt {attempt} gives index {first_index}")
        elif attempt > reply.attempt:
            reply.attempt, reply.revision = attempt, revision
            reply.sink.open(revision)
        return verdict is Verdict.ACCEPT

    def _close(self, close: Close, revision: str, now: float) -> None:
        reply = self._replies.get(close.request_id)
        if reply is None or close.attempt < reply.attempt:
            return
        error = error_of(close)
        if error is not None:
            self._end(reply, error, close)
            return
        if close.usage.output_tokens > reply.index:
            self._break(reply, f"the end counts {close.usage.output_tokens} tokens")
            return
        if close.usage.output_tokens < reply.index:
            log.error("a request ended with fewer tokens than were delivered", extra=_fields(reply))
        if close.attempt > reply.attempt:
            reply.attempt, reply.revision = close.attempt, revision
        reply.sink.finish(reply.index, reply.revision, FINISH_REASONS[close.finish_reason], close.usage, now)
        self._end(reply, None, close)

    def _break(self, reply: Reply, detail: str) -> None:
        """Tokens are missing: a law of the log is broken, and nothing right can follow."""
        log.error("tokens are missing in a stream", extra={**_fields(reply), "detail": detail})
        error = InferBusError(ErrorClass.ERROR_CLASS_INTERNAL, "token_gap", "The stream was interrupted; retry.")
        self.fail(reply, error, cancel="token_gap")

    def fail(self, reply: Reply, error: InferBusError, *, cancel: str) -> None:
        """End ``reply`` with ``error`` and its generation for the reason ``cancel``."""
        if reply.request_id in self._replies:
            self._cancel(reply.request_id, cancel, clock.monotonic())
            self._end(reply, error, None)

    def abandon(self, reply: Reply, reason: str) -> None:
        """The client is gone, or does not read: end its generation at once. Nothing happens after the end."""
        if reply.request_id not in self._replies:
            return
        reply.gone = True
        (metrics.STREAM_STALLS if reason == SLOW_CLIENT else metrics.CLIENT_CANCELS).inc()
        reply.sink.abort()
        self._cancel(reply.request_id, reason, clock.monotonic())
        error = InferBusError(ErrorClass.ERROR_CLASS_CANCELLED, reason, "The client left.")
        self._end(reply, error, None)

    def _end(self, reply: Reply, error: InferBusError | None, close: Close | None) -> None:
        del self._replies[reply.request_id]
        reply.error = error
        reply.usage = close.usage if close else None
        if error is not None and not reply.gone:
            reply.sink.fail(error, clock.monotonic())
        if not reply.done.done():  # cancelled with the handler that waited for it
            reply.done.set_result(None)
        record(reply.timing, error.reason if error else "", reply.usage, clock.now_us())
        metrics.STREAMS_ACTIVE.set(len(self._replies))
        if not self._replies:
            self._idle.set()

    def _stray(self, request_id: bytes, now: float) -> None:
        """Someone generates what nobody here waits for: a cancel was lost, or this edge was started anew."""
        if now - self._strays.get(request_id, -_CANCEL_AGAIN_SECONDS) >= _CANCEL_AGAIN_SECONDS:
            self._cancel(request_id, CLIENT_GONE, now)

    def _cancel(self, request_id: bytes, reason: str, now: float) -> None:
        self._strays[request_id] = now
        self._strays.move_to_end(request_id)
        if len(self._strays) > _MAX_STRAYS:
            self._strays.popitem(last=False)
        try:
            self._send(Cancel(request_id=request_id, reason=reason))
        except BufferError as error:
            log.warning("a cancel was not sent", extra={"request_id": uuid_text(request_id), "error": repr(error)})

    async def keep_alive(self, interval: timedelta) -> None:
        """Comment lines for the streams that were silent for ``interval``: one timer for all, for ever."""
        seconds = interval.total_seconds()
        while True:
            await asyncio.sleep(seconds / 4)
            now = clock.monotonic()
            for reply in list(self._replies.values()):
                if isinstance(reply.sink, EventStream) and now - reply.sink.last_write >= seconds:
                    trouble = reply.sink.keepalive(now)
                    if trouble is not None:
                        self.abandon(reply, trouble)

    async def drain(self) -> None:
        """Take no new requests; returns when the present ones have ended."""
        self.draining = True
        await self._idle.wait()

    def end_all(self) -> None:
        """The drain's deadline is over: end what is left, so that every client knows."""
        self.draining = True
        error = unavailable("draining", "This server has stopped; retry.", retry_after=_RETRY_AFTER)
        for reply in list(self._replies.values()):
            self.fail(reply, error, cancel="edge_stopped")


def _fields(reply: Reply) -> dict[str, object]:
    return {"request_id": uuid_text(reply.request_id), "attempt": reply.attempt, "index": reply.index}
