"""A request as it came over the bus → the record that decisions are made on."""

from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_runtime import clock

from inferbus_scheduler.core.request import Priority, Request

_PRIORITIES = {
    PriorityClass.PRIORITY_CLASS_INTERACTIVE: Priority.INTERACTIVE,
    PriorityClass.PRIORITY_CLASS_BACKGROUND: Priority.BACKGROUND,
    PriorityClass.PRIORITY_CLASS_BATCH: Priority.BATCH,
}


def request_of(message: GenerateRequest, *, now: float, now_us: int, max_wait: float) -> Request:
    """Unix times become monotonic ones (``now`` and ``now_us`` are the same moment), so that a step of the clock
    expires nobody. ``max_wait`` (seconds since acceptance) holds whatever the request says itself."""
    arrived_at = now
    if message.HasField("accepted_time"):
        arrived_at -= max(0, now_us - clock.unix_us(message.accepted_time)) / 1e6
    expires_at = arrived_at + max_wait
    if message.HasField("expire_time"):
        expires_at = min(expires_at, now + (clock.unix_us(message.expire_time) - now_us) / 1e6)
    return Request(
        request_id=message.request_id,
        model=message.context.model,
        tenant=message.context.tenant_id,
        priority=_PRIORITIES.get(message.priority_class, Priority.INTERACTIVE),
        arrived_at=arrived_at,
        expires_at=expires_at,
    )
