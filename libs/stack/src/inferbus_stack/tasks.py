"""Ending tasks for certain."""

import asyncio
from collections.abc import Collection
from typing import Any

_AGAIN_SECONDS = 0.2


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel until all are done; what they raise is not looked at.

    Again and again, because one cancel may be lost: Python 3.11's ``asyncio.wait_for``, through which the NATS client
    waits, swallows one that comes in the moment in which it has its result.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_SECONDS)
