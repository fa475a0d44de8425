"""Who may call: the check of a key against real registries, without an edge around it."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from inferbus.bus.v1.registry_pb2 import (
    KeyRecord,
    MemberRecord,
    ProjectMembership,
    ProjectRecord,
    RecordState,
    TenantRecord,
)
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import mint
from inferbus_edge.directory import Directory
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

_names = itertools.count(1)
ARCHIVED = RecordState.RECORD_STATE_ARCHIVED


class Rig:
    """A directory, and the registries as somebody else writes them."""

    def __init__(self, directory: Directory, registries: dict[str, Registry[Any]]) -> None:
        self.auth = directory.auth
        self.registries = registries

    async def key(self, **fields: Any) -> tuple[str, KeyRecord]:
        """(its secret, its record), known to the directory."""
        number = next(_names)
        secret = mint(number.to_bytes(32, "big"))
        ids = {"key_id": f"key_{number}", "tenant_id": f"t{number}", "project_id": "web"}
        record = KeyRecord(**(ids | {"scopes": ["inference"]} | fields))
        await self.put("keys", key_hash(secret), record)
        return secret, record

    async def put(self, bucket: str, name: str, record: Any) -> None:
        await self.registries[bucket].put(name, record)


async def seen(rig: Rig, secret: str, reason: str, message: str = "") -> InferBusError:
    """The refusal with this reason (and message), once the registry's watch has brought it."""
    async with asyncio.timeout(5):
        while True:
            refused = refusal(rig, {"authorization": f"Bearer {secret}"})
            if refused is not None and refused.reason == reason and message in refused.message:
                return refused
            await asyncio.sleep(0.01)


def refusal(rig: Rig, headers: dict[str, str], scope: str = "inference") -> InferBusError | None:
    try:
        rig.auth.require(headers, scope)
    except InferBusError as error:
        return error
    return None


@pytest_asyncio.fixture
async def rig(bus: Bus) -> AsyncIterator[Rig]:
    publisher = Publisher(bus)
    await publisher.start()
    directory = Directory(bus, publisher)
    writers = {
        "keys": Registry(bus, "keys", KeyRecord),
        "tenants": Registry(bus, "tenants", TenantRecord),
        "projects": Registry(bus, "projects", ProjectRecord),
        "members": Registry(bus, "members", MemberRecord),
    }
    for writer in writers.values():
        await writer.start()
    await directory.start()
    yield Rig(directory, writers)
    await directory.stop()
    for writer in writers.values():
        await writer.stop()


async def accepted(rig: Rig, headers: dict[str, str], scope: str = "inference") -> KeyRecord:
    async with asyncio.timeout(5):
        while refusal(rig, headers, scope) is not None:
            await asyncio.sleep(0.01)
    return rig.auth.require(headers, scope)


async def test_a_key_comes_as_openai_or_anthropic_send_it(rig: Rig) -> None:
    secret, record = await rig.key()
    for headers in (
        {"authorization": f"Bearer {secret}"}, {"authorization": f"bearer  {secret} "}, {"x-api-key": secret},
        {"authorization": f"Bearer {secret}", "x-api-key": "wrong"},
        {"authorization": "Basic eA==", "x-api-key": secret},
    ):  # fmt: skip
        assert await accepted(rig, headers) == record
    both = refusal(rig, {"authorization": "Bearer wrong", "x-api-key": secret})
    assert both is not None
    assert both.reason == "invalid_api_key"


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "missing_api_key"), ({"authorization": "Bearer "}, "missing_api_key"),
        ({"x-api-key": " "}, "missing_api_key"), ({"authorization": "Basic abc"}, "missing_api_key"),
        ({"x-api-key": "ib-none"}, "invalid_api_key"), ({"authorization": "Bearer \udcff"}, "invalid_api_key"),
        ({"x-api-key": "ü"}, "invalid_api_key"),
    ],
)  # fmt: skip
async def test_no_key(rig: Rig, headers: dict[str, str], reason: str) -> None:
    refused = refusal(rig, headers)
    assert refused is not None
    assert (refused.error_class, refused.reason) == (ErrorClass.ERROR_CLASS_UNAUTHENTICATED, reason)


async def test_ends_of_a_key(rig: Rig) -> None:
    now_us = clock.now_us()
    past, future = clock.timestamp(now_us - 1_000_000), clock.timestamp(now_us + 3_600_000_000)
    for fields, reason in (({"revoke_time": past}, "invalid_api_key"), ({"expire_time": past}, "expired_api_key")):
        secret, _ = await rig.key(**fields)
        refused = await seen(rig, secret, reason)
        assert refused.error_class == ErrorClass.ERROR_CLASS_UNAUTHENTICATED
    secret, _ = await rig.key(revoke_time=future, expire_time=future)
    await accepted(rig, {"x-api-key": secret})


async def test_keys_of_archived_tenants_and_projects(rig: Rig) -> None:
    secret, record = await rig.key()
    await accepted(rig, {"x-api-key": secret})
    name = f"{record.tenant_id}/web"
    await rig.put("projects", name, ProjectRecord(tenant_id=record.tenant_id, project_id="web", state=ARCHIVED))
    await seen(rig, secret, "project_archived")
    await rig.put("projects", name, ProjectRecord(tenant_id=record.tenant_id, project_id="web"))
    await accepted(rig, {"x-api-key": secret})
    await rig.put("tenants", record.tenant_id, TenantRecord(tenant_id=record.tenant_id, state=ARCHIVED))
    await seen(rig, secret, "organization_archived")


async def test_a_key_is_as_good_as_its_owner_s_place_in_the_project(rig: Rig) -> None:
    """Whoever wrote what first, and however the key came to be: it does not outlive the reason for it."""
    secret, record = await rig.key(owner_id="svc_acct_1")
    headers, name = {"x-api-key": secret}, f"{record.tenant_id}/svc_acct_1"
    await seen(rig, secret, "invalid_api_key", "The owner of this API key")
    member = MemberRecord(
        member_id="svc_acct_1", tenant_id=record.tenant_id, projects=[ProjectMembership(project_id="web", role="none")]
    )
    await rig.put("members", name, member)
    assert await accepted(rig, headers) == record
    member.projects[0].project_id = "other"
    await rig.put("members", name, member)
    await seen(rig, secret, "invalid_api_key", "The owner of this API key")
    member.projects[0].project_id = "web"
    await rig.put("members", name, member)
    await accepted(rig, headers)
    await rig.registries["members"].delete(name)
    await seen(rig, secret, "invalid_api_key", "The owner of this API key")


async def test_what_a_key_s_tenant_and_project_are(rig: Rig) -> None:
    _, record = await rig.key()
    assert rig.auth.tenant_of(record).name == record.tenant_id
    assert rig.auth.project_of(record).state == RecordState.RECORD_STATE_ACTIVE
    tenant = TenantRecord(tenant_id=record.tenant_id, name="Acme")
    project = ProjectRecord(tenant_id=record.tenant_id, project_id="web", name="Web")
    await rig.put("tenants", record.tenant_id, tenant)
    await rig.put("projects", f"{record.tenant_id}/web", project)
    async with asyncio.timeout(5):
        while rig.auth.tenant_of(record) != tenant or rig.auth.project_of(record) != project:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("scopes", "granted"),
    [
        (["inference"], {"inference"}), (["tenant_admin"], {"tenant_admin"}), (["admin"], {"admin", "tenant_admin"}),
        (["inference", "admin"], {"inference", "admin", "tenant_admin"}), ([], set()),
    ],
)  # fmt: skip
async def test_what_a_scope_grants(rig: Rig, scopes: list[str], granted: set[str]) -> None:
    secret, _ = await rig.key(scopes=scopes)
    headers = {"x-api-key": secret}
    async with asyncio.timeout(5):
        while (first := refusal(rig, headers)) is not None and first.reason == "invalid_api_key":
            await asyncio.sleep(0.01)
    refusals = {scope: refusal(rig, headers, scope) for scope in ("inference", "tenant_admin", "admin")}
    assert {scope for scope, refused in refusals.items() if refused is None} == granted
    assert {refused.reason for refused in refusals.values() if refused is not None} <= {"insufficient_scope"}
