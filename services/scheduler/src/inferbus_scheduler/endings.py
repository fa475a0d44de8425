"""How a request ends that no worker has: one frame with its Close, and its acknowledgement after that is stored.

The edge learns of it as of any other end, and so does the bill: from the log. What a request had got from workers
before is billed; its input is not, since those who counted it are gone.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from inferbus.bus.v1.frame_pb2 import Close, Frame, Open
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.error_pb2 import Error
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.frames import FramePublisher
from inferbus_contracts.operations import operation_of
from inferbus_runtime import clock

from inferbus_scheduler.core.admission import Refusal


def error_of(refusal: Refusal) -> Error:
    error = Error(error_class=refusal.error_class, reason=refusal.reason, message=refusal.message, param=refusal.param)
    if refusal.retry_after:
        error.retry_after.FromMilliseconds(round(refusal.retry_after * 1000))
    return error


def close_of(request: GenerateRequest, refusal: Refusal | None, end_us: int) -> Close:
    """Its end at ``end_us`` (Unix microseconds): without an attempt, or as the one that would have come next.

    ``refusal`` None: it was cancelled.
    """
    close = Close(
        request_id=request.request_id,
        attempt=request.resume.attempt,
        finish_reason=FinishReason.FINISH_REASON_ERROR if refusal else FinishReason.FINISH_REASON_CANCELLED,
        priority_class=request.priority_class,
        accepted_time=request.accepted_time,
        end_time=clock.timestamp(end_us),
        operation=operation_of(request),
        cold_start_us=request.resume.cold_start_us,
    )
    # Present even if it is zero. As a Close without deltas it also names the index that its attempt resumed at.
    close.usage.SetInParent()
    resume = request.resume
    close.usage.output_tokens = resume.output_tokens if resume.end else len(resume.token_ids)
    for time in ("first_started_time", "first_token_time", "last_token_time"):
        if request.resume.HasField(time):
            getattr(close, time).CopyFrom(getattr(request.resume, time))
    if request.HasField("labels"):
        close.labels.CopyFrom(request.labels)
    if refusal is not None:
        close.error.CopyFrom(error_of(refusal))
    return close


class Endings:
    """Publishes closes, and says when each is stored. One task for all of them."""

    def __init__(self, frames: FramePublisher) -> None:
        self._frames = frames
        self._open: deque[tuple[int, Callable[[], None]]] = deque()
        self._some = asyncio.Event()
        self._none = asyncio.Event()
        self._none.set()

    def end(self, request: GenerateRequest, refusal: Refusal | None, on_stored: Callable[[], None]) -> None:
        """Publish the end of ``request``; ``on_stored`` is called once when it is on the log, however late."""
        now_us = clock.now_us()
        frame = Frame(
            edge=request.edge,
            time_us=now_us,
            contexts=[request.context],
            closes=[close_of(request, refusal, now_us)],
            # Of one that never had a worker nothing is on the log yet: an edge that did not accept it reads here how to
            # write its answer.
            opens=[_open_of(request)],
        )
        self._open.append((self._frames.publish(frame), on_stored))
        self._some.set()
        self._none.clear()

    async def run(self) -> None:
        """For ever: tell those whose frame is stored, in order."""
        while True:
            await self._some.wait()
            while self._open:
                sequence, on_stored = self._open[0]
                await self._frames.wait_acked(sequence)
                self._open.popleft()
                on_stored()
            self._some.clear()
            self._none.set()

    async def flushed(self) -> None:
        """Returns when all that was ended so far is stored."""
        await self._none.wait()


def _open_of(request: GenerateRequest) -> Open:
    opening = Open(request_id=request.request_id, reply=request.reply)
    if request.resume.HasField("first_started_time"):
        opening.first_started_time.CopyFrom(request.resume.first_started_time)
    return opening
