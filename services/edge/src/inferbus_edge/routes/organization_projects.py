"""/v1/organization/projects and their rate limits, in OpenAI's shape."""

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import ProjectRecord, RecordState

from inferbus_edge.core.organization import (
    RATE_LIMIT_ID,
    Listing,
    list_object,
    page,
    project_object,
    rate_limit_object,
)
from inferbus_edge.core.organization_bodies import (
    LIMIT_FIELDS,
    Body,
    boolean,
    known_only,
    named,
    page_query,
    text,
    whole,
    with_limits,
)
from inferbus_edge.core.organization_rules import MAX_WEIGHT, not_found
from inferbus_edge.routes.organization_door import PREFIX, Door, query_of, reply
from inferbus_edge.server import Call, Routes

PROJECTS = f"{PREFIX}/projects"
PROJECT = f"{PROJECTS}/{{project_id}}"
_RATE_LIMITS = f"{PROJECT}/rate_limits"


class ProjectRoutes:
    def __init__(self, door: Door) -> None:
        self._door = door
        self._desk = door.directory.projects

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", PROJECTS, self.list)
        routes.add("POST", PROJECTS, self.create)
        routes.add("GET", PROJECT, self.retrieve)
        routes.add("POST", PROJECT, self.modify)
        routes.add("POST", f"{PROJECT}/archive", self.archive)
        routes.add("GET", _RATE_LIMITS, self.list_rate_limits)
        routes.add("POST", f"{_RATE_LIMITS}/{{rate_limit_id}}", self.modify_rate_limit)

    async def list(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        query = named(query_of(call), ("limit", "after", "include_archived"))
        archived = boolean(query, "include_archived")
        listing = Listing(
            self._desk.all(acting.tenant_id),
            lambda one: one.project_id,
            project_object,
            lambda one: archived or one.state != RecordState.RECORD_STATE_ARCHIVED,
        )
        return reply(call, page(listing, page_query(query)))

    async def create(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        body = await self._door.body(call, ("name", "weight"))
        given = ProjectRecord(tenant_id=acting.tenant_id, name=text(body, "name"), weight=_weight(body))
        return reply(call, project_object(await self._desk.create(given, acting.key)))

    async def retrieve(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        return reply(call, project_object(self._desk.get(acting.tenant_id, call.path["project_id"])))

    async def modify(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        project_id = self._desk.get(acting.tenant_id, call.path["project_id"]).project_id
        body = await self._door.body(call, ("name", "weight"))
        weight = _weight(body)
        given = ProjectRecord(tenant_id=acting.tenant_id, project_id=project_id, weight=weight)
        mask = ["weight"] if weight else []
        if "name" in body or not mask:
            given.name = text(body, "name")
            mask.append("name")
        return reply(call, project_object(await self._desk.update(given, mask, acting.key)))

    async def archive(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        archived = await self._desk.archive(acting.tenant_id, call.path["project_id"], acting.key)
        return reply(call, project_object(archived))

    async def list_rate_limits(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        query = named(query_of(call), ("limit", "after", "before"))
        asked = page_query(query, default_limit=100)
        project = self._desk.get(acting.tenant_id, call.path["project_id"])
        # There is one: before it and after it is nothing.
        alone = [] if asked.after or query.get("before") else [rate_limit_object(project.limits)]
        return reply(call, list_object(alone, has_more=False))

    async def modify_rate_limit(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        self._desk.get(acting.tenant_id, call.path["project_id"])
        if call.path["rate_limit_id"] != RATE_LIMIT_ID:
            raise not_found("rate limit")
        body = await self._door.whole_body(call)
        known_only(body, LIMIT_FIELDS)
        # Read now: while the body came, it may have been changed.
        project = self._desk.get(acting.tenant_id, call.path["project_id"])
        given = ProjectRecord(
            tenant_id=acting.tenant_id, project_id=project.project_id, limits=with_limits(project.limits, body)
        )
        changed = await self._desk.set_limits(given, body, acting.key)
        return reply(call, rate_limit_object(changed.limits))


def _weight(body: Body) -> int:
    """0: nothing is said of it. Raises InferBusError INVALID_ARGUMENT."""
    return whole(body, "weight", 1, MAX_WEIGHT) or 0
