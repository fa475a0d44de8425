"""Members of a tenant: its users and the service accounts of its projects. They own keys; the keys have the powers."""

import secrets
from collections.abc import Callable
from functools import cache
from typing import Any

from inferbus.bus.v1.registry_pb2 import KeyRecord, MemberKind, MemberRecord, ProjectMembership
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_edge.audit_log import Changes
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.core.organization_rules import MAX_MEMBERS, checked_name, conflict, not_found, too_many
from inferbus_edge.keys import KeyDesk
from inferbus_edge.records import Records

USER_ROLES = ("owner", "reader")
PROJECT_ROLES = ("owner", "member")
ACCOUNT_ROLES = (*PROJECT_ROLES, "none")
_USER = MemberKind.MEMBER_KIND_USER
_SERVICE_ACCOUNT = MemberKind.MEMBER_KIND_SERVICE_ACCOUNT


class MemberDesk:
    """Whoever loses a project, or the tenant, loses his keys there first: no key outlives the reason for it. (One that
    is made at the same moment, here or at another edge, is not taken by :class:`Auth`.)"""

    def __init__(self, members: Records[MemberRecord], keys: KeyDesk, publisher: Publisher) -> None:
        self._records = members
        self._members = members.registry
        self._keys = keys
        self._changes = Changes(members, publisher)

    def users(self, tenant_id: str, project_id: str = "") -> list[MemberRecord]:
        """The tenant's, or those in one of its projects; oldest first."""
        return self._list(tenant_id, _USER, project_id)

    def service_accounts(self, tenant_id: str, project_id: str) -> list[MemberRecord]:
        return self._list(tenant_id, _SERVICE_ACCOUNT, project_id)

    def user(self, tenant_id: str, user_id: str, project_id: str = "") -> MemberRecord:
        """Raises InferBusError NOT_FOUND, also for another tenant's and for one who is not in the project."""
        return self._get(tenant_id, user_id, _USER, project_id, "user")

    def service_account(self, tenant_id: str, account_id: str, project_id: str) -> MemberRecord:
        """Raises InferBusError NOT_FOUND."""
        return self._get(tenant_id, account_id, _SERVICE_ACCOUNT, project_id, "service account")

    def find(self, tenant_id: str, member_id: str) -> MemberRecord | None:
        """Whoever he is; None if there is no such member (any more)."""
        found = self._members.get(f"{tenant_id}/{member_id}") if member_id else None
        return found if found is not None and found.tenant_id == tenant_id else None

    async def add_user(self, tenant_id: str, email: str, name: str, role: str, actor: KeyRecord) -> MemberRecord:
        """Raises InferBusError INVALID_ARGUMENT, CONFLICT if there is a user with this address, UNAVAILABLE."""
        email = checked_name(email, "email", required=True)
        if "@" not in email:
            raise invalid("'email' is an address such as ada@example.com.", param="email")
        if any(one.email.lower() == email.lower() for one in self.users(tenant_id)):
            raise conflict("There is a user with this address already.", "user_exists", "email")
        record = self._new(tenant_id, "user", _USER, name)
        record.email = email
        record.role = _role(role, USER_ROLES)
        await self._make("user.added", record, actor, {"role": role})
        return record

    async def set_role(self, tenant_id: str, user_id: str, role: str, actor: KeyRecord) -> MemberRecord:
        """Raises InferBusError NOT_FOUND, INVALID_ARGUMENT, CONFLICT, UNAVAILABLE."""
        record = self.user(tenant_id, user_id)
        changed = _copy(record)
        changed.role = _role(role, USER_ROLES)
        if changed != record:
            await self._make("user.updated", changed, actor, {"role": role})
        return changed

    async def delete_user(self, tenant_id: str, user_id: str, actor: KeyRecord) -> None:
        """Revokes his keys, too. Raises InferBusError NOT_FOUND, CONFLICT, UNAVAILABLE."""
        await self._delete("user.deleted", self.user(tenant_id, user_id), actor)

    async def join(self, tenant_id: str, user_id: str, project_id: str, role: str, actor: KeyRecord) -> MemberRecord:
        """Put a user of the tenant into a project, or change his role there.

        Raises InferBusError NOT_FOUND, INVALID_ARGUMENT, CONFLICT, RESOURCE_EXHAUSTED, UNAVAILABLE.
        """
        if membership(self.user(tenant_id, user_id), project_id) is None:
            # One that was made while he left would come back to life with him.
            await self._keys.revoke_where(tenant_id, _of(user_id, project_id), actor)
        record = self.user(tenant_id, user_id)
        changed = _copy(record)
        known = membership(changed, project_id)
        if known is None:
            known = changed.projects.add(project_id=project_id, create_time=clock.timestamp(clock.now_us()))
        action = "project_user.updated" if known.role else "project_user.added"
        known.role = _role(role, PROJECT_ROLES)
        if changed != record:
            await self._make(action, changed, actor, {"role": role}, project_id)
        return changed

    async def leave(self, tenant_id: str, user_id: str, project_id: str, actor: KeyRecord) -> None:
        """Take a user out of a project, and revoke his keys there. Raises InferBusError like :meth:`join`."""
        record = self.user(tenant_id, user_id, project_id)
        revision = self._members.revision(_name(record))
        changed = _copy(record)
        del changed.projects[:]
        changed.projects.extend(one for one in record.projects if one.project_id != project_id)
        change = Change("project_user.removed", actor.key_id, tenant_id, user_id, project_id)
        await self._keys.revoke_where(tenant_id, _of(user_id, project_id), actor)
        await self._changes.end(_name(record), changed, revision, change)

    async def add_service_account(
        self, tenant_id: str, project_id: str, name: str, role: str, actor: KeyRecord
    ) -> MemberRecord:
        """Raises InferBusError INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE."""
        record = self._new(tenant_id, "svc_acct", _SERVICE_ACCOUNT, checked_name(name, "name", required=True))
        role = _role(role, ACCOUNT_ROLES)
        record.projects.append(ProjectMembership(project_id=project_id, role=role, create_time=record.create_time))
        await self._make("service_account.created", record, actor, {"role": role, "name": name}, project_id)
        return record

    async def update_service_account(
        self, record: MemberRecord, project_id: str, name: str | None, role: str | None, actor: KeyRecord
    ) -> MemberRecord:
        """Raises InferBusError INVALID_ARGUMENT, CONFLICT, UNAVAILABLE."""
        changed, details = _copy(record), {}
        if name is not None:
            changed.name = details["name"] = checked_name(name, "name", required=True)
        if role is not None:
            changed.projects[0].role = details["role"] = _role(role, PROJECT_ROLES)
        if changed != record:
            await self._make("service_account.updated", changed, actor, details, project_id)
        return changed

    async def delete_service_account(self, record: MemberRecord, project_id: str, actor: KeyRecord) -> None:
        """Revokes its keys, too. Raises InferBusError CONFLICT, UNAVAILABLE."""
        await self._delete("service_account.deleted", record, actor, project_id)

    def _list(self, tenant_id: str, kind: MemberKind.ValueType, project_id: str) -> list[MemberRecord]:
        found = [
            one
            for _, one in self._records.of(tenant_id)
            if one.kind == kind and (not project_id or membership(one, project_id))
        ]
        return sorted(found, key=lambda one: (one.create_time.ToNanoseconds(), one.member_id))

    def _get(
        self, tenant_id: str, member_id: str, kind: MemberKind.ValueType, project_id: str, what: str
    ) -> MemberRecord:
        found = self.find(tenant_id, member_id)
        if found is None or found.kind != kind or (project_id and membership(found, project_id) is None):
            raise not_found(what)
        return found

    def _new(self, tenant_id: str, prefix: str, kind: MemberKind.ValueType, name: str) -> MemberRecord:
        if len(self._records.of(tenant_id)) >= MAX_MEMBERS:
            raise too_many("members", MAX_MEMBERS)
        return MemberRecord(
            member_id=f"{prefix}_{secrets.token_hex(12)}",
            tenant_id=tenant_id,
            kind=kind,
            name=checked_name(name, "name"),
            create_time=clock.timestamp(clock.now_us()),
        )

    async def _make(
        self, action: str, record: MemberRecord, actor: KeyRecord, details: dict[str, Any], project_id: str = ""
    ) -> None:
        change = Change(action, actor.key_id, record.tenant_id, record.member_id, project_id, details)
        await self._changes.make(_name(record), record, self._members.revision(_name(record)), change)

    async def _delete(self, action: str, record: MemberRecord, actor: KeyRecord, project_id: str = "") -> None:
        name, tenant_id, member_id = _name(record), record.tenant_id, record.member_id
        change = Change(action, actor.key_id, tenant_id, member_id, project_id)
        await self._keys.revoke_where(tenant_id, _of(member_id), actor)
        await self._changes.announce(change, self._members.revision(name))
        await self._changes.remove(name)


def membership(record: MemberRecord, project_id: str) -> ProjectMembership | None:
    return next((one for one in record.projects if one.project_id == project_id), None)


def owner_check(desk: MemberDesk, tenant_id: str, project_id: str) -> Callable[[str], bool]:
    """Whether a key's owner (by id) has access to the project; a key without one belongs to the project itself. For one
    look at many keys: what changes after it is not seen."""

    @cache
    def has_access(owner_id: str) -> bool:
        owner = desk.find(tenant_id, owner_id)
        return not owner_id or (owner is not None and membership(owner, project_id) is not None)

    return has_access


def _of(owner_id: str, project_id: str = "") -> Callable[[KeyRecord], bool]:
    """Keys of this owner, in one of his projects or all."""
    return lambda key: key.owner_id == owner_id and (not project_id or key.project_id == project_id)


def _role(role: str, known: tuple[str, ...]) -> str:
    if role not in known:
        raise invalid(f"'role' is one of {', '.join(known)}.", param="role")
    return role


def _name(record: MemberRecord) -> str:
    return f"{record.tenant_id}/{record.member_id}"


def _copy(record: MemberRecord) -> MemberRecord:
    changed = MemberRecord()
    changed.CopyFrom(record)
    return changed
