"""What is known of a publish that failed: certainly not stored (NotSentError), or perhaps."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.errors import NotSentError
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer

from tests.harness.standing import stand_still, standing_still


def request(number: int) -> GenerateRequest:
    return GenerateRequest(request_id=bytes([number]) * 16, context=RequestContext(tenant_id="acme", model="m"))


async def is_not_sent(call: Awaitable[Any]) -> bool:
    with pytest.raises(InferBusError) as failed:
        await call
    assert failed.value.reason == "bus_unavailable"
    return isinstance(failed.value, NotSentError)


async def test_what_no_stream_takes_or_no_connection_carries_is_certainly_not_stored(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats") as server, connect(BusConfig(server.url, "sender")) as bus:
        publisher = Publisher(bus)
        await publisher.start()
        assert await is_not_sent(publisher.publish(request(1)))
        await ensure_streams(bus)
        await server.kill()
        async with asyncio.timeout(30):
            while bus.connected:
                await asyncio.sleep(0.01)
        assert await is_not_sent(publisher.publish(request(1)))
        await server.start()
        async with asyncio.timeout(30):
            while not bus.connected:
                await asyncio.sleep(0.01)
        stored = await publisher.publish(request(1))
        assert (stored.sequence, stored.duplicate) == (1, False)


async def test_what_is_too_large_for_the_broker_is_said_to_be(bus: Bus) -> None:
    publisher = Publisher(bus)
    await publisher.start()
    large = request(3)
    large.prompt.text = "x" * (8 << 20)
    with pytest.raises(InferBusError) as refused:
        await publisher.publish(large)
    assert (refused.value.reason, refused.value.error_class) == (
        "body_too_large", ErrorClass.ERROR_CLASS_INVALID_ARGUMENT,
    )  # fmt: skip
    large.prompt.text = "x" * ((8 << 20) - 2000)
    assert (await publisher.publish(large)).sequence


async def test_of_what_was_sent_and_not_acknowledged_it_is_not_known(tmp_path: Path) -> None:
    async with NatsServer(tmp_path / "nats") as server, connect(BusConfig(server.url, "sender")) as bus:
        await ensure_streams(bus)
        publisher = Publisher(bus)
        await publisher.start()
        with standing_still(server.pid):
            assert not await is_not_sent(publisher.publish(request(1), timeout=0.3))
        assert (await publisher.publish(request(1))).duplicate, "it was stored all the same"
        stand_still(server.pid)
        sending = asyncio.create_task(is_not_sent(publisher.publish(request(2), timeout=30.0)))
        await asyncio.sleep(0.1)
        await server.kill()
        assert not await sending
