"""A change that another service makes is told to AUDIT here: before it is made, if that service has said that it would
make it, else once it was."""

from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus_bus.announcing import tell_made
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock

from inferbus_edge.core.organization_audit import Change, event_of


async def announce(publisher: Publisher, change: Change) -> None:
    """As of now. Raises InferBusError UNAVAILABLE."""
    await publisher.publish(_event_of(change))


async def announce_made(publisher: Publisher, change: Change) -> None:
    """It was made just now. Raises InferBusError UNAVAILABLE ``not_announced``."""
    await tell_made(publisher, _event_of(change))


def _event_of(change: Change) -> AuditEvent:
    now_us = clock.now_us()
    event = event_of(change, now_us)
    event.event_time.CopyFrom(clock.timestamp(now_us))
    return event
