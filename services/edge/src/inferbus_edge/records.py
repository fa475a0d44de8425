"""A registry as the administration needs it: in groups, kept up to date by its changes, and with what it weighs."""

import logging
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_bus.store import Record, T
from inferbus_contracts.subjects import subject_token
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core.organization_room import ENTRY_BYTES, Room

log = logging.getLogger(__name__)


class TenantsRecord(Record, Protocol):
    """A protobuf message that is one tenant's."""

    tenant_id: str

    def ByteSize(self) -> int: ...  # noqa: N802 (protobuf's name)


OwnedT = TypeVar("OwnedT", bound=TenantsRecord)


class Index(Generic[T]):
    """The records of a registry by the group that each belongs to: asking for one does not look at the others."""

    def __init__(self, registry: Registry[T], group_of: Callable[[T], str]) -> None:
        self._group_of = group_of
        self._groups: dict[str, dict[str, T]] = {}
        self._group: dict[str, str] = {}
        for name, record in registry.items().items():
            self._changed(name, record)
        registry.on_change(self._changed)

    def of(self, group: str) -> list[tuple[str, T]]:
        """(name, record) of each."""
        return list(self._groups.get(group, {}).items())

    def groups(self) -> list[str]:
        """Those that have a record."""
        return list(self._groups)

    def _changed(self, name: str, record: T | None) -> None:
        known = self._group.pop(name, None)
        if known is not None:
            del self._groups[known][name]
            if not self._groups[known]:
                del self._groups[known]
        if record is not None:
            group = self._group[name] = self._group_of(record)
            self._groups.setdefault(group, {})[name] = record


class Records(Generic[OwnedT]):
    """One registry by tenant, and how many bytes of its bucket each tenant has in use."""

    def __init__(self, registry: Registry[OwnedT], room: Room) -> None:
        self.registry = registry
        self._room = room
        self._sizes: dict[str, tuple[str, int]] = {}
        self._by_tenant: dict[str, int] = {}
        self._total = 0
        for name, record in registry.items().items():
            self._changed(name, record)
        registry.on_change(self._changed)
        self._index = Index(registry, lambda record: record.tenant_id)

    def of(self, tenant_id: str) -> list[tuple[str, OwnedT]]:
        """(name, record) of each of the tenant's."""
        return self._index.of(tenant_id)

    def tenants(self) -> Iterable[str]:
        """Those that have a record."""
        return self._index.groups()

    def bytes_of(self, tenant_id: str) -> int:
        """What the tenant's records take of the bucket."""
        return self._by_tenant.get(tenant_id, 0)

    def check_room(self, name: str, record: OwnedT) -> None:
        """Raises InferBusError like :meth:`Room.check` if there is no room for the record under this name.

        Edges that ask at the same moment may pass a bound together, by what they store at once.
        """
        known = self._sizes.get(name, ("", 0))[1]
        tenant = self.bytes_of(record.tenant_id)
        try:
            self._room.check(record.ByteSize(), _size(name, record) - known, tenant, self._total)
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED:
                log.warning("a bucket is nearly full", extra={"reason": error.reason, "diagnostic": error.diagnostic})
            raise

    def _changed(self, name: str, record: OwnedT | None) -> None:
        tenant_id, before = self._sizes.pop(name, ("", 0))
        if before:
            self._add(tenant_id, -before)
        if record is not None:
            size = _size(name, record)
            self._sizes[name] = (record.tenant_id, size)
            self._add(record.tenant_id, size)

    def _add(self, tenant_id: str, size: int) -> None:
        self._total += size
        self._by_tenant[tenant_id] = self._by_tenant.get(tenant_id, 0) + size
        if not self._by_tenant[tenant_id]:
            del self._by_tenant[tenant_id]


def _size(name: str, record: TenantsRecord) -> int:
    return record.ByteSize() + len(subject_token(name)) + ENTRY_BYTES
