"""What KEDA asks and gets, by a plain gRPC client over the wire."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from externalscaler.externalscaler_pb2 import GetMetricsRequest, ScaledObjectRef

from services.scheduler.tests.scaling_desk import Broker, broker


@pytest_asyncio.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Broker]:
    async with broker(tmp_path) as one:
        yield one


def ref(**metadata: str) -> ScaledObjectRef:
    return ScaledObjectRef(name="workers", namespace="inferbus", scalerMetadata=metadata)


async def test_the_metric_over_its_target_is_the_number_of_workers_that_there_should_be(bus: Broker) -> None:
    desk = await bus.desk()
    await desk.set("m", min_replicas=3, max_replicas=9)
    await desk.decided("m", 3)
    spec = (await desk.keda.GetMetricSpec(ref(model="m"))).metricSpecs[0]
    # KEDA takes the prefix that it gives the name off again before it asks.
    asked = GetMetricsRequest(scaledObjectRef=ref(model="m"), metricName=spec.metricName)
    value = (await desk.keda.GetMetrics(asked)).metricValues[0]
    assert value.metricName == spec.metricName
    assert math.ceil(value.metricValueFloat / spec.targetSizeFloat) == 3
    assert math.ceil(value.metricValue / spec.targetSize) == 3, "as KEDA before 2.12 reads it"
    assert (await desk.keda.IsActive(ref(model="m"))).result


async def test_a_sleeping_deployment_is_not_active_until_a_request_waits(bus: Broker) -> None:
    desk = await bus.desk()
    await desk.set("m", max_replicas=2)
    await desk.looked()
    assert not (await desk.keda.IsActive(ref(model="m"))).result
    pushed = desk.keda.StreamIsActive(ref(model="m"))
    assert not (await pushed.read()).result
    await desk.wait("m")
    async with asyncio.timeout(30):
        assert (await pushed.read()).result
    assert (await desk.keda.IsActive(ref(model="m"))).result


async def test_the_specification_is_pushed_once(bus: Broker) -> None:
    desk = await bus.desk()
    await desk.set("m", max_replicas=2)
    pushed = desk.keda.StreamMetricSpec(ref(model="m"))
    assert (await pushed.read()).metricSpecs == (await desk.keda.GetMetricSpec(ref(model="m"))).metricSpecs


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"model": "nobody-scales-it"}, grpc.StatusCode.NOT_FOUND),
        ({"model": "fixed"}, grpc.StatusCode.NOT_FOUND),
    ],
)
async def test_a_trigger_that_names_nothing_that_is_scaled_is_an_error(
    bus: Broker, metadata: dict[str, str], code: grpc.StatusCode
) -> None:
    desk = await bus.desk()
    await desk.set("fixed")
    for ask in (
        desk.keda.IsActive(ref(**metadata)),
        desk.keda.GetMetricSpec(ref(**metadata)),
        desk.keda.GetMetrics(GetMetricsRequest(scaledObjectRef=ref(**metadata))),
        desk.keda.StreamIsActive(ref(**metadata)).read(),
        desk.keda.StreamMetricSpec(ref(**metadata)).read(),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask
        assert refused.value.code() == code


async def test_a_scheduler_that_does_not_know_its_workers_yet_says_so_and_never_none(bus: Broker) -> None:
    desk = await bus.desk(settle=600.0)
    await desk.set("m", max_replicas=2)
    with pytest.raises(grpc.aio.AioRpcError) as unsettled:
        await desk.keda.IsActive(ref(model="m"))
    assert unsettled.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_that_port_serves_nothing_else(bus: Broker) -> None:
    desk = await bus.desk()
    other = desk.keda_channel.unary_unary("/inferbus.scheduler.v1.DeploymentService/ListDeployments")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await other(b"")
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
