"""Changes that were made are told to AUDIT; and if that fails, the caller and the log are told."""

import logging

from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_bus.errors import RETRY_AFTER
from inferbus_bus.publish import Publisher

log = logging.getLogger(__name__)


async def tell_made(publisher: Publisher, event: AuditEvent) -> None:
    """``event`` has happened. Raises InferBusError UNAVAILABLE ``not_announced``: who asked for it must ask again."""
    try:
        await publisher.publish(event)
    except InferBusError as error:
        log.error(
            "a change was made that AUDIT does not tell",
            extra={
                "action": event.action, "target": event.target, "event_id": event.event_id,
                "actor": event.actor_key_id, "error": str(error),
            },
        )  # fmt: skip
        raise unavailable(
            "not_announced", "The change was made, but the audit log could not be told; send the same again.",
            retry_after=RETRY_AFTER, diagnostic=str(error),
        ) from error  # fmt: skip
