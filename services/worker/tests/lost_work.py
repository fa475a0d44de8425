"""Work that the broker gave out and that never came to its worker."""

import asyncio
from typing import Any

from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_bus.connection import Bus

# What a worker of capacity 1 has asked for, or holds, when it asks for nothing more.
_FULL = 17


async def fill(bus: Bus, edge: Any, worker: Any) -> list[GenerateRequest]:
    """Returns what a worker of capacity 1 is busy with when it takes nothing more."""
    full = [edge.request("say something", max_tokens=20_000) for _ in range(_FULL)]
    for request in full:
        await edge.place(worker.name, request)
    async with asyncio.timeout(30):
        while (await bus.api(f"CONSUMER.INFO.WORK.{worker.name}"))["num_ack_pending"] < _FULL:
            await asyncio.sleep(0.02)
    return full


async def steal(bus: Bus, worker: Any, *lost: GenerateRequest) -> None:
    """Take these in the stead of a full worker, as if the connection had broken on the way. What else the broker gives
    out, because it has not heard of it for a while, the worker has already."""
    inbox, taken = bus.inbox("thief"), set[bytes]()
    asked = asyncio.Event()

    async def took(msg: Any) -> None:
        if msg.data:
            taken.add(Work.FromString(msg.data).request.request_id)
        asked.set()  # also when it says that there was nothing

    await bus.listen(inbox, took)
    pull = b'{"batch": 1, "expires": 5000000000}'
    async with asyncio.timeout(60):
        while not taken >= {request.request_id for request in lost}:
            asked.clear()
            await bus.nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.WORK.{worker.name}", pull, inbox)
            await asked.wait()
