"""Idempotency keys: who comes second with a key gets the answer of who came first."""

import hashlib
import logging
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import IdempotencyRecord, KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.store import Store
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

log = logging.getLogger(__name__)

HEADER = "Idempotency-Key"
_MAX_KEY = 255
_TRIES = 3


class Claims:
    """Idempotency keys of a project, for ``ttl`` after their first use."""

    def __init__(self, store: Store[IdempotencyRecord], edge: str, ttl: timedelta) -> None:
        self._store = store
        self._edge = edge
        self._ttl = ttl

    async def claim(
        self, key: KeyRecord, idempotency_key: str, fingerprint: bytes, request_id: bytes, accepted_us: int
    ) -> "Claim":
        """Whose request this key stands for: ours, or one that was there before.

        Raises InferBusError INVALID_ARGUMENT for a key that is none, CONFLICT for another body under the same key.
        """
        if not idempotency_key.isprintable() or len(idempotency_key) > _MAX_KEY:
            raise invalid(
                f"An {HEADER} has at most {_MAX_KEY} printable characters.", param=HEADER, reason="invalid_value"
            )
        name = hashlib.sha256("\0".join((key.tenant_id, key.project_id, idempotency_key)).encode()).hexdigest()
        record = IdempotencyRecord(
            request_id=request_id,
            fingerprint=fingerprint,
            edge=self._edge,
            accepted_time=clock.timestamp(accepted_us),
        )
        for _ in range(_TRIES):
            found = await self._store.get(name)
            if found is not None:
                return Claim(self._store, name, _same(found[0], fingerprint), found[1], self._ttl, mine=False)
            try:
                ack = await self._store.create(name, record, self._ttl)
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                    raise
                continue  # somebody was faster: look again
            return Claim(self._store, name, record, ack.sequence, self._ttl, mine=True)
        raise InferBusError(
            ErrorClass.ERROR_CLASS_CONFLICT, "idempotency_busy", f"This {HEADER} is being used right now; retry."
        )


class Claim:
    """One key's record. ``mine``: this call was the first."""

    def __init__(
        self,
        store: Store[IdempotencyRecord],
        name: str,
        record: IdempotencyRecord,
        revision: int,
        ttl: timedelta,
        *,
        mine: bool,
    ) -> None:
        self._store = store
        self._name = name
        self._revision = revision
        self._ttl = ttl
        self.record = record
        self.mine = mine

    async def release(self) -> None:
        """Nothing was accepted under it: the next one is the first again. What cannot be said now is not said: then the
        next one finds a request that is not on the log, and publishes it."""
        try:
            await self._store.delete(self._name, self._revision)
        except InferBusError as error:
            log.warning("an idempotency key was not given back", extra={"reason": error.reason})

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
            ack = await self._store.update(self._name, record, self._revision, self._ttl)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            return False
        self.record, self._revision, self.mine = record, ack.sequence, True
        return True


def fingerprint_of(path: str, body: bytes) -> bytes:
    return hashlib.sha256(path.encode() + b"\0" + body).digest()


def _same(record: IdempotencyRecord, fingerprint: bytes) -> IdempotencyRecord:
    if record.fingerprint != fingerprint:
        raise InferBusError(
            ErrorClass.ERROR_CLASS_CONFLICT,
            "idempotency_key_reused",
            f"This {HEADER} was used for another request; use a new key for a new request.",
            param=HEADER,
        )
    return record
