"""Whether whoever submitted a job may still use the platform: lines that are asked later are billed to the same key."""

from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.registry_pb2 import KeyRecord, MemberRecord, ProjectRecord, RecordState, TenantRecord
from inferbus_bus.registry import Registry
from inferbus_contracts.keys import expired, revoked
from inferbus_runtime import clock

_ARCHIVED = RecordState.RECORD_STATE_ARCHIVED


class Keys:
    """The registries are running ones. Keys are found by tenant and id, where edges find them by their secret."""

    def __init__(
        self,
        keys: Registry[KeyRecord],
        tenants: Registry[TenantRecord],
        projects: Registry[ProjectRecord],
        members: Registry[MemberRecord],
    ) -> None:
        self._keys = keys
        self._tenants = tenants
        self._projects = projects
        self._members = members
        # The name of its record by tenant and id. A rotated key has two records for a while, of one id.
        self._names: dict[tuple[str, str], set[str]] = {}
        self._of_name: dict[str, tuple[str, str]] = {}
        keys.on_change(self._changed)
        for name, record in keys.items().items():
            self._changed(name, record)

    def of(self, record: JobRecord) -> KeyRecord | None:
        """The key that submitted it; None if it is not to be used any more."""
        return self.living(record.tenant_id, record.key_id)

    def living(self, tenant_id: str, key_id: str) -> KeyRecord | None:
        now_us = clock.now_us()
        for name in self._names.get((tenant_id, key_id), ()):
            key = self._keys.get(name)
            if key is not None and not revoked(key, now_us) and not expired(key, now_us) and self._may(key):
                return key
        return None

    def _may(self, key: KeyRecord) -> bool:
        """As edges judge it: the key's owner is in its project, and neither that nor the tenant is archived."""
        tenant = self._tenants.get(key.tenant_id)
        project = self._projects.get(f"{key.tenant_id}/{key.project_id}")
        if (tenant is not None and tenant.state == _ARCHIVED) or (project is not None and project.state == _ARCHIVED):
            return False
        if not key.owner_id:
            return True
        owner = self._members.get(f"{key.tenant_id}/{key.owner_id}")
        return owner is not None and any(one.project_id == key.project_id for one in owner.projects)

    def _changed(self, name: str, key: KeyRecord | None) -> None:
        before = self._of_name.pop(name, None)
        if before is not None:
            self._names[before].discard(name)
            if not self._names[before]:
                del self._names[before]
        if key is not None:
            of = self._of_name[name] = (key.tenant_id, key.key_id)
            self._names.setdefault(of, set()).add(name)
