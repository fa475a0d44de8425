"""The price book over HTTP: relayed to the meter, told to AUDIT before it is changed."""

import json
from typing import Any

from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import prices_pb2
from inferbus.meter.v1.prices_pb2_grpc import PriceServiceServicer, add_PriceServiceServicer_to_server
from inferbus_bus.log import FrameLog
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError, invalid

PRICES, RATE, RERATE = (f"/inferbus/v1/{name}" for name in ("prices", "rate", "rerate"))
TOKEN = "operators-token-of-tests"


class Prices(PriceServiceServicer):
    """Speaks the protocol, and answers with what it was asked. ``done``: what was really to be changed."""

    def __init__(self) -> None:
        self.done: list[str] = []

    async def ListPrices(self, request: Any, context: Any) -> Any:  # noqa: N802
        return prices_pb2.ListPricesResponse(prices=[self._price(f"of-{request.tenant_id}")])

    async def GetPrice(self, request: Any, context: Any) -> Any:  # noqa: N802
        return prices_pb2.GetPriceResponse(price=self._price(request.rate_version))

    async def CreatePrice(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not request.record.currency:
            raise invalid("Say a currency.", param="currency")
        if not request.validate_only:
            self.done.append(request.record.rate_version)
        return prices_pb2.CreatePriceResponse(price=prices_pb2.Price(record=request.record))

    async def DeletePrice(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not request.force:
            raise InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "price_in_force", "Not this one.")
        if not request.validate_only:
            self.done.append(f"not {request.rate_version}")
        return prices_pb2.DeletePriceResponse(charges=3)

    async def GetRate(self, request: Any, context: Any) -> Any:  # noqa: N802
        version = f"{request.model}-{request.operation}-{request.priority_class}-{request.accepted_time.seconds}"
        return prices_pb2.GetRateResponse(rate=prices_pb2.Rate(rate_version=version))

    async def Rerate(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield prices_pb2.RerateResponse(progress=prices_pb2.RerateProgress(requests_read=1))
        if request.tenant_id == "broken":
            raise InferBusError(ErrorClass.ERROR_CLASS_UNAVAILABLE, "store_unavailable", "Later.")
        yield prices_pb2.RerateResponse(summary=prices_pb2.RerateSummary(applied=request.apply))

    def _price(self, version: str) -> prices_pb2.Price:
        price = prices_pb2.Price(state=prices_pb2.PriceState.PRICE_STATE_IN_FORCE)
        price.record.rate_version = version
        return price


async def told(worker: Any, action: str) -> list[AuditEvent]:
    log = FrameLog(worker.bus, "AUDIT")
    first, last = await log.bounds()
    stored = [data async for batch in log.read(first, last, subject="audit.>") for _, _, data in batch]
    return [event for event in map(AuditEvent.FromString, stored) if event.action == action]


async def test_the_price_book_over_http(nats_server: Any, rig: Any, tmp_path: Any, worker: Any) -> None:
    meter = Prices()
    add = lambda server: add_PriceServiceServicer_to_server(meter, server)  # noqa: E731
    async with (
        rpc.serve("127.0.0.1:0", add, ("inferbus.meter.v1.PriceService",), TOKEN) as server,
        rig.run_edge(nats_server, tmp_path, METER_ADDRESS=server.address, RPC_TOKEN=TOKEN) as edge,
        rig.session(edge, rig.ADMIN_KEY) as admin,
    ):
        listed = await (await admin.get(PRICES, params={"tenant": "acme"})).json()
        assert [one["record"]["rate_version"] for one in listed["prices"]] == ["of-acme"]
        shown = await (await admin.get(f"{PRICES}/v1")).json()
        assert shown == {"price": {"record": {"rate_version": "v1"}, "state": "PRICE_STATE_IN_FORCE"}}

        record = {"rate_version": "v2", "currency": "USD", "tiers": [{"above_tokens": "5", "factor": "0.5"}]}
        made = await admin.post(PRICES, json=record)
        assert (made.status, (await made.json())["price"]["record"]) == (201, record)
        [event] = await told(worker, "price.created")
        assert (event.target, event.actor_key_id, json.loads(event.details)) == ("v2", "key_admin", record)
        for wrong in ({"rate_version": "v3"}, {"rate_version": 5}, {"color": "red"}):
            assert (await admin.post(PRICES, json=wrong)).status == 400
        assert len(await told(worker, "price.created")) == 1  # what is refused is not told

        refused = await admin.delete(f"{PRICES}/v2")
        assert (refused.status, (await refused.json())["error"]["code"]) == (409, "price_in_force")
        assert (await admin.delete(f"{PRICES}/v2", params={"force": "yes"})).status == 400
        assert (await admin.delete(f"{PRICES}/v2", params={"dry_run": "1"})).status == 400
        dry = await admin.delete(f"{PRICES}/v2", params={"force": "true", "dry_run": "true"})
        assert (dry.status, await dry.json()) == (200, {"charges": "3"})
        assert meter.done == ["v2"]
        assert (await admin.delete(f"{PRICES}/v2", params={"force": "true"})).status == 200
        assert [one.target for one in await told(worker, "price.deleted")] == ["v2"]
        assert meter.done == ["v2", "not v2"]

        asked = {"model": "m", "operation": "embeddings", "priority_class": "batch", "time": "1970-01-01T00:00:09Z"}
        rate = await (await admin.get(RATE, params=asked)).json()
        assert rate == {"rate": {"rate_version": "m-3-3-9"}}
        assert (await admin.get(RATE, params={"operation": "singing"})).status == 400


async def test_re_rating_over_http(nats_server: Any, rig: Any, tmp_path: Any, worker: Any) -> None:
    add = lambda server: add_PriceServiceServicer_to_server(Prices(), server)  # noqa: E731
    async with (
        rpc.serve("127.0.0.1:0", add, ("inferbus.meter.v1.PriceService",), TOKEN) as server,
        rig.run_edge(nats_server, tmp_path, METER_ADDRESS=server.address, RPC_TOKEN=TOKEN) as edge,
        rig.session(edge, rig.ADMIN_KEY) as admin,
    ):

        async def lines(**body: Any) -> list[Any]:
            response = await admin.post(RERATE, json={"start": "2026-11-01T00:00:00Z", **body})
            assert response.headers["Content-Type"].startswith("application/x-ndjson")
            return [json.loads(line) for line in (await response.text()).splitlines()]

        assert await lines(end=None) == [{"progress": {"requests_read": "1"}}, {"summary": {}}]
        assert await told(worker, "charges.rerated") == []
        assert (await lines(apply=True, tenant="acme"))[-1] == {"summary": {"applied": True}}
        assert [one.target for one in await told(worker, "charges.rerated")] == ["acme"]
        assert [next(iter(line)) for line in await lines(tenant="broken")] == ["progress", "error"]
        assert (await admin.post(RERATE, json={"from": "2026-11-01T00:00:00Z"})).status == 400


async def test_prices_are_the_operators_and_need_a_meter(edge: Any, rig: Any, http: Any) -> None:
    calls = (
        ("GET", PRICES), ("POST", PRICES), ("GET", f"{PRICES}/v"), ("DELETE", f"{PRICES}/v"), ("GET", RATE),
        ("POST", RERATE),
    )  # fmt: skip
    for method, path in calls:
        assert (await http.request(method, path)).status == 403
    async with rig.session(edge, rig.ADMIN_KEY) as admin:
        for method, path in calls:
            refused = await admin.request(method, path)
            assert (refused.status, (await refused.json())["error"]["code"]) == (503, "meter_unavailable")
