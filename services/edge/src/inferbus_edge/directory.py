"""Who may call: the registries of keys, tenants, projects and members, and the desks that change them."""

import asyncio
import logging
from collections.abc import Callable

from inferbus.bus.v1.brand_pb2 import BrandRecord
from inferbus.bus.v1.registry_pb2 import KeyRecord, KeyUseRecord, MemberRecord, ProjectRecord, TenantRecord
from inferbus_bus.connection import Bus
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_contracts.subjects import TENANT_SHARE_BYTES, bucket_spec

from inferbus_edge.audit_log import AuditLog
from inferbus_edge.auth import Auth
from inferbus_edge.brands import BrandDesk
from inferbus_edge.core.brand import MAX_BRAND_BYTES
from inferbus_edge.core.organization_room import MAX_MEMBER_BYTES, MAX_RECORD_BYTES, Room
from inferbus_edge.key_uses import KeyUses
from inferbus_edge.keys import KeyDesk
from inferbus_edge.members import MemberDesk
from inferbus_edge.projects import ProjectDesk
from inferbus_edge.records import Records
from inferbus_edge.tenants import TenantDesk

log = logging.getLogger(__name__)


class Directory:
    """The registries are whole in memory while it runs: whoever asks :attr:`auth` waits for nothing."""

    def __init__(self, bus: Bus, publisher: Publisher, admit_change: Callable[[KeyRecord], None] | None = None) -> None:
        """``publisher`` must have been started. ``admit_change``: see :class:`Auth`."""
        keys = Registry(bus, "keys", KeyRecord)
        key_uses = Registry(bus, "key_uses", KeyUseRecord)
        tenants = Registry(bus, "tenants", TenantRecord)
        projects = Registry(bus, "projects", ProjectRecord)
        members = Registry(bus, "members", MemberRecord)
        brands = Registry(bus, "brands", BrandRecord)
        self._registries: tuple[Registry[KeyRecord] | Registry[KeyUseRecord] | Registry[TenantRecord]
                                | Registry[ProjectRecord] | Registry[MemberRecord] | Registry[BrandRecord], ...] = (
            keys, key_uses, tenants, projects, members, brands,
        )  # fmt: skip
        self._uses = KeyUses(key_uses)
        self._writing: asyncio.Task[None] | None = None
        self.auth = Auth(keys, projects, tenants, members, self._uses, admit_change)
        key_records = Records(keys, _room("keys"))
        self.keys = KeyDesk(key_records, publisher, self._uses, self.auth.has_owner)
        self.tenants = TenantDesk(Records(tenants, _room("tenants")), key_records, publisher)
        self.projects = ProjectDesk(Records(projects, _room("projects")), key_records, publisher)
        self.members = MemberDesk(Records(members, _room("members", MAX_MEMBER_BYTES)), self.keys, publisher)
        self.brands = BrandDesk(Records(brands, _room("brands", MAX_BRAND_BYTES)), publisher)
        self.audit_log = AuditLog(bus)

    async def start(self) -> None:
        """Returns when all of them are here. Raises like :meth:`Registry.start`."""
        for registry in self._registries:
            await registry.start()
        self._writing = asyncio.create_task(self._uses.run(), name="last use of keys")

    async def stop(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            (ended,) = await asyncio.gather(self._writing, return_exceptions=True)
            if isinstance(ended, Exception):
                log.error("the writer of last uses had failed", exc_info=ended)
            await self._uses.write(all_of_them=True)
        for registry in self._registries:
            await registry.stop()

    @property
    def loaded(self) -> bool:
        return all(registry.loaded for registry in self._registries)


def _room(bucket: str, record_bytes: int = MAX_RECORD_BYTES) -> Room:
    return Room(bucket_spec(bucket).max_bytes, TENANT_SHARE_BYTES, record_bytes)
