"""Tenants: who is billed and isolated. Making, listing, changing and archiving them is the operator's."""

import secrets
from collections.abc import Collection
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.registry_pb2 import CapturePolicy, KeyRecord, RecordState, TenantRecord
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_edge.audit_log import Changes
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.core.organization_rules import (
    checked_id,
    checked_name,
    checked_weight,
    conflict,
    not_found,
    with_changes,
)
from inferbus_edge.records import Records

CHANGEABLE = ("name", "limits", "hold", "weight")
_MAX_HOLD_SECONDS = 3600
_ACTIVE, _ARCHIVED = RecordState.RECORD_STATE_ACTIVE, RecordState.RECORD_STATE_ARCHIVED


class TenantDesk:
    """A tenant that has keys but no record (made before there were records) is shown with the defaults, and gets its
    record with its first change."""

    def __init__(self, tenants: Records[TenantRecord], keys: Records[KeyRecord], publisher: Publisher) -> None:
        self._tenants = tenants.registry
        self._keys = keys
        self._changes = Changes(tenants, publisher)

    async def create(self, given: TenantRecord, actor: KeyRecord) -> TenantRecord:
        """A tenant with the id, name, limits, hold and weight of ``given``; without an id, one is made.

        Raises InferBusError INVALID_ARGUMENT, CONFLICT if there is such a tenant, UNAVAILABLE.
        """
        tenant_id = checked_id(given.tenant_id or f"org-{secrets.token_hex(12)}", "tenant_id")
        if self._find(tenant_id) is not None:
            raise conflict("There is such a tenant already.", "tenant_exists", "tenant_id")
        record = TenantRecord(tenant_id=tenant_id, state=_ACTIVE, create_time=clock.timestamp(clock.now_us()))
        record = with_changes(record, _checked(given), CHANGEABLE, CHANGEABLE)
        record.name = record.name or tenant_id
        await self._make("tenant.created", record, actor, _told(record, CHANGEABLE))
        return record

    def get(self, tenant_id: str) -> TenantRecord:
        """Raises InferBusError NOT_FOUND."""
        found = self._find(tenant_id)
        if found is None:
            raise not_found("tenant")
        return found

    def all(self) -> list[TenantRecord]:
        """All, oldest first."""
        names = {*self._keys.tenants(), *self._tenants.items()}
        known = [found for found in map(self._find, names) if found is not None]
        return sorted(known, key=lambda one: (one.create_time.ToNanoseconds(), one.tenant_id))

    async def update(self, given: TenantRecord, mask: Collection[str], actor: KeyRecord) -> TenantRecord:
        """Change the fields named in ``mask`` (of CHANGEABLE) to what ``given`` has.

        Raises InferBusError NOT_FOUND, INVALID_ARGUMENT, UNAVAILABLE, or CONFLICT if someone else changes it now.
        """
        record = self.get(given.tenant_id)
        changed = with_changes(record, _checked(given), mask, CHANGEABLE)
        if not changed.name:
            raise invalid("A tenant has a name.", param="name")
        if changed != record:
            await self._make("tenant.updated", changed, actor, _told(changed, mask))
        return changed

    async def archive(self, tenant_id: str, actor: KeyRecord) -> TenantRecord:
        """Refuse all its keys from now on. Raises InferBusError like :meth:`update`."""
        if tenant_id == actor.tenant_id:
            raise invalid("This is the tenant of the key in use: archiving it would lock you out.", param="tenant_id")
        return await self._set_state(tenant_id, _ARCHIVED, "tenant.archived", actor)

    async def restore(self, tenant_id: str, actor: KeyRecord) -> TenantRecord:
        """Take its keys again. Raises InferBusError like :meth:`update`."""
        return await self._set_state(tenant_id, _ACTIVE, "tenant.restored", actor)

    async def set_capture(self, tenant_id: str, policy: CapturePolicy | None, actor: KeyRecord) -> TenantRecord:
        """Of which requests text is kept; None: of none. Raises InferBusError like :meth:`update`."""
        record = self.get(tenant_id)
        changed = TenantRecord()
        changed.CopyFrom(record)
        changed.ClearField("capture")
        if policy is not None:
            changed.capture.CopyFrom(policy)
        if changed != record:
            told = {"capture": MessageToDict(changed.capture, preserving_proto_field_name=True)}
            change = Change("tenant.updated", actor.key_id, tenant_id, tenant_id, details=told)
            await self._changes.end(tenant_id, changed, self._tenants.revision(tenant_id), change)
        return changed

    async def _set_state(
        self, tenant_id: str, state: RecordState.ValueType, action: str, actor: KeyRecord
    ) -> TenantRecord:
        record = self.get(tenant_id)
        changed = TenantRecord()
        changed.CopyFrom(record)
        changed.state = state
        if changed != record:
            change = Change(action, actor.key_id, tenant_id, tenant_id)
            await self._changes.end(tenant_id, changed, self._tenants.revision(tenant_id), change)
        return changed

    async def _make(self, action: str, record: TenantRecord, actor: KeyRecord, details: dict[str, Any]) -> None:
        tenant_id = record.tenant_id
        change = Change(action, actor.key_id, tenant_id, tenant_id, details=details)
        await self._changes.make(tenant_id, record, self._tenants.revision(tenant_id), change)

    def _find(self, tenant_id: str) -> TenantRecord | None:
        """The record; or one with the defaults, as old as the tenant's oldest key."""
        found = self._tenants.get(tenant_id)
        if found is not None:
            return found
        made = [key.create_time for _, key in self._keys.of(tenant_id)]
        if not made:
            return None
        first = min(made, key=lambda one: one.ToNanoseconds())
        return TenantRecord(tenant_id=tenant_id, name=tenant_id, state=_ACTIVE, create_time=first)


def _checked(given: TenantRecord) -> TenantRecord:
    checked_name(given.name, "name")
    checked_weight(given.weight)
    hold: Duration = given.hold
    if not 0 <= hold.seconds + hold.nanos / 1e9 <= _MAX_HOLD_SECONDS:
        raise invalid(f"'hold' is 0 to {_MAX_HOLD_SECONDS} seconds.", param="hold")
    return given


def _told(record: TenantRecord, names: Collection[str]) -> dict[str, Any]:
    shown = MessageToDict(record, preserving_proto_field_name=True)
    return {name: shown[name] for name in sorted(names) if name in shown}
