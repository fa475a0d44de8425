"""Consumers by JetStream's JSON API, and what a delivery's reply subject says.

The subject of CONSUMER.CREATE names stream, consumer and filter, so that a broker's permissions can hold a service to
exactly its own consumers; nats-py's calls do not always use that form.
"""

from datetime import timedelta
from typing import Any, NamedTuple

from inferbus_bus.connection import Bus


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


async def create_consumer(bus: Bus, stream: str, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Create the consumer, or take it as it is if it is there with the same settings. Returns its info."""
    config = {"name": name, "num_replicas": 0, **config}
    return await bus.api(
        f"CONSUMER.CREATE.{stream}.{name}.{config['filter_subject']}", {"stream_name": stream, "config": config}
    )


async def delete_consumer(bus: Bus, stream: str, name: str) -> None:
    await bus.api(f"CONSUMER.DELETE.{stream}.{name}")


async def last_sequence(bus: Bus, stream: str) -> int:
    info = await bus.api(f"STREAM.INFO.{stream}")
    return int(info["state"]["last_seq"])
