"""/inferbus/v1/budgets and /credits with an admin key, and /v1/organization/budgets, in which a tenant sees its own.
The meter keeps them, and tells AUDIT of each change."""

from datetime import timedelta
from typing import Any

import grpc
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import BudgetRecord, CreditRecord
from inferbus.meter.v1.budgets_pb2 import (
    AddCreditRequest,
    DeleteBudgetRequest,
    ListBudgetsRequest,
    ListCreditsRequest,
    SetBudgetRequest,
)
from inferbus.meter.v1.budgets_pb2_grpc import BudgetServiceStub

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.core.budget_objects import budget_object, period_name
from inferbus_edge.core.organization import list_object
from inferbus_edge.core.organization_rules import not_found
from inferbus_edge.directory import Directory
from inferbus_edge.routes.messages import body_object, only, parse
from inferbus_edge.routes.organization_door import PREFIX as ORGANIZATION
from inferbus_edge.routes.organization_door import Door, reply
from inferbus_edge.routes.relay import ask, configured, named, relay
from inferbus_edge.server import Call, Routes

PREFIX = "/inferbus/v1"
BUDGET_FIELDS = (
    "tenant_id", "project_id", "key_id", "period", "currency", "amount", "hard", "thresholds", "webhook_url",
)  # fmt: skip
CREDIT_FIELDS = (
    "credit_id", "tenant_id", "project_id", "key_id", "currency", "amount", "expire_time", "note",
)  # fmt: skip


class BudgetRoutes:
    """``meter``: a channel to it, None if the operator named none."""

    def __init__(self, directory: Directory, meter: grpc.aio.Channel | None, body_timeout: timedelta) -> None:
        self._directory = directory
        self._auth: Auth = directory.auth
        self._door = Door(directory, body_timeout)
        self._meter = None if meter is None else BudgetServiceStub(meter)
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", f"{PREFIX}/budgets", self.list)
        routes.add("PUT", f"{PREFIX}/budgets", self.set)
        routes.add("DELETE", f"{PREFIX}/budgets", self.delete)
        routes.add("GET", f"{PREFIX}/credits", self.credits)
        routes.add("POST", f"{PREFIX}/credits", self.pay)
        routes.add("GET", f"{ORGANIZATION}/budgets", self.own)

    async def list(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        request = parse(named(call, {"tenant": "tenant_id"}), ListBudgetsRequest())
        return await relay(call, self._stub().ListBudgets, request)

    async def set(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        body = await self._body(call, BUDGET_FIELDS)
        if "period" in body:
            body["period"] = period_name(body["period"])
        budget = parse(body, BudgetRecord())
        self._check_scope(budget)
        request = SetBudgetRequest(budget=budget, actor_key_id=actor.key_id)
        return await relay(call, self._stub().SetBudget, request)

    async def delete(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require(call.http.headers, ADMIN)
        query = named(call, {"tenant": "tenant_id", "project": "project_id", "key": "key_id", "period": "period"})
        if "period" in query:
            query["period"] = period_name(query["period"])
        request = parse(query, DeleteBudgetRequest(actor_key_id=actor.key_id))
        return await relay(call, self._stub().DeleteBudget, request)

    async def credits(self, call: Call) -> web.StreamResponse:
        self._auth.require(call.http.headers, ADMIN)
        request = parse(named(call, {"tenant": "tenant_id"}), ListCreditsRequest())
        return await relay(call, self._stub().ListCredits, request)

    async def pay(self, call: Call) -> web.StreamResponse:
        actor = self._auth.require_for_change(call.http.headers, ADMIN)
        body = await self._body(call, CREDIT_FIELDS)
        credit = parse(body, CreditRecord())
        self._check_scope(credit)
        request = AddCreditRequest(credit=credit, actor_key_id=actor.key_id)
        return await relay(call, self._stub().AddCredit, request, 201)

    async def own(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        named(call, {})
        answer = await ask(self._stub().ListBudgets, ListBudgetsRequest(tenant_id=acting.tenant_id))
        return reply(call, list_object([budget_object(one) for one in answer.budgets], has_more=False))

    def _check_scope(self, record: BudgetRecord | CreditRecord) -> None:
        """A typing error must not make a budget that nobody has. Raises InferBusError NOT_FOUND."""
        if not record.tenant_id:
            return  # the meter says what is missing
        self._directory.tenants.get(record.tenant_id)
        if record.project_id:
            self._directory.projects.get(record.tenant_id, record.project_id)
        if record.key_id and self._directory.keys.get(record.key_id).tenant_id != record.tenant_id:
            raise not_found("key")

    async def _body(self, call: Call, fields: tuple[str, ...]) -> dict[str, Any]:
        body = await body_object(call, self._body_timeout)
        only(body, fields)
        return {name: value for name, value in body.items() if value is not None}

    def _stub(self) -> Any:
        return configured(self._meter, "meter")
