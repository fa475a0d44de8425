"""Making, listing, changing, rotating and revoking API keys: the one place, behind both HTTP and gRPC.

A key is a ``key_id``; each of its secrets has a record of its own, by the secret's hash. There is one, or after a
rotation two: the old one carries the time at which it ends in ``revoke_time``.
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import timedelta
from functools import reduce
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.registry_pb2 import KeyRecord, Limits
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_bus.publish import Publisher
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import ENTROPY_BYTES, SCOPES, expired, mint, prefix_of, revoked
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
    conflict,
    not_found,
    too_many,
    with_changes,
)
from inferbus_edge.key_uses import KeyUses
from inferbus_edge.records import Index, Records

CHANGEABLE = ("name", "expire_time", "models", "limits")
# One more than a change makes: what is too much gets less.
_FORGOTTEN_AT_ONCE = 2
_Secret = tuple[str, KeyRecord]


class KeyDesk:
    """``uses``: where a key's last use is read. ``has_owner``: whether the owner of a key is in its project. ``most``:
    keys that a tenant may have; revoked ones are forgotten when their room is needed."""

    def __init__(
        self,
        keys: Records[KeyRecord],
        publisher: Publisher,
        uses: KeyUses,
        has_owner: Callable[[KeyRecord], bool] = lambda key: True,
        most: int = MAX_KEYS,
    ) -> None:
        self._records = keys
        self._keys = keys.registry
        self._by_id = Index(keys.registry, lambda record: record.key_id)
        self._uses = uses
        self._has_owner = has_owner
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

        Raises InferBusError INVALID_ARGUMENT, CONFLICT if its owner leaves the project at this moment,
        RESOURCE_EXHAUSTED if there is no room for keys, or UNAVAILABLE if the bus is away.
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
        await self._forget_ended(tenant_id, now_us)
        if sum(not revoked(one, now_us) for _, one in self._records.of(tenant_id)) >= self._most:
            raise too_many("keys", self._most)
        secret = mint(secrets.token_bytes(ENTROPY_BYTES))
        record.prefix = prefix_of(secret)
        change = _change("key.created", record, actor, _told(record, ("scopes", *CHANGEABLE)))
        await self._changes.make(key_hash(secret), record, 0, change)
        if not self._has_owner(record):
            # Nobody may use it, at any edge; so that it does not look alive, it ends as well.
            await self.revoke(record.key_id, actor)
            raise conflict("Its owner has left the project at this moment.", "changed_meanwhile", "id")
        return self.public(record), secret

    def all(self, tenant_id: str = "", project_id: str = "") -> list[Key]:
        """Keys of all tenants or one, of all projects or one; oldest first, revoked ones included."""
        return [self.public(record) for record in self.records(tenant_id, project_id)]

    def records(self, tenant_id: str = "", project_id: str = "") -> list[KeyRecord]:
        """:meth:`all`, not yet as their administration shows them: for who shows few of many."""
        current: dict[str, _Secret] = {}
        asked: Iterable[_Secret] = self._records.of(tenant_id) if tenant_id else self._keys.items().items()
        for digest, record in asked:
            if project_id and record.project_id != project_id:
                continue
            other = current.get(record.key_id)
            current[record.key_id] = (digest, record) if other is None else self._newer(other, (digest, record))
        records = [record for _, record in current.values()]
        records.sort(key=lambda one: (one.create_time.ToNanoseconds(), one.key_id))
        return records

    def owners(self, tenant_id: str) -> dict[str, str]:
        """The tenant's keys by id, and whose each is ("": the project's own)."""
        return {record.key_id: record.owner_id for _, record in self._records.of(tenant_id)}

    def last_uses(self, tenant_id: str) -> dict[str, int]:
        """Of each owner of a key of the tenant the Unix seconds at which one of them was last used."""
        last: dict[str, int] = {}
        for key_id, owner_id in self.owners(tenant_id).items():
            used = self._uses.last(key_id)
            if owner_id and used is not None:
                last[owner_id] = max(last.get(owner_id, 0), used.seconds)
        return last

    def get(self, key_id: str) -> Key:
        """Raises InferBusError NOT_FOUND."""
        return self.public(self._current(key_id)[1])

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
        others = [
            (other, self._keys.revision(other), old)
            for other, old in self._others(given.key_id, digest)
            if not revoked(old, now_us)
        ]
        if changed == record:
            return self.public(record)
        change = _change("key.updated", changed, actor, _told(changed, mask))
        await self._changes.make(digest, changed, revision, change)
        for other, other_revision, old in others:
            await self._changes.store(other, with_changes(old, given, mask, CHANGEABLE), other_revision)
        return self.public(changed)

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
        fresh = KeyRecord()
        fresh.CopyFrom(record)
        fresh.prefix = prefix_of(secret)
        old = _ended(record, now_us + overlap // timedelta(microseconds=1))
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
        return self.public(fresh), secret

    async def revoke(self, key_id: str, actor: KeyRecord) -> Key:
        """Refuse the key from now on; revoking again changes nothing. Raises InferBusError NOT_FOUND, UNAVAILABLE,
        or CONFLICT if it is being changed by someone else at this moment."""
        now_us = clock.now_us()
        digest, record = self._current(key_id)
        if revoked(record, now_us):
            return self.public(record)
        ended, others = _ended(record, now_us), self._others(key_id, digest)
        revision = self._keys.revision(digest)
        await self._changes.announce(_change("key.revoked", ended, actor, {}), revision)
        # The current one last: while it is valid, revoking again does all of this again.
        for other, _ in others:
            await self._changes.remove(other)
        await self._changes.store(digest, ended, revision)
        return self.public(ended)

    async def revoke_where(self, tenant_id: str, chosen: Callable[[KeyRecord], bool], actor: KeyRecord) -> None:
        """Revoke the tenant's keys that are ``chosen``. Raises InferBusError like :meth:`revoke`."""
        for record in self.records(tenant_id):
            if not record.HasField("revoke_time") and chosen(record):
                await self.revoke(record.key_id, actor)

    def public(self, record: KeyRecord) -> Key:
        """The key as its administration shows it."""
        return public(record, self._uses.last(record.key_id))

    async def _forget_ended(self, tenant_id: str, now_us: int) -> None:
        """If the tenant has as many secrets as he may have keys: forget the longest ended, a few at a time."""
        mine = self._records.of(tenant_id)
        if len(mine) < self._most:
            return
        ended = [(digest, one) for digest, one in mine if revoked(one, now_us)]
        ended.sort(key=lambda item: item[1].revoke_time.ToNanoseconds())
        for digest, one in ended[:_FORGOTTEN_AT_ONCE]:
            await self._changes.remove(digest)
            if not self._by_id.of(one.key_id):
                await self._uses.forget(one.key_id)

    def _usable(self, key_id: str, now_us: int) -> tuple[str, KeyRecord]:
        digest, record = self._current(key_id)
        if revoked(record, now_us) or expired(record, now_us):
            raise invalid("This key has been revoked or has expired; make a new one.", reason="key_ended", param="id")
        return digest, record

    def _current(self, key_id: str) -> _Secret:
        """Raises InferBusError NOT_FOUND."""
        known = self._by_id.of(key_id)
        if not known:
            raise not_found("key")
        return reduce(self._newer, known)

    def _newer(self, one: _Secret, two: _Secret) -> _Secret:
        """Of two secrets of a key the current one: that which has no end, or was stored last."""

        def rank(secret: _Secret) -> tuple[bool, int]:
            return not secret[1].HasField("revoke_time"), self._keys.revision(secret[0])

        return max(one, two, key=rank)

    def _others(self, key_id: str, current: str) -> Sequence[_Secret]:
        return [(digest, one) for digest, one in self._by_id.of(key_id) if digest != current]


def _ended(record: KeyRecord, at_us: int) -> KeyRecord:
    """The same with its end at ``at_us``."""
    ended = KeyRecord()
    ended.CopyFrom(record)
    ended.revoke_time.CopyFrom(clock.timestamp(at_us))
    return ended


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
