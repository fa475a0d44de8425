"""Who dies, and what must hold: nothing lost, nothing placed twice, nobody given up who is alive."""

import asyncio
import signal
from collections import Counter
from datetime import timedelta

from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import Work
from inferbus_bus.connection import BusConfig
from inferbus_bus.frames import FramePublisher
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_scheduler.endings import close_of

from services.scheduler.tests.conftest import LEASE


async def finish_all(workers, stop: asyncio.Event) -> None:
    """Each generation takes a few milliseconds."""
    while not stop.is_set():
        for worker in workers:
            for request_id in list(worker.running):
                if worker.bus.connected:
                    worker.finish(request_id)
        await asyncio.sleep(0.005)


async def load(edge, model: str, count: int) -> list[bytes]:
    """Requests that are certainly stored; while the broker is away a client is refused and comes again."""
    sent = []
    for _ in range(count):
        message = edge.request(model)
        while True:
            try:
                await edge.publish(message)
                break
            except InferBusError:
                await asyncio.sleep(0.05)
        sent.append(message.request_id)
        await asyncio.sleep(0.002)
    return sent


async def test_a_scheduler_killed_under_load_loses_nothing_and_places_nothing_twice(new_stage, wait_until) -> None:
    stage = await new_stage()
    model = stage.model()
    workers = [await stage.worker(model, capacity=2) for _ in range(2)]
    edge, stop = await stage.edge(), asyncio.Event()
    finishing = asyncio.create_task(finish_all(workers, stop))
    loading = asyncio.create_task(load(edge, model, 400))
    for _ in range(2):
        await asyncio.sleep(0.3)
        await stage.scheduler.end(signal.SIGKILL)
        await stage.scheduler.start()
    sent = await loading
    await wait_until(lambda: len({each for worker in workers for each in worker.taken}) == len(sent), timeout=60)
    await stage.nothing_left()
    stop.set()
    await finishing
    taken = Counter(each for worker in workers for each in worker.taken)
    assert set(taken) == set(sent)
    assert max(taken.values()) == 1
    assert not edge.closed


async def test_a_broker_killed_under_load_loses_nothing_and_kills_no_worker(new_stage, wait_until) -> None:
    stage = await new_stage(HEARTBEAT_TIMEOUT="1s", LEASE_TTL="2s")
    model = stage.model()
    workers = [await stage.worker(model, capacity=2) for _ in range(2)]
    edge, stop = await stage.edge(), asyncio.Event()
    finishing = asyncio.create_task(finish_all(workers, stop))
    loading = asyncio.create_task(load(edge, model, 400))
    await asyncio.sleep(0.4)
    for worker in workers:
        worker.lease = timedelta(seconds=6)
        await worker.register()
    await stage.server.kill()
    for worker in workers:
        worker.lease = LEASE
    # Longer than a lease lives and than a worker may be silent.
    await asyncio.sleep(7)
    await stage.server.start()
    sent = await loading
    await wait_until(lambda: set(sent) <= {each for worker in workers for each in worker.taken}, timeout=60)
    await stage.nothing_left(timeout=30)
    stop.set()
    await finishing
    taken = Counter(each for worker in workers for each in worker.taken)
    assert set(taken) == set(sent)
    assert max(taken.values()) == 1
    assert not edge.closed
    assert "worker left" not in stage.scheduler.log_file.read_text()


async def test_what_waits_survives_a_broker_outage_in_order(new_stage, wait_until) -> None:
    stage = await new_stage(HEARTBEAT_TIMEOUT="1s", QUEUE_TIMEOUT="60s", LEASE_TTL="2s")
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=1), await stage.edge()
    sent = [await edge.submit(model) for _ in range(5)]
    await wait_until(lambda: sent[0] in worker.running)
    await stage.queued(*sent[1:])
    await stage.server.kill()
    await asyncio.sleep(1.5)
    await stage.server.start()
    await wait_until(lambda: stage.bus.connected)
    late = await _submit(edge, model)
    for _ in range(6):
        await wait_until(lambda: worker.running)
        worker.finish(next(iter(worker.running)))
    assert worker.taken == [*sent, late]
    assert worker.most == 1
    assert not edge.closed
    await stage.nothing_left()


async def _submit(edge, model: str) -> bytes:
    [request_id] = await load(edge, model, 1)
    return request_id


async def test_what_a_killed_scheduler_has_ended_without_saying_so_is_not_ended_again_nor_placed(
    new_stage, wait_until
) -> None:
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model), await stage.edge()
    await stage.scheduler.end(signal.SIGKILL)
    ended, message = edge.request(model), edge.request(model)
    # Before its end, as always: nothing older than what waits is read.
    for each in (ended, message):
        await edge.publish(each)
    frames = FramePublisher(BusConfig(stage.server.url, "dead"), worker=stage.scheduler.name, boot=1)
    await frames.start()
    close = close_of(ended, None, clock.now_us())
    frames.publish(Frame(edge=edge.name, time_us=clock.now_us(), contexts=[ended.context], closes=[close]))
    await frames.stop()
    await stage.scheduler.start()
    await wait_until(lambda: message.request_id in worker.running)
    await stage.nothing_left()
    assert worker.taken == [message.request_id]
    assert edge.closed == [ended.request_id]


async def test_what_runs_already_is_not_ended_in_the_queue_when_it_comes_again(new_stage, wait_until) -> None:
    """Its scheduler was killed before REQUESTS knew that it is placed; by now its time in the queue is over."""
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model), await stage.edge()
    await stage.scheduler.end(signal.SIGKILL)
    first = edge.request(model, expires_in=-1)
    moved = edge.request(model, expires_in=-1)
    publisher = Publisher(stage.bus)
    await publisher.start()
    for message, attempt in ((first, 1), (moved, 2)):
        await edge.publish(message)
        work = Work(request=message, worker=worker.name, boot=worker.record.boot, attempt=attempt)
        work.placed_time.CopyFrom(clock.timestamp(clock.now_us()))
        await publisher.publish(work)
    overdue = await edge.submit(model, expires_in=-1)
    await stage.scheduler.start()
    await wait_until(lambda: edge.closed and len(worker.taken) == 2)
    await stage.nothing_left()
    assert edge.closed == [overdue]
    assert sorted(worker.taken) == sorted((first.request_id, moved.request_id))
