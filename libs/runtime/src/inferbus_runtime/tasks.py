"""Ending tasks for certain."""

import asyncio
from collections.abc import Collection
from typing import Any

# Longer than an orderly end takes, which the next cancel would cut short.
_AGAIN_SECONDS = 1.0


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel until all are done; what they raise is not looked at.

    Again and again, because one cancel may be lost in a library: Python 3.11's ``asyncio.wait_for`` swallows one that
    comes in the moment in which it has its result; clickhouse-connect one that comes while it tidies up after a query
    that failed, and raises that failure, which whoever tries again takes for the store being away.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_SECONDS)
