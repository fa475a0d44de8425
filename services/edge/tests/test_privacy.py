"""Erasures and captured text at the edge's door; and which requests say that their text is to be kept."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import CapturePolicy
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import captures_pb2, privacy_pb2
from inferbus.meter.v1.captures_pb2_grpc import CaptureServiceServicer, add_CaptureServiceServicer_to_server
from inferbus.meter.v1.privacy_pb2_grpc import PrivacyServiceServicer, add_PrivacyServiceServicer_to_server
from inferbus_bus.log import FrameLog
from inferbus_contracts.erasure import end_user_hash
from inferbus_contracts.ids import request_id
from inferbus_dialect.capture import CAPTURE_HEADER, capture_rate, is_captured
from inferbus_edge.core import openapi
from inferbus_edge.core.capture_policy import checked_policy
from inferbus_edge.core.openapi_schema import REF
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError
from jsonschema import Draft202012Validator

TOKEN = "operators-token-of-tests"
SCHEMAS = openapi.schemas()
CAPTURED = captures_pb2.Capture(
    request_id="01a20193-a52a-79d3-a0b6-ad0618e0a0f1", tenant_id="acme", model="m", input="{}", output="said", bytes=6
)  # fmt: skip


class Meter(PrivacyServiceServicer, CaptureServiceServicer):
    """Erases whatever it is asked to, and has one captured request, of the tenant acme."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def Erase(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if bool(request.end_user) == request.whole_tenant:
            raise InferBusError(ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, "invalid", "Say whom.")
        erasure = privacy_pb2.Erasure(tenant_id=request.tenant_id, erased={"requests": 3}, left=["frames"])
        return privacy_pb2.EraseResponse(erasure=erasure, dry_run=request.dry_run)

    async def ListErasures(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return privacy_pb2.ListErasuresResponse(erasures=[privacy_pb2.Erasure(tenant_id=request.tenant_id)])

    async def ListCaptures(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        return captures_pb2.ListCapturesResponse(captures=[CAPTURED], next_page_token="next")

    async def GetCapture(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        if request.tenant_id not in ("", "acme"):
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "capture_not_found", "There is none.")
        return captures_pb2.GetCaptureResponse(capture=CAPTURED)


@pytest.fixture
async def private(nats_server: Any, rig: Any, tmp_path: Any) -> AsyncIterator[tuple[Any, Meter]]:
    meter = Meter()

    def add(server: Any) -> None:
        add_PrivacyServiceServicer_to_server(meter, server)
        add_CaptureServiceServicer_to_server(meter, server)

    names = ("inferbus.meter.v1.PrivacyService", "inferbus.meter.v1.CaptureService")
    async with (
        rpc.serve("127.0.0.1:0", add, names, TOKEN) as server,
        rig.run_edge(nats_server, tmp_path, METER_ADDRESS=server.address, RPC_TOKEN=TOKEN) as edge,
    ):
        yield edge, meter


def check(name: str, value: Any) -> None:
    validator = Draft202012Validator({"$ref": f"{REF}{name}", "components": {"schemas": SCHEMAS}})
    assert [one.message for one in validator.iter_errors(value)] == []


async def events(bus: Any) -> list[AuditEvent]:
    log = FrameLog(bus, "AUDIT")
    first, last = await log.bounds()
    return [AuditEvent.FromString(data) async for some in log.read(first, last, subject="audit.>") for *_, data in some]


async def test_an_operator_erases_and_reads_and_the_tenant_is_told(private: Any, rig: Any, worker: Any) -> None:
    edge, meter = private
    one = f"/inferbus/v1/captures/chatcmpl-{CAPTURED.request_id.replace('-', '')}"
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        user, all_of_it = {"tenant_id": "acme", "end_user": "ada"}, {"tenant_id": "acme", "whole_tenant": True}
        for method, path, options, status, name in (
            ("POST", "/inferbus/v1/erasures", {"json": {**user, "dry_run": True}}, 200, "EraseResponse"),
            ("POST", "/inferbus/v1/erasures", {"json": {**user, "timeout": 1.5}}, 201, "EraseResponse"),
            ("POST", "/inferbus/v1/erasures", {"json": all_of_it}, 201, "EraseResponse"),
            ("GET", "/inferbus/v1/erasures", {"params": {"tenant": "acme"}}, 200, "ListErasuresResponse"),
            ("GET", "/inferbus/v1/captures", {"params": {"tenant": "acme", "page_size": "5"}}, 200,
             "ListCapturesResponse"),
            ("GET", one, {}, 200, "GetCaptureResponse"),
        ):  # fmt: skip
            answer = await admin.request(method, path, **options)
            assert answer.status == status, await answer.text()
            check(name, await answer.json())
        dry, checked, done = meter.asked[:3]
        assert [one.dry_run for one in (dry, checked, done)] == [True, True, False]
        assert (done.tenant_id, done.end_user, done.whole_tenant, done.timeout.ToMilliseconds()) == (
            "acme", "ada", False, 1500
        )  # fmt: skip
        assert done.actor_key_id
        assert meter.asked[-1].request_id == CAPTURED.request_id.replace("-", "")
        long = "x" * 200
        await admin.post("/inferbus/v1/erasures", json={"tenant_id": "acme", "end_user": long, "dry_run": True})
        assert meter.asked[-1].end_user.startswith("sha256:")
        for wrong in ({"end_user": "ada"}, {"tenant_id": "acme"}, {**user, "color": "red"}, {**user, "timeout": "x"}):
            assert (await admin.post("/inferbus/v1/erasures", json=wrong)).status == 400, wrong
    told = {(one.action, one.tenant_id, one.target) for one in await events(worker.bus)}
    whom = end_user_hash("acme", "ada").hex()
    assert {
        ("erasure.requested", "acme", whom), ("erasure.requested", "acme", "whole tenant"),
        ("capture.read", "acme", CAPTURED.request_id),
    } <= told  # fmt: skip
    assert not any("ada" in str(one.details) for one in await events(worker.bus))


async def test_a_tenant_erases_reads_and_sets_its_own_and_nothing_else(private: Any, rig: Any) -> None:
    edge, meter = private
    secrets = {}
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        for tenant in ("acme", "other"):
            made = await admin.post("/inferbus/v1/keys", json={"tenant_id": tenant, "scopes": ["tenant_admin"]})
            secrets[tenant] = (await made.json())["secret"]
    path = f"/v1/organization/captures/{CAPTURED.request_id}"
    async with rig.session(edge, secrets["acme"]) as own:
        made = await own.post("/v1/organization/erasures", json={"end_user": "ada"})
        assert made.status == 201
        assert {request.tenant_id for request in meter.asked} == {"acme"}
        for options in ({"tenant_id": "other", "end_user": "a"}, {}):
            assert (await own.post("/v1/organization/erasures", json=options)).status == 400
        assert (await own.get("/v1/organization/erasures")).status == 200
        assert (await own.get("/v1/organization/captures", params={"tenant": "other"})).status == 400
        assert (await own.get("/v1/organization/captures")).status == 200
        shown = await own.get(path)
        assert (shown.status, shown.headers["Cache-Control"]) == (200, "no-store")
        assert {request.tenant_id for request in meter.asked if hasattr(request, "tenant_id")} == {"acme"}
        for method, where in (
            ("GET", "/inferbus/v1/erasures"), ("POST", "/inferbus/v1/erasures"), ("GET", "/inferbus/v1/captures"),
            ("GET", f"/inferbus/v1/captures/{CAPTURED.request_id}"), ("PUT", "/inferbus/v1/tenants/acme/capture"),
            ("DELETE", "/inferbus/v1/tenants/acme/capture"),
        ):  # fmt: skip
            assert (await own.request(method, where)).status == 403
    async with rig.session(edge, secrets["other"]) as foreign:
        assert (await foreign.get(path)).status == 404


async def test_who_may_have_text_kept(private: Any, rig: Any) -> None:
    edge, _ = private
    policy, own_policy = "/inferbus/v1/tenants/policy-acme/capture", "/v1/organization/capture_policy"
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        asked = {"tenant_id": "policy-acme", "scopes": ["tenant_admin"]}
        secret = (await (await admin.post("/inferbus/v1/keys", json=asked)).json())["secret"]
        async with rig.session(edge, secret) as own:
            shown = await (await own.get(own_policy)).json()
            check("OwnCapturePolicy", shown)
            assert (shown["sampling_rate"], shown["self_service"]) == (0, False)
            refused = await own.put(own_policy, json={"sampling_rate": 1})
            assert (refused.status, (await refused.json())["error"]["code"]) == (403, "capture_not_allowed")

            given = {"sampling_rate": 0.25, "project_ids": ["p"], "self_service": False}
            answer = await admin.put(policy, json=given)
            check("UpdateTenantResponse", await answer.json())
            assert (await own.put(own_policy, json={"sampling_rate": 1})).status == 403
            ended = await (await own.delete(own_policy)).json()
            assert (ended["sampling_rate"], ended["project_ids"]) == (0, [])

            assert (await admin.put(policy, json={"sampling_rate": 0, "self_service": True})).status == 200
            allowed = await own.put(own_policy, json={"sampling_rate": 0.5})
            assert (allowed.status, (await allowed.json())["sampling_rate"]) == (200, 0.5)
            # All tenants share a bucket: what is no project's id would fill it.
            large = {"sampling_rate": 1, "project_ids": ["x" * 30_000] * 32}
            no_rate = ({}, {"sampling_rate": None}, {"project_ids": ["p"]})
            wrongs = ({"sampling_rate": 2}, {"sampling_rate": -1}, {"sampling_rate": 1, "self_service": False}, large)
            for wrong in (*wrongs, *no_rate):
                assert (await own.put(own_policy, json=wrong)).status == 400, wrong
            assert (await admin.put(policy, json={"self_service": True})).status == 400
            assert (await (await own.get(own_policy)).json())["sampling_rate"] == 0.5
            ended = await (await own.delete(own_policy)).json()
            assert (ended["sampling_rate"], ended["self_service"]) == (0, True)
        assert (await admin.delete(policy)).status == 200
        assert (await admin.put("/inferbus/v1/tenants/nobody/capture", json={"sampling_rate": 1})).status == 404


async def test_a_request_says_that_it_is_captured_and_may_object(
    private: Any, rig: Any, worker: Any, model: str
) -> None:
    edge, _ = private
    async with rig.session(edge) as http, asyncio.timeout(30):  # this edge has a watch of its own
        while (await http.get(f"/v1/models/{model}")).status != 200:
            await asyncio.sleep(0.02)

    async def asked(**options: Any) -> GenerateRequest:
        async with rig.session(edge) as http:
            call = http.post("/v1/chat/completions", json=rig.chat(model), **options)
            answer = worker.answer(model, ["yes"])
            response, request = await _both(call, answer)
            assert response.status == 200, await response.text()
            return request

    assert not (await asked()).context.captured
    async with rig.session(edge, rig.ADMIN_KEY) as admin, rig.session(edge) as http:
        tenant = (await asked()).context.tenant_id
        path = f"/inferbus/v1/tenants/{tenant}/capture"
        assert (await admin.put(path, json={"sampling_rate": 1})).status == 200
        try:
            assert (await asked()).context.captured
            assert not (await asked(headers={CAPTURE_HEADER: "off"})).context.captured
            for wrong in ("on", "", "of"):
                refused = await http.post("/v1/chat/completions", json=rig.chat(model), headers={CAPTURE_HEADER: wrong})
                assert refused.status == 400, wrong
            assert (await admin.put(path, json={"sampling_rate": 1, "project_ids": ["another"]})).status == 200
            assert not (await asked()).context.captured
        finally:
            assert (await admin.delete(path)).status == 200
        assert not (await asked()).context.captured


async def _both(call: Any, answer: Any) -> tuple[Any, GenerateRequest]:
    response, request = await asyncio.gather(call, answer)
    return response, request


def test_samples_are_drawn_by_the_request_and_nobody_can_opt_in() -> None:
    entropy = [hashlib.sha256(str(number).encode()).digest() for number in range(4000)]
    ids = [request_id(1_700_000_000_000, one, "edge-0") for one in entropy]
    for rate in (0.0, 0.1, 0.5, 1.0):
        kept = [is_captured(one, rate) for one in ids]
        assert abs(sum(kept) / len(ids) - rate) < 0.03
        assert kept == [is_captured(one, rate) for one in ids]
    nothing = CapturePolicy()
    assert capture_rate(nothing, "p", {}) == 0
    for said in ("on", "yes", "true", ""):
        with pytest.raises(InferBusError):
            capture_rate(nothing, "p", {CAPTURE_HEADER: said})
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(InferBusError):
            checked_policy(CapturePolicy(sampling_rate=rate))
    with pytest.raises(InferBusError):
        checked_policy(CapturePolicy(project_ids=[str(number) for number in range(33)]))
