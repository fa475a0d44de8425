"""/inferbus/v1/tenants and .../keys: the operator's administration of every tenant, with an admin key. Messages of
EdgeService in protobuf's JSON; in a PATCH the fields that are there are changed, and a null clears one."""

from datetime import timedelta

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord, TenantRecord
from inferbus.edge.v1.edge_pb2 import (
    ArchiveTenantResponse,
    CreateKeyRequest,
    CreateKeyResponse,
    CreateTenantResponse,
    GetKeyResponse,
    GetTenantResponse,
    Key,
    ListKeysResponse,
    ListTenantsResponse,
    RestoreTenantResponse,
    RevokeKeyResponse,
    RotateKeyRequest,
    RotateKeyResponse,
    UpdateKeyResponse,
    UpdateTenantResponse,
)
from inferbus_runtime.errors import invalid

from inferbus_edge import keys, tenants
from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.core.organization_bodies import named
from inferbus_edge.keys import KeyDesk
from inferbus_edge.routes.messages import answer, body_object, only, parse
from inferbus_edge.server import Call, Routes
from inferbus_edge.tenants import TenantDesk

KEYS = "/inferbus/v1/keys"
OWN_KEY = "/inferbus/v1/key"
TENANTS = "/inferbus/v1/tenants"


class KeyRoutes:
    def __init__(self, auth: Auth, desk: KeyDesk, body_timeout: timedelta) -> None:
        self._auth = auth
        self._desk = desk
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", OWN_KEY, self.own)
        routes.add("GET", KEYS, self.list)
        routes.add("POST", KEYS, self.create)
        routes.add("GET", f"{KEYS}/{{key_id}}", self.get)
        routes.add("PATCH", f"{KEYS}/{{key_id}}", self.update)
        routes.add("DELETE", f"{KEYS}/{{key_id}}", self.revoke)
        routes.add("POST", f"{KEYS}/{{key_id}}/rotate", self.rotate)

    async def own(self, call: Call) -> web.StreamResponse:
        """The key of this call, of whatever scope: whose it is and what it may do."""
        record = self._auth.identify(call.http.headers)
        return answer(call, GetKeyResponse(key=self._desk.get(record.key_id)))

    async def list(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        query = named(list(call.http.query.items()), ("tenant", "project"))
        listed = self._desk.all(query.get("tenant", ""), query.get("project", ""))
        return answer(call, ListKeysResponse(keys=listed))

    async def create(self, call: Call) -> web.StreamResponse:
        actor = self._changing(call)
        asked = parse(await body_object(call, self._body_timeout), CreateKeyRequest())
        return answer(call, await created_key(self._desk, asked, actor), status=201)

    async def get(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        return answer(call, GetKeyResponse(key=self._desk.get(call.path["key_id"])))

    async def update(self, call: Call) -> web.StreamResponse:
        actor = self._changing(call)
        body = await body_object(call, self._body_timeout)
        only(body, keys.CHANGEABLE)
        given = parse(body, Key())
        given.key_id = call.path["key_id"]
        return answer(call, UpdateKeyResponse(key=await self._desk.update(given, list(body), actor)))

    async def rotate(self, call: Call) -> web.StreamResponse:
        actor = self._changing(call)
        body = await body_object(call, self._body_timeout)
        only(body, ("overlap",))
        overlap = parse(body, RotateKeyRequest()).overlap.ToTimedelta()
        key, secret = await self._desk.rotate(call.path["key_id"], overlap, actor)
        return answer(call, RotateKeyResponse(key=key, secret=secret))

    async def revoke(self, call: Call) -> web.StreamResponse:
        actor = self._admin(call)
        return answer(call, RevokeKeyResponse(key=await self._desk.revoke(call.path["key_id"], actor)))

    def _admin(self, call: Call) -> KeyRecord:
        return self._auth.require(call.http.headers, ADMIN)

    def _changing(self, call: Call) -> KeyRecord:
        return self._auth.require_for_change(call.http.headers, ADMIN)


async def created_key(desk: KeyDesk, asked: CreateKeyRequest, actor: KeyRecord) -> CreateKeyResponse:
    """Raises InferBusError like :meth:`KeyDesk.create`."""
    key, secret = await desk.create(
        tenant_id=asked.tenant_id,
        project_id=asked.project_id,
        name=asked.name,
        scopes=list(asked.scopes),
        actor=actor,
        expire_time=asked.expire_time if asked.HasField("expire_time") else None,
        models=list(asked.models),
        limits=asked.limits if asked.HasField("limits") else None,
    )
    return CreateKeyResponse(key=key, secret=secret)


class TenantRoutes:
    def __init__(self, auth: Auth, desk: TenantDesk, body_timeout: timedelta) -> None:
        self._auth = auth
        self._desk = desk
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        one = f"{TENANTS}/{{tenant_id}}"
        routes.add("GET", TENANTS, self.list)
        routes.add("POST", TENANTS, self.create)
        routes.add("GET", one, self.get)
        routes.add("PATCH", one, self.update)
        routes.add("POST", f"{one}/archive", self.archive)
        routes.add("POST", f"{one}/restore", self.restore)

    async def list(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        return answer(call, ListTenantsResponse(tenants=self._desk.all()))

    async def create(self, call: Call) -> web.StreamResponse:
        actor = self._changing(call)
        body = await body_object(call, self._body_timeout)
        only(body, ("tenant_id", *tenants.CHANGEABLE))
        made = await self._desk.create(parse(body, TenantRecord()), actor)
        return answer(call, CreateTenantResponse(tenant=made), status=201)

    async def get(self, call: Call) -> web.StreamResponse:
        self._admin(call)
        return answer(call, GetTenantResponse(tenant=self._desk.get(call.path["tenant_id"])))

    async def update(self, call: Call) -> web.StreamResponse:
        actor = self._changing(call)
        body = await body_object(call, self._body_timeout)
        only(body, tenants.CHANGEABLE)
        if not body:
            raise invalid(f"Send what to change: {', '.join(tenants.CHANGEABLE)}.", reason="missing_required_parameter")
        given = parse(body, TenantRecord())
        given.tenant_id = call.path["tenant_id"]
        return answer(call, UpdateTenantResponse(tenant=await self._desk.update(given, list(body), actor)))

    async def archive(self, call: Call) -> web.StreamResponse:
        actor = self._admin(call)
        return answer(call, ArchiveTenantResponse(tenant=await self._desk.archive(call.path["tenant_id"], actor)))

    async def restore(self, call: Call) -> web.StreamResponse:
        actor = self._changing(call)
        return answer(call, RestoreTenantResponse(tenant=await self._desk.restore(call.path["tenant_id"], actor)))

    def _admin(self, call: Call) -> KeyRecord:
        return self._auth.require(call.http.headers, ADMIN)

    def _changing(self, call: Call) -> KeyRecord:
        return self._auth.require_for_change(call.http.headers, ADMIN)
