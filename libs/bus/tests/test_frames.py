import asyncio

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.frames import FramePublisher, FrameReader
from inferbus_bus.log import FrameLog
from inferbus_bus.streams import ensure_streams
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer


async def until(condition, timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def test_frames_arrive_in_order_from_the_start_of_the_reader_on(bus: Bus, nats_server: NatsServer) -> None:
    publisher = FramePublisher(BusConfig(nats_server.url, "w-order"), worker="w-order", boot=1)
    await publisher.start()
    await publisher.wait_acked(publisher.publish(Frame(edge="e-order", text=b"before")))
    got: list[bytes] = []
    reader = FrameReader(bus, edge="e-order", on_frame=lambda frame, _: got.append(frame.text))
    await reader.start()
    for number in range(200):
        last = publisher.publish(Frame(edge="e-order", text=b"%d" % number))
        publisher.publish(Frame(edge="e-other", text=b"not for us"))
    await publisher.wait_acked(last)
    await until(lambda: len(got) == 200)
    assert got == [b"%d" % number for number in range(200)]
    await reader.stop()
    await publisher.stop()


async def test_of_large_frames_fewer_wait_to_be_stored(nats_server: NatsServer) -> None:
    """A new connection sends all of them again at once, and has room for 64 MiB."""
    publisher = FramePublisher(BusConfig(nats_server.url, "w-much"), worker="w-much", boot=1)
    await publisher.start()
    most = 0
    for _ in range(48):
        last = publisher.publish(Frame(edge="w-much", text=bytes(1 << 20)))
        most = max(most, publisher.unacked)
        await publisher.room()
    assert most <= 17
    async with asyncio.timeout(30):
        await publisher.wait_acked(last)
    await publisher.stop()


async def test_no_frame_is_lost_repeated_or_swapped_when_the_broker_is_killed_under_load(tmp_path) -> None:
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "edge")) as bus:
        await ensure_streams(bus)
        got: list[int] = []
        reader = FrameReader(bus, edge="e", on_frame=lambda frame, _: got.append(frame.sequence))
        await reader.start()
        publisher = FramePublisher(BusConfig(server.url, "w"), worker="w", boot=7)
        await publisher.start()
        total = 3000

        async def load() -> None:
            for number in range(total):
                publisher.publish(Frame(edge="e", text=b"x" * 500))
                if number % 10 == 0:
                    await asyncio.sleep(0.005)

        loading = asyncio.create_task(load())
        for _ in range(3):
            await asyncio.sleep(0.3)
            await server.kill()
            await asyncio.sleep(0.2)
            await server.start()
        await loading
        async with asyncio.timeout(30):
            await publisher.wait_acked(total)
        await until(lambda: len(got) >= total)
        assert got == list(range(1, total + 1))
        assert publisher.unacked == 0
        stored = [
            Frame.FromString(data).sequence
            async for batch in FrameLog(bus).read(1, (await FrameLog(bus).bounds())[1])
            for _, _, data in batch
        ]
        assert stored == got
        await reader.stop()
        await publisher.stop()


async def test_the_log_is_read_by_position_and_goes_on_live(bus: Bus, nats_server: NatsServer) -> None:
    publisher = FramePublisher(BusConfig(nats_server.url, "w-log"), worker="w-log", boot=1)
    await publisher.start()
    log = FrameLog(bus)
    _, before = await log.bounds()
    for number in range(2500):
        last = publisher.publish(Frame(edge="e-log", text=b"%d" % number))
    await publisher.wait_acked(last)
    _, end = await log.bounds()
    read = [item async for batch in log.read(before + 1, end, subject="tok.e-log.*") for item in batch]
    assert [Frame.FromString(data).text for _, _, data in read] == [b"%d" % number for number in range(2500)]
    assert [sequence for sequence, _, _ in read] == sorted({sequence for sequence, _, _ in read})

    since = [item async for batch in log.read(0, end, subject="tok.e-log.*", since_us=read[2000][1]) for item in batch]
    assert read[2000] in since
    assert len(since) <= 2500

    live: list[bytes] = []

    async def follow() -> None:
        async for batch in log.read(end + 1, None, subject="tok.e-log.*"):
            live.extend(Frame.FromString(data).text for _, _, data in batch)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    for number in range(50):
        publisher.publish(Frame(edge="e-log", text=b"live %d" % number))
        await asyncio.sleep(0.002)
    await until(lambda: len(live) == 50)
    following.cancel()
    await publisher.stop()


async def test_reading_an_empty_range_of_a_subject_ends(bus: Bus) -> None:
    _, end = await FrameLog(bus).bounds()
    assert [b async for b in FrameLog(bus).read(1, end, subject="tok.nobody.*")] == []


async def test_a_frame_that_the_broker_would_not_take_holds_nothing_back(tmp_path) -> None:
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "edge")) as own:
        await ensure_streams(own)
        got: list[tuple[int, int]] = []
        reader = FrameReader(own, edge="e", on_frame=lambda frame, _: got.append((frame.sequence, len(frame.text))))
        await reader.start()
        publisher = FramePublisher(BusConfig(server.url, "w"), worker="w", boot=7)
        await publisher.start()

        def publish(size: int) -> int:
            return publisher.publish(Frame(edge="e", text=b"x" * size))

        def refused(size: int) -> bool:
            with pytest.raises(InferBusError) as caught:
                publish(size)
            return caught.value.reason == "frame_too_large"

        assert refused(10_000_000)
        overhead = Frame(edge="e", worker="w", boot=7, sequence=1, text=b"x" * 8_000_000).ByteSize() - 8_000_000
        largest = own.nc.max_payload - overhead - len(b"NATS/1.0\r\nNats-Msg-Id: w-7-1\r\n\r\n")
        assert refused(largest + 1)
        await publisher.wait_acked(publish(largest))
        await server.kill()
        assert refused(largest + 1)
        publish(1)
        await server.start()
        last = publish(2)
        assert refused(10_000_000)
        await publisher.wait_acked(last)
        await until(lambda: len(got) >= 3)
        assert got == [(1, largest), (2, 1), (3, 2)], "numbered without a gap"
        assert publisher.unacked == 0
        await reader.stop()
        await publisher.stop()
