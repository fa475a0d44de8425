"""Who attends to which generation, told to the bus: cancels, and that a client came back to this edge."""

import asyncio
import logging
from collections.abc import Callable

from inferbus.bus.v1.control_pb2 import Attached, Cancel
from inferbus_contracts.ids import choice_id, uuid_text
from inferbus_runtime import clock

from inferbus_edge.core.lifetimes import ATTACHED_SECONDS, Ending, Lifetimes
from inferbus_edge.streaming import Answer

log = logging.getLogger(__name__)
_TICK_SECONDS = 0.5
_SAY_AGAIN_SECONDS = ATTACHED_SECONDS / 3
EDGE_STOPPED = "edge_stopped"


class Attendance:
    """The listener of all streams of this edge. ``send`` publishes without acknowledgement."""

    def __init__(self, edge: str, send: Callable[[Cancel | Attached], None], orphan_seconds: float) -> None:
        self._edge = edge
        self._send = send
        self._lifetimes = Lifetimes(orphan_seconds)

    def arrive(self, answer: Answer) -> None:
        """Its client is here. If it came back, the other edges are told."""
        if not answer.attended:
            return
        self._lifetimes.arrive(answer.first, shared=answer.resumed)
        if answer.resumed:
            self._say([answer.first], [], arrived=True)

    def stray(self, request_id: bytes, now: float) -> None:
        self._cancel(self._lifetimes.stray(request_id, choice_id(request_id, 0), now))

    def cancel(self, ids: tuple[bytes, ...], reason: str) -> None:
        """End these, whoever wants them."""
        self._cancel(self._lifetimes.cancel(ids, reason, clock.monotonic()))

    def left(self, answer: Answer, reason: str) -> bool:
        if not answer.attended:
            return True
        answer.attended = False
        ending = self._lifetimes.leave(answer.ids, reason, answer.hold, clock.monotonic())
        self._cancel(ending)
        if self._lifetimes.waits(answer.first):
            self._say([], [answer.first])
        return ending is None

    def broken(self, answer: Answer, reason: str) -> None:
        if reason == EDGE_STOPPED:  # its client may come back, here or to another edge
            self.left(answer, reason)
            return
        if answer.attended:
            self._lifetimes.finish(answer.first)
        elif not answer.goes_on:
            return
        self.cancel(answer.ids, reason)

    def dropped(self, answer: Answer) -> None:
        """It could not be made from the log: what its generations do is not for this client to say."""
        if answer.attended:
            self._lifetimes.finish(answer.first)

    def ended(self, answer: Answer) -> None:
        if answer.attended:
            self._lifetimes.finish(answer.first)
        if answer.attended or answer.goes_on:
            self._lifetimes.ended(answer.first)

    def on_attached(self, message: Attached) -> None:
        if message.edge == self._edge:
            return
        news = self._lifetimes.elsewhere(
            message.edge, message.request_ids, message.held_ids, clock.monotonic(), arrived=message.arrived
        )
        if news:
            self._say(news, [])

    async def run(self) -> None:
        """Holds that end, and word to the other edges; for ever."""
        said = clock.monotonic()
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = clock.monotonic()
            for ending in self._lifetimes.due(now):
                self._cancel(ending)
            attached, held = self._lifetimes.shared()
            if (attached or held) and now - said >= _SAY_AGAIN_SECONDS:
                said = now
                self._say(attached, held)

    def _say(self, attached: list[bytes], held: list[bytes], *, arrived: bool = False) -> None:
        try:
            self._send(Attached(edge=self._edge, request_ids=attached, held_ids=held, arrived=arrived))
        except BufferError as error:
            log.warning("other edges were not told of streams that came here", extra={"error": repr(error)})

    def _cancel(self, ending: Ending | None) -> None:
        for request_id in ending.ids if ending is not None else ():
            try:
                self._send(Cancel(request_id=request_id, reason=ending.reason if ending else ""))
            except BufferError as error:
                log.warning("a cancel was not sent", extra={"request_id": uuid_text(request_id), "error": repr(error)})
