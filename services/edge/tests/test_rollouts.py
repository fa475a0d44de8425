"""Revisions and rollouts over HTTP: relayed to the schedulers, and told to AUDIT once they were changed."""

import json
from contextlib import asynccontextmanager
from typing import Any

import pytest
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage, RolloutEvent, RolloutRecord, RolloutState
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.scheduler.v1 import revision_pb2 as revisions
from inferbus.scheduler.v1 import rollout_pb2 as rollouts
from inferbus.scheduler.v1.revision_pb2_grpc import RevisionServiceServicer, add_RevisionServiceServicer_to_server
from inferbus.scheduler.v1.rollout_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from inferbus_bus.log import FrameLog
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError

REVISIONS, ROLLOUTS = "/inferbus/v1/revisions", "/inferbus/v1/rollouts"
SERVICES = ("inferbus.scheduler.v1.RevisionService", "inferbus.scheduler.v1.RolloutService")
TOKEN = "operators-token-of-tests"
NAMED = {"model": "meta/llama", "revision": "fp8"}


class Desk(RevisionServiceServicer, RolloutServiceServicer):
    """Speaks both protocols, and keeps what it is told. ``asked``: the changes, in their order."""

    def __init__(self) -> None:
        self.made: dict[str, RevisionRecord] = {}
        self.rollout = RolloutRecord()
        self.asked: list[Any] = []

    # --- revisions ---

    async def CreateRevision(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        made = RevisionRecord(stage=RevisionStage.REVISION_STAGE_DRAFT)
        made.MergeFrom(request.revision)
        self.made[made.revision] = made
        return revisions.CreateRevisionResponse(revision=made)

    async def GetRevision(self, request: Any, context: Any) -> Any:  # noqa: N802
        return revisions.GetRevisionResponse(revision=self._one(request), workers=2)

    async def ListRevisions(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = [one for one in self.made.values() if request.model in ("", one.model)]
        return revisions.ListRevisionsResponse(
            revisions=[revisions.GetRevisionResponse(revision=one, workers=2) for one in found]
        )

    async def SetRevisionStage(self, request: Any, context: Any) -> Any:  # noqa: N802
        made = self._one(request)
        self.asked.append(request)
        made.stage = request.stage
        return revisions.SetRevisionStageResponse(revision=made)

    async def DeleteRevision(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._one(request)
        self.asked.append(request)
        del self.made[request.revision]
        return revisions.DeleteRevisionResponse()

    def _one(self, request: Any) -> RevisionRecord:
        if request.revision not in self.made:
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "revision_not_found", "There is none.")
        return self.made[request.revision]

    # --- rollouts ---

    async def StartRollout(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.rollout.candidate_revision:
            raise InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "rollout_under_way", "End that first.")
        self.asked.append(request)
        self.rollout = RolloutRecord(
            model=request.model, stable_revision="fp16", candidate_revision=request.revision, policy=request.policy,
            strategy=request.strategy, state=RolloutState.ROLLOUT_STATE_WARMING, step_permille=request.step_permille,
            events=[RolloutEvent(action="started", reason="operator", actor_key_id=request.actor_key_id)],
        )  # fmt: skip
        return rollouts.StartRolloutResponse(rollout=self.rollout)

    async def GetRollout(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model != self.rollout.model:
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "rollout_not_found", "There is none.")
        return rollouts.GetRolloutResponse(rollout=self.rollout, workers={"fp8": 1})

    async def ListRollouts(self, request: Any, context: Any) -> Any:  # noqa: N802
        return rollouts.ListRolloutsResponse(
            rollouts=[rollouts.GetRolloutResponse(rollout=self.rollout, workers={"fp8": 1})]
        )

    async def MoveRollout(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return rollouts.MoveRolloutResponse(rollout=self.rollout)

    async def SetPins(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        self.rollout.pins.extend(request.pins)
        return rollouts.SetPinsResponse(rollout=self.rollout)

    async def SetShadow(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        self.rollout.shadow.CopyFrom(request.shadow)
        return rollouts.SetShadowResponse(rollout=self.rollout)


@asynccontextmanager
async def desk_behind_an_edge(nats_server: Any, rig: Any, tmp_path: Any) -> Any:
    """(the schedulers' desk, an operator's session, a tenant's)."""
    desk = Desk()

    def add(server: Any) -> None:
        add_RevisionServiceServicer_to_server(desk, server)
        add_RolloutServiceServicer_to_server(desk, server)

    async with (
        rpc.serve("127.0.0.1:0", add, SERVICES, TOKEN) as server,
        rig.run_edge(nats_server, tmp_path, SCHEDULER_ADDRESS=server.address, RPC_TOKEN=TOKEN) as edge,
        rig.session(edge, rig.ADMIN_KEY) as admin,
        rig.session(edge, rig.API_KEY) as tenant,
    ):
        yield desk, admin, tenant


async def told(worker: Any, kind: str) -> list[AuditEvent]:
    log = FrameLog(worker.bus, "AUDIT")
    first, last = await log.bounds()
    stored = [data async for batch in log.read(first, last, subject="audit.>") for _, _, data in batch]
    return [event for event in map(AuditEvent.FromString, stored) if event.action.startswith(f"{kind}.")]


async def refusal(answer: Any) -> tuple[int, str, str | None]:
    error = (await answer.json())["error"]
    return answer.status, error["code"], error["param"]


async def test_revisions(nats_server: Any, rig: Any, tmp_path: Any, worker: Any) -> None:
    async with desk_behind_an_edge(nats_server, rig, tmp_path) as (desk, admin, _):
        said = {**NAMED, "engine": "openai", "precision": "fp8", "settings": {"OPENAI__QUANTIZATION": "fp8"}}
        made = await admin.post(REVISIONS, json={**said, "memory_bytes": "9000000000", "source": None})
        assert made.status == 200
        record = {**said, "memory_bytes": "9000000000", "stage": "REVISION_STAGE_DRAFT"}
        assert (await made.json())["revision"] == record
        one = await (await admin.get(REVISIONS, params=NAMED)).json()
        assert one == {"revisions": [{"revision": record, "workers": 2}]}
        assert one == await (await admin.get(REVISIONS)).json()
        assert await (await admin.get(REVISIONS, params={"model": "m"})).json() == {}
        missing = await admin.get(REVISIONS, params={"model": "meta/llama", "revision": "int4"})
        assert (await refusal(missing))[:2] == (404, "revision_not_found")

        retired = await admin.post(f"{REVISIONS}/stage", json={**NAMED, "stage": "retired"})
        assert (await retired.json())["revision"]["stage"] == "REVISION_STAGE_RETIRED"
        assert (await admin.delete(REVISIONS, params=NAMED)).status == 200
        assert not desk.made
        events = await told(worker, "revision")
    assert [one.action for one in events] == ["revision.created", "revision.stage_set", "revision.deleted"]
    assert {one.target for one in events} == {"meta/llama"}
    assert [one.actor_key_id for one in events] == [one.actor_key_id for one in desk.asked]
    assert all(one.actor_key_id for one in events)
    assert json.loads(events[0].details) == {"revision": "fp8", "engine": "openai", "precision": "fp8"}


async def test_rollouts(nats_server: Any, rig: Any, tmp_path: Any, worker: Any) -> None:
    async with desk_behind_an_edge(nats_server, rig, tmp_path) as (desk, admin, _):
        policy = {"step_time": "90s", "patience": 300, "max_slowdown": 0.5, "min_requests": None}
        body = {**NAMED, "strategy": "blue-green", "step_permille": [100, 1000], "policy": policy}
        started = (await (await admin.post(ROLLOUTS, json=body)).json())["rollout"]
        assert started["policy"] == {"step_time": "90s", "patience": "300s", "max_slowdown": 0.5}
        assert started["strategy"] == "ROLLOUT_STRATEGY_BLUE_GREEN"
        assert started["step_permille"] == [100, 1000]
        under_way = await admin.post(ROLLOUTS, json=NAMED)
        assert (await refusal(under_way))[:2] == (409, "rollout_under_way")

        one = await (await admin.get(ROLLOUTS, params={"model": "meta/llama"})).json()
        assert one == {"rollouts": [{"rollout": started, "workers": {"fp8": 1}}]}
        assert one == await (await admin.get(ROLLOUTS)).json()
        missing = await admin.get(ROLLOUTS, params={"model": "m"})
        assert (await refusal(missing))[:2] == (404, "rollout_not_found")

        for move in ("pause", "resume", "roll-back", "promote", "return", "ROLLOUT_MOVE_LET_GO"):
            assert (await admin.post(f"{ROLLOUTS}/move", json={"model": "meta/llama", "move": move})).status == 200
        pins = [{"tenant_id": "acme", "revision": "fp16"}]
        pinned = await admin.put(f"{ROLLOUTS}/pins", json={"model": "meta/llama", "pins": pins})
        assert (await pinned.json())["rollout"]["pins"] == pins
        shadow = {"revision": "fp8", "permille": 50}
        shadowed = await admin.put(f"{ROLLOUTS}/shadow", json={"model": "meta/llama", "shadow": shadow})
        assert (await shadowed.json())["rollout"]["shadow"] == shadow
        events = await told(worker, "rollout")
    moves = ["pause", "resume", "roll_back", "promote", "return", "let_go"]
    assert [one.action for one in events] == [f"rollout.{done}" for done in ["started", *moves, "pinned", "shadowed"]]
    assert [one.actor_key_id for one in events] == [one.actor_key_id for one in desk.asked]
    assert json.loads(events[0].details)["revision"] == "fp8"
    assert json.loads(events[-2].details) == {"pins": pins}


async def test_what_is_refused_was_not_asked_and_is_not_told(
    nats_server: Any, rig: Any, tmp_path: Any, worker: Any
) -> None:
    wrong: list[tuple[str, str, dict[str, Any], str]] = [
        ("POST", REVISIONS, {**NAMED, "stage": "stable"}, "stage"),
        ("POST", REVISIONS, {**NAMED, "create_time": "2026-01-01T00:00:00Z"}, "create_time"),
        ("POST", f"{REVISIONS}/stage", NAMED, "stage"),
        ("POST", f"{REVISIONS}/stage", {**NAMED, "stage": 5}, "stage"),
        ("POST", ROLLOUTS, {**NAMED, "weight": 5}, "weight"),
        ("POST", ROLLOUTS, {**NAMED, "strategy": ""}, "strategy"),
        ("POST", ROLLOUTS, {**NAMED, "policy": {"step_time": "soon"}}, "policy.step_time"),
        ("POST", f"{ROLLOUTS}/move", {"model": "meta/llama"}, "move"),
    ]
    before = [await told(worker, kind) for kind in ("revision", "rollout")]
    async with desk_behind_an_edge(nats_server, rig, tmp_path) as (desk, admin, _):
        for method, path, body, param in wrong:
            refused = await admin.request(method, path, json=body)
            assert (refused.status, (await refused.json())["error"]["param"]) == (400, param), (path, body)
        for method, path, body in (
            ("POST", f"{ROLLOUTS}/move", {"model": "meta/llama", "move": "sideways"}),
            ("POST", ROLLOUTS, {**NAMED, "step_permille": ["much"]}),
            ("PUT", f"{ROLLOUTS}/pins", {"model": "meta/llama", "pins": {"acme": "fp8"}}),
            ("PUT", f"{ROLLOUTS}/shadow", {"model": "meta/llama", "shadow": {"permille": -1}}),
        ):
            assert (await admin.request(method, path, json=body)).status == 400, (path, body)
        unknown = await admin.post(f"{REVISIONS}/stage", json={**NAMED, "stage": "retired"})
        assert (await refusal(unknown))[:2] == (404, "revision_not_found")
        assert (await refusal(await admin.delete(REVISIONS, params=NAMED)))[:2] == (404, "revision_not_found")
        assert desk.asked == []
        assert [await told(worker, kind) for kind in ("revision", "rollout")] == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", REVISIONS), ("POST", REVISIONS), ("DELETE", REVISIONS), ("POST", f"{REVISIONS}/stage"),
        ("GET", ROLLOUTS), ("POST", ROLLOUTS), ("POST", f"{ROLLOUTS}/move"), ("PUT", f"{ROLLOUTS}/pins"),
        ("PUT", f"{ROLLOUTS}/shadow"),
    ],
)  # fmt: skip
async def test_they_are_an_operators(nats_server: Any, rig: Any, tmp_path: Any, method: str, path: str) -> None:
    async with desk_behind_an_edge(nats_server, rig, tmp_path) as (desk, _, tenant):
        answer = await tenant.request(method, path, params=NAMED if method == "DELETE" else None)
        assert answer.status == 403
        assert desk.asked == []
