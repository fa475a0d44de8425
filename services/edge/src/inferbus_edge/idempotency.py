"""Idempotency keys: who comes second with a key gets the answer of who came first."""

import hashlib
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import IdempotencyRecord, KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.store import Store
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

HEADER = "Idempotency-Key"
_MAX_KEY = 255


class Claims:
    """Idempotency keys of a project, for ``ttl`` after their first use."""

    def __init__(self, store: Store[IdempotencyRecord], edge: str, ttl: timedelta) -> None:
        self._store = store
        self._edge = edge
        self._ttl = ttl

    async def find(self, key: KeyRecord, idempotency_key: str, fingerprint: bytes) -> "Claim | None":
        """The request that this key stands for, if it has been used.

        Raises InferBusError INVALID_ARGUMENT for a key that is none, CONFLICT for another body under the same key.
        """
        if not idempotency_key.isprintable() or len(idempotency_key) > _MAX_KEY:
            raise invalid(
                f"An {HEADER} has at most {_MAX_KEY} printable characters.", param=HEADER, reason="invalid_value"
            )
        name = _name(key, idempotency_key)
        found = await self._store.get(name)
        if found is None:
            return None
        return Claim(self._store, name, _same(found[0], fingerprint), found[1], self._ttl)

    def new(
        self,
        key: KeyRecord,
        idempotency_key: str,
        fingerprint: bytes,
        request_id: bytes,
        accepted_us: int,
        after: "Claim | None",
    ) -> "Claim":
        """A claim of this request, to be made. ``after``: what the key stood for until now."""
        record = IdempotencyRecord(
            request_id=request_id,
            fingerprint=fingerprint,
            edge=self._edge,
            accepted_time=clock.timestamp(accepted_us),
        )
        return Claim(
            self._store, _name(key, idempotency_key), record, None if after is None else after.revision, self._ttl
        )


class Claim:
    """What a key stands for. ``revision``: of a new one that of the claim which it takes the place of, if any."""

    def __init__(
        self,
        store: Store[IdempotencyRecord],
        name: str,
        record: IdempotencyRecord,
        revision: int | None,
        ttl: timedelta,
    ) -> None:
        self._store = store
        self._name = name
        self._ttl = ttl
        self.revision = revision
        self.record = record

    async def make(self) -> bool:
        """From now on the key stands for this request, which must have been admitted: whoever finds it here may publish
        it. False if somebody was faster."""
        try:
            if self.revision is None:
                await self._store.create(self._name, self.record, self._ttl)
            else:
                await self._store.update(self._name, self.record, self.revision, self._ttl)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            return False
        return True

    async def confirm(self) -> bool:
        """For a retry, which is about to publish the request again: it cannot be taken back any more. False if it has
        been. Raises InferBusError UNAVAILABLE."""
        known, revision = self.record, self.revision or 0
        confirmed = IdempotencyRecord()
        confirmed.CopyFrom(known)
        confirmed.retried = True
        while not known.retried:
            if await self._changed(confirmed, revision):
                return True
            last, revision = await self._store.last(self._name)
            if last is None or last.request_id != self.record.request_id:
                return False
            known = last
        return True

    async def withdraw(self) -> bool:
        """Of the one who made it, or tried to: nothing of the request was accepted, so the key is free. False if a
        retry may have published it. Raises InferBusError UNAVAILABLE; it may be said again."""
        while True:
            last, revision = await self._store.last(self._name)
            mine = last is not None and last.request_id == self.record.request_id
            if last is not None and mine and last.retried:
                return False
            # Whatever is there is written again, so that what may still be on its way from here comes too late.
            if await self._changed(None if mine else last, revision):
                return True

    async def _changed(self, record: IdempotencyRecord | None, revision: int) -> bool:
        """Compare and set, or delete. False if somebody was faster."""
        try:
            if record is None:
                await self._store.delete(self._name, revision)
            else:
                await self._store.update(self._name, record, revision, self._ttl)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            return False
        return True


def fingerprint_of(path: str, body: bytes) -> bytes:
    return hashlib.sha256(path.encode() + b"\0" + body).digest()


def _name(key: KeyRecord, idempotency_key: str) -> str:
    return hashlib.sha256("\0".join((key.tenant_id, key.project_id, idempotency_key)).encode()).hexdigest()


def _same(record: IdempotencyRecord, fingerprint: bytes) -> IdempotencyRecord:
    if record.fingerprint != fingerprint:
        raise InferBusError(
            ErrorClass.ERROR_CLASS_CONFLICT,
            "idempotency_key_reused",
            f"This {HEADER} was used for another request; use a new key for a new request.",
            param=HEADER,
        )
    return record
