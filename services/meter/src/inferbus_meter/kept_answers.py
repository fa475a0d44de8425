"""What edges keep of requests on the bus, found by request and taken out singly: stored answers, idempotency keys.

The meter may purge these entries, and cannot read an answer: a purge leaves nothing behind, not even a marker.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from inferbus.bus.v1.registry_pb2 import IdempotencyRecord
from inferbus_bus.connection import Bus
from inferbus_bus.consumers import Position
from inferbus_bus.ordered import OrderedReader
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_contracts.subjects import name_of_token
from nats.aio.msg import Msg

_RESPONSES, _KEYS = "responses", "idempotency"
_READ_SECONDS = 60.0

Entry = tuple[str, bytes]
"""(subject, request id)."""


class KeptAnswers:
    """Raises StreamApiError or InferBusError UNAVAILABLE, TimeoutError if the bucket is not read in a minute."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def responses(self, tenant_id: str) -> list[Entry]:
        """The tenant's stored answers: their names say whose they are."""
        prefix, found = f"$KV.{_RESPONSES}.", []
        for subject in await self._subjects(_RESPONSES):
            tenant, _, rest = name_of_token(subject.removeprefix(prefix)).partition("/")
            request = rest.rpartition("/")[2]
            if tenant == tenant_id and len(request) == 2 * REQUEST_ID_BYTES:
                found.append((subject, bytes.fromhex(request)))
        return found

    async def idempotency_keys(self) -> list[Entry]:
        """Of all tenants: a name says nothing, and a record only which request it stands for."""
        found: list[Entry] = []
        read = asyncio.Event()

        def received(msg: Msg, at: Position) -> None:
            if msg.data:  # not what marks an end
                found.append((msg.subject, IdempotencyRecord.FromString(msg.data).request_id))
            if at.pending == 0:
                read.set()

        reader = OrderedReader(
            self._bus, stream=f"KV_{_KEYS}", subject=f"$KV.{_KEYS}.>", on_message=received
        )  # fmt: skip
        try:
            if await reader.start({"deliver_policy": "last_per_subject"}, 0):
                async with asyncio.timeout(_READ_SECONDS):
                    await read.wait()
        finally:
            await reader.stop()
        return found

    async def purge(self, subjects: Iterable[str]) -> int:
        """Take these entries out; how many there were."""
        purged = 0
        for subject in subjects:
            bucket = subject.split(".")[1]
            answer = await self._bus.api(f"STREAM.PURGE.KV_{bucket}", {"filter": subject})
            purged += int(answer.get("purged", 0))
        return purged

    async def _subjects(self, bucket: str) -> list[str]:
        subjects: dict[str, Any] = {}
        while True:
            asked = {"subjects_filter": f"$KV.{bucket}.>", "offset": len(subjects)}
            info = await self._bus.api(f"STREAM.INFO.KV_{bucket}", asked)
            page = info["state"].get("subjects") or {}
            subjects |= page
            if not page or len(subjects) >= int(info.get("total", 0)):
                return list(subjects)
