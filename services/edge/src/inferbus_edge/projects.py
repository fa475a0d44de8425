"""Projects: scopes of keys, limits and cost inside a tenant."""

import secrets
from collections.abc import Collection
from typing import Any

from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.registry_pb2 import KeyRecord, ProjectRecord, RecordState
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_edge.audit_log import Changes
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.core.organization_rules import (
    MAX_PROJECTS,
    NO_PROJECT,
    checked_id,
    checked_name,
    checked_weight,
    conflict,
    not_found,
    too_many,
    with_changes,
)
from inferbus_edge.records import Index, Records

CHANGEABLE = ("name", "limits", "weight")
_ACTIVE, _ARCHIVED = RecordState.RECORD_STATE_ACTIVE, RecordState.RECORD_STATE_ARCHIVED


class ProjectDesk:
    """Every tenant has a project "default". It, and any other that has keys but no record, is shown with the defaults
    and gets its record with its first change."""

    def __init__(self, projects: Records[ProjectRecord], keys: Records[KeyRecord], publisher: Publisher) -> None:
        self._records = projects
        self._projects = projects.registry
        self._keys = keys
        self._keys_in = Index(keys.registry, lambda key: _name(key.tenant_id, key.project_id))
        self._changes = Changes(projects, publisher)

    async def create(self, given: ProjectRecord, actor: KeyRecord) -> ProjectRecord:
        """A project of the tenant in ``given``, with its name, limits and weight; without a project id, one is made.

        Raises InferBusError INVALID_ARGUMENT, CONFLICT if there is such a project, RESOURCE_EXHAUSTED, UNAVAILABLE.
        """
        checked_id(given.tenant_id, "tenant_id")
        project_id = checked_id(given.project_id or f"proj_{secrets.token_hex(12)}", "project_id")
        known = {one.project_id for one in self.all(given.tenant_id)}
        if len(known) >= MAX_PROJECTS:
            raise too_many("projects", MAX_PROJECTS)
        if project_id in known:
            raise conflict("There is such a project already.", "project_exists", "project_id")
        record = ProjectRecord(
            project_id=project_id,
            tenant_id=given.tenant_id,
            state=_ACTIVE,
            create_time=clock.timestamp(clock.now_us()),
        )
        record = with_changes(record, _checked(given), CHANGEABLE, CHANGEABLE)
        record.name = record.name or project_id
        details = {"name": record.name, "title": record.name} | _told(record, ("limits", "weight"))
        await self._make("project.created", record, actor, details)
        return record

    def get(self, tenant_id: str, project_id: str) -> ProjectRecord:
        """Raises InferBusError NOT_FOUND, also for another tenant's."""
        found = self._projects.get(_name(tenant_id, project_id)) or self._implied(tenant_id, project_id)
        # A name is made of both ids: whatever they hold, the record must be this tenant's.
        if found is None or (found.tenant_id, found.project_id) != (tenant_id, project_id):
            raise not_found("project")
        return found

    def active(self, tenant_id: str, project_id: str) -> ProjectRecord:
        """One that can be changed. Raises InferBusError NOT_FOUND, or INVALID_ARGUMENT if it is archived."""
        found = self.get(tenant_id, project_id)
        if found.state == _ARCHIVED:
            raise invalid("This project is archived: it cannot be changed any more.", reason="project_archived")
        return found

    def all(self, tenant_id: str) -> list[ProjectRecord]:
        """All of a tenant, oldest first, archived ones included."""
        known = {record.project_id: record for _, record in self._records.of(tenant_id)}
        for project_id in {NO_PROJECT, *(key.project_id for _, key in self._keys.of(tenant_id))} - known.keys():
            implied = self._implied(tenant_id, project_id)
            if implied is not None:
                known[project_id] = implied
        return sorted(known.values(), key=lambda one: (one.create_time.ToNanoseconds(), one.project_id))

    async def update(self, given: ProjectRecord, mask: Collection[str], actor: KeyRecord) -> ProjectRecord:
        """Change the fields named in ``mask`` (of CHANGEABLE) to what ``given`` has.

        Raises InferBusError NOT_FOUND, INVALID_ARGUMENT, UNAVAILABLE, or CONFLICT if someone else changes it now.
        """
        record = self.active(given.tenant_id, given.project_id)
        changed = with_changes(record, _checked(given), mask, CHANGEABLE)
        if not changed.name:
            raise invalid("A project has a name.", param="name")
        if changed != record:
            details = _told(changed, mask) | ({"title": changed.name} if "name" in mask else {})
            await self._make("project.updated", changed, actor, details)
        return changed

    async def set_limits(self, given: ProjectRecord, details: dict[str, Any], actor: KeyRecord) -> ProjectRecord:
        """:meth:`update` of the limits alone, told to AUDIT as a change of rate limits with ``details``."""
        record = self.active(given.tenant_id, given.project_id)
        changed = with_changes(record, _checked(given), ("limits",), CHANGEABLE)
        if changed != record:
            await self._make("rate_limit.updated", changed, actor, details)
        return changed

    async def archive(self, tenant_id: str, project_id: str, actor: KeyRecord) -> ProjectRecord:
        """Refuse all its keys from now on, for good; archiving again changes nothing.

        Raises InferBusError like :meth:`update`.
        """
        record = self.get(tenant_id, project_id)
        if project_id == NO_PROJECT:
            raise invalid("The default project cannot be archived.", reason="default_project")
        if (actor.tenant_id, actor.project_id) == (tenant_id, project_id):
            raise invalid("The key in use belongs to this project: archiving it would lock you out.")
        if record.state == _ARCHIVED:
            return record
        changed = ProjectRecord()
        changed.CopyFrom(record)
        changed.state = _ARCHIVED
        changed.archive_time.CopyFrom(clock.timestamp(clock.now_us()))
        name = _name(tenant_id, project_id)
        change = Change("project.archived", actor.key_id, tenant_id, project_id, project_id)
        await self._changes.end(name, changed, self._projects.revision(name), change)
        return changed

    async def _make(self, action: str, record: ProjectRecord, actor: KeyRecord, details: dict[str, Any]) -> None:
        name = _name(record.tenant_id, record.project_id)
        change = Change(action, actor.key_id, record.tenant_id, record.project_id, record.project_id, details)
        await self._changes.make(name, record, self._projects.revision(name), change)

    def _implied(self, tenant_id: str, project_id: str) -> ProjectRecord | None:
        """The default project, and one that a key of the tenant names, as old as its oldest key."""
        made = [key.create_time for _, key in self._keys_in.of(_name(tenant_id, project_id))]
        if not made and project_id != NO_PROJECT:
            return None
        first = min(made, key=lambda one: one.ToNanoseconds(), default=None)
        return ProjectRecord(
            tenant_id=tenant_id, project_id=project_id, name=project_id, state=_ACTIVE, create_time=first
        )


def _name(tenant_id: str, project_id: str) -> str:
    return f"{tenant_id}/{project_id}"


def _checked(given: ProjectRecord) -> ProjectRecord:
    checked_name(given.name, "name")
    checked_weight(given.weight)
    return given


def _told(record: ProjectRecord, names: Collection[str]) -> dict[str, Any]:
    shown = MessageToDict(record, preserving_proto_field_name=True)
    return {name: shown[name] for name in sorted(names) if name in shown}
