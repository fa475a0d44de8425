"""/inferbus/v1/deployments: how models are served, with an admin key. The schedulers own it: any of them is asked. Who
changed what is told to AUDIT here, where it is known whose key it was."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus.scheduler.v1.deployment_pb2 import (
    DeleteDeploymentRequest,
    GetDeploymentRequest,
    ListDeploymentsRequest,
    ListDeploymentsResponse,
    SetDeploymentRequest,
)
from inferbus.scheduler.v1.deployment_pb2_grpc import DeploymentServiceStub
from inferbus_bus.publish import Publisher
from inferbus_runtime.errors import invalid

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.core.organization_audit import Change
from inferbus_edge.routes.admin import duration
from inferbus_edge.routes.announce import announce_made
from inferbus_edge.routes.messages import answer, as_dict, body_object, only, parse
from inferbus_edge.routes.relay import named
from inferbus_edge.schedulers import Schedulers
from inferbus_edge.server import Call, Routes

DEPLOYMENTS = "/inferbus/v1/deployments"
_TIMES = ("ttft_target", "itl_target", "queue_target", "idle_time", "cold_start")
FIELDS = ("model", "fallbacks", "min_replicas", "max_replicas", "gpus_per_replica", *_TIMES)


class DeploymentRoutes:
    """``publisher`` must have been started."""

    def __init__(self, auth: Auth, schedulers: Schedulers, publisher: Publisher, body_timeout: timedelta) -> None:
        self._auth = auth
        self._schedulers = schedulers
        self._publisher = publisher
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", DEPLOYMENTS, self.list)
        routes.add("PUT", DEPLOYMENTS, self.set)
        routes.add("DELETE", DEPLOYMENTS, self.delete)

    async def list(self, call: Call) -> web.StreamResponse:
        """All of them, or the one of ``model``."""
        self._auth.require(call.http.headers, ADMIN)
        query = named(call, {"model": "model"})
        if "model" not in query:
            return answer(call, await self._schedulers.ask(_stub("ListDeployments"), ListDeploymentsRequest()))
        found = await self._schedulers.ask(_stub("GetDeployment"), GetDeploymentRequest(model=query["model"]))
        return answer(call, ListDeploymentsResponse(deployments=[found]))

    async def set(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        body = await body_object(call, self._body_timeout)
        only(body, FIELDS)
        given = {name: _value(name, value) for name, value in body.items() if value is not None}
        record = parse(given, DeploymentRecord())
        request = SetDeploymentRequest(deployment=record, actor_key_id=actor.key_id)
        made = await self._schedulers.ask(_stub("SetDeployment"), request)
        await self._announce("set", actor, made.deployment.model, as_dict(record))
        return answer(call, made)

    async def delete(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require(call.http.headers, ADMIN)
        model = named(call, {"model": "model"}).get("model")
        if model is None:
            raise invalid("Name the model whose deployment is to be deleted.", param="model")
        request = DeleteDeploymentRequest(model=model, actor_key_id=actor.key_id)
        deleted = await self._schedulers.ask(_stub("DeleteDeployment"), request)
        await self._announce("deleted", actor, model, {})
        return answer(call, deleted)

    async def _announce(self, done: str, actor: Any, model: str, details: Mapping[str, Any]) -> None:
        """In the operator's own log. Raises InferBusError UNAVAILABLE ``not_announced``."""
        change = Change(f"deployment.{done}", actor.key_id, actor.tenant_id, model, details=details)
        await announce_made(self._publisher, change)


def _stub(method: str) -> Any:
    """The method at whichever scheduler is asked."""
    return lambda channel: getattr(DeploymentServiceStub(channel), method)


def _value(name: str, value: Any) -> Any:
    return duration(value, name) if name in _TIMES else value
