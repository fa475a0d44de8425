"""/inferbus/v1/brands and /inferbus/v1/tenants/{tenant_id}/brand: how the console looks under a tenant's domain. With
an admin key."""

from datetime import timedelta

from aiohttp import web
from inferbus.bus.v1.brand_pb2 import BrandRecord
from inferbus.edge.v1.brands_pb2 import DeleteBrandResponse, GetBrandResponse, ListBrandsResponse, SetBrandResponse

from inferbus_edge.auth import ADMIN
from inferbus_edge.core.brand import FIELDS
from inferbus_edge.directory import Directory
from inferbus_edge.routes.messages import answer, body_object, only, parse
from inferbus_edge.routes.tenants import TENANTS
from inferbus_edge.server import Call, Routes

BRANDS = "/inferbus/v1/brands"
BRAND = f"{TENANTS}/{{tenant_id}}/brand"


class BrandRoutes:
    def __init__(self, directory: Directory, body_timeout: timedelta) -> None:
        self._auth = directory.auth
        self._tenants = directory.tenants
        self._desk = directory.brands
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", BRANDS, self.list)
        routes.add("GET", BRAND, self.get)
        routes.add("PUT", BRAND, self.set)
        routes.add("DELETE", BRAND, self.delete)

    async def list(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        return answer(call, ListBrandsResponse(brands=self._desk.all()))

    async def get(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        return answer(call, GetBrandResponse(brand=self._desk.get(call.path["tenant_id"])))

    async def set(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        body = await body_object(call, self._body_timeout)
        only(body, FIELDS)
        given = parse(body, BrandRecord())
        tenant = self._tenants.get(call.path["tenant_id"])
        return answer(call, SetBrandResponse(brand=await self._desk.set(tenant.tenant_id, given, actor)))

    async def delete(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require(call.http.headers, ADMIN)
        await self._desk.delete(call.path["tenant_id"], actor)
        return answer(call, DeleteBrandResponse())
