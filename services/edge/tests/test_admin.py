"""Administration: keys by HTTP and gRPC, each change on AUDIT; the rest relayed to the services that own it."""

import asyncio
import json
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import Limits, ProjectRecord, RecordState, TenantRecord, WorkerRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.edge.v1 import edge_pb2
from inferbus.edge.v1.edge_pb2_grpc import EdgeServiceStub
from inferbus.meter.v1 import meter_pb2
from inferbus.meter.v1.meter_pb2_grpc import MeterServiceServicer, add_MeterServiceServicer_to_server
from inferbus.scheduler.v1 import scheduler_pb2
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceServicer, add_SchedulerServiceServicer_to_server
from inferbus_bus.log import FrameLog
from inferbus_contracts.keys import is_key
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError

KEYS = "/inferbus/v1/keys"
ARCHIVED = RecordState.RECORD_STATE_ARCHIVED
TOKEN = "operators-token-of-tests"


@pytest.fixture
async def admin(edge: Any, rig: Any) -> Any:
    async with rig.session(edge, rig.ADMIN_KEY) as one:
        yield one


async def audited(worker: Any, target: str) -> list[AuditEvent]:
    """What AUDIT says about ``target``."""
    log = FrameLog(worker.bus, "AUDIT")
    first, last = await log.bounds()
    events = [
        AuditEvent.FromString(data) async for batch in log.read(first, last, subject="audit.>") for _, _, data in batch
    ]
    return [event for event in events if event.target == target]


async def test_a_key_lives_and_dies(admin: Any, edge: Any, worker: Any, rig: Any) -> None:
    made = await admin.post(KEYS, json={"tenant_id": "acme", "project_id": "lab", "name": "ci"})
    assert made.status == 201
    body = await made.json()
    key, secret = body["key"], body["secret"]
    assert is_key(secret)
    assert secret.startswith(key["prefix"])
    assert (key["tenant_id"], key["project_id"], key["name"], key["scopes"]) == ("acme", "lab", "ci", ["inference"])
    assert "revoke_time" not in key

    async with rig.session(edge, secret) as http:
        assert (await http.get("/v1/models")).status == 200  # at once, at the edge that made it
        refused = await http.get(KEYS)
        assert (refused.status, (await refused.json())["error"]["code"]) == (403, "insufficient_scope")
        listed = (await (await admin.get(KEYS)).json())["keys"]
        assert key["key_id"] in [one["key_id"] for one in listed]
        assert secret not in json.dumps(listed)

        for _ in range(2):  # twice is the same as once
            gone = await admin.delete(f"{KEYS}/{key['key_id']}")
            assert gone.status == 200
            assert "revoke_time" in (await gone.json())["key"]
        refused = await http.get("/v1/models")
        assert (refused.status, (await refused.json())["error"]["code"]) == (401, "invalid_api_key")

    events = await audited(worker, key["key_id"])
    assert [(one.action, one.actor_key_id, one.tenant_id) for one in events] == [
        ("key.created", "key_admin", "acme"), ("key.revoked", "key_admin", "acme"),
    ]  # fmt: skip


async def test_keys_are_listed_by_tenant(admin: Any) -> None:
    await admin.post(KEYS, json={"tenant_id": "other"})
    listed = (await (await admin.get(KEYS, params={"tenant": "other"})).json())["keys"]
    assert {one["tenant_id"] for one in listed} == {"other"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_parameter"), ({"tenant_id": "a", "scopes": ["root"]}, "invalid_value"),
        ({"tenant_id": 5}, "invalid_value"), ({"tenant_id": "a", "color": "red"}, "invalid_value"),
        ([], "invalid_type"), ({"tenant_id": "a" * 300}, "invalid_value"),
    ],
)  # fmt: skip
async def test_a_bad_key_request(admin: Any, body: Any, code: str) -> None:
    response = await admin.post(KEYS, json=body)
    assert (response.status, (await response.json())["error"]["code"]) == (400, code)


async def test_an_unknown_key_cannot_be_revoked(admin: Any) -> None:
    response = await admin.delete(f"{KEYS}/key_nothing")
    assert (response.status, (await response.json())["error"]["code"]) == (404, "key_not_found")


async def test_an_inference_key_is_no_admin(http: Any) -> None:
    for method, path in (
        ("GET", KEYS), ("POST", KEYS), ("DELETE", f"{KEYS}/x"), ("GET", "/inferbus/v1/usage"),
        ("GET", "/inferbus/v1/live"), ("GET", "/inferbus/v1/fleet"), ("POST", "/inferbus/v1/audit"),
        ("POST", "/inferbus/v1/replay"),
    ):  # fmt: skip
        assert (await http.request(method, path)).status == 403


async def test_keys_over_grpc(edge: Any, rig: Any) -> None:
    async with rpc.channel(edge.grpc, rig.ADMIN_KEY) as channel:
        stub = EdgeServiceStub(channel)
        made = await stub.CreateKey(edge_pb2.CreateKeyRequest(tenant_id="acme", scopes=["inference", "admin"]))
        async with rig.session(edge, made.secret) as http:
            assert (await http.get(KEYS)).status == 200
        listed = await stub.ListKeys(edge_pb2.ListKeysRequest(tenant_id="acme"))
        assert made.key in listed.keys
        revoked = await stub.RevokeKey(edge_pb2.RevokeKeyRequest(key_id=made.key.key_id))
        assert revoked.key.HasField("revoke_time")
    for key, code in ((rig.API_KEY, grpc.StatusCode.PERMISSION_DENIED), ("wrong", grpc.StatusCode.UNAUTHENTICATED)):
        async with rpc.channel(edge.grpc, key) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await EdgeServiceStub(channel).ListKeys(edge_pb2.ListKeysRequest())
            assert caught.value.code() == code


async def test_a_key_is_changed_and_rotated_by_the_operator(admin: Any, edge: Any, worker: Any, rig: Any) -> None:
    settings = {"tenant_id": "acme", "models": ["m1", "m1"], "limits": {"requests_per_minute": 60}}
    made = await (await admin.post(KEYS, json={**settings, "expire_time": "2999-01-01T00:00:00Z"})).json()
    one = f"{KEYS}/{made['key']['key_id']}"
    assert (made["key"]["models"], made["key"]["limits"]) == (["m1"], {"requests_per_minute": 60})
    for _ in range(2):  # changing to the same is no change
        changed = (await (await admin.patch(one, json={"expire_time": None, "name": "ci"})).json())["key"]
        assert ("expire_time" in changed, changed["name"], changed["models"]) == (False, "ci", ["m1"])
    assert (await (await admin.get(one)).json())["key"] == changed
    rotated = await (await admin.post(f"{one}/rotate", json={"overlap": "3600s"})).json()
    for secret in (made["secret"], rotated["secret"]):
        async with rig.session(edge, secret) as http:
            assert (await http.get("/v1/models")).status == 200
    for _ in range(2):  # and back, and forth: each change is an event of its own
        for name in ("a", "b"):
            assert (await admin.patch(one, json={"name": name})).status == 200
    actions = [event.action for event in await audited(worker, made["key"]["key_id"])]
    assert actions == ["key.created", "key.updated", "key.rotated", *["key.updated"] * 4]
    for body in ({"scopes": ["admin"]}, {"tenant_id": "x"}, {"expire_time": "2001-01-01T00:00:00Z"}, {"name": 5}):
        assert (await admin.patch(one, json=body)).status == 400
    assert (await admin.post(f"{one}/rotate", json={"overlap": "31536000s"})).status == 400
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        missing = await admin.request(
            method, f"{KEYS}/key_nothing{path}", json={"name": "x"} if method == "PATCH" else {}
        )
        assert (missing.status, (await missing.json())["error"]["code"]) == (404, "key_not_found")


async def test_tenants_projects_and_keys_over_grpc(edge: Any, rig: Any) -> None:
    async with rpc.channel(edge.grpc, rig.ADMIN_KEY) as channel:
        stub = EdgeServiceStub(channel)
        tenant = TenantRecord(tenant_id="grpc-tenant", name="One", limits=Limits(requests_per_minute=5))
        made = (await stub.CreateTenant(edge_pb2.CreateTenantRequest(tenant=tenant))).tenant
        assert (made.name, made.limits.requests_per_minute) == ("One", 5)
        made.name = "Two"
        update = edge_pb2.UpdateTenantRequest(tenant=made, update_mask={"paths": ["name"]})
        assert (await stub.UpdateTenant(update)).tenant.name == "Two"
        assert (await stub.GetTenant(edge_pb2.GetTenantRequest(tenant_id="grpc-tenant"))).tenant.name == "Two"
        assert "grpc-tenant" in [
            one.tenant_id for one in (await stub.ListTenants(edge_pb2.ListTenantsRequest())).tenants
        ]

        project = ProjectRecord(tenant_id="grpc-tenant", project_id="web", name="Web")
        await stub.CreateProject(edge_pb2.CreateProjectRequest(project=project))
        project.name = "Site"
        update = edge_pb2.UpdateProjectRequest(project=project, update_mask={"paths": ["name"]})
        assert (await stub.UpdateProject(update)).project.name == "Site"
        key = await stub.CreateKey(edge_pb2.CreateKeyRequest(tenant_id="grpc-tenant", project_id="web"))
        change = edge_pb2.Key(key_id=key.key.key_id, models=["m"])
        update = edge_pb2.UpdateKeyRequest(key=change, update_mask={"paths": ["models"]})
        assert list((await stub.UpdateKey(update)).key.models) == ["m"]
        rotated = await stub.RotateKey(edge_pb2.RotateKeyRequest(key_id=key.key.key_id))
        assert (await stub.GetKey(edge_pb2.GetKeyRequest(key_id=key.key.key_id))).key == rotated.key
        async with rig.session(edge, rotated.secret) as http:
            assert (await http.get("/v1/models")).status == 200
            named = edge_pb2.ArchiveProjectRequest(tenant_id="grpc-tenant", project_id="web")
            assert (await stub.ArchiveProject(named)).project.state == ARCHIVED
            assert (await http.get("/v1/models")).status == 401
        listing = edge_pb2.ListProjectsRequest(tenant_id="grpc-tenant")
        assert [one.project_id for one in (await stub.ListProjects(listing)).projects] == ["default"]
        listing.include_archived = True
        assert {one.project_id for one in (await stub.ListProjects(listing)).projects} == {"default", "web"}
        archive = edge_pb2.ArchiveTenantRequest(tenant_id="grpc-tenant")
        assert (await stub.ArchiveTenant(archive)).tenant.state == ARCHIVED
        restored = await stub.RestoreTenant(edge_pb2.RestoreTenantRequest(tenant_id="grpc-tenant"))
        assert restored.tenant.state == RecordState.RECORD_STATE_ACTIVE
        for missing in (
            stub.GetTenant(edge_pb2.GetTenantRequest(tenant_id="nothing")),
            stub.ListProjects(edge_pb2.ListProjectsRequest(tenant_id="nothing")),
            stub.GetProject(edge_pb2.GetProjectRequest(tenant_id="grpc-tenant", project_id="nothing")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await missing
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND


class Meter(MeterServiceServicer):
    """Answers with what it was asked."""

    async def GetUsage(self, request: Any, context: Any) -> Any:  # noqa: N802
        row = meter_pb2.UsageRow(tenant_id=request.tenant_id, cost="0.5", output_tokens=request.start_time.seconds)
        return meter_pb2.GetUsageResponse(rows=[row])

    async def GetLive(self, request: Any, context: Any) -> Any:  # noqa: N802
        return meter_pb2.GetLiveResponse(window=request.window)

    async def Audit(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.start_time.seconds == 1:
            raise InferBusError(ErrorClass.ERROR_CLASS_UNAVAILABLE, "store_unavailable", "Later.")
        yield meter_pb2.AuditResponse(progress=meter_pb2.AuditProgress(frames_total=request.timeout.seconds))
        if request.start_time.seconds == 2:
            raise InferBusError(ErrorClass.ERROR_CLASS_UNAVAILABLE, "store_unavailable", "Later.")
        yield meter_pb2.AuditResponse(summary=meter_pb2.AuditSummary(requests=3))


class Scheduler(SchedulerServiceServicer):
    """One of two, which has the queue of ``model`` and knows of what is on the way to ``on_the_way`` of its workers."""

    def __init__(self, model: str = "m", on_the_way: int = 0) -> None:
        self.model = model
        self.on_the_way = on_the_way
        self.drained: list[Any] = []

    async def WatchFleet(self, request: Any, context: Any) -> Any:  # noqa: N802
        worker = scheduler_pb2.FleetWorker(record=WorkerRecord(worker="worker-0"), active=2, on_the_way=self.on_the_way)
        queue = scheduler_pb2.ModelQueue(model=self.model, queued=3)
        yield scheduler_pb2.WatchFleetResponse(workers=[worker], queues=[queue])
        await asyncio.sleep(60)

    async def ListSchedulers(self, request: Any, context: Any) -> Any:  # noqa: N802
        return scheduler_pb2.ListSchedulersResponse(
            schedulers=[
                scheduler_pb2.SchedulerInstance(name="scheduler", shards=[0, 3], self=True),
                scheduler_pb2.SchedulerInstance(name="scheduler-1", shards=[1]),
            ]
        )

    async def DrainWorkers(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.worker == "nobody":
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "worker_not_found", "There is no such worker.")
        self.drained.append(request)
        return scheduler_pb2.DrainWorkersResponse(workers=["worker-0"])


@asynccontextmanager
async def neighbours(scheduler: Scheduler | None = None) -> Any:
    """A meter and a scheduler that speak their protocol for real, on one gRPC server."""

    def add(server: Any) -> None:
        add_MeterServiceServicer_to_server(Meter(), server)
        add_SchedulerServiceServicer_to_server(scheduler or Scheduler(), server)

    async with rpc.serve("127.0.0.1:0", add, ("inferbus.meter.v1.MeterService",), TOKEN) as server:
        yield server.address


async def test_relays(nats_server: Any, rig: Any, tmp_path: Any) -> None:
    async with (
        neighbours() as address,
        rig.run_edge(nats_server, tmp_path, METER_ADDRESS=address, SCHEDULER_ADDRESS=address, RPC_TOKEN=TOKEN) as edge,
        rig.session(edge, rig.ADMIN_KEY) as admin,
    ):
        usage = await admin.get("/inferbus/v1/usage", params={"start": "1970-01-01T00:00:09Z", "tenant": "acme"})
        assert (await usage.json())["rows"] == [{"tenant_id": "acme", "cost": "0.5", "output_tokens": "9"}]
        for params in ({"start": "yesterday"}, {"color": "red"}):
            assert (await admin.get("/inferbus/v1/usage", params=params)).status == 400
        live = await admin.get("/inferbus/v1/live", params={"window": "60"})
        assert await live.json() == {"window": "60s"}
        assert (await admin.get("/inferbus/v1/live", params={"window": "soon"})).status == 400
        fleet = await (await admin.get("/inferbus/v1/fleet")).json()
        assert fleet["workers"] == [{"record": {"worker": "worker-0"}, "active": 2}]
        assert fleet["schedulers"] == [
            {"name": "scheduler", "shards": [0, 3]}, {"name": "scheduler-1", "shards": [1]},
        ]  # fmt: skip

        audit = await admin.post("/inferbus/v1/audit", json={"timeout": 7})
        assert audit.headers["Content-Type"].startswith("application/x-ndjson")
        lines = [json.loads(line) for line in (await audit.text()).splitlines()]
        assert lines == [{"progress": {"frames_total": "7"}}, {"summary": {"requests": "3"}}]
        refused = await admin.post("/inferbus/v1/audit", json={"start": "1970-01-01T00:00:01Z"})
        assert (refused.status, (await refused.json())["error"]["code"]) == (503, "store_unavailable")
        broken = await admin.post("/inferbus/v1/audit", json={"start": "1970-01-01T00:00:02Z", "end": None})
        lines = [json.loads(line) for line in (await broken.text()).splitlines()]
        assert [next(iter(line)) for line in lines] == ["progress", "error"]
        assert (await admin.post("/inferbus/v1/audit", json={"x": 1})).status == 400


async def test_the_fleet_is_what_all_schedulers_that_are_there_see(
    nats_server: Any, rig: Any, tmp_path: Any, worker: Any
) -> None:
    one, two = Scheduler("a"), Scheduler("b", on_the_way=4)
    async with (
        neighbours(one) as first,
        neighbours(two) as second,
        rig.run_edge(nats_server, tmp_path, SCHEDULER_ADDRESS=f"127.0.0.1:9,{first},{second}", RPC_TOKEN=TOKEN) as edge,
        rig.session(edge, rig.ADMIN_KEY) as admin,
    ):
        for _ in range(2):
            fleet = await (await admin.get("/inferbus/v1/fleet")).json()
            assert fleet["workers"] == [{"record": {"worker": "worker-0"}, "active": 2, "on_the_way": 4}]
            assert [(queue["model"], queue["queued"]) for queue in fleet["queues"]] == [("a", 3), ("b", 3)]
        assert (await admin.get("/inferbus/v1/fleet", params={"color": "red"})).status == 400
        drained = await admin.post("/inferbus/v1/fleet/drain", json={"node": "rack-1", "grace": 2.5})
        assert (drained.status, await drained.json()) == (200, {"workers": ["worker-0"]})
        (asked,) = one.drained + two.drained
        assert (asked.node, asked.grace.ToMilliseconds()) == ("rack-1", 2500)
        missing = await admin.post("/inferbus/v1/fleet/drain", json={"worker": "nobody", "grace": None})
        assert (missing.status, (await missing.json())["error"]["code"]) == (404, "worker_not_found")
    (event,) = await audited(worker, "rack-1")
    assert (event.action, event.actor_key_id) == ("fleet.drain_requested", "key_admin")
    assert json.loads(event.details) == {"node": "rack-1", "grace": "2.500s"}


@pytest.mark.parametrize(
    "body", [{}, {"worker": "a", "node": "b"}, {"worker": ""}, {"worker": "a", "grace": "soon"}, {"workers": ["a"]}]
)
async def test_a_drain_names_one_worker_or_one_node(edge: Any, rig: Any, body: dict[str, Any]) -> None:
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        assert (await admin.post("/inferbus/v1/fleet/drain", json=body)).status == 400
    async with rig.session(edge) as stranger:
        assert (await stranger.post("/inferbus/v1/fleet/drain", json=body)).status == 403


async def test_weights_of_tenants_and_projects(edge: Any, rig: Any) -> None:
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        made = await admin.post("/inferbus/v1/tenants", json={"tenant_id": "heavy", "weight": 3})
        assert (await made.json())["tenant"]["weight"] == 3
        changed = await admin.patch("/inferbus/v1/tenants/heavy", json={"weight": 5})
        assert (await changed.json())["tenant"]["weight"] == 5
        changed = await admin.patch("/inferbus/v1/tenants/heavy", json={"weight": None})
        assert "weight" not in (await changed.json())["tenant"]
        for bad in (1001, -1, "much"):
            assert (await admin.patch("/inferbus/v1/tenants/heavy", json={"weight": bad})).status == 400
        organization = {"OpenAI-Organization": "heavy"}
        path = "/v1/organization/projects"
        project = await (await admin.post(path, json={"name": "p", "weight": 2}, headers=organization)).json()
        assert (project["name"], project["weight"]) == ("p", 2)
        one = f"{path}/{project['id']}"
        assert (await (await admin.post(one, json={"weight": 7}, headers=organization)).json())["weight"] == 7
        renamed = await (await admin.post(one, json={"name": "q"}, headers=organization)).json()
        assert (renamed["name"], renamed["weight"]) == ("q", 7)
        for body in ({}, {"weight": 0}, {"weight": 1001}, {"weight": True}):
            assert (await admin.post(one, json=body, headers=organization)).status == 400


async def test_a_neighbour_that_is_away_is_a_503(nats_server: Any, rig: Any, tmp_path: Any, edge: Any) -> None:
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        for path in ("/inferbus/v1/usage", "/inferbus/v1/fleet"):  # none is configured
            assert (await admin.get(path)).status == 503
    nobody = "127.0.0.1:9"
    async with (
        rig.run_edge(nats_server, tmp_path, METER_ADDRESS=nobody, SCHEDULER_ADDRESS=nobody) as alone,
        rig.session(alone, rig.ADMIN_KEY) as admin,
    ):
        for method, path in (
            ("GET", "/inferbus/v1/usage"), ("GET", "/inferbus/v1/fleet"), ("POST", "/inferbus/v1/audit"),
            ("POST", "/inferbus/v1/replay"),
        ):  # fmt: skip
            response = await admin.request(method, path)
            assert response.status == 503
            assert "Retry-After" in response.headers
            assert (await response.json())["error"]["type"] == "server_error"
