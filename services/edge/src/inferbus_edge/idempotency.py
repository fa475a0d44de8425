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

    async def make(
        self, key: KeyRecord, idempotency_key: str, fingerprint: bytes, request_id: bytes, accepted_us: int
    ) -> bool:
        """From now on the key stands for this request, which must have been admitted: whoever finds it here may publish
        it. It is never given back: a retry of what was not accepted is accepted under the same id. False if somebody
        was faster."""
        record = IdempotencyRecord(
            request_id=request_id,
            fingerprint=fingerprint,
            edge=self._edge,
            accepted_time=clock.timestamp(accepted_us),
        )
        try:
            await self._store.create(_name(key, idempotency_key), record, self._ttl)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            return False
        return True


class Claim:
    """What an earlier call left under a key."""

    def __init__(
        self,
        store: Store[IdempotencyRecord],
        name: str,
        record: IdempotencyRecord,
        revision: int,
        ttl: timedelta,
    ) -> None:
        self._store = store
        self._name = name
        self._revision = revision
        self._ttl = ttl
        self.record = record

    async def renew(self, request_id: bytes, edge: str, accepted_us: int) -> bool:
        """What it stood for failed in a way that a retry may mend: from now on it stands for a new request.

        False if another retry was faster.
        """
        record = IdempotencyRecord(
            request_id=request_id,
            fingerprint=self.record.fingerprint,
            edge=edge,
            accepted_time=clock.timestamp(accepted_us),
        )
        try:
            await self._store.update(self._name, record, self._revision, self._ttl)
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
