"""How often a tenant may ask for answers that the log does not have: each such question is a pass over the log.

Times are monotonic seconds.
"""

from datetime import timedelta

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError

MAX_MISSES = 60
WINDOW_SECONDS = 60.0


class Lookups:
    """Misses of each tenant in the running window; nothing is kept of those that have none."""

    def __init__(self) -> None:
        self._began = 0.0
        self._misses: dict[str, int] = {}

    def check(self, tenant: str, now: float) -> None:
        """Raises InferBusError RESOURCE_EXHAUSTED for who has asked for too much that is not there."""
        if now - self._began > WINDOW_SECONDS:
            self._began, self._misses = now, {}
        if self._misses.get(tenant, 0) >= MAX_MISSES:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
                "rate_limit_exceeded",
                "Too many answers were asked for that are not there; wait a minute.",
                retry_after=timedelta(seconds=self._began + WINDOW_SECONDS - now),
            )

    def missed(self, tenant: str, now: float) -> None:
        """One was not found, or not theirs."""
        self._misses[tenant] = self._misses.get(tenant, 0) + 1
