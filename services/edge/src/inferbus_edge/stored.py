"""Answers that are found again by their id: what was asked is stored when it is accepted, the answer when it has ended.

Until then, and if whoever should have stored the answer was lost, it is made from the log.
"""

from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import KeyRecord, ResponseRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.store import Store
from inferbus_dialect.plan import Plan
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError


class Stored:
    """Records of a project, for ``ttl`` after they were made."""

    def __init__(self, store: Store[ResponseRecord], ttl: timedelta) -> None:
        self._store = store
        self._ttl = ttl

    async def create(self, key: KeyRecord, first: bytes, accepted_us: int, plan: Plan, reply: bytes) -> None:
        """Nothing happens if it is there: under an idempotency key several may make it.

        Raises InferBusError UNAVAILABLE, or RESOURCE_EXHAUSTED if there is no room.
        """
        record = ResponseRecord(
            request_id=first,
            accepted_time=clock.timestamp(accepted_us),
            input=plan.stored or b"",
            previous_request_id=plan.previous,
            reply=reply,
        )
        try:
            await self._store.create(_name(key, first), record, self._ttl)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise

    async def get(self, key: KeyRecord, first: bytes) -> ResponseRecord | None:
        """The caller's own project's; None for all others."""
        found = await self._store.get(_name(key, first))
        return None if found is None else found[0]

    async def finish(self, key: KeyRecord, first: bytes, body: bytes) -> None:
        """Keep the answer. Nothing happens if the record was deleted meanwhile."""
        found = await self._store.get(_name(key, first))
        if found is None or found[0].body:
            return
        record, revision = found
        record.body = body
        await self._store.update(_name(key, first), record, revision, self._ttl)

    async def delete(self, key: KeyRecord, first: bytes) -> bool:
        """False if there was none."""
        if await self._store.get(_name(key, first)) is None:
            return False
        await self._store.delete(_name(key, first))
        return True


def _name(key: KeyRecord, first: bytes) -> str:
    return f"{key.tenant_id}/{key.project_id}/{first.hex()}"
