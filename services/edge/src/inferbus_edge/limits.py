"""Requests and tokens a minute and requests at once, at the door: see ``core/limits.py`` for how edges hold them
together, and by how much they may be passed over."""

import asyncio
import logging
from datetime import timedelta

from inferbus.bus.v1.control_pb2 import Spend
from inferbus.bus.v1.registry_pb2 import KeyRecord, ProjectRecord, TenantRecord
from inferbus.bus.v1.registry_pb2 import Limits as LimitsRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.connection import Bus
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core import ratelimit_headers
from inferbus_edge.core.limits import TICK_MS, Ledger, Limits, Refusal, Scoped, Spent

log = logging.getLogger(__name__)

# What a client is told that no waiting helps: long enough that its retries cost nobody anything.
_NEVER = timedelta(minutes=1)


class RateLimitError(InferBusError):
    """A limit is reached. ``headers``: the ``x-ratelimit-*`` fields of the answer."""

    def __init__(self, refusal: Refusal, headers: dict[str, str]) -> None:
        wait = _NEVER if refusal.wait_ms is None else timedelta(milliseconds=refusal.wait_ms)
        super().__init__(
            ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
            "rate_limit_exceeded",
            ratelimit_headers.message(refusal),
            retry_after=wait,
            diagnostic=f"{refusal.dimension} of {refusal.scope}",
        )
        self.headers = headers


class Ticket:
    """One admitted request. ``settle`` must be called when it has ended, however it ended."""

    __slots__ = ("_ledger", "_scopes", "_spent")

    def __init__(self, ledger: Ledger | None, scopes: Scoped, spent: Spent | None) -> None:
        self._ledger = ledger
        self._scopes = scopes
        self._spent = spent

    def headers(self) -> dict[str, str]:
        """``x-ratelimit-*`` as things stand now: of the scope that has least left; none without a limit."""
        if self._ledger is None:
            return {}
        return ratelimit_headers.headers(*self._ledger.levels(self._scopes, _now_ms()))

    def settle(self, tokens: int) -> None:
        """It has ended; ``tokens`` were really used, input and output. A second call does nothing."""
        if self._ledger is not None and self._spent is not None:
            self._ledger.settle(self._spent, tokens, _now_ms())
            self._spent = None


# Of every request without a limit: there is nothing to remember.
_FREE = Ticket(None, (), None)


class RateLimits:
    """The limits of all keys, projects and tenants at this edge. ``start``, then ``run`` as a task of the process."""

    def __init__(self, bus: Bus, *, edge: str) -> None:
        self._bus = bus
        self._ledger = Ledger(edge, clock.now_us())

    async def start(self) -> None:
        """Hear what the other edges let pass."""
        await self._bus.subscribe(Spend, lambda spend: self._ledger.heard(spend, _now_ms()))

    async def run(self) -> None:
        """Tell the other edges, until cancelled."""
        while True:
            await asyncio.sleep(TICK_MS / 1000)
            for spend in self._ledger.report(_now_ms()):
                try:
                    self._bus.send(spend)
                except BufferError as error:
                    # Without the broker no request is accepted either; all of it is said again within a second.
                    log.warning("the other edges were not told of this edge's requests", extra={"error": str(error)})
                    break

    def count(self, key: KeyRecord, project: ProjectRecord, tenant: TenantRecord) -> None:
        """Count a request that generates nothing of its own, such as coming back to an answer: against the requests a
        minute, and nothing else. Raises RateLimitError."""
        records = (("key", key.key_id, key), ("project", f"{key.tenant_id}/{key.project_id}", project),
                   ("tenant", key.tenant_id, tenant))  # fmt: skip
        scopes = [
            (f"{kind}:{name}", Limits(requests=record.limits.requests_per_minute))
            for kind, name, record in records
            if record.HasField("limits") and record.limits.HasField("requests_per_minute")
        ]
        if scopes:
            self._spend(scopes, 0).settle(0)

    def count_change(self, tenant_id: str, most: int) -> None:
        """Count a change by a tenant's administrators, of ``most`` a minute. Raises RateLimitError."""
        self._spend([(f"administration:{tenant_id}", Limits(requests=most))], 0).settle(0)

    def report(self, tenant_id: str, most: int) -> Ticket:
        """Count a question to the meter, of which a tenant (empty: the operators) has ``most`` at once. Raises
        RateLimitError."""
        return self._spend([(f"reports:{tenant_id}", Limits(concurrent=most))], 0)

    def admit(self, key: KeyRecord, project: ProjectRecord, tenant: TenantRecord, tokens: int) -> Ticket:
        """Count one request that will use about ``tokens``, input and output together.

        A record without limits, also an empty one, limits nothing. Raises RateLimitError; then nothing is counted.
        """
        if not (key.HasField("limits") or project.HasField("limits") or tenant.HasField("limits")):
            return _FREE
        scopes = [
            (name, limits)
            for name, limits in (
                (f"key:{key.key_id}", _limits(key)),
                (f"project:{key.tenant_id}/{key.project_id}", _limits(project)),
                (f"tenant:{key.tenant_id}", _limits(tenant)),
            )
            if limits is not None
        ]
        return self._spend(scopes, tokens) if scopes else _FREE

    def _spend(self, scopes: Scoped, tokens: int) -> Ticket:
        now = _now_ms()
        refusal = self._ledger.check(scopes, 1, tokens, now)
        if refusal is not None:
            raise RateLimitError(refusal, ratelimit_headers.headers(*self._ledger.levels(scopes, now)))
        return Ticket(self._ledger, scopes, self._ledger.spend(scopes, 1, tokens, now))


def _limits(record: KeyRecord | ProjectRecord | TenantRecord) -> Limits | None:
    """None if it sets no limit."""
    if not record.HasField("limits"):
        return None
    limits: LimitsRecord = record.limits
    requests = limits.requests_per_minute if limits.HasField("requests_per_minute") else None
    tokens = limits.tokens_per_minute if limits.HasField("tokens_per_minute") else None
    concurrent = limits.concurrent_requests if limits.HasField("concurrent_requests") else None
    if requests is None and tokens is None and concurrent is None:
        return None
    return Limits(requests, tokens, concurrent)


def _now_ms() -> int:
    return int(clock.monotonic() * 1000)
