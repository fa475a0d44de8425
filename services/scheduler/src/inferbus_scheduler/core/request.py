"""What the scheduler knows of a request when it decides: no prompt, no proto."""

from dataclasses import dataclass
from enum import IntEnum


class Priority(IntEnum):
    """The order of service; the numbers are those of the proto ``PriorityClass``."""

    INTERACTIVE = 1
    BACKGROUND = 2
    BATCH = 3


@dataclass(frozen=True, slots=True)
class Request:
    """One accepted request. Times are monotonic seconds of the deciding process."""

    request_id: bytes
    model: str
    tenant: str
    priority: Priority
    arrived_at: float
    # Not worth starting at or after this.
    expires_at: float
