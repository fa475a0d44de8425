"""Making, listing and revoking API keys: the one place, behind both the HTTP and the gRPC administration."""

import asyncio
import secrets

from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import ENTROPY_BYTES, SCOPES, mint, prefix_of
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

# How long a change may take to come back through the watch before it is answered anyhow.
_SEEN_SECONDS = 2.0
_MAX_NAME = 200


class KeyDesk:
    """Changes are announced on AUDIT before they are made: a change without its record must not exist, a record
    without its change (the bus went away in between) does no harm."""

    def __init__(self, keys: Registry[KeyRecord], publisher: Publisher) -> None:
        self._keys = keys
        self._publisher = publisher
        self._changed = asyncio.Event()
        keys.on_change(lambda name, record: self._changed.set())

    async def create(
        self, *, tenant_id: str, project_id: str, name: str, scopes: list[str], actor: KeyRecord
    ) -> tuple[Key, str]:
        """A new key and its secret, which is stored nowhere. It is valid at this edge when this returns.

        Raises InferBusError INVALID_ARGUMENT, or UNAVAILABLE if the bus is away.
        """
        for param, value in (("tenant_id", tenant_id), ("project_id", project_id), ("name", name)):
            if len(value) > _MAX_NAME:
                raise invalid(f"'{param}' is longer than {_MAX_NAME} characters.", param=param)
            if not value.isprintable() or value != value.strip():
                raise invalid(f"'{param}' has control characters, or space at its ends.", param=param)
        if not tenant_id:
            raise invalid("'tenant_id' must be set.", param="tenant_id", reason="missing_required_parameter")
        unknown = set(scopes) - set(SCOPES)
        if unknown:
            raise invalid(f"A scope is one of {', '.join(SCOPES)}.", param="scopes")
        secret = mint(secrets.token_bytes(ENTROPY_BYTES))
        record = KeyRecord(
            key_id=f"key_{secrets.token_hex(12)}",
            tenant_id=tenant_id,
            project_id=project_id or "default",
            name=name,
            prefix=prefix_of(secret),
            scopes=scopes or [SCOPES[0]],
            create_time=clock.timestamp(clock.now_us()),
        )
        await self._announce("key.created", record, actor)
        digest = key_hash(secret)
        await self._keys.create(digest, record)
        await self._seen(digest, record)
        return public(record), secret

    def list(self, tenant_id: str) -> list[Key]:
        """All keys, or one tenant's, oldest first, revoked ones included."""
        records = [one for one in self._keys.items().values() if not tenant_id or one.tenant_id == tenant_id]
        return [public(one) for one in sorted(records, key=lambda one: (one.create_time.ToNanoseconds(), one.key_id))]

    async def revoke(self, key_id: str, actor: KeyRecord) -> Key:
        """Refuse the key from now on; revoking again changes nothing. Raises InferBusError NOT_FOUND, UNAVAILABLE,
        or CONFLICT if it is being changed by someone else at this moment."""
        digest = next((digest for digest, record in self._keys.items().items() if record.key_id == key_id), None)
        record = None if digest is None else self._keys.get(digest)
        if digest is None or record is None:
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "key_not_found", "There is no such key.", param="id")
        if record.HasField("revoke_time"):
            return public(record)
        revoked = KeyRecord()
        revoked.CopyFrom(record)
        revoked.revoke_time.CopyFrom(clock.timestamp(clock.now_us()))
        await self._announce("key.revoked", revoked, actor)
        await self._keys.update(digest, revoked, self._keys.revision(digest))
        await self._seen(digest, revoked)
        return public(revoked)

    async def _announce(self, action: str, record: KeyRecord, actor: KeyRecord) -> None:
        event = AuditEvent(
            event_id=f"{action}:{record.key_id}",
            event_time=clock.timestamp(clock.now_us()),
            actor_key_id=actor.key_id,
            tenant_id=record.tenant_id,
            action=action,
            target=record.key_id,
        )
        await self._publisher.publish(event)

    async def _seen(self, digest: str, record: KeyRecord) -> None:
        """Wait until this edge's own view has the change, so that who made it can use it at once."""
        try:
            async with asyncio.timeout(_SEEN_SECONDS):
                while self._keys.get(digest) != record:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return


def public(record: KeyRecord) -> Key:
    """A key as its administration shows it."""
    key = Key(
        key_id=record.key_id,
        tenant_id=record.tenant_id,
        project_id=record.project_id,
        name=record.name,
        prefix=record.prefix,
        scopes=record.scopes,
        create_time=record.create_time,
    )
    if record.HasField("revoke_time"):
        key.revoke_time.CopyFrom(record.revoke_time)
    return key
