"""Deployments over HTTP: relayed to the schedulers, and told to AUDIT once they were changed."""

import json
from typing import Any

from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.scheduler.v1 import deployment_pb2 as api
from inferbus.scheduler.v1.deployment_pb2_grpc import (
    DeploymentServiceServicer,
    add_DeploymentServiceServicer_to_server,
)
from inferbus_bus.log import FrameLog
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError, invalid

DEPLOYMENTS = "/inferbus/v1/deployments"
TOKEN = "operators-token-of-tests"


class Deployments(DeploymentServiceServicer):
    """Speaks the protocol, and keeps what it is told. ``actors``: who it was told changed something."""

    def __init__(self) -> None:
        self.kept: dict[str, api.GetDeploymentResponse] = {}
        self.actors: list[str] = []

    async def SetDeployment(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.deployment.min_replicas > request.deployment.max_replicas:
            raise invalid("Not so many.", param="min_replicas")
        self.actors.append(request.actor_key_id)
        made = api.GetDeploymentResponse(deployment=request.deployment)
        made.scaling.replicas = 2
        self.kept[request.deployment.model] = made
        return api.SetDeploymentResponse(deployment=request.deployment)

    async def GetDeployment(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model not in self.kept:
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "deployment_not_found", "There is none.")
        return self.kept[request.model]

    async def ListDeployments(self, request: Any, context: Any) -> Any:  # noqa: N802
        return api.ListDeploymentsResponse(deployments=self.kept.values())

    async def DeleteDeployment(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.actors.append(request.actor_key_id)
        del self.kept[request.model]
        return api.DeleteDeploymentResponse()


async def told(worker: Any) -> list[AuditEvent]:
    log = FrameLog(worker.bus, "AUDIT")
    first, last = await log.bounds()
    stored = [data async for batch in log.read(first, last, subject="audit.>") for _, _, data in batch]
    return [event for event in map(AuditEvent.FromString, stored) if event.action.startswith("deployment.")]


async def test_deployments_over_http(nats_server: Any, rig: Any, tmp_path: Any, worker: Any) -> None:
    desk = Deployments()
    add = lambda server: add_DeploymentServiceServicer_to_server(desk, server)  # noqa: E731
    async with (
        rpc.serve("127.0.0.1:0", add, ("inferbus.scheduler.v1.DeploymentService",), TOKEN) as server,
        rig.run_edge(nats_server, tmp_path, SCHEDULER_ADDRESS=server.address, RPC_TOKEN=TOKEN) as edge,
        rig.session(edge, rig.ADMIN_KEY) as admin,
        rig.session(edge, rig.API_KEY) as tenant,
    ):
        body = {"model": "meta/llama", "ttft_target": 0.8, "idle_time": "90s", "max_replicas": 4, "fallbacks": ["s"]}
        made = await admin.put(DEPLOYMENTS, json=body)
        assert made.status == 200
        record = {"model": "meta/llama", "ttft_target": "0.800s", "idle_time": "90s", "max_replicas": 4}
        assert (await made.json())["deployment"] == record | {"fallbacks": ["s"]}
        one = await (await admin.get(DEPLOYMENTS, params={"model": "meta/llama"})).json()
        assert one == await (await admin.get(DEPLOYMENTS)).json()
        assert one["deployments"][0]["scaling"] == {"replicas": 2}

        for sent, param in (
            ({"model": "m", "min_replicas": 3}, "min_replicas"),
            ({"model": "m", "ttft_target": "soon"}, "ttft_target"),
            ({"model": "m", "create_time": "2026-01-01T00:00:00Z"}, "create_time"),
        ):
            refused = await admin.put(DEPLOYMENTS, json=sent)
            assert (refused.status, (await refused.json())["error"]["param"]) == (400, param)
        missing = await admin.get(DEPLOYMENTS, params={"model": "m"})
        assert (missing.status, (await missing.json())["error"]["code"]) == (404, "deployment_not_found")
        assert (await admin.delete(DEPLOYMENTS)).status == 400
        assert (await tenant.get(DEPLOYMENTS)).status == 403

        assert (await admin.delete(DEPLOYMENTS, params={"model": "meta/llama"})).status == 200
        assert not desk.kept
        events = await told(worker)
    assert [(one.action, one.target) for one in events] == [
        ("deployment.set", "meta/llama"),
        ("deployment.deleted", "meta/llama"),
    ]
    assert [one.actor_key_id for one in events] == desk.actors
    assert json.loads(events[0].details)["max_replicas"] == 4
