"""Work that the broker gave out and that never came to its worker."""

import asyncio
from typing import Any

from inferbus.bus.v1.request_pb2 import GenerateRequest
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


async def steal(bus: Bus, worker: Any, count: int) -> None:
    """Take that much in the stead of a full worker, as if the connection had broken on the way."""
    inbox, taken = bus.inbox("thief"), list[bytes]()

    async def took(msg: Any) -> None:
        if msg.data:
            taken.append(msg.data)

    await bus.listen(inbox, took)
    pull = b'{"batch": %d, "expires": 5000000000}' % count
    await bus.nc.publish(f"$JS.API.CONSUMER.MSG.NEXT.WORK.{worker.name}", pull, inbox)
    async with asyncio.timeout(30):
        while len(taken) < count:
            await asyncio.sleep(0.02)
