import asyncio
import time
from datetime import timedelta

import pytest
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.consumers import consumer_info, delete_consumer
from inferbus_bus.errors import CONSUMER_NOT_FOUND, StreamApiError
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.subjects import work_subject
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer


async def until(condition, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


def work(worker: str, number: int) -> Work:
    return Work(worker=worker, boot=1, request=GenerateRequest(request_id=f"{worker:>8}{number:08d}".encode()))


async def queue(bus: Bus, worker: str, on_delivery, in_flight: int = 10, ack_wait: float = 10.0) -> WorkQueue:
    made = WorkQueue(
        bus, stream="WORK", durable=worker, subject=work_subject(worker, 1), on_delivery=on_delivery,
        in_flight=in_flight, ack_wait=timedelta(seconds=ack_wait),
    )  # fmt: skip
    await made.start()
    return made


async def publisher(bus: Bus) -> Publisher:
    made = Publisher(bus)
    await made.start()
    return made


async def test_a_second_publish_of_the_same_request_is_a_duplicate(bus: Bus) -> None:
    publish = await publisher(bus)
    first = await publish.publish(work("wq-dup", 1), headers={"traceparent": "00-1-2-01"})
    again = await publish.publish(work("wq-dup", 1))
    assert (first.duplicate, again.duplicate) == (False, True)
    assert again.sequence == first.sequence
    got: list[Delivery] = []
    await queue(bus, "wq-dup", got.append)
    await until(lambda: got)
    assert got[0].headers["traceparent"] == "00-1-2-01"
    assert got[0].deliveries == 1
    got[0].ack()


async def test_queues_that_share_room_ask_for_no_more_than_a_part_each(bus: Bus) -> None:
    publish = await publisher(bus)
    for number in range(12):
        await publish.publish(work("wq-share-a", number))
        await publish.publish(work("wq-share-b", number))
    got: list[Delivery] = []
    queues: list[WorkQueue] = []

    def room() -> int:
        left = 6 - sum(each.held for each in queues)
        return 1 if left > 0 else 0

    for worker in ("wq-share-a", "wq-share-b"):
        made = WorkQueue(
            bus, stream="WORK", durable=worker, subject=work_subject(worker, 1), on_delivery=got.append, in_flight=100,
            room=room,
        )  # fmt: skip
        queues.append(made)
    for each in queues:
        await each.start()
    await until(lambda: len(got) >= 6)
    assert len(got) <= 6 + len(queues)
    for done in range(24):
        await until(lambda done=done: len(got) > done)
        got[done].ack()
    assert len({delivery.sequence for delivery in got}) == 24


async def test_a_queue_that_was_closed_begins_anew_with_what_it_had(bus: Bus) -> None:
    publish = await publisher(bus)
    await publish.publish(work("wq-anew", 1))
    got: list[Delivery] = []
    taken = await queue(bus, "wq-anew", got.append)
    await until(lambda: got)
    await taken.stop()
    await taken.close()
    assert taken.held == 0
    await delete_consumer(bus, "WORK", "wq-anew")
    await taken.start()
    await until(lambda: len(got) == 2)
    assert got[0].sequence == got[1].sequence
    got[1].ack()


async def test_no_more_is_delivered_than_there_is_room_for(bus: Bus) -> None:
    publish = await publisher(bus)
    for number in range(25):
        await publish.publish(work("wq-room", number))
    got: list[Delivery] = []
    taken = await queue(bus, "wq-room", got.append, in_flight=10)
    await until(lambda: len(got) == 10)
    await asyncio.sleep(0.2)
    assert len(got) == 10
    for delivery in got[:]:
        delivery.ack()
        delivery.ack()
    await until(lambda: len(got) == 20)
    for delivery in got[10:]:
        delivery.ack()
    await until(lambda: len(got) == 25)
    for delivery in got[20:]:
        delivery.ack()
    assert taken.held == 0


async def test_of_large_messages_fewer_are_on_the_way(nats_server: NatsServer) -> None:
    """The broker cuts off a reader that leaves 64 MiB unread: 100 MiB wait, and the reader is slow."""
    config = BusConfig(nats_server.url, "wq-large")
    async with connect(config) as sending, connect(config) as reading:
        publish, count = await publisher(sending), 200
        for number in range(count):
            large = work("wq-large", number)
            large.request.cache_salt = bytes(1 << 19)
            await publish.publish(large)
        cut: list[str] = []
        reading.on_disconnect(lambda: cut.append("off"))
        got: list[Delivery] = []
        taken = await queue(reading, "wq-large", got.append, in_flight=2 * count)
        time.sleep(2)  # nothing is read meanwhile
        await until(lambda: len(got) == count)
        assert not cut
        assert len({delivery.sequence for delivery in got}) == count
        for delivery in got:
            delivery.ack()
        await taken.stop()
        await taken.close()


async def test_what_is_held_is_kept_alive_and_a_nak_delivers_again(bus: Bus) -> None:
    publish = await publisher(bus)
    await publish.publish(work("wq-alive", 1))
    got: list[Delivery] = []
    await queue(bus, "wq-alive", got.append, ack_wait=7.5)
    await until(lambda: got)
    await asyncio.sleep(9)
    assert len(got) == 1
    got[0].nak()
    await until(lambda: len(got) == 2)
    assert got[1].deliveries == 2
    assert got[1].sequence == got[0].sequence
    got[1].ack()


async def test_what_a_dead_holder_held_goes_to_the_next(bus: Bus, nats_server: NatsServer) -> None:
    publish = await publisher(bus)
    await publish.publish(work("wq-dead", 1))
    got: list[Delivery] = []
    async with connect(BusConfig(nats_server.url, "wq-dead-holder")) as holder:
        first = await queue(holder, "wq-dead", got.append, ack_wait=6.0)
        await until(lambda: got)
        await first.close()
    await queue(bus, "wq-dead", got.append, ack_wait=6.0)
    await until(lambda: len(got) == 2)
    assert got[1].deliveries == 2
    got[1].ack()


async def test_the_broker_forgets_a_consumer_that_nobody_asks_for_as_long_as_was_said(bus: Bus) -> None:
    """Also a durable one: of a worker that does not come back. One that is asked stays."""

    async def opened(worker: str) -> WorkQueue:
        made = WorkQueue(
            bus, stream="WORK", durable=worker, subject=work_subject(worker, 1), on_delivery=lambda _: None,
            in_flight=10, inactive=timedelta(seconds=5),
        )  # fmt: skip
        await made.start()
        return made

    stays, leaves = await opened("wq-stays"), await opened("wq-leaves")
    assert (await consumer_info(bus, "WORK", "wq-leaves"))["config"]["inactive_threshold"] == 5_000_000_000
    await leaves.stop()
    await leaves.close()

    async def until_it_is_gone() -> None:
        while await consumer_info(bus, "WORK", "wq-leaves"):
            await asyncio.sleep(0.1)

    with pytest.raises(StreamApiError) as gone:
        await asyncio.wait_for(until_it_is_gone(), 30)
    assert gone.value.err_code == CONSUMER_NOT_FOUND
    await consumer_info(bus, "WORK", "wq-stays")
    await stays.stop()
    await stays.close()


async def test_nothing_is_lost_when_the_broker_is_killed_under_load(tmp_path) -> None:
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "w")) as bus:
        await ensure_streams(bus)
        publish = await publisher(bus)
        seen: set[bytes] = set()

        def take(delivery: Delivery) -> None:
            seen.add(Work.FromString(delivery.data).request.request_id)
            delivery.ack()

        await queue(bus, "w", take, ack_wait=1.0)
        stored: set[bytes] = set()
        refused = 0

        async def load() -> None:
            nonlocal refused
            for number in range(600):
                message = work("w", number)
                try:
                    await publish.publish(message, timeout=2)
                    stored.add(message.request.request_id)
                except InferBusError as error:
                    refused += error.reason == "bus_unavailable"
                    await asyncio.sleep(0.02)

        loading = asyncio.create_task(load())
        await asyncio.sleep(0.05)
        await server.kill()
        await asyncio.sleep(0.3)
        await server.start()
        await loading
        assert refused
        await until(lambda: stored <= seen)


async def test_without_a_broker_a_publish_fails_at_once_and_a_control_message_is_dropped(tmp_path) -> None:
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "w")) as bus:
        await ensure_streams(bus)
        publish = await publisher(bus)
        await server.kill()
        await until(lambda: not bus.connected)
        with pytest.raises(InferBusError) as refused:
            async with asyncio.timeout(0.5):
                await publish.publish(work("w", 1))
        assert refused.value.reason == "bus_unavailable"
        assert refused.value.retry_after is not None
        bus.send(Cancel(request_id=b"0" * 16))
        await server.start()
        await until(lambda: bus.connected)
        await publish.publish(work("w", 2))


async def test_control_messages_reach_every_subscriber(bus: Bus) -> None:
    got: list[bytes] = []
    await bus.subscribe(Cancel, lambda cancel: got.append(cancel.request_id))
    await bus.nc.flush()
    bus.send(Cancel(request_id=b"1" * 16))
    await until(lambda: b"1" * 16 in got)
