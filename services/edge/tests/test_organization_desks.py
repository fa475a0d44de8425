"""The desks behind the administration, on two edges at once and at their bounds; a real broker between them."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest_asyncio
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import KeyRecord, KeyUseRecord, MemberRecord, ProjectMembership, ProjectRecord
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.streams import bucket_config
from inferbus_contracts.ids import key_hash
from inferbus_contracts.subjects import STREAMS, bucket_spec
from inferbus_edge.core.organization_audit import AuditQuery
from inferbus_edge.core.organization_room import Room
from inferbus_edge.directory import Directory
from inferbus_edge.key_uses import KeyUses
from inferbus_edge.keys import KeyDesk
from inferbus_edge.records import Records
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
    async with asyncio.timeout(30):
        while not valid(edge, secret):
            await asyncio.sleep(0.005)


async def settled(edges: tuple[Directory, Directory], tenant: str) -> str:
    """Both have seen what the other did: a key made last by one is known to the other, both ways. The last one."""
    for one, two in (edges, edges[::-1]):
        _, secret = await one.keys.create(tenant_id=tenant, project_id="", name="", scopes=[], actor=ACTOR)
        await until_known(two, secret)
    return secret


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
        last = key_hash(await settled(edges, tenant))
        async with asyncio.timeout(30):
            while stored.get(last) is None:  # the third reader has seen it all, too
                await asyncio.sleep(0.005)
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
    async with asyncio.timeout(30):
        while project.project_id not in [each.project_id for each in two.projects.all(tenant)]:
            await asyncio.sleep(0.005)

    async def rename(edge: Directory, name: str) -> Any:
        given = ProjectRecord(tenant_id=tenant, project_id=project.project_id, name=name)
        return await outcome(edge.projects.update(given, ["name"], ACTOR))

    async def limit(edge: Directory, number: int) -> Any:
        given = ProjectRecord(tenant_id=tenant, project_id=project.project_id, limits={"requests_per_minute": number})
        return await outcome(edge.projects.update(given, ["limits"], ACTOR))

    def shown(edge: Directory) -> tuple[str, int]:
        found = edge.projects.get(tenant, project.project_id)
        return found.name, found.limits.requests_per_minute

    name, requests = "0", 0
    for number in range(1, 21):
        renamed, limited = await asyncio.gather(rename(one, str(number)), limit(two, number))
        refused = [each for each in (renamed, limited) if isinstance(each, str)]
        assert refused in ([], ["changed_meanwhile"])  # of two at once, one is made
        name = name if isinstance(renamed, str) else str(number)
        requests = requests if isinstance(limited, str) else number
        await settled(edges, tenant)
        left = [(name, requests)] * 2
        async with asyncio.timeout(30):  # projects come by a watch of their own: that keys have come says nothing
            while [shown(edge) for edge in edges] != left:
                await asyncio.sleep(0.005)


@asynccontextmanager
async def key_desk(bus: Bus, room: Room, most: int = 10_000) -> AsyncIterator[KeyDesk]:
    """With bounds of the test's own."""
    publisher = Publisher(bus)
    await publisher.start()
    keys, uses = Registry(bus, "keys", KeyRecord), Registry(bus, "key_uses", KeyUseRecord)
    await keys.start()
    await uses.start()
    yield KeyDesk(Records(keys, room), publisher, KeyUses(uses), most=most)
    await keys.stop()
    await uses.stop()


async def made(desk: KeyDesk, tenant: str, name: str = "") -> str:
    key, _ = await desk.create(tenant_id=tenant, project_id="", name=name, scopes=[], actor=ACTOR)
    return key.key_id


async def test_a_tenant_has_so_many_keys_and_forgets_the_longest_revoked(bus: Bus) -> None:

    tenant = f"full-{next(_names)}"
    async with key_desk(bus, Room(1 << 30, 1 << 20), most=3) as desk:
        keys = [await made(desk, tenant) for _ in range(3)]
        assert await outcome(made(desk, tenant)) == "too_many"
        await desk.revoke(keys[1], ACTOR)
        await desk.revoke(keys[0], ACTOR)
        keys.append(await made(desk, tenant))
        # The secrets that rotations left behind go as well, and what is live is counted without them.
        for _ in range(4):
            await desk.rotate(keys[2], timedelta(), ACTOR)
        assert await outcome(made(desk, tenant)) != "too_many"
        assert await outcome(made(desk, tenant)) == "too_many"
        live = [key.key_id for key in desk.all(tenant) if not key.HasField("revoke_time")]
        assert len(live) == 3
        assert live[:2] == [keys[2], keys[3]]


async def test_a_bucket_that_one_tenant_fills_still_takes_every_revocation(rig: Any, tmp_path: Path) -> None:
    """On a broker whose bucket is really that small: it would refuse the revocation if it were full."""
    size = 60_000
    async with rig.broker(tmp_path) as server, connect(BusConfig(server.url, "admin")) as bus:
        await bus.api("STREAM.UPDATE.KV_keys", bucket_config(bucket_spec("keys"), 1) | {"max_bytes": size})
        async with key_desk(bus, Room(size, share=1 << 30)) as desk:
            victims = [await made(desk, "victim") for _ in range(5)]
            filled: list[str] = []
            for name in ("x" * 200, ""):
                while (last := await outcome(made(desk, "evil", name))) != "stream_full":
                    filled.append(last)
            assert len(filled) > 50
            assert await outcome(desk.rotate(victims[0], timedelta(), ACTOR)) == "stream_full"
            for key_id in [*victims, *filled]:
                assert (await desk.revoke(key_id, ACTOR)).HasField("revoke_time")
            state = (await bus.api("STREAM.INFO.KV_keys"))["state"]
            assert size * 0.5 < state["bytes"] < size


async def test_a_tenant_has_a_share_of_the_bucket(bus: Bus) -> None:
    tenant, other = f"share-{next(_names)}", f"share-{next(_names)}"
    async with key_desk(bus, Room(1 << 30, share=10_000)) as desk:
        keys: list[str] = []
        while (last := await outcome(made(desk, tenant, "x" * 200))) != "too_many":
            keys.append(last)
        assert 10 < len(keys) < 40
        assert await outcome(desk.rotate(keys[0], timedelta(), ACTOR)) == "too_many"
        allow = [f"a-model-with-number-{number}" for number in range(40)]
        assert await outcome(desk.update(Key(key_id=keys[0], models=allow), ["models"], ACTOR)) == "too_many"
        await made(desk, other, "x" * 200)
        await desk.revoke(keys[0], ACTOR)
        assert (await desk.update(Key(key_id=keys[1]), ["name"], ACTOR)).name == ""
        assert (await desk.update(Key(key_id=keys[1], name="z" * 100), ["name"], ACTOR)).name == "z" * 100


async def test_what_is_known_by_tenant_is_what_is_there(bus: Bus) -> None:
    """The index and the sizes, after any changes, and made from a registry that is whole already."""
    writer = Registry(bus, "projects", ProjectRecord)
    await writer.start()
    watched = [Records(writer, Room(1 << 30, 1 << 20))]
    mark, chance = f"index-{next(_names)}", random.Random(4)
    for step in range(300):
        tenant, name = f"{mark}-{chance.randrange(4)}", f"{mark}-{chance.randrange(4)}/{chance.randrange(12)}"
        if chance.random() < 0.3:
            await writer.delete(name)
        else:
            await writer.put(name, ProjectRecord(tenant_id=tenant, name="x" * chance.randrange(100)))
        if step == 150:
            watched.append(Records(writer, Room(1 << 30, 1 << 20)))
    await writer.put(f"{mark}-last", ProjectRecord(tenant_id=mark))
    async with asyncio.timeout(30):
        while writer.get(f"{mark}-last") is None:
            await asyncio.sleep(0.01)
    there = [(name, one) for name, one in writer.items().items() if one.tenant_id.startswith(mark)]
    tenants = {one.tenant_id for _, one in there}
    anew = Records(writer, Room(1 << 30, 1 << 20))
    for records in watched:
        assert {tenant for tenant in records.tenants() if tenant.startswith(mark)} == tenants
        for tenant in tenants:
            assert sorted(records.of(tenant)) == sorted(item for item in there if item[1].tenant_id == tenant)
            assert records.bytes_of(tenant) == anew.bytes_of(tenant) > 0
    await writer.stop()


async def test_no_key_outlives_its_owner(edges: tuple[Directory, Directory]) -> None:
    """One edge makes a key of what the other deletes at that moment: whoever was first, nobody gets in with it."""
    one, two = edges
    tenant = f"owner-{next(_names)}"
    given = 0
    for number in range(20):
        account = await one.members.add_service_account(tenant, "default", "svc", "none", ACTOR)
        async with asyncio.timeout(30):
            while two.members.find(tenant, account.member_id) is None:
                await asyncio.sleep(0.005)

        async def delete(account: MemberRecord = account, pause: float = (number % 5) * 0.004) -> None:
            await asyncio.sleep(pause)
            await two.members.delete_service_account(account, "default", ACTOR)

        def create(account: MemberRecord = account) -> Awaitable[Any]:
            return one.keys.create(
                tenant_id=tenant, project_id="", name="", scopes=[], actor=ACTOR, owner_id=account.member_id
            )

        key, _ = await asyncio.gather(outcome(create()), delete())
        await settled(edges, tenant)
        async with asyncio.timeout(30):
            while any(edge.members.find(tenant, account.member_id) for edge in edges):
                await asyncio.sleep(0.005)
        assert not isinstance(key, str) or key == "changed_meanwhile"
        if not isinstance(key, str):
            given += 1
            assert not any(valid(edge, key[1]) for edge in edges)
        assert await outcome(create()) == "changed_meanwhile"
    assert given, "the keys were late in each of the races: nothing was tried"


async def test_a_key_made_while_its_user_left_does_not_come_back_with_him(
    edges: tuple[Directory, Directory], bus: Bus
) -> None:
    one, _ = edges
    tenant = f"owner-{next(_names)}"
    user = await one.members.add_user(tenant, "ada@example.com", "", "reader", ACTOR)
    await one.members.join(tenant, user.member_id, "web", "member", ACTOR)
    key, secret = await one.keys.create(
        tenant_id=tenant, project_id="web", name="", scopes=[], actor=ACTOR, owner_id=user.member_id
    )
    assert valid(one, secret)
    # As another edge leaves it that made the key when this one had looked for his keys already.
    members = Registry(bus, "members", MemberRecord)
    await members.start()
    alone = MemberRecord()
    alone.CopyFrom(user)
    await members.put(f"{tenant}/{user.member_id}", alone)
    async with asyncio.timeout(30):
        while valid(one, secret):
            await asyncio.sleep(0.005)
    await one.members.join(tenant, user.member_id, "web", "member", ACTOR)
    assert not valid(one, secret)
    assert one.keys.get(key.key_id).HasField("revoke_time")
    await members.stop()


async def test_a_user_s_projects_are_bounded(edges: tuple[Directory, Directory], bus: Bus) -> None:
    """The longest record that there can be is a bounded one; to leave is possible from it."""
    one, _ = edges
    tenant = f"wide-{next(_names)}"
    user = await one.members.add_user(tenant, "ada@example.com", "", "reader", ACTOR)
    members = Registry(bus, "members", MemberRecord)
    await members.start()
    user.projects.extend(ProjectMembership(project_id=f"proj_{n:024d}", role="member") for n in range(440))
    await members.put(f"{tenant}/{user.member_id}", user)
    async with asyncio.timeout(30):
        while len(one.members.user(tenant, user.member_id).projects) < 440:
            await asyncio.sleep(0.005)
    assert await outcome(one.members.join(tenant, user.member_id, "one-more", "member", ACTOR)) == "invalid_value"
    await one.members.leave(tenant, user.member_id, user.projects[0].project_id, ACTOR)
    assert len(one.members.user(tenant, user.member_id).projects) == 439
    await members.stop()


async def test_nobody_pushes_out_another_s_audit_log(edges: tuple[Directory, Directory], bus: Bus) -> None:
    """Nor, by changes of one kind, his own of another."""
    one, _ = edges
    kept = next(stream.newest_per_subject for stream in STREAMS if stream.name == "AUDIT")
    assert kept is not None
    victim, evil = f"victim-{next(_names)}", f"evil-{next(_names)}"
    publisher = Publisher(bus)
    await publisher.start()

    def event(tenant: str, action: str, number: int = 0) -> AuditEvent:
        return AuditEvent(event_id=f"{tenant}-{action}-{number}", tenant_id=tenant, action=action)

    await publisher.publish(event(victim, "key.updated"))
    await publisher.publish(event(evil, "key.created"))
    for start in range(0, kept + 2000, 1000):
        await asyncio.gather(
            *(publisher.publish(event(evil, "key.updated", number)) for number in range(start, start + 1000))
        )
    told, _ = await one.audit_log.page(victim, AuditQuery(), lambda key: "")
    assert [each.action for each in told] == ["key.updated"]
    told, _ = await one.audit_log.page(evil, AuditQuery(types=frozenset(["api_key.created"])), lambda key: "")
    assert len(told) == 1
    told, _ = await one.audit_log.page(evil, AuditQuery(limit=2 * kept), lambda key: "")
    assert len(told) == kept + 1
