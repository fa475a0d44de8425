"""Usage and costs over HTTP: what reaches the meter is the tenant's own, whoever asks and whatever he names."""

from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import usage_pb2
from inferbus.meter.v1.usage_pb2_grpc import UsageServiceServicer, add_UsageServiceServicer_to_server
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError

ORGANIZATION, OPERATOR = "/v1/organization", "/inferbus/v1"
TOKEN = "operators-token-of-usage-tests"
START = 1_790_000_000


class Meter(UsageServiceServicer):
    """Keeps what it was asked, and answers with one row."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def QueryUsage(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        row = usage_pb2.UsageBucket(requests=1, input_tokens=7)
        row.bucket_time.seconds = request.start_time.seconds // 86_400 * 86_400
        row.group.project_id = request.filter.tenant_id
        return usage_pb2.QueryUsageResponse(rows=[row])

    async def QueryCosts(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        row = usage_pb2.CostBucket(amount="0.010000000001", currency="EUR")
        row.bucket_time.seconds = request.start_time.seconds // 86_400 * 86_400
        return usage_pb2.QueryCostsResponse(rows=[row])

    async def ExportUsage(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if request.filter.tenant_id == "away":
            raise InferBusError(ErrorClass.ERROR_CLASS_UNAVAILABLE, "store_unavailable", "Later.")
        for part in (b"a,b\n", b"1,2\n"):
            yield usage_pb2.ExportUsageResponse(data=part)
        if request.filter.tenant_id == "breaks":
            raise InferBusError(ErrorClass.ERROR_CLASS_UNAVAILABLE, "store_unavailable", "Later.")

    async def QueryMargin(self, request: Any, context: Any) -> Any:  # noqa: N802
        return usage_pb2.QueryMarginResponse(currency="USD")


@pytest.fixture(scope="module")
def meter() -> Meter:
    return Meter()


@pytest_asyncio.fixture(scope="module")
async def metered(nats_server: Any, rig: Any, tmp_path_factory: Any, meter: Meter) -> Any:
    """An edge with a meter that speaks its protocol for real."""

    def add(server: Any) -> None:
        add_UsageServiceServicer_to_server(meter, server)

    async with (
        rpc.serve("127.0.0.1:0", add, ("inferbus.meter.v1.UsageService",), TOKEN) as server,
        rig.run_edge(
            nats_server, tmp_path_factory.mktemp("metered"), METER_ADDRESS=server.address, RPC_TOKEN=TOKEN
        ) as edge,
    ):
        yield edge


@pytest_asyncio.fixture(scope="module")
async def operator(metered: Any, rig: Any) -> Any:
    async with rig.session(metered, rig.ADMIN_KEY) as one:
        yield one


async def ask(http: aiohttp.ClientSession, path: str, status: int = 200, **params: Any) -> Any:
    async with http.get(path, params=params) as response:
        body = await response.json()
        assert response.status == status, body
        return body


@asynccontextmanager
async def administrator(operator: Any, metered: Any, rig: Any, tenant_id: str) -> Any:
    async with operator.post(f"{OPERATOR}/tenants", json={"tenant_id": tenant_id}) as response:
        assert response.status in (201, 409)
    async with operator.post(f"{OPERATOR}/keys", json={"tenant_id": tenant_id, "scopes": ["tenant_admin"]}) as response:
        key = (await response.json())["secret"]
    async with rig.session(metered, key) as http:
        yield http


async def test_a_tenant_sees_its_own_whatever_it_names(operator: Any, metered: Any, rig: Any, meter: Meter) -> None:
    async with administrator(operator, metered, rig, "mine") as mine:
        theirs = {"project_ids[]": "web", "api_key_ids[]": "key_admin", "start_time": START}
        for path in ("usage/completions", "usage/embeddings", "usage/inference", "costs"):
            await ask(mine, f"{ORGANIZATION}/{path}", **theirs)
            assert meter.asked[-1].filter.tenant_id == "mine"
            await ask(mine, f"{ORGANIZATION}/{path}", tenant_id="mine", **theirs)
            error = await ask(mine, f"{ORGANIZATION}/{path}", 401, tenant_id="acme", start_time=START)
            assert error["error"]["code"] == "mismatched_organization"
        asked = len(meter.asked)
        nobody = await ask(mine, f"{ORGANIZATION}/usage/completions", **{"user_ids[]": "user_x", "start_time": START})
        assert all(bucket["results"] == [] for bucket in nobody["data"])
        assert len(meter.asked) == asked
        for path in ("usage/query", "usage/export", "costs", "margin"):
            assert (await ask(mine, f"{OPERATOR}/{path}", 403))["error"]["code"] == "insufficient_scope"


async def test_an_operator_names_the_tenant(operator: Any, metered: Any, rig: Any, meter: Meter) -> None:
    async with administrator(operator, metered, rig, "other"):
        shown = await ask(operator, f"{ORGANIZATION}/usage/completions", start_time=START, tenant_id="other", limit=1)
        assert meter.asked[-1].filter.tenant_id == "other"
        (bucket,) = shown["data"]
        assert (bucket["start_time"], bucket["end_time"]) == (START, START // 86_400 * 86_400 + 86_400)
        assert meter.asked[-1].start_time.seconds == START
        assert meter.asked[-1].end_time.seconds == bucket["end_time"]
        (result,) = bucket["results"]
        assert (result["object"], result["input_tokens"]) == ("organization.usage.completions.result", 7)
        assert shown["has_more"]
        again = await ask(
            operator, f"{ORGANIZATION}/usage/completions", start_time=START, limit=1, page=shown["next_page"]
        )
        assert again["data"][0]["start_time"] == bucket["end_time"]
    error = await ask(operator, f"{ORGANIZATION}/costs", 404, start_time=START, tenant_id="nothing")
    assert error["error"]["code"] == "tenant_not_found"


async def test_costs_have_all_digits(operator: Any) -> None:
    async with operator.get(f"{ORGANIZATION}/costs", params={"start_time": START, "limit": 1}) as response:
        assert '"amount":{"value":0.010000000001,"currency":"eur"}' in await response.text()


@pytest.mark.parametrize(
    "kind",
    ["moderations", "images", "audio_speeches", "audio_transcriptions", "vector_stores", "code_interpreter_sessions",
     "file_search_calls", "web_search_calls", "decisions"],
)  # fmt: skip
async def test_what_is_not_served_is_empty(operator: Any, meter: Meter, kind: str) -> None:
    asked = len(meter.asked)
    query = {"start_time": START, "limit": 3, "group_by[]": "project_id"}
    shown = await ask(operator, f"{ORGANIZATION}/usage/{kind}", **query)
    assert [bucket["results"] for bucket in shown["data"]] == [[], [], []]
    assert len(meter.asked) == asked


async def test_the_operators_reports(operator: Any, meter: Meter) -> None:
    found = await ask(operator, f"{OPERATOR}/usage/query", by="project,model", tenant="acme", bucket="hour")
    assert found["rows"][0]["group"] == {"project_id": "acme"}
    assert list(meter.asked[-1].group_by) == [2, 4]
    await ask(operator, f"{OPERATOR}/costs", line_items="true")
    assert meter.asked[-1].by_line_item
    assert (await ask(operator, f"{OPERATOR}/margin"))["currency"] == "USD"
    assert (await ask(operator, f"{OPERATOR}/margin", 400, bucket="day"))["error"]["param"] == "bucket"


async def test_an_export_is_a_file_or_an_error_and_never_half(operator: Any) -> None:
    async with operator.get(f"{OPERATOR}/usage/export", params={"format": "parquet"}) as response:
        assert response.headers["Content-Type"] == "application/vnd.apache.parquet"
        assert await response.read() == b"a,b\n1,2\n"
    assert (await ask(operator, f"{OPERATOR}/usage/export", 503, tenant="away"))["error"]["code"] == "store_unavailable"
    with pytest.raises(aiohttp.ClientPayloadError):
        async with operator.get(f"{OPERATOR}/usage/export", params={"tenant": "breaks"}) as response:
            await response.read()


async def test_without_a_meter_it_says_so(edge: Any, rig: Any) -> None:
    async with rig.session(edge, rig.ADMIN_KEY) as http:
        for path in (f"{ORGANIZATION}/usage/completions?start_time=1", f"{OPERATOR}/margin"):
            assert (await ask(http, path, 503))["error"]["code"] == "meter_unavailable"


async def test_what_a_call_says_of_itself_travels_with_it(http: Any, worker: Any, model: str, rig: Any) -> None:
    body = rig.chat(model, user="ada", stream=True, n=2)
    headers = {"x-inferbus-tags": "team=search, env=prod"}
    async with http.post("/v1/chat/completions", json=body, headers=headers):
        for _ in range(2):
            request = await worker.take(model)
            assert request.labels.end_user == "ada"
            assert dict(request.labels.tags) == {"team": "search", "env": "prod"}
    async with http.post("/v1/chat/completions", json=rig.chat(model), headers={"x-inferbus-tags": "team"}) as refused:
        assert refused.status == 400
        assert (await refused.json())["error"]["param"] == "x-inferbus-tags"
