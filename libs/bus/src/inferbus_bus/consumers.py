"""Consumers by JetStream's JSON API, and what a delivery's reply subject says.

The subject of CONSUMER.CREATE names stream, consumer and filter, so that a broker's permissions can hold a service to
exactly its own consumers; nats-py's calls do not always use that form.
"""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from inferbus_bus.connection import Bus

# Of one pull: more than the largest message, and less than what the broker lets a reader leave unread (64 MiB).
_PULL_BYTES = 16 << 20
# What the broker says with a 409 at the end of a pull that is bounded by bytes; any other 409 is of the consumer's end.
_ENDED = ("Message Size Exceeds MaxBytes", "Batch Completed")


class Position(NamedTuple):
    """Where a delivered message stands."""

    deliveries: int
    stream_sequence: int
    consumer_sequence: int
    time_us: int
    pending: int


def position(reply: str) -> Position:
    """Parse ``$JS.ACK.<stream>.<consumer>.<deliveries>.<sseq>.<cseq>.<ns>.<pending>`` (ADR-15; longer forms carry a
    domain and an account before the stream)."""
    tokens = reply.split(".")
    at = 4 if len(tokens) == 9 else 6
    return Position(
        int(tokens[at]), int(tokens[at + 1]), int(tokens[at + 2]), int(tokens[at + 3]) // 1000, int(tokens[at + 4])
    )


def nanoseconds(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1) * 1000


def pull_request(batch: int, expires: timedelta) -> bytes:
    """For at most ``batch`` messages, and 16 MiB of them: of large ones the broker would cut us off."""
    return json.dumps({"batch": batch, "max_bytes": _PULL_BYTES, "expires": nanoseconds(expires)}).encode()


def pull_ended(status: Mapping[str, str]) -> bool:
    """By the headers of a message without data: the pull has, and another one may be asked."""
    return status["Status"] in ("404", "408") or status.get("Description") in _ENDED


async def create_consumer(
    bus: Bus, stream: str, name: str, config: dict[str, Any], *, changes: bool = True
) -> dict[str, Any]:
    """Create the consumer, or take it as it is if it is there with the same settings; with others it gets these, or,
    without ``changes``, StreamApiError is raised. Returns its info."""
    config = {"name": name, "num_replicas": 0, **config}
    request = {"stream_name": stream, "config": config, **({} if changes else {"action": "create"})}
    return await bus.api(f"CONSUMER.CREATE.{stream}.{name}.{config['filter_subject']}", request)


async def delete_consumer(bus: Bus, stream: str, name: str) -> None:
    await bus.api(f"CONSUMER.DELETE.{stream}.{name}")


async def consumer_info(bus: Bus, stream: str, name: str) -> dict[str, Any]:
    """Its settings and how far it is. Raises StreamApiError CONSUMER_NOT_FOUND if it is not there."""
    return await bus.api(f"CONSUMER.INFO.{stream}.{name}")


async def last_sequence(bus: Bus, stream: str) -> int:
    info = await bus.api(f"STREAM.INFO.{stream}")
    return int(info["state"]["last_seq"])
