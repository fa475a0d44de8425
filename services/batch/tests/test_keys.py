"""Whoever submitted a job may still use the platform, or not, as an edge would say."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest
import pytest_asyncio
from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.registry_pb2 import (
    KeyRecord,
    MemberRecord,
    ProjectMembership,
    ProjectRecord,
    RecordState,
    TenantRecord,
)
from inferbus_batch.keys import Keys
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_runtime import clock

ARCHIVED = RecordState.RECORD_STATE_ARCHIVED


class Office(NamedTuple):
    keys: Keys
    records: dict[str, Registry]

    async def put(self, bucket: str, name: str, record) -> None:
        await self.records[bucket].put(name, record)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.02)

    def living(self, tenant: str, key: str = "k") -> bool:
        found = self.keys.of(JobRecord(tenant_id=tenant, key_id=key))
        assert found is None or (found.tenant_id, found.key_id) == (tenant, key)
        return found is not None


@pytest_asyncio.fixture
async def office(file_bus) -> AsyncIterator[Office]:
    kinds = {"keys": KeyRecord, "tenants": TenantRecord, "projects": ProjectRecord, "members": MemberRecord}
    async with connect(BusConfig(file_bus.url, "office")) as bus:
        records = {name: Registry(bus, name, kind) for name, kind in kinds.items()}
        for one in records.values():
            await one.start()
        yield Office(Keys(*records.values()), records)
        for one in records.values():
            await one.stop()


def key(tenant: str, key_id: str = "k", **fields) -> KeyRecord:
    return KeyRecord(key_id=key_id, tenant_id=tenant, project_id="p", **fields)


async def test_found_by_its_tenant_and_id_and_by_no_other(office):
    await office.put("keys", "hash-a", key("a"))
    await office.until(lambda: office.living("a"))
    assert not office.living("b")
    assert not office.living("a", "other")


@pytest.mark.parametrize("field", ["revoke_time", "expire_time"])
async def test_revoked_or_expired_it_is_none_from_that_moment_on(office, field):
    tenant, now = f"t-{field}", clock.now_us()
    await office.put("keys", f"hash-{field}", key(tenant, **{field: clock.timestamp(now + 2_000_000)}))
    await office.until(lambda: office.living(tenant) or clock.now_us() > now + 2_000_000)
    await office.until(lambda: clock.now_us() > now + 2_000_000 and not office.living(tenant))


async def test_rotated_its_new_record_counts_and_the_old_one_may_go(office):
    past = clock.timestamp(clock.now_us() - 1)
    await office.put("keys", "hash-old", key("r"))
    await office.put("keys", "hash-new", key("r"))
    await office.put("keys", "hash-old", key("r", revoke_time=past))
    await office.until(lambda: office.records["keys"].get("hash-old").HasField("revoke_time"))
    assert office.living("r")
    await office.put("keys", "hash-new", key("r", revoke_time=past))
    await office.until(lambda: not office.living("r"))


async def test_who_left_the_project_or_whose_project_or_tenant_is_archived_has_none(office):
    await office.put("keys", "hash-o", key("o", owner_id="ada"))
    await office.until(lambda: office.records["keys"].get("hash-o") is not None)
    assert not office.living("o")
    member = MemberRecord(member_id="ada", tenant_id="o", projects=[ProjectMembership(project_id="p")])
    await office.put("members", "o/ada", member)
    await office.until(lambda: office.living("o"))
    del member.projects[:]
    await office.put("members", "o/ada", member)
    await office.until(lambda: not office.living("o"))
    for bucket, name, record in (
        ("projects", "x/p", ProjectRecord(project_id="p", tenant_id="x", state=ARCHIVED)),
        ("tenants", "y", TenantRecord(tenant_id="y", state=ARCHIVED)),
    ):
        tenant = name[0]
        await office.put("keys", f"hash-{tenant}", key(tenant))
        await office.until(lambda tenant=tenant: office.living(tenant))
        await office.put(bucket, name, record)
        await office.until(lambda tenant=tenant: not office.living(tenant))
