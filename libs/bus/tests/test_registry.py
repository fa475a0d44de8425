import asyncio
from datetime import timedelta

import pytest
from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.lease import hold
from inferbus_bus.registry import Registry
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer


async def until(condition, timeout: float = 10.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def registry(bus: Bus, bucket: str = "models", record: type = ModelRecord) -> Registry:
    made = Registry(bus, bucket, record)
    await made.start()
    return made


async def test_what_was_put_is_there_at_start_and_seen_by_others(bus: Bus) -> None:
    first = await registry(bus)
    await first.put("a.b/c model", ModelRecord(name="a.b/c model", revision="r1"))
    second = await registry(bus)
    assert second.get("a.b/c model").revision == "r1"
    await first.put("a.b/c model", ModelRecord(name="a.b/c model", revision="r2"))
    await until(lambda: second.get("a.b/c model").revision == "r2")
    await first.delete("a.b/c model")
    await until(lambda: second.get("a.b/c model") is None)


async def test_create_refuses_what_is_there_and_works_after_a_delete(bus: Bus) -> None:
    models = await registry(bus)
    await models.create("once", ModelRecord(name="once"))
    with pytest.raises(InferBusError) as refused:
        await models.create("once", ModelRecord(name="once"))
    assert refused.value.reason == "changed_meanwhile"
    await until(lambda: models.get("once") is not None)
    await models.delete("once")
    await until(lambda: models.get("once") is None)
    await models.create("once", ModelRecord(name="once"))


async def test_a_leased_entry_ends_by_itself_and_watchers_see_it(bus: Bus) -> None:
    fleet = await registry(bus, "fleet", WorkerRecord)
    gone = asyncio.Event()
    fleet.on_change(lambda name, record: gone.set() if (name, record) == ("w-ttl", None) else None)
    await fleet.put("w-ttl", WorkerRecord(worker="w-ttl"), ttl=timedelta(seconds=1))
    await until(lambda: fleet.get("w-ttl") is not None)
    async with asyncio.timeout(5):
        await gone.wait()
    assert fleet.get("w-ttl") is None


async def test_a_registry_goes_on_after_the_broker_was_killed(tmp_path) -> None:
    from inferbus_bus.streams import ensure_streams

    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "one")) as bus:
        await ensure_streams(bus)
        watching = await registry(bus)
        await watching.put("m", ModelRecord(name="m", revision="1"))
        await until(lambda: watching.get("m") is not None)
        await server.restart()
        async with connect(BusConfig(server.url, "two")) as other:
            writer = await registry(other)
            assert writer.get("m").revision == "1"
            await writer.put("m", ModelRecord(name="m", revision="2"))
            await until(lambda: watching.get("m").revision == "2")


async def test_a_lease_is_held_by_one_and_handed_on(bus: Bus) -> None:
    order: list[str] = []

    async def holder(name: str) -> None:
        async with hold(bus, "test-lease", name, timedelta(seconds=2)) as lease:
            order.append(f"{name} in")
            await asyncio.sleep(2.5)  # longer than the ttl: it is renewed
            assert not lease.lost.is_set()
            order.append(f"{name} out")

    await asyncio.gather(holder("a"), holder("b"))
    assert order in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])
