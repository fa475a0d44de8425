"""Making, listing, changing, rotating and revoking API keys: the one place, behind both HTTP and gRPC.

A key is a ``key_id``; each of its secrets has a record of its own, by the secret's hash. There is one, or during the
overlap of a rotation two: the old one carries the time at which it ends in ``revoke_time``.
"""

import secrets
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.registry_pb2 import KeyRecord, KeyUseRecord, Limits
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import ENTROPY_BYTES, SCOPES, mint, prefix_of
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.audit_log import Changes
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.core.organization_rules import (
    MAX_KEYS,
    MAX_OVERLAP_SECONDS,
    NO_PROJECT,
    checked_expiry,
    checked_id,
    checked_models,
    checked_name,
    expired,
    not_found,
    revoked,
    too_many,
    with_changes,
)

CHANGEABLE = ("name", "expire_time", "models", "limits")


class KeyDesk:
    """``uses``: where a key's last use is read. ``most``: keys that a tenant may have; revoked ones are forgotten when
    their room is needed."""

    def __init__(
        self,
        keys: Registry[KeyRecord],
        publisher: Publisher,
        uses: Registry[KeyUseRecord],
        most: int = MAX_KEYS,
    ) -> None:
        self._keys = keys
        self._uses = uses
        self._most = most
        self._changes = Changes(keys, publisher)

    async def create(
        self,
        *,
        tenant_id: str,
        project_id: str,
        name: str,
        scopes: list[str],
        actor: KeyRecord,
        expire_time: Timestamp | None = None,
        models: Sequence[str] = (),
        limits: Limits | None = None,
        owner_id: str = "",
    ) -> tuple[Key, str]:
        """A new key and its secret, which is stored nowhere. It is valid at this edge when this returns.

        Raises InferBusError INVALID_ARGUMENT, or UNAVAILABLE if the bus is away.
        """
        checked_id(tenant_id, "tenant_id")
        checked_id(project_id or NO_PROJECT, "project_id")
        if set(scopes) - set(SCOPES):
            raise invalid(f"A scope is one of {', '.join(SCOPES)}.", param="scopes")
        now_us = clock.now_us()
        record = KeyRecord(
            key_id=f"key_{secrets.token_hex(12)}",
            tenant_id=tenant_id,
            project_id=project_id or NO_PROJECT,
            name=checked_name(name, "name"),
            scopes=list(dict.fromkeys(scopes)) or [SCOPES[0]],
            create_time=clock.timestamp(now_us),
            expire_time=expire_time,
            models=checked_models(models),
            limits=limits,
            owner_id=owner_id,
        )
        if expire_time is not None:
            checked_expiry(expire_time.seconds, now_us)
        await self._make_room(tenant_id)
        secret = mint(secrets.token_bytes(ENTROPY_BYTES))
        record.prefix = prefix_of(secret)
        change = _change("key.created", record, actor, _told(record, ("scopes", *CHANGEABLE)))
        await self._changes.make(key_hash(secret), record, 0, change)
        return self._public(record), secret

    def all(self, tenant_id: str = "", project_id: str = "") -> list[Key]:
        """Keys of all tenants or one, of all projects or one; oldest first, revoked ones included."""
        current: dict[str, tuple[str, KeyRecord]] = {}
        for digest, record in self._keys.items().items():
            if (tenant_id and record.tenant_id != tenant_id) or (project_id and record.project_id != project_id):
                continue
            other = current.get(record.key_id)
            current[record.key_id] = (digest, record) if other is None else self._newer(other, (digest, record))
        records = [record for _, record in current.values()]
        records.sort(key=lambda one: (one.create_time.ToNanoseconds(), one.key_id))
        return [self._public(record) for record in records]

    def get(self, key_id: str) -> Key:
        """Raises InferBusError NOT_FOUND."""
        return self._public(self._current(key_id)[1])

    async def update(self, given: Key, mask: Collection[str], actor: KeyRecord) -> Key:
        """Change the fields named in ``mask`` (of CHANGEABLE) to what ``given`` has, for all secrets of the key.

        Raises InferBusError NOT_FOUND, INVALID_ARGUMENT, UNAVAILABLE, or CONFLICT if someone else changes it now.
        """
        now_us = clock.now_us()
        digest, record = self._usable(given.key_id, now_us)
        checked_name(given.name, "name")
        checked_models(given.models)
        if "expire_time" in mask and given.HasField("expire_time"):
            checked_expiry(given.expire_time.seconds, now_us)
        revision = self._keys.revision(digest)
        changed = with_changes(record, given, mask, CHANGEABLE)
        others = [(other, self._keys.revision(other), old) for other, old in self._others(given.key_id, digest)]
        if changed == record:
            return self._public(record)
        change = _change("key.updated", changed, actor, _told(changed, mask))
        await self._changes.make(digest, changed, revision, change)
        for other, other_revision, old in others:
            await self._changes.store(other, with_changes(old, given, mask, CHANGEABLE), other_revision)
        return self._public(changed)

    async def rotate(self, key_id: str, overlap: timedelta, actor: KeyRecord) -> tuple[Key, str]:
        """A new secret for the same key; the old one still works for ``overlap``, any older one ends now.

        Raises InferBusError like :meth:`update`.
        """
        if not timedelta() <= overlap <= timedelta(seconds=MAX_OVERLAP_SECONDS):
            raise invalid(f"'overlap' is 0 to {MAX_OVERLAP_SECONDS} seconds.", param="overlap")
        now_us = clock.now_us()
        digest, record = self._usable(key_id, now_us)
        revision, older = self._keys.revision(digest), self._others(key_id, digest)
        secret = mint(secrets.token_bytes(ENTROPY_BYTES))
        fresh, old = KeyRecord(), KeyRecord()
        fresh.CopyFrom(record)
        fresh.prefix = prefix_of(secret)
        old.CopyFrom(record)
        old.revoke_time.CopyFrom(clock.timestamp(now_us + overlap // timedelta(microseconds=1)))
        details = {"overlap_seconds": int(overlap.total_seconds()), "prefix": fresh.prefix}
        # The new one first: a failure half-way leaves the old secret working, and a new one that nobody was told.
        await self._changes.make(key_hash(secret), fresh, 0, _change("key.rotated", fresh, actor, details))
        try:
            await self._changes.store(digest, old, revision)
        except InferBusError:
            await self._changes.remove(key_hash(secret))
            raise
        for other, _ in older:
            await self._changes.remove(other)
        return self._public(fresh), secret

    async def revoke(self, key_id: str, actor: KeyRecord) -> Key:
        """Refuse the key from now on; revoking again changes nothing. Raises InferBusError NOT_FOUND, UNAVAILABLE,
        or CONFLICT if it is being changed by someone else at this moment."""
        now_us = clock.now_us()
        digest, record = self._current(key_id)
        others = self._others(key_id, digest)
        if revoked(record, now_us):
            return self._public(record)
        ended = KeyRecord()
        ended.CopyFrom(record)
        ended.revoke_time.CopyFrom(clock.timestamp(now_us))
        revision = self._keys.revision(digest)
        await self._changes.announce(_change("key.revoked", ended, actor, {}), revision)
        # The current one last: while it is valid, revoking again does all of this again.
        for other, _ in others:
            await self._changes.remove(other)
        await self._changes.store(digest, ended, revision)
        return self._public(ended)

    async def revoke_where(self, tenant_id: str, chosen: Callable[[Key], bool], actor: KeyRecord) -> None:
        """Revoke the tenant's keys that are ``chosen``. Raises InferBusError like :meth:`revoke`."""
        for key in self.all(tenant_id):
            if not key.HasField("revoke_time") and chosen(key):
                await self.revoke(key.key_id, actor)

    async def _make_room(self, tenant_id: str) -> None:
        """Forget the tenant's longest revoked key if he has as many as he may.

        Raises InferBusError INVALID_ARGUMENT if none of them is revoked.
        """
        mine = [(digest, one) for digest, one in self._keys.items().items() if one.tenant_id == tenant_id]
        if len(mine) < self._most:
            return
        now_us = clock.now_us()
        ended = [(digest, one) for digest, one in mine if revoked(one, now_us)]
        if not ended:
            raise too_many("keys", self._most)
        digest, oldest = min(ended, key=lambda item: item[1].revoke_time.ToNanoseconds())
        await self._changes.remove(digest)
        if not any(one.key_id == oldest.key_id for _, one in self._others(oldest.key_id, digest)):
            await self._uses.delete(oldest.key_id)

    def _usable(self, key_id: str, now_us: int) -> tuple[str, KeyRecord]:
        digest, record = self._current(key_id)
        if revoked(record, now_us) or expired(record, now_us):
            raise invalid("This key has been revoked or has expired; make a new one.", reason="key_ended", param="id")
        return digest, record

    def _current(self, key_id: str) -> tuple[str, KeyRecord]:
        found: tuple[str, KeyRecord] | None = None
        for digest, record in self._keys.items().items():
            if record.key_id == key_id:
                found = (digest, record) if found is None else self._newer(found, (digest, record))
        if found is None:
            raise not_found("key")
        return found

    def _newer(self, one: tuple[str, KeyRecord], two: tuple[str, KeyRecord]) -> tuple[str, KeyRecord]:
        """Of two secrets of a key the current one: that which has no end, or was stored last."""

        def rank(secret: tuple[str, KeyRecord]) -> tuple[bool, int]:
            return not secret[1].HasField("revoke_time"), self._keys.revision(secret[0])

        return max(one, two, key=rank)

    def _others(self, key_id: str, current: str) -> Sequence[tuple[str, KeyRecord]]:
        items = self._keys.items().items()
        return [(digest, one) for digest, one in items if one.key_id == key_id and digest != current]

    def _public(self, record: KeyRecord) -> Key:
        use = self._uses.get(record.key_id)
        return public(record, None if use is None else use.last_use_time)


def public(record: KeyRecord, last_use_time: Timestamp | None = None) -> Key:
    """A key as its administration shows it."""

    def given(name: str) -> Any:
        return getattr(record, name) if record.HasField(name) else None  # type: ignore[arg-type]

    return Key(
        key_id=record.key_id,
        tenant_id=record.tenant_id,
        project_id=record.project_id,
        name=record.name,
        prefix=record.prefix,
        scopes=record.scopes,
        create_time=record.create_time,
        revoke_time=given("revoke_time"),
        expire_time=given("expire_time"),
        models=record.models,
        limits=given("limits"),
        owner_id=record.owner_id,
        last_use_time=last_use_time,
    )


def _change(action: str, record: KeyRecord, actor: KeyRecord, details: dict[str, Any]) -> Change:
    return Change(action, actor.key_id, record.tenant_id, record.key_id, record.project_id, details)


def _told(record: KeyRecord, names: Collection[str]) -> dict[str, Any]:
    """Of the fields ``names`` those that are set, as AUDIT tells them."""
    shown = MessageToDict(record, preserving_proto_field_name=True)
    return {name: shown[name] for name in sorted(names) if name in shown}
