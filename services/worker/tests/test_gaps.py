"""A worker goes on after what the log holds of its request, all of it, or not at all."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus_bus.connection import Bus
from inferbus_bus.frames import FramePublisher, FrameReader
from inferbus_contracts.recovery import Recovered, fold
from inferbus_runtime import clock

from services.worker.tests.lost_work import fill, steal

# Further apart than a worker takes the clocks of two brokers to be.
_APART_SECONDS = 2.5


def tokens(worker: Any, request: GenerateRequest, first: int, count: int) -> Frame:
    return Frame(
        edge=request.edge, stead=worker.name, request_ids=request.request_id, first_index=[first], token_count=[count],
        token_id=range(first, first + count), text=b"x" * count, text_size=[count], gap_us=[0],
        time_us=clock.now_us(),
    )  # fmt: skip


async def test_an_answer_whose_beginning_is_older_than_its_placement_goes_on_whole_or_ends(
    bus: Bus, edge: Any, new_worker: Callable[..., Any]
) -> None:
    """By the clocks of two brokers that may be. Where the log does not have it, there is nothing to go on after."""
    worker, log = new_worker(CAPACITY="1"), FramePublisher(bus.config, worker="another", boot=1)
    whole, holed = edge.request("say something"), edge.request("say something")
    whole.edge = holed.edge = f"{edge.name}-away"
    found, closes = {one.request_id: Recovered() for one in (whole, holed)}, dict[bytes, Close]()
    made: dict[bytes, list[int]] = {whole.request_id: [], holed.request_id: []}

    def take(frame: Frame, _: int) -> None:
        fold(frame, found)
        for number, first in enumerate(() if frame.stead else frame.first_index):
            made[frame.request_ids[16 * number : 16 * number + 16]].append(first)
        closes.update((close.request_id, close) for close in frame.closes)

    reader = FrameReader(bus, edge=whole.edge, on_frame=take)
    async with AsyncExitStack() as stack:
        await reader.start()
        stack.push_async_callback(reader.stop)
        await log.start()
        stack.push_async_callback(log.stop)
        await log.wait_acked(log.publish(tokens(worker, whole, 0, 4)))
        began = clock.monotonic()
        await worker.start()
        full = await fill(bus, edge, worker)
        await asyncio.sleep(began + _APART_SECONDS - clock.monotonic())
        for request in (whole, holed):
            await edge.place(worker.name, request)
            await log.wait_acked(log.publish(tokens(worker, request, 4, 2)))
        await steal(bus, worker, whole, holed)
        for request in full:
            bus.send(Cancel(request_id=request.request_id))
        async with asyncio.timeout(60):
            while len(closes) < 2:
                await asyncio.sleep(0.02)
    assert found[whole.request_id].ids == list(range(10)), "its max_tokens, as if it had made all of them"
    assert made == {whole.request_id: [6, 7, 8, 9], holed.request_id: []}
    assert closes[holed.request_id].error.reason == "token_gap"
