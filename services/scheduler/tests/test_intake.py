"""What is held of REQUESTS: bounded over all shards, and no flood of one shard keeps the others from their part."""

import asyncio
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.consumers import consumer_info
from inferbus_bus.errors import StreamApiError
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_bus.workqueue import Delivery
from inferbus_contracts.subjects import SHARDS, model_shard
from inferbus_scheduler.intake import Intake
from inferbus_stack.nats import NatsServer

from services.scheduler.tests.conftest import Edge


def named(shard: int) -> str:
    """A model of that shard."""
    return next(name for number in range(10_000) if model_shard(name := f"model-{number}") == shard)


async def held_of(bus: Bus, shard: int) -> int:
    try:
        return int((await consumer_info(bus, "REQUESTS", f"scheduler-{shard}"))["num_ack_pending"])
    except StreamApiError:
        return 0  # not opened yet


async def test_a_flooded_shard_leaves_the_others_their_part_and_all_stays_bounded(tmp_path: Path, wait_until) -> None:
    async with NatsServer(tmp_path / "nats") as server, connect(BusConfig(server.url, "scheduler")) as bus:
        await ensure_streams(bus)
        publisher = Publisher(bus)
        await publisher.start()
        got: dict[str, list[Delivery]] = defaultdict(list)

        def came(delivery: Delivery) -> None:
            got[GenerateRequest.FromString(delivery.data).context.model].append(delivery)

        intake = Intake(bus, on_delivery=came, max_held=64, ack_wait=timedelta(seconds=10))
        edge = Edge(bus, "edge")
        flooded, calm = named(1), named(2)
        for model, count in ((flooded, 200), (calm, 40)):
            for _ in range(count):
                await publisher.publish(edge.request(model))
        await intake.open(1)
        await wait_until(lambda: len(got[flooded]) >= 64)
        await intake.open(2)
        await wait_until(lambda: len(got[calm]) >= intake.floor)
        for at in range(40):
            await wait_until(lambda at=at: len(got[calm]) > at)
            assert intake.held <= 64 + SHARDS * intake.floor
            got[calm][at].ack()
        assert len(got[flooded]) <= 64 + intake.floor
        for shard in (1, 2):
            await intake.stop(shard)
            await intake.close(shard)
        assert intake.held == 0


async def test_a_model_is_served_while_another_ones_flood_fills_all_that_may_be_held(new_stage, wait_until) -> None:
    stage = await new_stage(MAX_HELD="20", QUEUE_TIMEOUT="600s")
    flooded = stage.model()
    while model_shard(calm := stage.model()) == (shard := model_shard(flooded)):
        pass
    await stage.known(flooded)
    worker, edge = await stage.worker(calm, capacity=2), await stage.edge()
    waiting = [await edge.submit(flooded) for _ in range(60)]
    async with asyncio.timeout(30):
        while await held_of(stage.bus, shard) < 20:
            await asyncio.sleep(0.05)
    sent = [await edge.submit(calm) for _ in range(8)]
    for _ in sent:
        await wait_until(lambda: worker.running)
        worker.finish(next(iter(worker.running)))
    assert worker.taken == sent
    assert not edge.closed
    await stage.nothing_left(but=len(waiting))
