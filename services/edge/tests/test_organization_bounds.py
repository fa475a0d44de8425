"""What one tenant's administrators may take of an edge: changes a minute, the length of what they send, its time."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from inferbus.bus.v1.registry_pb2 import KeyRecord, MemberKind, MemberRecord, ProjectMembership
from inferbus.edge.v1 import edge_pb2
from inferbus.edge.v1.edge_pb2_grpc import EdgeServiceStub
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import mint
from inferbus_runtime import clock, rpc

ORGANIZATION = "/v1/organization"
KEYS = f"{ORGANIZATION}/projects/default/api_keys"
ACCOUNTS = f"{ORGANIZATION}/projects/default/service_accounts"
OPERATORS_KEYS = "/inferbus/v1/keys"
_names = itertools.count(1)


async def ask(http: aiohttp.ClientSession, method: str, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
    async with http.request(method, path, **options) as response:
        body = await response.json()
        assert response.status == status, body
        return body


async def status_of(http: aiohttp.ClientSession, method: str, path: str, **options: Any) -> int:
    async with http.request(method, path, **options) as response:
        return response.status


def cpu_seconds(pid: int) -> float:
    """How long it has computed: what stands still, or waits for its turn, computes nothing."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


async def admin_key(edge: Any, rig: Any, scope: str = "tenant_admin") -> str:
    """The secret of a key of a new tenant."""
    body = {"tenant_id": f"bounded-{next(_names)}", "scopes": [scope]}
    async with rig.session(edge, rig.ADMIN_KEY) as operator:
        return (await ask(operator, "POST", OPERATORS_KEYS, 201, json=body))["secret"]


@pytest.fixture
async def tenant(edge: Any, rig: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with rig.session(edge, await admin_key(edge, rig)) as http:
        yield http


@asynccontextmanager
async def strict_edges(nats_server: Any, rig: Any, folder: Path) -> AsyncIterator[tuple[Any, Any]]:
    """Two edges that let ten changes of a tenant pass in a minute."""
    settings = {"MAX_CHANGES_PER_MINUTE": "10"}
    async with (
        rig.run_edge(nats_server, folder, **settings) as one,
        rig.run_edge(nats_server, folder, **settings) as two,
    ):
        yield one, two


async def test_changes_of_a_tenant_are_so_many_a_minute_over_all_edges(
    edge: Any, nats_server: Any, rig: Any, tmp_path: Path
) -> None:
    mine, other = await admin_key(edge, rig), await admin_key(edge, rig)
    async with strict_edges(nats_server, rig, tmp_path) as edges:
        async with rig.session(edges[0], mine) as http, rig.session(edges[1], mine) as there:
            made = [(await ask(http, "POST", KEYS, json={"name": "k"}))["id"] for _ in range(8)]
            await ask(http, "POST", f"{KEYS}/{made[0]}", json={"name": "changed"})
            assert await status_of(http, "POST", f"{KEYS}/{made[0]}/rotate", json={}) == 200
            async with http.post(KEYS, json={"name": "k"}) as refused:
                assert refused.status == 429
                error = (await refused.json())["error"]
                assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
                assert 0 < int(refused.headers["Retry-After"]) <= 61
                assert refused.headers["x-ratelimit-limit-requests"] == "10"
                assert "Limit 10, Used 10" in error["message"]
            await asyncio.sleep(0.5)  # what one edge let pass is heard by the other within a tick
            changes = [
                ("POST", f"{KEYS}/{made[0]}"), ("POST", f"{KEYS}/{made[0]}/rotate"), ("POST", ACCOUNTS),
                ("POST", f"{ORGANIZATION}/admin_api_keys"), ("POST", f"{ORGANIZATION}/projects"),
                ("POST", f"{ORGANIZATION}/projects/default"), ("POST", f"{ORGANIZATION}/users"),
                ("POST", f"{ORGANIZATION}/projects/default/users"),
                ("POST", f"{ORGANIZATION}/projects/default/rate_limits/rl-all"),
            ]  # fmt: skip
            for session in (http, there):
                for method, path in changes:
                    assert await status_of(session, method, path, json={"name": "x"}) == 429, path
                # Looking is no change; and a stolen key that spends all of it does not hold up its own end.
                assert await status_of(session, "GET", KEYS) == 200
                assert await status_of(session, "DELETE", f"{KEYS}/{made.pop()}") == 200
        async with rig.session(edges[0], other) as http:
            await ask(http, "POST", KEYS, json={"name": "k"})


async def test_an_operator_s_changes_are_counted_by_http_and_grpc_together(
    edge: Any, nats_server: Any, rig: Any, tmp_path: Path
) -> None:
    key = await admin_key(edge, rig, "admin")
    async with (
        strict_edges(nats_server, rig, tmp_path) as (one, _),
        rig.session(one, key) as http,
        rpc.channel(one.grpc, key) as channel,
    ):
        stub, request = EdgeServiceStub(channel), edge_pb2.CreateKeyRequest(tenant_id=f"bounded-{next(_names)}")
        made = [(await stub.CreateKey(request)).key.key_id for _ in range(5)]
        for _ in range(5):
            await ask(http, "POST", OPERATORS_KEYS, 201, json={"tenant_id": request.tenant_id})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.CreateKey(request)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        for method, path in (
            ("POST", OPERATORS_KEYS), ("PATCH", f"{OPERATORS_KEYS}/{made[0]}"), ("POST", "/inferbus/v1/tenants"),
            ("POST", f"{OPERATORS_KEYS}/{made[0]}/rotate"), ("PATCH", "/inferbus/v1/tenants/acme"),
            ("POST", "/inferbus/v1/tenants/acme/restore"),
        ):  # fmt: skip
            assert await status_of(http, method, path, json={"name": "x"}) == 429, path
        await stub.RevokeKey(edge_pb2.RevokeKeyRequest(key_id=made[0]))
        assert await status_of(http, "DELETE", f"{OPERATORS_KEYS}/{made[1]}") == 200


async def test_an_allow_list_is_bounded_and_the_audit_log_tells_a_long_one_short(tenant: aiohttp.ClientSession) -> None:
    key = (await ask(tenant, "POST", KEYS, json={"name": "k"}))["id"]
    huge = [chr(0x1F600 + number) * 199 for number in range(10)]
    for path in (KEYS, f"{KEYS}/{key}"):
        refused = await ask(tenant, "POST", path, 400, json={"name": "k", "models": huge})
        assert refused["error"]["param"] == "models"
    long = {"models": [f"a-model-of-many-{number:08d}" for number in range(100)], "name": "\U0001f600" * 200}
    assert (await ask(tenant, "POST", f"{KEYS}/{key}", json=long))["models"] == long["models"]
    entry = (await ask(tenant, "GET", f"{ORGANIZATION}/audit_logs", params={"limit": "1"}))["data"][0]
    assert entry["api_key.updated"]["changes_requested"]["models"]["count"] == 100


@pytest.mark.parametrize("bad", ["\U0001f600" * 200, "a" * 65, "a/b", "a b", ".a"])
async def test_ids_that_no_subject_holds_are_refused(edge: Any, rig: Any, bad: str) -> None:
    """The edge stays on the broker: a subject that is too long would have cost it its connection."""
    async with rig.session(edge, rig.ADMIN_KEY) as operator:
        for path, body in (
            (OPERATORS_KEYS, {"tenant_id": bad}),
            (OPERATORS_KEYS, {"tenant_id": "acme", "project_id": bad}),
            ("/inferbus/v1/tenants", {"tenant_id": bad}),
        ):
            error = (await ask(operator, "POST", path, 400, json=body))["error"]
            assert error["param"] in ("tenant_id", "project_id")
        widest = {"tenant_id": f"t{next(_names):.<63}", "project_id": "p" + "." * 63}
        made = await ask(operator, "POST", OPERATORS_KEYS, 201, json=widest)
        assert made["key"]["project_id"] == widest["project_id"]


async def test_a_key_of_an_account_that_is_deleted_while_the_body_comes(
    tenant: aiohttp.ClientSession, edge: Any, rig: Any
) -> None:
    account = (await ask(tenant, "POST", ACCOUNTS, json={"name": "svc"}))["id"]
    deleted = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b'{"name":'
        await deleted.wait()
        yield b'"late"}'

    late = asyncio.create_task(
        ask(tenant, "POST", f"{ACCOUNTS}/{account}/api_keys", 404, data=slow(),
            headers={"Content-Type": "application/json"})
    )  # fmt: skip
    await asyncio.sleep(0.2)
    await ask(tenant, "DELETE", f"{ACCOUNTS}/{account}")
    deleted.set()
    assert (await late)["error"]["code"] == "service_account_not_found"
    assert (await ask(tenant, "GET", KEYS))["data"] == []


async def test_a_large_tenant_s_lists_do_not_stop_the_edge(worker: Any, edge: Any, rig: Any) -> None:
    """2,000 keys of 100 users in a platform with as many of others'; it was 8 s of silence for all."""
    mine, theirs = (f"large-{next(_names)}" for _ in range(2))
    keys, members = Registry(worker.bus, "keys", KeyRecord), Registry(worker.bus, "members", MemberRecord)
    await keys.start()
    await members.start()
    now = clock.timestamp(clock.now_us())
    entropy = itertools.count(1 << 200)
    secret = mint(next(entropy).to_bytes(32, "big"))
    records = [(secret, KeyRecord(key_id="key_large", tenant_id=mine, project_id="default", scopes=["tenant_admin"]))]
    for tenant_id in (mine, theirs):
        records += [
            (mint(next(entropy).to_bytes(32, "big")),
             KeyRecord(key_id=f"key_{tenant_id}_{number}", tenant_id=tenant_id, project_id="default", create_time=now,
                       scopes=["inference"], owner_id=f"user_{number % 100}"))
            for number in range(2000)
        ]  # fmt: skip
    for number in range(100):
        member = MemberRecord(
            member_id=f"user_{number}", tenant_id=mine, kind=MemberKind.MEMBER_KIND_USER, create_time=now,
            email=f"u{number}@example.com", projects=[ProjectMembership(project_id="default", role="member")],
        )  # fmt: skip
        await members.put(f"{mine}/{member.member_id}", member)
    for start in range(0, len(records), 500):
        part = records[start : start + 500]
        await asyncio.gather(*(keys.put(key_hash(one), record) for one, record in part))
    async with rig.session(edge, secret) as http:
        async with asyncio.timeout(30):
            while await status_of(http, "GET", f"{KEYS}/key_{theirs}_1999") != 404:
                await asyncio.sleep(0.05)
        for path, query in (
            (f"{ORGANIZATION}/users", {"limit": "100"}), (KEYS, {"limit": "100"}),
            (f"{ORGANIZATION}/audit_logs", {}), (f"{ORGANIZATION}/admin_api_keys", {}),
        ):  # fmt: skip
            began = cpu_seconds(edge.process.pid)
            listed = await ask(http, "GET", path, params=query)
            assert cpu_seconds(edge.process.pid) - began < 1, path
            if query:
                assert len(listed["data"]) == 100
    for one, _ in records:
        await keys.delete(key_hash(one))
    await keys.stop()
    await members.stop()
