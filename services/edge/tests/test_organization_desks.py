"""The desks behind the administration, on two edges at once and at their bounds; a real broker between them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from inferbus.bus.v1.registry_pb2 import KeyRecord, KeyUseRecord, ProjectRecord
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_edge.directory import Directory
from inferbus_edge.keys import KeyDesk
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer

ACTOR = KeyRecord(key_id="key_operator", tenant_id="operator")
_names = itertools.count(1)


@pytest_asyncio.fixture
async def edges(nats_server: NatsServer) -> AsyncIterator[tuple[Directory, Directory]]:
    async with (
        connect(BusConfig(nats_server.url, f"desk-{next(_names)}")) as one,
        connect(BusConfig(nats_server.url, f"desk-{next(_names)}")) as two,
    ):
        directories = [await started(bus) for bus in (one, two)]
        yield directories[0], directories[1]
        for directory in directories:
            await directory.stop()


async def started(bus: Bus) -> Directory:
    publisher = Publisher(bus)
    await publisher.start()
    directory = Directory(bus, publisher)
    await directory.start()
    return directory


async def outcome(change: Awaitable[Any]) -> Any:
    """Its result, or the reason of its refusal."""
    try:
        return await change
    except InferBusError as error:
        return error.reason


def valid(edge: Directory, secret: str) -> bool:
    try:
        edge.auth.require({"x-api-key": secret}, "inference")
    except InferBusError:
        return False
    return True


async def until_known(edge: Directory, secret: str) -> None:
    async with asyncio.timeout(5):
        while not valid(edge, secret):
            await asyncio.sleep(0.005)


async def settled(edges: tuple[Directory, Directory], tenant: str) -> None:
    """Both have seen what the other did: a key made last by one is known to the other, both ways."""
    for one, two in (edges, edges[::-1]):
        _, secret = await one.keys.create(tenant_id=tenant, project_id="", name="", scopes=[], actor=ACTOR)
        await until_known(two, secret)


async def test_rotating_here_and_revoking_there(edges: tuple[Directory, Directory], bus: Bus) -> None:
    """Whoever is told that the key is revoked can rely on it; who is told of a new secret has the only one; and who is
    refused leaves no secret behind, not even one that nobody knows."""
    one, two = edges
    stored = Registry(bus, "keys", KeyRecord)
    await stored.start()
    tenant = f"race-{next(_names)}"
    for number in range(20):
        key, first = await one.keys.create(tenant_id=tenant, project_id="", name="", scopes=[], actor=ACTOR)
        await until_known(two, first)
        pause = (number % 5) * 0.0005

        async def revoke(key_id: str = key.key_id, pause: float = pause) -> Any:
            await asyncio.sleep(pause)
            return await two.keys.revoke(key_id, ACTOR)

        rotated, revoked = await asyncio.gather(
            outcome(one.keys.rotate(key.key_id, timedelta(), ACTOR)), outcome(revoke())
        )
        await settled(edges, tenant)
        await asyncio.sleep(0.05)  # the third reader's watch comes right behind
        assert not isinstance(rotated, str) or rotated == "changed_meanwhile"
        assert not isinstance(revoked, str) or revoked == "changed_meanwhile"
        second = "" if isinstance(rotated, str) else rotated[1]
        live = [
            each for each in stored.items().values() if each.key_id == key.key_id and not each.HasField("revoke_time")
        ]
        assert len(live) <= (0 if isinstance(revoked, Key) else 1)
        for edge in edges:
            if isinstance(revoked, Key):
                assert not valid(edge, first)
                assert not second or not valid(edge, second)
            elif second:
                assert not valid(edge, first)
    await stored.stop()


async def test_two_edges_never_lose_a_change(edges: tuple[Directory, Directory]) -> None:
    """Each change is either made on what the other edge left, or refused."""
    one, two = edges
    tenant = f"race-{next(_names)}"
    project = await one.projects.create(ProjectRecord(tenant_id=tenant, name="0"), ACTOR)
    async with asyncio.timeout(5):
        while project.project_id not in [each.project_id for each in two.projects.all(tenant)]:
            await asyncio.sleep(0.005)

    async def rename(edge: Directory, name: str) -> Any:
        given = ProjectRecord(tenant_id=tenant, project_id=project.project_id, name=name)
        return await outcome(edge.projects.update(given, ["name"], ACTOR))

    async def limit(edge: Directory, number: int) -> Any:
        given = ProjectRecord(tenant_id=tenant, project_id=project.project_id, limits={"requests_per_minute": number})
        return await outcome(edge.projects.update(given, ["limits"], ACTOR))

    name, requests = "0", 0
    for number in range(1, 21):
        renamed, limited = await asyncio.gather(rename(one, str(number)), limit(two, number))
        refused = [each for each in (renamed, limited) if isinstance(each, str)]
        assert refused in ([], ["changed_meanwhile"])  # of two at once, one is made
        name = name if isinstance(renamed, str) else str(number)
        requests = requests if isinstance(limited, str) else number
        await settled(edges, tenant)
        for edge in edges:
            found = edge.projects.get(tenant, project.project_id)
            assert (found.name, found.limits.requests_per_minute) == (name, requests)


async def test_a_tenant_has_so_many_keys_and_forgets_the_longest_revoked(bus: Bus) -> None:
    publisher = Publisher(bus)
    await publisher.start()
    keys, uses = Registry(bus, "keys", KeyRecord), Registry(bus, "key_uses", KeyUseRecord)
    await keys.start()
    await uses.start()
    desk, tenant = KeyDesk(keys, publisher, uses, most=3), f"full-{next(_names)}"

    async def create() -> str:
        key, _ = await desk.create(tenant_id=tenant, project_id="", name="", scopes=[], actor=ACTOR)
        return key.key_id

    made = [await create() for _ in range(3)]
    with pytest.raises(InferBusError, match="too_many"):
        await create()
    await desk.revoke(made[1], ACTOR)
    await desk.revoke(made[0], ACTOR)
    made.append(await create())
    assert [key.key_id for key in desk.all(tenant)] == [made[0], made[2], made[3]]
    await keys.stop()
    await uses.stop()
