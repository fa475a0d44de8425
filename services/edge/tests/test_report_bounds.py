"""What one tenant asks the meter for at once leaves room for the others: a place a question, over all edges."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest_asyncio
from inferbus.meter.v1 import analytics_pb2, budgets_pb2, invoices_pb2, privacy_pb2, requests_pb2, usage_pb2
from inferbus.meter.v1.analytics_pb2_grpc import AnalyticsServiceServicer, add_AnalyticsServiceServicer_to_server
from inferbus.meter.v1.budgets_pb2_grpc import BudgetServiceServicer, add_BudgetServiceServicer_to_server
from inferbus.meter.v1.invoices_pb2_grpc import InvoiceServiceServicer, add_InvoiceServiceServicer_to_server
from inferbus.meter.v1.privacy_pb2_grpc import PrivacyServiceServicer, add_PrivacyServiceServicer_to_server
from inferbus.meter.v1.requests_pb2_grpc import RequestServiceServicer, add_RequestServiceServicer_to_server
from inferbus.meter.v1.usage_pb2_grpc import UsageServiceServicer, add_UsageServiceServicer_to_server
from inferbus_runtime import rpc

ORGANIZATION, OPERATOR = "/v1/organization", "/inferbus/v1"
TOKEN = "operators-token-of-report-bounds"
START = "2026-11-01T00:00:00Z"
ANALYTICS = f"{ORGANIZATION}/analytics?measure=ttft&start={START}"
EXPORT = f"{OPERATOR}/usage/export?format=csv"
# One of every kind that a tenant asks the meter for.
OWN = (
    ANALYTICS, f"{ORGANIZATION}/analytics/values?start={START}",
    f"{ORGANIZATION}/usage/completions?start_time=1790000000", f"{ORGANIZATION}/costs?start_time=1790000000",
    f"{ORGANIZATION}/requests", f"{ORGANIZATION}/invoices", f"{ORGANIZATION}/budgets", f"{ORGANIZATION}/erasures",
)  # fmt: skip


@dataclass
class Meter(
    AnalyticsServiceServicer, UsageServiceServicer, RequestServiceServicer, InvoiceServiceServicer,
    BudgetServiceServicer, PrivacyServiceServicer,
):  # fmt: skip
    """Answers while ``open`` is set. ``running``: questions that it has and has not answered; ``left``: those whose
    asker went away."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    left: int = 0

    async def _answered(self, answer: Any) -> Any:
        self.running += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.left += 1
            raise
        finally:
            self.running -= 1
        return answer

    async def QueryAnalytics(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answered(analytics_pb2.QueryAnalyticsResponse())

    async def ListAnalyticsValues(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answered(analytics_pb2.ListAnalyticsValuesResponse())

    async def QueryUsage(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answered(usage_pb2.QueryUsageResponse())

    async def QueryCosts(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answered(usage_pb2.QueryCostsResponse())

    async def ExportUsage(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield usage_pb2.ExportUsageResponse(data=b"a\n")
        yield await self._answered(usage_pb2.ExportUsageResponse(data=b"b\n"))

    async def ListRequests(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answered(requests_pb2.ListRequestsResponse())

    async def ListInvoices(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answered(invoices_pb2.ListInvoicesResponse())

    async def ListBudgets(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answered(budgets_pb2.ListBudgetsResponse())

    async def ListErasures(self, request: Any, context: Any) -> Any:  # noqa: N802
        return await self._answered(privacy_pb2.ListErasuresResponse())


@dataclass
class Bounded:
    """Two edges that let two reports of a tenant and three of operators run."""

    meter: Meter
    edges: tuple[Any, Any]
    rig: Any

    async def administrator(self, tenant_id: str) -> str:
        """The secret of one of its."""
        async with self.rig.session(self.edges[0], self.rig.ADMIN_KEY) as operator:
            async with operator.post(f"{OPERATOR}/tenants", json={"tenant_id": tenant_id}) as response:
                assert response.status == 201
            wanted = {"tenant_id": tenant_id, "scopes": ["tenant_admin"]}
            async with operator.post(f"{OPERATOR}/keys", json=wanted) as response:
                return str((await response.json())["secret"])

    @asynccontextmanager
    async def held(self, http: aiohttp.ClientSession, *paths: str) -> AsyncIterator[list["asyncio.Task[int]"]]:
        """Questions that the meter has; the tasks give their statuses when it has answered at the end."""
        self.meter.open.clear()
        before = self.meter.running
        asking = [asyncio.create_task(status_of(http, path)) for path in paths]
        try:
            await self.rig.until(
                lambda: self.meter.running == before + len(paths) or any(one.done() for one in asking), 30
            )
            assert [await one for one in asking if one.done()] == []
            yield asking
        finally:
            self.meter.open.set()
            await asyncio.gather(*asking, return_exceptions=True)


@pytest_asyncio.fixture(scope="module")
async def bounded(nats_server: Any, rig: Any, tmp_path_factory: Any) -> AsyncIterator[Bounded]:
    meter = Meter()
    adders = {
        "AnalyticsService": add_AnalyticsServiceServicer_to_server, "UsageService": add_UsageServiceServicer_to_server,
        "RequestService": add_RequestServiceServicer_to_server, "BudgetService": add_BudgetServiceServicer_to_server,
        "InvoiceService": add_InvoiceServiceServicer_to_server, "PrivacyService": add_PrivacyServiceServicer_to_server,
    }  # fmt: skip

    def add(server: Any) -> None:
        for adder in adders.values():
            adder(meter, server)

    folder = tmp_path_factory.mktemp("reports")
    async with rpc.serve("127.0.0.1:0", add, tuple(f"inferbus.meter.v1.{one}" for one in adders), TOKEN) as server:
        settings = {
            "METER_ADDRESS": server.address, "RPC_TOKEN": TOKEN, "MAX_REPORTS": "2", "MAX_OPERATOR_REPORTS": "3",
        }  # fmt: skip
        async with (
            rig.run_edge(nats_server, folder, **settings) as one,
            rig.run_edge(nats_server, folder, **settings) as two,
        ):
            yield Bounded(meter, (one, two), rig)


async def status_of(http: aiohttp.ClientSession, path: str) -> int:
    async with http.get(path) as response:
        await response.read()
        return response.status


async def asked_until(http: aiohttp.ClientSession, path: str, status: int) -> None:
    """Edges hear of each other within a tick of 100 ms, and the end of a call comes after its answer. A question that
    was let in before that is taken back: the meter does not answer while it is held."""
    async with asyncio.timeout(30):
        while await _status_within(1.0, http, path) != status:
            await asyncio.sleep(0.02)


async def _status_within(seconds: float, http: aiohttp.ClientSession, path: str) -> int:
    """0: no answer came."""
    try:
        async with asyncio.timeout(seconds):
            return await status_of(http, path)
    except TimeoutError:
        return 0


async def test_a_tenant_has_so_many_reports_at_once_and_takes_no_other_s_place(bounded: Bounded, rig: Any) -> None:
    one, two = bounded.edges
    mine, other = await bounded.administrator("reporting"), await bounded.administrator("reporting-too")
    async with (
        rig.session(one, mine) as http, rig.session(two, mine) as there, rig.session(one, other) as neighbour,
        rig.session(one, rig.ADMIN_KEY) as operator,
    ):  # fmt: skip
        async with bounded.held(http, ANALYTICS, OWN[2]) as asking:
            for path in OWN:
                async with http.get(path) as refused:
                    assert refused.status == 429, path
                    error = (await refused.json())["error"]
                    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
                    assert "reports of organization reporting" in error["message"]
                    assert "Limit 2, Used 2" in error["message"]
                    assert int(refused.headers["Retry-After"]) >= 1
            assert await status_of(http, f"{ORGANIZATION}/projects") == 200
            async with bounded.held(neighbour, *OWN[:2]) as theirs, bounded.held(operator, *OWN[:2]) as operators:
                assert [one.done() for one in (*asking, *theirs, *operators)] == [False] * 6
                await asked_until(there, ANALYTICS, 429)
        assert [await one for one in (*asking, *theirs, *operators)] == [200] * 6
        for path in OWN:
            await asked_until(http, path, 200)
            await asked_until(there, path, 200)


async def test_who_leaves_gives_the_place_back(bounded: Bounded, rig: Any) -> None:
    mine = await bounded.administrator("leaving")
    async with rig.session(bounded.edges[0], mine) as http:
        left = bounded.meter.left
        async with bounded.held(http, OWN[0], OWN[1]) as asking:
            assert await status_of(http, ANALYTICS) == 429
            for one in asking:
                one.cancel()
            await rig.until(lambda: bounded.meter.left == left + 2, 30)
            async with bounded.held(http, OWN[0], OWN[1]):
                assert await status_of(http, ANALYTICS) == 429


async def test_operators_have_their_own_bound_and_a_file_counts_until_it_has_come(bounded: Bounded, rig: Any) -> None:
    async with rig.session(bounded.edges[0], rig.ADMIN_KEY) as operator:
        async with bounded.held(operator, EXPORT, f"{OPERATOR}/requests", f"{OPERATOR}/costs") as asking:
            async with operator.get(f"{OPERATOR}/usage") as refused:
                assert refused.status == 429
                assert "reports of operators" in (await refused.json())["error"]["message"]
            # What an operator does, and whom he serves, waits for no report.
            assert await status_of(operator, f"{OPERATOR}/tenants") == 200
        assert [await one for one in asking] == [200] * 3
        await asked_until(operator, EXPORT, 200)
