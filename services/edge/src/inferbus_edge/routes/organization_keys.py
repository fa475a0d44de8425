"""/v1/organization/projects/{project_id}/api_keys and /v1/organization/admin_api_keys, in OpenAI's shape.

Making a key here and rotating one are ours: OpenAI makes keys in its dashboard only.
"""

from datetime import timedelta

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord, Limits
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_runtime import clock

from inferbus_edge.auth import ADMIN, INFERENCE, TENANT_ADMIN
from inferbus_edge.core.organization import (
    Listing,
    Object,
    admin_key_object,
    deleted_object,
    page,
    project_key_object,
)
from inferbus_edge.core.organization_bodies import (
    LIMIT_FIELDS,
    choice,
    expiry,
    fields,
    known_only,
    named,
    page_query,
    scopes,
    text,
    texts,
    whole,
    with_limits,
)
from inferbus_edge.core.organization_rules import MAX_OVERLAP_SECONDS, not_found
from inferbus_edge.members import owner_check
from inferbus_edge.routes.organization_door import PREFIX, Acting, Door, query_of, reply
from inferbus_edge.routes.organization_projects import PROJECT
from inferbus_edge.server import Call, Routes

_KEYS = f"{PROJECT}/api_keys"
_KEY = f"{_KEYS}/{{key_id}}"
_ADMIN_KEYS = f"{PREFIX}/admin_api_keys"
_SETTINGS = ("name", "models", "scopes", "expires_in_seconds", *LIMIT_FIELDS)
_ACCESS = {"any": (True, False), "active": (True,), "inactive": (False,)}


class ProjectKeyRoutes:
    """Keys that may ask models. A key that may administer is not shown here, whatever project it names."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._directory = door.directory
        self._desk = door.directory.keys

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", _KEYS, self.list)
        routes.add("POST", _KEYS, self.create)
        routes.add("GET", _KEY, self.retrieve)
        routes.add("POST", _KEY, self.modify)
        routes.add("DELETE", _KEY, self.delete)
        routes.add("POST", f"{_KEY}/rotate", self.rotate)

    async def list(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        query = named(query_of(call), ("limit", "after", "owner_project_access"))
        wanted = _ACCESS[choice(query, "owner_project_access", tuple(_ACCESS))]
        project_id = self._project(call, acting)
        access = owner_check(self._directory.members, acting.tenant_id, project_id)
        listing = Listing(
            [key for key in self._desk.records(acting.tenant_id, project_id) if not _administers(key)],
            lambda key: key.key_id,
            lambda key: self._shown(self._desk.public(key)),
            lambda key: not key.HasField("revoke_time") and access(key.owner_id) in wanted,
        )
        return reply(call, page(listing, page_query(query)))

    async def create(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        self._project(call, acting)
        body = await self._door.body(call, (*_SETTINGS, "user_id"))
        scopes(body, INFERENCE)
        # Read now: while the body came, it may have been archived, and its users may have left.
        project_id = self._directory.projects.active(acting.tenant_id, call.path["project_id"]).project_id
        owner_id = text(body, "user_id", "")
        if owner_id:
            self._directory.members.user(acting.tenant_id, owner_id, project_id)
        key, secret = await self._desk.create(
            tenant_id=acting.tenant_id,
            project_id=project_id,
            name=text(body, "name"),
            scopes=[INFERENCE],
            actor=acting.key,
            expire_time=expiry(body, clock.now_us()),
            models=texts(body, "models"),
            limits=with_limits(Limits(), body),
            owner_id=owner_id,
        )
        return reply(call, {**self._shown(key), "value": secret})

    async def retrieve(self, call: Call) -> web.StreamResponse:
        return reply(call, self._shown(self._key(call, self._door.enter(call))))

    async def modify(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        self._key(call, acting)
        whole_body = await self._door.whole_body(call)
        # Read now: while the body came, it may have been changed.
        key = self._key(call, acting)
        known_only(whole_body, _SETTINGS)
        body = fields(whole_body, _SETTINGS)
        scopes(body, INFERENCE)
        changed = {"name": "name" in body, "models": "models" in body}
        changed["limits"] = bool(set(LIMIT_FIELDS) & set(whole_body))
        changed["expire_time"] = "expires_in_seconds" in whole_body
        mask = [name for name, is_changed in changed.items() if is_changed]
        given = Key(
            key_id=key.key_id,
            name=text(body, "name", ""),
            models=texts(body, "models"),
            limits=with_limits(key.limits, whole_body),
            expire_time=expiry(body, clock.now_us()),
        )
        return reply(call, self._shown(await self._desk.update(given, mask, acting.key)))

    async def rotate(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        key = self._key(call, acting)
        body = await self._door.body(call, ("overlap_seconds",))
        overlap = timedelta(seconds=whole(body, "overlap_seconds", 0, MAX_OVERLAP_SECONDS) or 0)
        key, secret = await self._desk.rotate(key.key_id, overlap, acting.key)
        return reply(call, {**self._shown(key), "value": secret})

    async def delete(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        key = self._key(call, acting)
        await self._desk.revoke(key.key_id, acting.key)
        return reply(call, deleted_object("organization.project.api_key", key.key_id))

    def _project(self, call: Call, acting: Acting) -> str:
        return self._directory.projects.get(acting.tenant_id, call.path["project_id"]).project_id

    def _key(self, call: Call, acting: Acting) -> Key:
        """The key in the path. Raises InferBusError NOT_FOUND, also for a key of another tenant or project."""
        project_id = self._project(call, acting)
        key = self._desk.get(call.path["key_id"])
        where = (key.tenant_id, key.project_id)
        if where != (acting.tenant_id, project_id) or _administers(key) or key.HasField("revoke_time"):
            raise not_found("key")
        return key

    def _shown(self, key: Key) -> Object:
        access = owner_check(self._directory.members, key.tenant_id, key.project_id)
        owner = self._directory.members.find(key.tenant_id, key.owner_id)
        return project_key_object(key, owner, access(key.owner_id))


class AdminKeyRoutes:
    """Keys that administer the tenant. Those of an operator are shown to an operator only: who could rotate one would
    become one."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._directory = door.directory
        self._desk = door.directory.keys

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", _ADMIN_KEYS, self.list)
        routes.add("POST", _ADMIN_KEYS, self.create)
        routes.add("GET", f"{_ADMIN_KEYS}/{{key_id}}", self.retrieve)
        routes.add("DELETE", f"{_ADMIN_KEYS}/{{key_id}}", self.delete)

    async def list(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        query = named(query_of(call), ("limit", "after", "order"))
        keys = [key for key in self._desk.records(acting.tenant_id) if _shown_to(acting, key)]
        if choice(query, "order", ("asc", "desc")) == "desc":
            keys.reverse()
        tenant = self._directory.tenants.get(acting.tenant_id)
        listing = Listing(
            keys,
            lambda key: key.key_id,
            lambda key: admin_key_object(self._desk.public(key), tenant),
            lambda key: not key.HasField("revoke_time"),
        )
        return reply(call, page(listing, page_query(query)))

    async def create(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        body = await self._door.body(call, ("name", "expires_in_seconds"))
        key, secret = await self._desk.create(
            tenant_id=acting.tenant_id,
            project_id="",
            name=text(body, "name"),
            scopes=[TENANT_ADMIN],
            actor=acting.key,
            expire_time=expiry(body, clock.now_us()),
        )
        tenant = self._directory.tenants.get(acting.tenant_id)
        return reply(call, {**admin_key_object(key, tenant), "value": secret})

    async def retrieve(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        key = self._key(call, acting)
        return reply(call, admin_key_object(key, self._directory.tenants.get(acting.tenant_id)))

    async def delete(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        key = self._key(call, acting)
        await self._desk.revoke(key.key_id, acting.key)
        return reply(call, deleted_object("organization.admin_api_key", key.key_id))

    def _key(self, call: Call, acting: Acting) -> Key:
        key = self._desk.get(call.path["key_id"])
        if key.tenant_id != acting.tenant_id or not _shown_to(acting, key) or key.HasField("revoke_time"):
            raise not_found("key")
        return key


def _administers(key: Key | KeyRecord) -> bool:
    return ADMIN in key.scopes or TENANT_ADMIN in key.scopes


def _shown_to(acting: Acting, key: Key | KeyRecord) -> bool:
    return _administers(key) and (acting.operator or ADMIN not in key.scopes)
