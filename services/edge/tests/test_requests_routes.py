"""Single requests over HTTP: whose they are is the key's word, and the inside is the operator's alone."""

import struct
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass
from inferbus.meter.v1 import requests_pb2
from inferbus.meter.v1.requests_pb2_grpc import RequestServiceServicer, add_RequestServiceServicer_to_server
from inferbus.scheduler.v1 import scheduler_pb2
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceServicer, add_SchedulerServiceServicer_to_server
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError

OPERATOR, ORGANIZATION = "/inferbus/v1/requests", "/v1/organization/requests"
TOKEN = "operators-token-of-requests-tests"
STORED, WAITING, LOST = ("01a1fe2d-da39-7684-88df-274e4b208300", "01a1fe2d-da39-7684-88df-274e4b208301",
                         "01a1fe2d-da39-7684-88df-274e4b208302")  # fmt: skip
TOKENS = 100_000


class Meter(RequestServiceServicer):
    """Has one request; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def ListRequests(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        one = requests_pb2.RequestSummary(request_id=STORED, tenant_id=request.filter.tenant_id, charge="0.1")
        return requests_pb2.ListRequestsResponse(requests=[one], next_page_token="more")

    async def GetTimeline(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if request.request_id.removeprefix("chatcmpl-").replace("-", "") != STORED.replace("-", ""):
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "request_not_found", "Nothing is stored.")
        answer = requests_pb2.GetTimelineResponse(request=requests_pb2.RequestSummary(request_id=STORED))
        answer.attempts.add(
            number=1, tokens=TOKENS, offset_us=struct.pack(f"<{TOKENS}q", *range(1 << 33, (1 << 33) + TOKENS)),
            gap_us=struct.pack(f"<{TOKENS}I", *range(TOKENS)),
        )  # fmt: skip
        answer.attempts.add(number=2)
        answer.attempts.add(
            number=3, tokens=2, void_tokens=1, first_index=4, index=struct.pack("<2I", 4, 6), void=b"\0\1",
            offset_us=struct.pack("<2q", -5, 7), gap_us=struct.pack("<2I", 0, 12),
        )  # fmt: skip
        return answer


class Scheduler(SchedulerServiceServicer):
    async def Explain(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.request_id.hex().endswith("02"):
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "request_not_found", "No recent request.")
        verdict = scheduler_pb2.WorkerVerdict(worker="worker-3", eligible=True)
        return scheduler_pb2.ExplainResponse(outcome="placed", worker="worker-3", verdicts=[verdict])


@pytest.fixture(scope="module")
def meter() -> Meter:
    return Meter()


@pytest_asyncio.fixture(scope="module")
async def served(nats_server: Any, rig: Any, tmp_path_factory: Any, meter: Meter) -> Any:
    """An edge with a meter and a scheduler that speak their protocols for real."""

    def add(server: Any) -> None:
        add_RequestServiceServicer_to_server(meter, server)
        add_SchedulerServiceServicer_to_server(Scheduler(), server)

    services = ("inferbus.meter.v1.RequestService", "inferbus.scheduler.v1.SchedulerService")
    async with (
        rpc.serve("127.0.0.1:0", add, services, TOKEN) as server,
        rig.run_edge(
            nats_server, tmp_path_factory.mktemp("requests"), METER_ADDRESS=server.address, RPC_TOKEN=TOKEN,
            SCHEDULER_ADDRESS=server.address,
        ) as edge,
    ):  # fmt: skip
        yield edge


@pytest_asyncio.fixture(scope="module")
async def operator(served: Any, rig: Any) -> Any:
    async with rig.session(served, rig.ADMIN_KEY) as one:
        yield one


async def ask(http: aiohttp.ClientSession, path: str, code: int = 200, **params: Any) -> Any:
    async with http.get(path, params=params) as response:
        body = await response.json()
        assert response.status == code, body
        return body


@asynccontextmanager
async def administrator(operator: Any, served: Any, rig: Any, tenant_id: str) -> Any:
    async with operator.post("/inferbus/v1/tenants", json={"tenant_id": tenant_id}) as response:
        assert response.status in (201, 409)
    wanted = {"tenant_id": tenant_id, "scopes": ["tenant_admin"]}
    async with operator.post("/inferbus/v1/keys", json=wanted) as response:
        key = (await response.json())["secret"]
    async with rig.session(served, key) as http:
        yield http


async def test_a_tenant_sees_its_own_whatever_it_names(operator: Any, served: Any, rig: Any, meter: Meter) -> None:
    async with administrator(operator, served, rig, "mine") as mine:
        query = {"status": "error", "model": "m", "user": "ada", "revision": "r", "class": "batch"}
        await ask(mine, ORGANIZATION, **query, order="charge", limit=7)
        asked = meter.asked[-1]
        assert (asked.filter.tenant_id, asked.view) == ("mine", requests_pb2.REQUEST_VIEW_TENANT)
        assert (asked.filter.model, asked.filter.end_user, asked.page_size) == ("m", "ada", 7)
        assert list(asked.filter.finish_reasons) == [FinishReason.FINISH_REASON_ERROR]
        assert asked.filter.revision == "r"
        assert list(asked.filter.priority_classes) == [PriorityClass.PRIORITY_CLASS_BATCH]
        shown = await ask(mine, f"{ORGANIZATION}/{STORED}")
        assert (meter.asked[-1].tenant_id, meter.asked[-1].view) == ("mine", requests_pb2.REQUEST_VIEW_TENANT)
        assert "placement" not in shown
        count = len(meter.asked)
        for name in ("tenant", "worker", "tenant_id", "view"):
            assert (await ask(mine, ORGANIZATION, 400, **{name: "acme"}))["error"]["param"] == name
            assert (await ask(mine, f"{ORGANIZATION}/{STORED}", 400, **{name: "acme"}))["error"]["param"] == name
        for path in (OPERATOR, f"{OPERATOR}/{STORED}"):
            assert (await ask(mine, path, 403))["error"]["code"] == "insufficient_scope"
        assert len(meter.asked) == count
        assert (await ask(mine, f"{ORGANIZATION}/{WAITING}", 404))["error"]["code"] == "request_not_found"


async def test_a_timeline_has_its_columns_as_numbers(operator: Any, meter: Meter) -> None:
    shown = await ask(operator, f"{OPERATOR}/chatcmpl-{STORED.replace('-', '')}")
    assert meter.asked[-1].view == requests_pb2.REQUEST_VIEW_OPERATOR
    first, second, third = shown["attempts"]
    assert first["offset_us"] == list(range(1 << 33, (1 << 33) + TOKENS))
    assert first["gap_us"] == list(range(TOKENS))
    assert "index" not in first
    assert second == {"number": 2}
    assert (third["index"], third["void"], third["offset_us"]) == ([4, 6], [0, 1], [-5, 7])
    assert shown["placement"]["verdicts"] == [{"worker": "worker-3", "eligible": True}]


async def test_what_is_not_stored_yet_is_what_the_scheduler_knows(operator: Any) -> None:
    shown = await ask(operator, f"{OPERATOR}/{WAITING}")
    assert shown["request"]["state"] == "REQUEST_STATE_UNSTORED"
    assert shown["request"]["request_id"] == WAITING
    assert shown["request"]["accepted_time"].startswith("20")
    assert (shown["placement"]["outcome"], shown["placement"]["worker"]) == ("placed", "worker-3")
    assert (await ask(operator, f"{OPERATOR}/{LOST}", 404))["error"]["code"] == "request_not_found"


async def test_the_operators_list(operator: Any, meter: Meter) -> None:
    found = await ask(
        operator, OPERATOR, tenant="acme", worker="worker-0", order="e2e", ascending="true", reason="queue_full",
        start="2026-11-01T00:00:00Z", page="abc", **{"error[]": "internal"},
    )  # fmt: skip
    assert (found["requests"][0]["tenant_id"], found["next_page_token"]) == ("acme", "more")
    asked = meter.asked[-1]
    assert (asked.filter.worker, asked.order, asked.ascending) == ("worker-0", requests_pb2.REQUEST_ORDER_E2E, True)
    assert (asked.page_token, asked.filter.error_reason) == ("abc", "queue_full")
    assert list(asked.filter.error_classes) == [ErrorClass.ERROR_CLASS_INTERNAL]
    wrong = dict.fromkeys(("status", "error", "class", "order", "start"), "odd") | {"limit": "501"}
    for name, value in wrong.items():
        error = (await ask(operator, OPERATOR, 400, **{name: value}))["error"]
        assert error["code"] or error["param"] == name


async def test_without_a_meter_it_says_so(edge: Any, rig: Any) -> None:
    async with rig.session(edge, rig.ADMIN_KEY) as http:
        for path in (OPERATOR, f"{OPERATOR}/{STORED}", ORGANIZATION, f"{ORGANIZATION}/{STORED}"):
            assert (await ask(http, path, 503))["error"]["code"] == "meter_unavailable"
