"""Single KV entries by name, on a real broker."""

import asyncio
from datetime import timedelta

import pytest
from inferbus.bus.v1.registry_pb2 import IdempotencyRecord
from inferbus_bus.connection import Bus
from inferbus_bus.publish import Publisher
from inferbus_bus.store import Store
from inferbus_contracts.subjects import subject_token
from inferbus_runtime.errors import InferBusError


async def _store(bus: Bus) -> Store[IdempotencyRecord]:
    publisher = Publisher(bus)
    await publisher.start()
    return Store(bus, "idempotency", IdempotencyRecord, publisher)


async def test_only_one_creates_and_updates_need_the_last_revision(bus: Bus) -> None:
    store = await _store(bus)
    first, second = IdempotencyRecord(edge="a"), IdempotencyRecord(edge="b")
    assert await store.get("acme/one") is None
    outcomes = await asyncio.gather(
        *(store.create("acme/one", record) for record in (first, second)), return_exceptions=True
    )
    assert sum(isinstance(one, InferBusError) for one in outcomes) == 1
    found = await store.get("acme/one")
    assert found is not None
    record, revision = found
    record.edge = "c"
    await store.update("acme/one", record, revision)
    with pytest.raises(InferBusError):
        await store.update("acme/one", record, revision)


async def test_a_deleted_or_expired_entry_can_be_created_again(bus: Bus) -> None:
    store = await _store(bus)
    await store.create("gone", IdempotencyRecord(edge="a"))
    await store.delete("gone")
    assert await store.get("gone") is None
    await store.create("gone", IdempotencyRecord(edge="b"), timedelta(seconds=1))
    async with asyncio.timeout(30):
        while await store.get("gone") is not None:
            await asyncio.sleep(0.1)
    await store.create("gone", IdempotencyRecord(edge="c"))
    found = await store.get("gone")
    assert found is not None
    assert found[0].edge == "c"


async def test_a_deletion_leaves_no_trace_for_ever(bus: Bus) -> None:
    """Who names a new entry for each call fills no bucket with the names of those that are gone."""
    store = await _store(bus)
    await store.create("acme/gone", IdempotencyRecord(edge="a"))
    await store.delete("acme/gone")
    subject = "$KV.idempotency." + subject_token("acme/gone")
    last = await bus.nc.request(f"$JS.API.DIRECT.GET.KV_idempotency.{subject}", b"", timeout=30)
    assert last.headers is not None
    assert last.headers["KV-Operation"] == "DEL"
    assert last.headers["Nats-TTL"] == "300s"
