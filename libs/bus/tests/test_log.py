"""Reading a stretch of the log: how much is on the way at once, and whose clock says when."""

import asyncio

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_bus.connection import Bus, BusConfig
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer


@pytest.mark.parametrize("window", [1, 2, 7, 1000])
async def test_no_more_than_the_window_is_on_the_way(bus: Bus, nats_server: NatsServer, window: int) -> None:
    worker, total = f"w-window-{window}", 300
    publisher = FramePublisher(BusConfig(nats_server.url, worker), worker=worker, boot=1)
    await publisher.start()
    for number in range(total):
        last = publisher.publish(Frame(edge=worker, text=b"%d" % number))
    await publisher.wait_acked(last)
    log, sizes, texts = FrameLog(bus), [], []
    _, end = await log.bounds()
    async for batch in log.read(1, end, subject=f"tok.{worker}.*", window=window):
        sizes.append(len(batch))
        texts += [Frame.FromString(data).text for _, _, data in batch]
        if len(sizes) < 10:
            await asyncio.sleep(0.01)  # all that was asked for comes meanwhile
    assert texts == [b"%d" % number for number in range(total)]
    assert max(sizes) <= window
    await publisher.stop()


async def test_what_is_purged_while_it_is_read_is_not_waited_for(bus: Bus, nats_server: NatsServer) -> None:
    publisher = FramePublisher(BusConfig(nats_server.url, "w-purged"), worker="w-purged", boot=1)
    await publisher.start()
    for number in range(50):
        last = publisher.publish(Frame(edge="w-purged", text=b"%d" % number))
    await publisher.wait_acked(last)
    log, subject, got = FrameLog(bus), "tok.w-purged.*", 0
    _, end = await log.bounds()
    async with asyncio.timeout(60):
        async for batch in log.read(1, end, subject=subject, window=2):
            if not got:
                await bus.api("STREAM.PURGE.TOKENS", {"filter": subject})
            got += len(batch)
    assert got < 50
    await publisher.stop()


async def test_of_large_frames_fewer_are_on_the_way(bus: Bus, nats_server: NatsServer) -> None:
    """The broker cuts off a reader that leaves 64 MiB unread: those of a thousand frames with outputs would be 500."""
    publisher = FramePublisher(BusConfig(nats_server.url, "w-large"), worker="w-large", boot=1)
    await publisher.start()
    for number in range(80):
        last = publisher.publish(Frame(edge="w-large", text=b"%3d" % number + bytes(1 << 19)))
        await publisher.wait_acked(last)
    log, sizes, texts = FrameLog(bus), [], []
    _, end = await log.bounds()
    async for batch in log.read(1, end, subject="tok.w-large.*"):
        sizes.append(sum(len(data) for _, _, data in batch))
        texts += [Frame.FromString(data).text[:3] for _, _, data in batch]
        await asyncio.sleep(0.2)  # all that was asked for comes meanwhile
    assert texts == [b"%3d" % number for number in range(80)]
    assert max(sizes) <= 16 << 20
    await publisher.stop()


async def test_the_time_to_begin_at_is_when_the_broker_stored_it(bus: Bus, nats_server: NatsServer) -> None:
    """Whatever the worker's clock says."""
    publisher = FramePublisher(BusConfig(nats_server.url, "w-clock"), worker="w-clock", boot=1)
    await publisher.start()
    hour_us = 3_600_000_000
    await publisher.wait_acked(publisher.publish(Frame(edge="e-clock", time_us=clock.now_us() + hour_us, text=b"old")))
    await asyncio.sleep(0.05)
    since = clock.now_us()
    await asyncio.sleep(0.05)
    await publisher.wait_acked(publisher.publish(Frame(edge="e-clock", time_us=since - hour_us, text=b"new")))
    log = FrameLog(bus)
    _, end = await log.bounds()
    read = [one async for batch in log.read(1, end, subject="tok.e-clock.*", since_us=since) for one in batch]
    assert [Frame.FromString(data).text for _, _, data in read] == [b"new"]
    assert since <= read[0][1] <= clock.now_us()
    await publisher.stop()
