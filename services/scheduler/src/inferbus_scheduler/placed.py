"""What is placed on whom: WORK, read without taking anything, and cleared of what has been given to another.

A consumer of a work queue would take what it reads; direct gets do not. Each is a batch of one subject, which the
broker answers in one go.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from inferbus.bus.v1.request_pb2 import Work
from inferbus_bus.connection import Bus, send_now
from inferbus_bus.consumers import consumer_info
from inferbus_bus.errors import CONSUMER_NOT_FOUND, StreamApiError, bus_unavailable
from inferbus_bus.log import rfc3339
from inferbus_bus.publish import PubAck, Publisher
from inferbus_contracts.subjects import incarnation_of, message_id, subject_token, work_subject
from nats.aio.msg import Msg

log = logging.getLogger(__name__)
PAGE, PAGE_BYTES = 256, 8 << 20
_ANSWER_SECONDS = 5.0
# Somebody has deleted it already, or its worker has acknowledged it. The code of the second says less than its text.
_NOT_FOUND, _NO_MESSAGE = 10043, "no message found"
# The boot of no incarnation: copies of what is being moved.
COPIES = 0
# Of a copy: when the placement was stored.
_STORED = "InferBus-Stored-Us"
Incarnation = tuple[str, int]
_PLACEMENT = re.compile(r"work\.[^.]+\.\d+")


@dataclass(frozen=True, slots=True)
class Placed:
    """One message of WORK. ``stored_us``: when the broker stored it, by its clock; of a copy, what it is a copy of."""

    sequence: int
    stored_us: int
    headers: Mapping[str, str]
    data: bytes


class PlacedWork:
    """Every method may raise InferBusError UNAVAILABLE and StreamApiError, and is safe twice."""

    def __init__(self, bus: Bus, publisher: Publisher) -> None:
        self._bus = bus
        self._publisher = publisher

    async def incarnations(self) -> list[Incarnation]:
        """Whose work there is; of one that was interrupted in the moving, the copies last."""
        info = await self._bus.api("STREAM.INFO.WORK", {"subjects_filter": "work.>"})
        subjects: dict[str, int] = info["state"].get("subjects") or {}
        found = [incarnation_of(subject) for subject in subjects if _PLACEMENT.fullmatch(subject)]
        if strange := len(subjects) - len(found):
            log.warning("subjects of WORK that are nobody's, as of a former version", extra={"subjects": strange})
        return sorted(found, key=lambda one: one[1] == COPIES)

    async def page(self, of: Incarnation, first: int = 1, count: int = PAGE) -> list[Placed]:
        """The next messages of one incarnation from sequence ``first`` on, about 8 MiB at most; none: no more."""
        request = {"batch": count, "max_bytes": PAGE_BYTES, "seq": first, "next_by_subj": work_subject(*of)}
        return await stored(self._bus, "WORK", request)

    async def since(self, stored_us: int) -> AsyncIterator[list[Placed]]:
        """All that was stored then (by the broker's clock) or later, whoever has it, in pages."""
        start: dict[str, Any] = {"start_time": rfc3339(stored_us)}
        while page := await stored(
            self._bus, "WORK", {"batch": PAGE, "max_bytes": PAGE_BYTES, "next_by_subj": "work.>", **start}
        ):
            yield page
            start = {"seq": page[-1].sequence + 1}

    async def one(self, sequence: int) -> Placed | None:
        """The message at ``sequence``, if it is there still."""
        found = await stored(self._bus, "WORK", {"batch": 1, "seq": sequence, "next_by_subj": "work.>"})
        return found[0] if found and found[0].sequence == sequence else None

    async def last_delivered(self, of: Incarnation) -> int:
        """Up to which stream sequence its work has gone out to that incarnation; 0: nobody knows, as of one that has a
        successor, whose consumer has the place of its own."""
        worker, boot = of
        try:
            info = await consumer_info(self._bus, "WORK", subject_token(worker))
        except StreamApiError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            return 0
        if info["config"].get("filter_subject") != work_subject(worker, boot):
            return 0
        return int(info["delivered"]["stream_seq"])

    async def copy(self, placed: Placed) -> int:
        """Store ``placed`` once more, as nobody's. Returns its sequence. May raise RESOURCE_EXHAUSTED, too."""
        work = Work.FromString(placed.data)
        work.boot = COPIES
        headers = {**placed.headers, _STORED: str(placed.stored_us), "Nats-Msg-Id": f"{message_id(work)}-moved"}
        subject = work_subject(work.worker, COPIES)
        ack: PubAck = await self._publisher.publish_raw(subject, work.SerializeToString(), headers)
        return ack.sequence

    async def delete(self, sequence: int) -> None:
        """Nobody gets it any more."""
        try:
            await self._bus.api("STREAM.MSG.DELETE.WORK", {"seq": sequence, "no_erase": True})
        except StreamApiError as error:
            if error.err_code != _NOT_FOUND and _NO_MESSAGE not in str(error):
                raise


async def stored(bus: Bus, stream: str, request: dict[str, Any]) -> list[Placed]:
    """A batch of direct gets, in the broker's words; none: there is nothing that it asks for. Raises InferBusError
    UNAVAILABLE."""
    placed: list[Placed] = []
    done: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def received(msg: Msg) -> None:
        status = (msg.headers or {}).get("Status")
        if status is None:
            placed.append(_placed(msg))
        elif not done.done():
            done.set_result(status)

    inbox = bus.inbox("work")
    stop = await bus.listen(inbox, received)
    try:
        if not bus.connected:
            raise bus_unavailable("not connected to NATS")
        send_now(bus.nc.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), inbox))
        async with asyncio.timeout(_ANSWER_SECONDS):
            status = await done
    except TimeoutError as error:
        raise bus_unavailable(f"no end of a batch of {stream}: {request}") from error
    finally:
        await stop()
    if status not in ("204", "404"):
        raise bus_unavailable(f"a batch of {stream} ended with status {status}: {request}")
    return placed


def _placed(msg: Msg) -> Placed:
    headers = msg.headers or {}
    trace = {name: value for name, value in headers.items() if name == "traceparent"}
    stamp = datetime.fromisoformat(headers["Nats-Time-Stamp"])
    stored_us = int(headers.get(_STORED) or stamp.astimezone(UTC).timestamp() * 1e6)
    return Placed(int(headers["Nats-Sequence"]), stored_us, trace, msg.data)
