"""What is asked of the tables over HTTP: as the user who may only read, so long, and as much as an answer holds."""

import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import requests_pb2, usage_pb2
from inferbus.meter.v1.meter_pb2 import GetUsageRequest
from inferbus.meter.v1.requests_pb2 import RequestOrder
from inferbus.meter.v1.requests_pb2_grpc import RequestServiceStub
from inferbus.meter.v1.usage_pb2 import BucketWidth, Dimension, ExportFormat
from inferbus.meter.v1.usage_pb2_grpc import UsageServiceStub
from inferbus_meter.clickhouse import StoreConfig, open_store
from inferbus_meter.config import Config
from inferbus_meter.core import answers
from inferbus_meter.core.margin import OperatingPrices
from inferbus_meter.core.request_list import Listing, Place, page_token, place_of
from inferbus_meter.requests_servicer import RequestsServicer
from inferbus_meter.usage_servicer import UsageServicer
from inferbus_rating import PriceBook
from inferbus_runtime import clock, rpc
from inferbus_runtime.errors import InferBusError

# An hour ago: what is asked without a time is asked of the last day.
ACCEPTED_MS = clock.now_us() // 1000 - 3_600_000
ACCEPTED_US = ACCEPTED_MS * 1000
REQUEST = f"{ACCEPTED_MS >> 16:08x}-{ACCEPTED_MS & 0xFFFF:04x}-78ce-acbf-b0964cd17100"
ENDED = {
    "request_id": REQUEST, "tenant_id": "acme", "project_id": "p", "key_id": "k", "model": "m", "attempt": 1,
    "priority_class": "batch", "operation": "chat", "finish_reason": "stop", "input_tokens": 7, "output_tokens": 3,
    "cost": "0.5", "currency": "USD", "rate_version": "v1", "tags": {"team": "a"},
    "accepted_time": ACCEPTED_US / 1e6, "end_time": ACCEPTED_US / 1e6 + 1,
}  # fmt: skip
PRICES = OperatingPrices(None, None, "", 1)


@pytest.fixture
async def ended(admin_store: Any) -> None:
    client = await admin_store._connected()
    await client.raw_insert("requests", insert_block=json.dumps(ENDED), fmt="JSONEachRow")


def usage_of(store: Any, files: Any) -> UsageServicer:
    return UsageServicer(store, files, lambda: PriceBook.of([]), PRICES)


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("user", ["analyst", "writer"])
async def test_whoever_reads_may_ask_all_of_it(clickhouse: Any, user: str) -> None:
    config = replace(clickhouse.config(user, "inferbus"), limits={"max_execution_time": 20})
    async with open_store(config) as store, open_store(clickhouse.config("writer", "inferbus")) as files:
        api, usage = RequestsServicer(store), usage_of(store, files)
        for order in RequestOrder.values():
            asked = requests_pb2.ListRequestsRequest(order=order)
            asked.start_time.FromMicroseconds(ACCEPTED_US)
            (found,) = (await api.ListRequests(asked, None)).requests
            assert (found.request_id, found.charge) == (REQUEST, "0.5")
        shown = await api.GetTimeline(requests_pb2.GetTimelineRequest(request_id=REQUEST, tenant_id="acme"), None)
        assert shown.request == found
        dimensions = [one for one in Dimension.values() if one]
        question = usage_pb2.QueryUsageRequest(bucket_width=BucketWidth.BUCKET_WIDTH_DAY, group_by=dimensions)
        (row,) = (await usage.QueryUsage(question, None)).rows
        assert (row.input_tokens, row.group.tags["team"]) == (7, "a")
        for by_line_item in (False, True):
            costs = usage_pb2.QueryCostsRequest(group_by=dimensions, by_line_item=by_line_item)
            assert (await usage.QueryCosts(costs, None)).rows
        assert (await usage.QueryMargin(usage_pb2.QueryMarginRequest(), None)).rows
        file = usage_pb2.ExportUsageRequest(format=ExportFormat.EXPORT_FORMAT_CSV)
        assert b'"acme"' in b"".join([part.data async for part in usage.ExportUsage(file, None)])


@pytest.mark.usefixtures("ended")
async def test_a_question_that_reads_too_much_says_so(clickhouse: Any) -> None:
    """Not that the store is away, which would have it asked again."""
    limits = {"max_memory_usage": 1}
    async with open_store(replace(clickhouse.config("admin", "inferbus"), limits=limits)) as store:
        for asked in (
            RequestsServicer(store).ListRequests(requests_pb2.ListRequestsRequest(), None),
            RequestsServicer(store).GetTimeline(requests_pb2.GetTimelineRequest(request_id=REQUEST), None),
            usage_of(store, store).QueryUsage(usage_pb2.QueryUsageRequest(), None),
            usage_of(store, store).QueryCosts(usage_pb2.QueryCostsRequest(), None),
        ):
            with pytest.raises(InferBusError) as refused:
                await asked
            assert refused.value.reason == "range_too_wide", refused.value.diagnostic
            assert refused.value.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT


@pytest.mark.parametrize(("seconds", "most"), [(5, 5), (0.3, 1), (600, 30)])
def test_the_store_ends_what_nobody_waits_for(seconds: float, most: int) -> None:
    given = {"nats_url": "nats://127.0.0.1:1", "clickhouse_user": "writer", "clickhouse_password": "w"}
    config = Config(**given, clickhouse_timeout=timedelta(seconds=seconds))
    assert StoreConfig.for_reading(config).limits == {"max_execution_time": most}
    assert StoreConfig.of(config).limits == {}


@pytest.mark.usefixtures("ended")
async def test_an_answer_that_cannot_be_sent_is_refused(clickhouse: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_BYTES", 10)
    async with open_store(clickhouse.config("analyst", "inferbus")) as store:
        usage = usage_of(store, store)
        costs = [usage_pb2.QueryCostsRequest(by_line_item=one) for one in (False, True)]
        for asked in (
            usage.QueryUsage(usage_pb2.QueryUsageRequest(), None), *(usage.QueryCosts(one, None) for one in costs),
        ):  # fmt: skip
            with pytest.raises(InferBusError) as refused:
                await asked
            assert refused.value.reason == "too_many_rows"


async def test_a_meter_asks_as_the_user_who_may_only_read(
    admin_store: Any, clickhouse: Any, own_nats: Any, frame_log: Any, tmp_path: Any, make: Any
) -> None:
    """Here as one who may read none of it: then questions fail, and what is to be stored is stored all the same."""
    meter = make.MeterProcess(tmp_path, own_nats.url, clickhouse.config("writer", "inferbus"))
    meter.set(CLICKHOUSE_READ_USER="capture_reader", CLICKHOUSE_READ_PASSWORD=make.PASSWORD)
    await meter.start()
    try:
        await frame_log.request(3)
        async with meter.api() as api:
            while not (await api.GetUsage(GetUsageRequest(), wait_for_ready=True)).rows:
                assert meter.running, meter.log()
        async with meter.channel() as channel:
            for asked in (
                RequestServiceStub(channel).ListRequests(requests_pb2.ListRequestsRequest()),
                UsageServiceStub(channel).QueryUsage(usage_pb2.QueryUsageRequest()),
                UsageServiceStub(channel).QueryCosts(usage_pb2.QueryCostsRequest()),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await asked
                assert rpc.error_of(refused.value).reason == "store_unavailable"
    finally:
        await meter.stop(9)


# --- page tokens ------------------------------------------------------------------------------------------------------


def token_of(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


@pytest.mark.parametrize(
    "value", ["\u0661", "1_0", " 5 ", "1e5", "nan", "0x10", "", "1.", "1E5", "1E-400", "9" * 30, ["1"], {"a": 1}, None]
)
@pytest.mark.parametrize("order", [RequestOrder.REQUEST_ORDER_END_TIME, RequestOrder.REQUEST_ORDER_CHARGE])
def test_a_place_that_the_store_could_not_read_is_no_place(value: Any, order: RequestOrder.ValueType) -> None:
    with pytest.raises(InferBusError) as refused:
        place_of(token_of(order, False, value, REQUEST), order, False)
    assert refused.value.param == "page_token"


def test_a_token_without_an_end_is_no_token() -> None:
    with pytest.raises(InferBusError):
        place_of(base64.urlsafe_b64encode(b"[" * 5000).decode(), RequestOrder.REQUEST_ORDER_END_TIME, False)


@pytest.mark.parametrize("value", ["0", "-1", "0.000003400000", "3.4E-7", "-1E-12", "1234567890123.000000000001"])
async def test_a_place_in_the_order_of_charges_is_found_again(store: Any, value: str) -> None:
    order = RequestOrder.REQUEST_ORDER_CHARGE
    asked = Listing(0, clock.now_us(), requests_pb2.RequestFilter(), order, False, 5, None)
    after = place_of(page_token(asked, Place(value, REQUEST)), order, False)
    asked_again = requests_pb2.ListRequestsRequest(order=order, page_token=page_token(asked, after))
    assert not (await RequestsServicer(store).ListRequests(asked_again, None)).requests
