from pathlib import Path

from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.subjects import model_shard, shard_requests
from inferbus_stack.nats import NatsServer


async def test_the_one_scheduler_of_former_versions_is_not_in_the_way_of_shards(tmp_path: Path) -> None:
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "operator")) as bus:
        await ensure_streams(bus)
        former = WorkQueue(
            bus, stream="REQUESTS", durable="scheduler", subject="req.>", on_delivery=lambda _: None, in_flight=1
        )
        await former.start()
        await former.stop()
        await former.close()
        await ensure_streams(bus)
        await ensure_streams(bus)  # once more, with nothing to take out
        request = GenerateRequest(request_id=b"r" * 16)
        request.context.model = "m"
        publisher = Publisher(bus)
        await publisher.start()
        await publisher.publish(request)
        shard, arrived = model_shard("m"), list[Delivery]()
        for each in {shard, (shard + 1) % 16}:
            queue = WorkQueue(
                bus, stream="REQUESTS", durable=f"scheduler-{each}", subject=shard_requests(each),
                on_delivery=arrived.append, in_flight=4,
            )  # fmt: skip
            await queue.start()
        await bus.nc.flush()
        info = await bus.api(f"CONSUMER.INFO.REQUESTS.scheduler-{shard}")
        assert info["num_ack_pending"] + info["num_pending"] == 1
