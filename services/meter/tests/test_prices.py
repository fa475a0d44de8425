"""The price book over gRPC, on a real bus and a real store."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.registry_pb2 import PriceRecord, PriceTier
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus.meter.v1.prices_pb2 import (
    CreatePriceRequest,
    DeletePriceRequest,
    GetPriceRequest,
    GetRateRequest,
    ListPricesRequest,
    PriceState,
    RerateRequest,
)
from inferbus.meter.v1.prices_pb2_grpc import PriceServiceStub, add_PriceServiceServicer_to_server
from inferbus_bus.registry import Registry
from inferbus_meter.core.prices import checked
from inferbus_meter.prices import follow_prices
from inferbus_meter.prices_servicer import SERVICE_NAME, PricesServicer
from inferbus_meter.rerate import Reratings
from inferbus_runtime import clock, rpc
from inferbus_runtime.errors import InferBusError

COMING, IN_FORCE, FOLLOWED = (
    PriceState.PRICE_STATE_COMING,
    PriceState.PRICE_STATE_IN_FORCE,
    PriceState.PRICE_STATE_FOLLOWED,
)
HOUR = 3_600_000_000


def price(version: str, since_us: int | None = None, **fields: Any) -> CreatePriceRequest:
    given = {"currency": "USD", "input_per_million": "1", **fields}
    record = PriceRecord(rate_version=version, **given)
    if since_us is not None:
        record.effective_time.FromMicroseconds(since_us)
    return CreatePriceRequest(record=record)


@pytest.fixture
async def api(own_bus, store) -> AsyncIterator[Any]:
    async with follow_prices(own_bus) as prices:
        servicer = PricesServicer(prices, Reratings(store), store)
        add = partial(add_PriceServiceServicer_to_server, servicer)
        async with (
            rpc.serve("127.0.0.1:0", add, [SERVICE_NAME], None) as server,
            rpc.channel(server.address, None) as channel,
        ):
            yield PriceServiceStub(channel)


async def refusal(call: Any) -> tuple[ErrorClass.ValueType, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = rpc.error_of(caught.value)
    return error.error_class, error.reason, error.param


async def states(api: Any, **asked: str) -> dict[str, PriceState.ValueType]:
    listed = (await api.ListPrices(ListPricesRequest(**asked))).prices
    return {one.record.rate_version: one.state for one in listed}


async def test_a_price_is_made_followed_and_never_changed(api) -> None:
    now = clock.now_us()
    made = (await api.CreatePrice(price("v1", now - HOUR))).price
    assert made.state == IN_FORCE
    assert made.record.HasField("create_time")
    assert (await api.GetPrice(GetPriceRequest(rate_version="v1"))).price == made
    await api.CreatePrice(price("v2"))  # from now on
    await api.CreatePrice(price("v3", now + HOUR))
    await api.CreatePrice(price("other", model="m"))
    assert await states(api) == {"v1": FOLLOWED, "v2": IN_FORCE, "v3": COMING, "other": IN_FORCE}
    wrong = await refusal(api.CreatePrice(price("v4", currency="$")))
    assert wrong == (ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, "invalid_value", "currency")
    again = await refusal(api.CreatePrice(price("v1", input_per_million="2")))
    assert again == (ErrorClass.ERROR_CLASS_CONFLICT, "price_exists", "rate_version")
    assert (await api.GetPrice(GetPriceRequest(rate_version="v1"))).price.record == made.record


async def test_only_a_price_whose_time_has_not_come_is_deleted_unless_forced(api, store) -> None:
    now = clock.now_us()
    for version, since in (("old", now - HOUR), ("coming", now + HOUR)):
        await api.CreatePrice(price(version, since))
    await api.DeletePrice(DeletePriceRequest(rate_version="coming", validate_only=True))
    assert len(await states(api)) == 2
    await api.DeletePrice(DeletePriceRequest(rate_version="coming"))
    in_force = await refusal(api.DeletePrice(DeletePriceRequest(rate_version="old")))
    assert in_force == (ErrorClass.ERROR_CLASS_CONFLICT, "price_in_force", "rate_version")
    await store.command(
        "INSERT INTO requests (request_id, end_time, rate_version) VALUES (generateUUIDv4(), now64(6), 'old')"
    )
    asked = DeletePriceRequest(rate_version="old", force=True, validate_only=True)
    assert (await api.DeletePrice(asked)).charges == 1
    assert len(await states(api)) == 1
    assert (await api.DeletePrice(DeletePriceRequest(rate_version="old", force=True))).charges == 1
    assert await states(api) == {}
    for call in (
        api.DeletePrice(DeletePriceRequest(rate_version="old")),
        api.DeletePrice(DeletePriceRequest()),
        api.GetPrice(GetPriceRequest(rate_version="old")),
    ):
        assert (await refusal(call))[:2] == (ErrorClass.ERROR_CLASS_NOT_FOUND, "price_not_found")
    await api.CreatePrice(price("coming"))  # the name is free again


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"rate_version": ""}, "rate_version"), ({"rate_version": "a/b"}, "rate_version"),
        ({"rate_version": "x" * 101}, "rate_version"), ({"currency": "usd"}, "currency"),
        ({"currency": ""}, "currency"), ({"input_per_million": ""}, "input_per_million"),
        ({"input_per_million": "1,5"}, "input_per_million"), ({"per_call": "-1"}, "per_call"),
        ({"output_per_million": "0.0000000000001"}, "output_per_million"),
        ({"project_id": "p"}, "project_id"), ({"revision": "r"}, "revision"), ({"model": "m" * 300}, "model"),
        ({"tiers": [PriceTier(above_tokens=2, factor="1"), PriceTier(above_tokens=1, factor="1")]}, "tiers"),
        ({"tiers": [PriceTier(above_tokens=2, factor="2")]}, "tiers"),
        ({"effective_time": Timestamp(seconds=-1)}, "effective_time"),
        ({"effective_time": Timestamp(seconds=5_000_000_000)}, "effective_time"),
    ],
)  # fmt: skip
def test_what_is_no_price_is_refused_by_its_field(wrong: dict[str, Any], param: str) -> None:
    given = {"rate_version": "v", "currency": "USD", "input_per_million": "1", **wrong}
    with pytest.raises(InferBusError) as refused:
        checked(PriceRecord(**given), clock.now_us())
    assert (refused.value.reason, refused.value.param) == ("invalid_value", param)


async def test_the_rate_of_a_request_says_which_price_won_over_which(api) -> None:
    now = clock.now_us()
    await api.CreatePrice(price("all", 0))
    await api.CreatePrice(price("m", 0, model="m", batch_factor="0.5", embedding_per_million="0.1"))
    await api.CreatePrice(price("acme", 0, tenant_id="acme"))
    await api.CreatePrice(price("web", now, tenant_id="acme", project_id="web"))

    async def of(**asked: Any) -> list[str]:
        return [one.record.rate_version for one in (await api.GetRate(GetRateRequest(**asked))).prices]

    assert await of(tenant_id="acme", project_id="web", model="m") == ["web", "acme", "m", "all"]
    before = Timestamp()
    before.FromMicroseconds(now - 1)
    assert await of(tenant_id="acme", project_id="web", model="m", accepted_time=before) == ["acme", "m", "all"]
    assert await of(tenant_id="zeta", model="n") == ["all"]
    batch = GetRateRequest(
        model="m", operation=Operation.OPERATION_EMBEDDINGS, priority_class=PriorityClass.PRIORITY_CLASS_BATCH
    )
    rate = (await api.GetRate(batch)).rate
    assert (rate.rate_version, rate.input_per_million, rate.factor, rate.minimum) == ("m", "0.1", "0.5", "0")
    assert await states(api, tenant_id="zeta") == {"all": IN_FORCE, "m": IN_FORCE}


async def test_prices_of_before_versions_were_keys_are_in_the_book(api, own_bus) -> None:
    registry: Registry[PriceRecord] = Registry(own_bus, "prices", PriceRecord)
    await registry.start()
    old = PriceRecord(model="default", rate_version="default-1", currency="USD", input_per_million="1")
    await registry.put("default", old)
    await registry.stop()
    while not await states(api):
        await asyncio.sleep(0.02)
    assert (await refusal(api.CreatePrice(price("default-1"))))[1] == "price_exists"
    await api.CreatePrice(price("new", model="default"))
    assert await states(api) == {"default-1": FOLLOWED, "new": IN_FORCE}
    await api.DeletePrice(DeletePriceRequest(rate_version="default-1", force=True))
    assert await states(api) == {"new": IN_FORCE}


async def test_what_a_record_that_is_no_price_was_before_counts_for_nobody(api, own_bus) -> None:
    """For a meter that has seen it, as for one that is started later."""
    await api.CreatePrice(price("base", input_per_million="1"))
    await api.CreatePrice(price("m-1", model="m", input_per_million="2"))
    registry: Registry[PriceRecord] = Registry(own_bus, "prices", PriceRecord)
    await registry.start()
    await registry.put("m-1", PriceRecord(rate_version="m-1", model="m", currency="USD", input_per_million="two"))
    async with follow_prices(own_bus) as later:
        async with asyncio.timeout(30):
            while (found := await states(api)) != {"base": IN_FORCE}:
                assert set(found) == {"base", "m-1"}
                await asyncio.sleep(0.02)
        assert [price.record.rate_version for price in later.by_name.values()] == ["base"]
        assert [record.rate_version for record, _ in later.book.faults] == ["m-1"]
    rate = (await api.GetRate(GetRateRequest(model="m"))).rate
    assert rate.rate_version == "base"
    apply = RerateRequest(apply=True)
    apply.start_time.FromMicroseconds(1)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in api.Rerate(apply):
            pass
    assert rpc.error_of(refused.value).reason == "price_unreadable"
    await api.DeletePrice(DeletePriceRequest(rate_version="m-1", force=True))
    await registry.stop()
    async for _ in api.Rerate(apply):
        pass


async def test_re_rating_over_grpc_needs_to_know_from_when_on(api) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await api.Rerate(RerateRequest()).read()
    assert rpc.error_of(caught.value).param == "start_time"
    events = [event async for event in api.Rerate(RerateRequest(start_time=Timestamp(seconds=1)))]
    assert [event.WhichOneof("event") for event in events] == ["summary"]
    assert (events[0].summary.requests, events[0].summary.applied) == (0, False)
