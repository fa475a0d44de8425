"""Schedulers that share the models: who holds what, and what happens when one dies, leaves or comes."""

import asyncio
import signal
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.scheduler.v1.scheduler_pb2 import ListSchedulersRequest
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from inferbus_bus.consumers import consumer_info
from inferbus_bus.errors import StreamApiError
from inferbus_bus.registry import Registry
from inferbus_bus.shard_owners import owner_of
from inferbus_contracts.subjects import SHARDS, model_shard
from inferbus_runtime import clock
from inferbus_runtime.rpc import channel

# A killed one's shards are free after two seconds; what waits is given up by nobody.
SHARED = {"LEASE_TTL": "2s", "QUEUE_TIMEOUT": "600s"}
NAMES = st.sets(st.text("abcdef-0123456789", min_size=1, max_size=8), min_size=1, max_size=6)


@given(NAMES, st.text("xyz", min_size=1, max_size=4))
def test_all_agree_and_only_shards_of_who_comes_or_goes_change_hands(members: set[str], comes: str) -> None:
    before = {shard: owner_of(shard, members) for shard in range(SHARDS)}
    assert before == {shard: owner_of(shard, sorted(members, reverse=True)) for shard in range(SHARDS)}
    after = {shard: owner_of(shard, members | {comes}) for shard in range(SHARDS)}
    assert set(before.values()) <= members
    assert {after[shard] for shard in range(SHARDS) if after[shard] != before[shard]} <= {comes}


def test_nobody_there_owns_nothing() -> None:
    assert owner_of(3, []) == ""


async def holders(scheduler) -> dict[str, list[int]]:
    async with channel(scheduler.ready["grpc"], None) as grpc_channel:
        answer = await SchedulerServiceStub(grpc_channel).ListSchedulers(ListSchedulersRequest())
    assert {each.name for each in answer.schedulers if each.self} <= {scheduler.name}
    return {each.name: list(each.shards) for each in answer.schedulers}


async def shared_by(scheduler, names: set[str]) -> dict[str, list[int]]:
    """Once all shards are held as they are to be."""
    async with asyncio.timeout(30):
        while True:
            held = await holders(scheduler)
            wanted = {name: [s for s in range(SHARDS) if owner_of(s, names) == name] for name in names}
            if held == wanted:
                return held
            await asyncio.sleep(0.05)


async def redelivered(bus, shard: int) -> int:
    try:
        return int((await consumer_info(bus, "REQUESTS", f"scheduler-{shard}"))["num_redelivered"])
    except StreamApiError:
        return 0  # who takes the shard over makes it anew


async def test_shards_are_shared_handed_over_and_taken_over(new_stage, wait_until) -> None:
    stage = await new_stage(**SHARED)
    first = stage.scheduler
    await shared_by(first, {first.name})
    model = stage.model()
    await stage.known(model)
    edge = await stage.edge()
    # Nobody serves it: all of these wait in the hands of whoever holds the shard.
    waiting = [await edge.submit(model) for _ in range(5)]

    second = await stage.another("scheduler-b", **SHARED)
    held = await shared_by(first, {first.name, second.name})
    assert all(held.values()), "both have something to do"
    assert await shared_by(second, {first.name, second.name}) == held
    waiting += [await edge.submit(model) for _ in range(5)]

    # What comes to one that may not act for it is not kept by it: it comes again, until it comes to one that may.
    theirs = owner_of(model_shard(model), held)
    astray = next(shard for shard in range(SHARDS) if owner_of(shard, held) != theirs)
    waiting.append((message := edge.request(model)).request_id)
    await stage.bus.nc.jetstream().publish(f"req.{astray}.interactive.{model}", message.SerializeToString())
    async with asyncio.timeout(30):
        while not await redelivered(stage.bus, astray):
            await asyncio.sleep(0.05)

    third = await stage.another("scheduler-c", **SHARED)
    await shared_by(third, {first.name, second.name, third.name})

    # In order: whoever is there has it at once, although requests that were held might be away for long.
    assert await second.end(signal.SIGTERM) == 0
    await shared_by(third, {first.name, third.name})
    # Killed: when its leases have run out.
    await first.end(signal.SIGKILL)
    await shared_by(third, {third.name})
    waiting += [await edge.submit(model) for _ in range(5)]

    worker = await stage.worker(model, capacity=50)
    await wait_until(lambda: set(waiting) <= worker.running.keys(), timeout=30)
    await stage.nothing_left()
    assert max(Counter(worker.taken).values()) == 1
    assert not edge.closed


async def test_a_killed_holder_under_load_loses_nothing_and_nothing_is_placed_twice(new_stage, wait_until) -> None:
    stage = await new_stage(**SHARED)
    other = await stage.another("scheduler-b", **SHARED)
    await shared_by(other, {stage.scheduler.name, other.name})
    models = [stage.model() for _ in range(8)]
    workers = [await stage.worker(model, capacity=2) for model in models]
    edge, sent, stop = await stage.edge(), [], asyncio.Event()

    async def finish_all() -> None:
        while not stop.is_set():
            for worker in workers:
                for request_id in list(worker.running):
                    worker.finish(request_id)
            await asyncio.sleep(0.01)

    finishing = asyncio.create_task(finish_all())
    for round_ in range(60):
        sent += [await edge.submit(model) for model in models]
        if round_ == 20:
            await stage.scheduler.end(signal.SIGKILL)
        if round_ == 40:
            await stage.scheduler.start(**SHARED)
    await wait_until(lambda: {each for worker in workers for each in worker.taken} >= set(sent), timeout=60)
    await stage.nothing_left(timeout=30)
    stop.set()
    await finishing
    assert max(Counter(each for worker in workers for each in worker.taken).values()) == 1
    assert not edge.closed


async def test_a_holder_that_slept_beyond_its_lease_does_nothing_for_what_is_anothers(new_stage, wait_until) -> None:
    stage = await new_stage(LEASE_TTL="2s", QUEUE_TIMEOUT="6s")
    # One that the other scheduler has as long as it is there.
    while owner_of(model_shard(model := stage.model()), [stage.scheduler.name, "scheduler-b"]) != "scheduler-b":
        pass
    await stage.known(model)
    edge = await stage.edge()
    await shared_by(stage.scheduler, {stage.scheduler.name})
    waiting = [await edge.submit(model) for _ in range(3)]
    await stage.queued(*waiting)
    stage.scheduler.send(signal.SIGSTOP)
    slept_at = clock.monotonic()
    other = await stage.another("scheduler-b", **SHARED)
    await shared_by(other, {other.name})
    # By the clock of the one that sleeps they have waited for too long when it wakes; it must not end them.
    await wait_until(lambda: clock.monotonic() > slept_at + 6.5)
    stage.scheduler.send(signal.SIGCONT)
    await shared_by(other, {stage.scheduler.name, other.name})
    assert not edge.closed
    worker = await stage.worker(model, capacity=10)
    await wait_until(lambda: set(waiting) <= worker.running.keys(), timeout=30)
    assert max(Counter(worker.taken).values()) == 1
    assert not edge.closed


async def test_a_scheduler_that_is_started_again_under_its_name_need_not_wait_for_its_own_lease(new_stage) -> None:
    stage = await new_stage(LEASE_TTL="60s")
    await shared_by(stage.scheduler, {stage.scheduler.name})
    leases = Registry(stage.bus, "leases", WorkerRecord)
    await leases.start()
    before = max(record.boot for record in leases.items().values())
    await stage.scheduler.end(signal.SIGKILL)
    await stage.scheduler.start(LEASE_TTL="60s")
    async with asyncio.timeout(30):
        while not all(record.boot > before for record in leases.items().values()):
            await asyncio.sleep(0.05)
    await leases.stop()
