"""/inferbus/v1/revisions and /inferbus/v1/rollouts: what can serve a model, and what does, with an admin key.

The schedulers own both: any of them is asked. Who changed what is told to AUDIT here, where it is known whose key it
was.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from aiohttp import web
from google.protobuf.message import Message
from inferbus.bus.v1.revision_pb2 import RevisionRecord
from inferbus.scheduler.v1 import revision_pb2 as revisions
from inferbus.scheduler.v1 import rollout_pb2 as rollouts
from inferbus.scheduler.v1.revision_pb2_grpc import RevisionServiceStub
from inferbus.scheduler.v1.rollout_pb2_grpc import RolloutServiceStub
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

REVISIONS = "/inferbus/v1/revisions"
REVISION_STAGE = f"{REVISIONS}/stage"
ROLLOUTS = "/inferbus/v1/rollouts"
ROLLOUT_MOVE, ROLLOUT_PINS, ROLLOUT_SHADOW = (f"{ROLLOUTS}/{name}" for name in ("move", "pins", "shadow"))
_MADE_HERE = ("stage", "create_time", "update_time")
REVISION_FIELDS = tuple(one.name for one in RevisionRecord.DESCRIPTOR.fields if one.name not in _MADE_HERE)
ROLLOUT_FIELDS = ("model", "revision", "strategy", "step_permille", "policy")
_TIMES = ("step_time", "patience")


class RolloutRoutes:
    """``publisher`` must have been started."""

    def __init__(self, auth: Auth, schedulers: Schedulers, publisher: Publisher, body_timeout: timedelta) -> None:
        self._auth = auth
        self._schedulers = schedulers
        self._publisher = publisher
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", REVISIONS, self.list_revisions)
        routes.add("POST", REVISIONS, self.create_revision)
        routes.add("POST", REVISION_STAGE, self.set_stage)
        routes.add("DELETE", REVISIONS, self.delete_revision)
        routes.add("GET", ROLLOUTS, self.list_rollouts)
        routes.add("POST", ROLLOUTS, self.start)
        routes.add("POST", ROLLOUT_MOVE, self.move)
        routes.add("PUT", ROLLOUT_PINS, self.pin)
        routes.add("PUT", ROLLOUT_SHADOW, self.shadow)

    # --- revisions ---------------------------------------------------------------------------------------------

    async def list_revisions(self, call: Call) -> web.StreamResponse:
        """All of them, those of ``model``, or one of them by ``revision``."""
        self._auth.require(call.http.headers, ADMIN)
        query = named(call, {"model": "model", "revision": "revision"})
        if "revision" not in query:
            asked = revisions.ListRevisionsRequest(model=query.get("model", ""))
            return answer(call, await self._schedulers.ask(_revision("ListRevisions"), asked))
        one = revisions.GetRevisionRequest(model=query.get("model", ""), revision=query["revision"])
        found = await self._schedulers.ask(_revision("GetRevision"), one)
        return answer(call, revisions.ListRevisionsResponse(revisions=[found]))

    async def create_revision(self, call: Call) -> web.StreamResponse:
        actor, body = await self._change(call, REVISION_FIELDS)
        request = revisions.CreateRevisionRequest(actor_key_id=actor.key_id)
        parse(body, request.revision)
        made = await self._schedulers.ask(_revision("CreateRevision"), request)
        told = ("revision", "engine", "precision", "source")
        details: dict[str, Any] = {name: body[name] for name in told if name in body}
        await self._announce("revision.created", actor, made.revision.model, details)
        return answer(call, made)

    async def set_stage(self, call: Call) -> web.StreamResponse:
        actor, body = await self._change(call, ("model", "revision", "stage"))
        body["stage"] = _enum(body.get("stage"), "REVISION_STAGE_", "stage")
        request = parse(body, revisions.SetRevisionStageRequest(actor_key_id=actor.key_id))
        made = await self._schedulers.ask(_revision("SetRevisionStage"), request)
        await self._announce("revision.stage_set", actor, request.model, body)
        return answer(call, made)

    async def delete_revision(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require(call.http.headers, ADMIN)
        query = named(call, {"model": "model", "revision": "revision"})
        request = revisions.DeleteRevisionRequest(**query, actor_key_id=actor.key_id)
        deleted = await self._schedulers.ask(_revision("DeleteRevision"), request)
        await self._announce("revision.deleted", actor, request.model, {"revision": request.revision})
        return answer(call, deleted)

    # --- rollouts ----------------------------------------------------------------------------------------------

    async def list_rollouts(self, call: Call) -> web.StreamResponse:
        """All of them, or the one of ``model``."""
        self._auth.require(call.http.headers, ADMIN)
        query = named(call, {"model": "model"})
        if "model" not in query:
            return answer(call, await self._schedulers.ask(_rollout("ListRollouts"), rollouts.ListRolloutsRequest()))
        found = await self._schedulers.ask(_rollout("GetRollout"), rollouts.GetRolloutRequest(model=query["model"]))
        return answer(call, rollouts.ListRolloutsResponse(rollouts=[found]))

    async def start(self, call: Call) -> web.StreamResponse:
        actor, body = await self._change(call, ROLLOUT_FIELDS)
        if "strategy" in body:
            body["strategy"] = _enum(body["strategy"], "ROLLOUT_STRATEGY_", "strategy")
        policy = body.get("policy")
        if isinstance(policy, dict):
            given = {name: value for name, value in policy.items() if value is not None}
            body["policy"] = {
                name: duration(value, f"policy.{name}") if name in _TIMES else value for name, value in given.items()
            }
        request = parse(body, rollouts.StartRolloutRequest(actor_key_id=actor.key_id))
        return await self._made(call, actor, "StartRollout", "started", request)

    async def move(self, call: Call) -> web.StreamResponse:
        actor, body = await self._change(call, ("model", "move"))
        body["move"] = _enum(body.get("move"), "ROLLOUT_MOVE_", "move")
        request = parse(body, rollouts.MoveRolloutRequest(actor_key_id=actor.key_id))
        done = rollouts.RolloutMove.Name(request.move).removeprefix("ROLLOUT_MOVE_").lower()
        return await self._made(call, actor, "MoveRollout", done, request)

    async def pin(self, call: Call) -> web.StreamResponse:
        actor, body = await self._change(call, ("model", "pins"))
        request = parse(body, rollouts.SetPinsRequest(actor_key_id=actor.key_id))
        return await self._made(call, actor, "SetPins", "pinned", request)

    async def shadow(self, call: Call) -> web.StreamResponse:
        actor, body = await self._change(call, ("model", "shadow"))
        request = parse(body, rollouts.SetShadowRequest(actor_key_id=actor.key_id))
        return await self._made(call, actor, "SetShadow", "shadowed", request)

    async def _change(self, call: Call, fields: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
        """(who asks, what without what is null)."""
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        body = await body_object(call, self._body_timeout)
        only(body, fields)
        return actor, {name: value for name, value in body.items() if value is not None}

    async def _made(self, call: Call, actor: Any, method: str, done: str, request: Message) -> web.StreamResponse:
        made = await self._schedulers.ask(_rollout(method), request)
        details = {name: value for name, value in as_dict(request).items() if name not in ("model", "actor_key_id")}
        await self._announce(f"rollout.{done}", actor, made.rollout.model, details)
        return answer(call, made)

    async def _announce(self, action: str, actor: Any, model: str, details: Mapping[str, Any]) -> None:
        """In the operator's own log. Raises InferBusError UNAVAILABLE ``not_announced``."""
        change = Change(action, actor.key_id, actor.tenant_id, model, details=details)
        await announce_made(self._publisher, change)


def _revision(method: str) -> Any:
    return lambda channel: getattr(RevisionServiceStub(channel), method)


def _rollout(method: str) -> Any:
    return lambda channel: getattr(RolloutServiceStub(channel), method)


def _enum(value: Any, prefix: str, param: str) -> str:
    """ "canary" and "ROLLOUT_STRATEGY_CANARY" are the same."""
    if not isinstance(value, str) or not value:
        raise invalid(f"'{param}' is a word, such as those that this API answers.", param=param)
    name = value.upper().replace("-", "_")
    return name if name.startswith(prefix) else prefix + name
