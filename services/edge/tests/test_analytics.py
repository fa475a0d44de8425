"""Analytics over HTTP: an operator asks anything, a tenant its own, and none of what is the operator's."""

import re
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1 import analytics_pb2 as pb
from inferbus.meter.v1.analytics_pb2_grpc import AnalyticsServiceServicer, add_AnalyticsServiceServicer_to_server
from inferbus_edge.core import openapi
from inferbus_edge.core.analytics_query import OPERATOR, TENANT, asked_of
from inferbus_edge.core.openapi_schema import REF
from inferbus_edge.routes.messages import as_dict, parse
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError, invalid
from jsonschema import Draft202012Validator

AT, OWN = "/inferbus/v1/analytics", "/v1/organization/analytics"
TOKEN = "operators-token-of-analytics-tests"
START = "2026-11-01T00:00:00Z"
QUESTION = {"measure": "ttft", "start": START}


def answer() -> pb.QueryAnalyticsResponse:
    shown = pb.QueryAnalyticsResponse(columns=[pb.AnalyticsColumn(name="p99", unit=1, description="One.")])
    row = shown.rows.add(numbers={"p99": 0.0}, group=pb.AnalyticsGroup(model="m"))
    row.time.seconds = 1_790_000_000
    shown.rows.add(amounts={"charge": "0.000000000001"}, currency="EUR", estimated=True)
    return shown


class Meter(AnalyticsServiceServicer):
    """Keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def QueryAnalytics(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if request.filter.models == ["too-many"]:
            raise invalid("Ask for a step of 2m or more.", param="step", reason="too_many_steps")
        return answer()

    async def ListAnalyticsValues(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return pb.ListAnalyticsValuesResponse(tenant_ids=["acme"], models=["m"], workers=["w"], project_ids=["p"])


@pytest.fixture(scope="module")
def meter() -> Meter:
    return Meter()


@pytest_asyncio.fixture(scope="module")
async def metered(nats_server: Any, rig: Any, tmp_path_factory: Any, meter: Meter) -> Any:
    """An edge with a meter that speaks its protocol for real."""

    def add(server: Any) -> None:
        add_AnalyticsServiceServicer_to_server(meter, server)

    folder = tmp_path_factory.mktemp("analytics")
    async with (
        rpc.serve("127.0.0.1:0", add, ("inferbus.meter.v1.AnalyticsService",), TOKEN) as server,
        rig.run_edge(nats_server, folder, METER_ADDRESS=server.address, RPC_TOKEN=TOKEN) as edge,
    ):
        yield edge


@pytest_asyncio.fixture(scope="module")
async def operator(metered: Any, rig: Any) -> Any:
    async with rig.session(metered, rig.ADMIN_KEY) as one:
        yield one


@pytest_asyncio.fixture(scope="module")
async def mine(operator: Any, metered: Any, rig: Any) -> Any:
    async with operator.post("/inferbus/v1/tenants", json={"tenant_id": "mine"}) as response:
        assert response.status in (201, 409)
    body = {"tenant_id": "mine", "scopes": ["tenant_admin"]}
    async with operator.post("/inferbus/v1/keys", json=body) as response:
        key = (await response.json())["secret"]
    async with rig.session(metered, key) as http:
        yield http


async def ask(http: aiohttp.ClientSession, path: str, status: int = 200, **params: Any) -> Any:
    async with http.get(path, params=params) as response:
        body = await response.json()
        assert response.status == status, body
        return body


async def test_an_operator_asks_by_anything(operator: Any, meter: Meter) -> None:
    query = [
        ("measure", "goodput"), ("start", START), ("end", "2026-11-02T00:00:00Z"), ("step", "5m"), ("groups", "8"),
        ("by", "tenant,worker"), ("by", "class"), ("tenant", "acme"), ("model", "a"), ("model[]", "b"),
        ("worker", "w"), ("class", "batch"), ("revision", ""), ("ttft_target", "200ms"), ("e2e_target", "1m"),
    ]  # fmt: skip
    async with operator.get(AT, params=query) as response:
        assert response.status == 200
        body = await response.json()
    asked = meter.asked[-1]
    assert asked.measure == pb.AnalyticsMeasure.ANALYTICS_MEASURE_GOODPUT
    assert (asked.step.seconds, asked.most_groups, list(asked.group_by)) == (300, 8, [1, 5, 6])
    assert asked.filter == pb.AnalyticsFilter(
        tenant_ids=["acme"], models=["a", "b"], workers=["w"], priority_classes=[PriorityClass.PRIORITY_CLASS_BATCH]
    )
    assert (asked.targets.ttft.nanos, asked.targets.e2e.seconds) == (200_000_000, 60)
    assert not asked.targets.HasField("tpot")
    assert not asked.exact
    # Zeros of a map are there; all digits of an amount are.
    assert body["rows"][0]["numbers"] == {"p99": 0.0}
    assert body["rows"][1] == {"amounts": {"charge": "0.000000000001"}, "currency": "EUR", "estimated": True}
    assert (await ask(operator, f"{AT}/values", start=START))["workers"] == ["w"]


async def test_a_tenant_sees_its_own_and_no_machine(mine: Any, meter: Meter) -> None:
    await ask(mine, OWN, **QUESTION, by="project,model,revision,class", project="theirs")
    asked = meter.asked[-1]
    assert list(asked.filter.tenant_ids) == ["mine"]
    assert asked.exact
    before = len(meter.asked)
    for query in ({"by": "worker"}, {"by": "tenant"}, {"tenant": "acme"}, {"worker": "w"}, {"tenant_id": "acme"}):
        error = await ask(mine, OWN, 400, **QUESTION, **query)
        assert error["error"]["param"] == next(iter(query))
    for measure in set(OPERATOR.measures) - set(TENANT.measures):
        assert (await ask(mine, OWN, 400, measure=measure, start=START))["error"]["param"] == "measure"
    for path in (AT, f"{AT}/values"):
        assert (await ask(mine, path, 403, **QUESTION))["error"]["code"] == "insufficient_scope"
    async with mine.get(OWN, params=QUESTION, headers={"OpenAI-Organization": "acme"}) as response:
        assert response.status == 401
    assert len(meter.asked) == before
    values = await ask(mine, f"{OWN}/values", start=START)
    assert values == {"models": ["m"], "project_ids": ["p"]}
    assert meter.asked[-1].tenant_id == "mine"


async def test_an_operator_acts_for_a_tenant_by_the_header(operator: Any, mine: Any, meter: Meter) -> None:
    async with operator.get(OWN, params=QUESTION, headers={"OpenAI-Organization": "mine"}) as response:
        assert response.status == 200
    assert list(meter.asked[-1].filter.tenant_ids) == ["mine"]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"start": START}, "measure"), ({"measure": "speed", "start": START}, "measure"),
        ({"measure": "ttft"}, "start"),
        ({**QUESTION, "step": "often"}, "step"), ({**QUESTION, "by": "model,colour"}, "by"),
        ({**QUESTION, "class": "first"}, "class"), ({**QUESTION, "groups": "0"}, "groups"),
        ({**QUESTION, "groups": "1001"}, "groups"), ({**QUESTION, "colour": "red"}, "colour"),
        ({**QUESTION, "e2e_target": "1"}, "e2e_target"), ({**QUESTION, "model": "too-many"}, "step"),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused_by_name(operator: Any, query: dict[str, str], param: str) -> None:
    assert (await ask(operator, AT, 400, **query))["error"]["param"] == param


async def test_without_a_meter_it_says_so(edge: Any, rig: Any) -> None:
    async with rig.session(edge, rig.ADMIN_KEY) as http:
        for path in (AT, OWN, f"{OWN}/values"):
            query = {"start": START} if path.endswith("values") else QUESTION
            assert (await ask(http, path, 503, **query))["error"]["code"] == "meter_unavailable"


_words = st.sampled_from(["acme", "globex", "", "mine'"])
_queries = st.lists(
    st.tuples(st.sampled_from(["project", "model", "revision", "class", "by", "tenant", "worker", "model[]"]), _words),
    max_size=4,
)


@given(_queries, st.sampled_from(TENANT.measures))
def test_no_query_of_a_tenant_leaves_it(query: list[tuple[str, str]], measure: str) -> None:
    whole = [("measure", measure), ("start", START), *query]
    try:
        asked = parse(asked_of(TENANT, whole, "mine"), pb.QueryAnalyticsRequest())
    except InferBusError:
        return
    assert list(asked.filter.tenant_ids) == ["mine"]
    assert not asked.filter.workers
    assert not {1, 5} & set(asked.group_by)


def test_every_measure_of_the_meter_has_a_name_and_the_document_has_all() -> None:
    assert {f"ANALYTICS_MEASURE_{name.upper()}" for name in OPERATOR.measures} == set(pb.AnalyticsMeasure.keys()) - {
        "ANALYTICS_MEASURE_UNSPECIFIED"
    }
    for scope in (OPERATOR, TENANT):
        for measure in scope.measures:
            asked_of(scope, [("measure", measure), ("start", START)])
    (described,) = [one for one in openapi.OPERATIONS if one.path == OWN]
    (measures,) = [one.schema["enum"] for one in described.parameters if one.name == "measure"]
    assert measures == list(TENANT.measures)
    assert not [one for one in described.parameters if re.fullmatch("tenant|worker", one.name)]
    schema = {"$ref": f"{REF}QueryAnalyticsResponse", "components": {"schemas": openapi.schemas()}}
    assert not list(Draft202012Validator(schema).iter_errors(as_dict(answer())))
