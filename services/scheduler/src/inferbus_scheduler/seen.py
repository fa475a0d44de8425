"""Whoever changes an entry of a registry and lists it then finds it changed."""

import asyncio
from typing import Any

from inferbus_bus.publish import PubAck
from inferbus_bus.registry import Registry
from inferbus_runtime import clock

_SEEN_SECONDS = 2.0
_POLL_SECONDS = 0.005


async def seen(registry: Registry[Any], name: str, ack: PubAck) -> None:
    """Returns when the change has come back here; if that takes long, it is stored all the same."""
    deadline = clock.monotonic() + _SEEN_SECONDS
    while registry.revision(name) < ack.sequence and clock.monotonic() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
