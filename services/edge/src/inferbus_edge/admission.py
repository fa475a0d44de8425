"""Whether a call may begin: this edge has room, and the caller's limits allow it. And what it has used in the end."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus_budgets.budgets import Budgets
from inferbus_dialect.plan import BYTES_PER_TOKEN, Plan
from inferbus_runtime.errors import unavailable

from inferbus_edge.auth import Auth
from inferbus_edge.limits import RateLimits, Ticket
from inferbus_edge.streaming import Answer

_RETRY_AFTER = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """See the fields of the same names in ``config``."""

    request_timeout: timedelta
    background_timeout: timedelta
    max_active: int
    max_unsent_bytes: int
    max_hold: timedelta
    idempotent_hold: timedelta

    def timeout_of(self, plan: Plan) -> timedelta:
        return self.background_timeout if plan.detached else self.request_timeout


class Admission:
    """``running``: how many answers this edge is at now, of ``max_active``. ``draining``: it takes no new calls."""

    def __init__(
        self, auth: Auth, limits: RateLimits, budgets: Budgets, running: Callable[[], int], max_active: int
    ) -> None:
        self._auth = auth
        self._limits = limits
        self._budgets = budgets
        self._running = running
        self._max_active = max_active
        self.draining = False

    def room(self) -> None:
        """Raises InferBusError UNAVAILABLE if there is none."""
        if self.draining:
            raise unavailable("draining", "This server is stopping; retry.", retry_after=_RETRY_AFTER)
        if self._running() >= self._max_active:
            raise unavailable("edge_full", "The server is overloaded; retry later.", retry_after=_RETRY_AFTER)

    def ticket(self, key: KeyRecord, plan: Plan | None = None) -> Ticket:
        """For a generation, or for work of another kind (no ``plan``). To be settled. Raises RateLimitError."""
        tokens = 0 if plan is None else plan.input_estimate + (plan.output_bound or 0)
        return self._limits.admit(key, self._auth.project_of(key), self._auth.tenant_of(key), tokens)

    async def admit(self, first: bytes, key: KeyRecord, plan: Plan, model: ModelRecord, accepted_us: int) -> Ticket:
        """:meth:`ticket` for the call ``first``, and what it may cost is reserved in the budgets that it counts in.

        Raises InferBusError RESOURCE_EXHAUSTED ``insufficient_quota``, too, and UNAVAILABLE if the bus is away.
        """
        ticket = self.ticket(key, plan)
        try:
            await self._budgets.reserve(first, key, plan, model, accepted_us)
        except BaseException:
            ticket.settle(0)
            raise
        return ticket

    def refused(self, choices: Iterable[bytes]) -> None:
        """Choices of an admitted call were certainly not accepted, and are not going to be: they cost nothing."""
        for request_id in choices:
            self._budgets.refused(request_id)

    def count(self, key: KeyRecord) -> None:
        """A call that comes back to an answer: it counts as a request. Raises RateLimitError."""
        self._limits.count(key, self._auth.project_of(key), self._auth.tenant_of(key))

    @contextmanager
    def counted(self, key: KeyRecord) -> Iterator[Mapping[str, str]]:
        """A call that generates nothing but is work all the same: it counts as a request of the key's limits. Gives
        headers of its answer. Raises RateLimitError."""
        ticket = self.ticket(key)
        try:
            yield ticket.headers()
        finally:
            ticket.settle(0)


def used(plan: Plan, answer: Answer) -> int:
    """Tokens, input and output; of tensors what they count as. Who left before the end has used what was generated
    until then."""
    sent = plan.tensor_bytes
    if sent and (answer.usage is not None or answer.output_bytes or answer.gone):
        return (sent + answer.output_bytes) // BYTES_PER_TOKEN
    if answer.usage is not None:
        return answer.usage.input_tokens + answer.usage.output_tokens
    return plan.input_estimate + answer.output_tokens if answer.output_tokens or answer.gone else 0
