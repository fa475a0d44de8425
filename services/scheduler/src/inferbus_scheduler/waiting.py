"""Whether a request may wait, for how long, and when it goes to another model instead."""

from collections.abc import Callable
from dataclasses import dataclass

from inferbus.bus.v1.request_pb2 import GenerateRequest

from inferbus_scheduler.core.admission import Limits, Refusal, admit, overdue, too_large
from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.core.drain_rate import DrainRate
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Request
from inferbus_scheduler.fallbacks import Fallbacks
from inferbus_scheduler.fleet import Fleet


@dataclass(frozen=True, slots=True)
class SendTo:
    """A fallback that is to answer instead."""

    model: str


# How soon who waits for a model without a worker hears that there will be none.
_UNSERVED_SECONDS = 1.0


class Waiting:
    """What admission decides by, gathered. ``knows_model``: whether a model exists, served or not. ``too_large``:
    whether there will never be memory for it."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        queues: Queues,
        rate: DrainRate,
        fallbacks: Fallbacks,
        deployment: Callable[[str], Deployment],
        knows_model: Callable[[str], bool],
        limits: Limits,
        too_large: Callable[[str], bool] = lambda model: False,
    ) -> None:
        self._fleet = fleet
        self._queues = queues
        self._rate = rate
        self._fallbacks = fallbacks
        self._deployment = deployment
        self._knows_model = knows_model
        self._limits = limits
        self._too_large = too_large

    def refusal(self, request: Request, now: float) -> Refusal | None:
        """Why it must not wait at all; None: it may."""
        state = self._queues.state(request, self._rate.rate(request.model, now))
        known = self._knows_model(request.model)
        refusal = admit(request, known_model=known, queue=state, limits=self._limits, now=now)
        # One with fallbacks is looked at when it waits.
        if refusal is None and self._never_served(request) and not self._deployment(request.model).fallbacks:
            return too_large(request)
        return refusal

    def look(self, message: GenerateRequest, request: Request, now: float) -> Refusal | SendTo | float:
        """What is to become of it, which waits: its end, another model, or when to look again (monotonic seconds)."""
        fallback, look_at = self._fallbacks.choose(message, request, now)
        if fallback is not None:
            return SendTo(fallback)
        if self._never_served(request):
            return too_large(request)
        unserved_since = self._fleet.unserved_since(request.model)
        outcome = overdue(
            request,
            unserved_since=unserved_since,
            limits=self._limits,
            now=now,
            patience=self._deployment(request.model).cold_start,
        )
        if isinstance(outcome, Refusal):
            return outcome
        return min(outcome, look_at, now + _UNSERVED_SECONDS) if unserved_since is not None else min(outcome, look_at)

    def _never_served(self, request: Request) -> bool:
        return self._fleet.unserved_since(request.model) is not None and self._too_large(request.model)
