"""Requests that would wait for too long go to a fallback of their model: as another message on REQUESTS."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus_contracts.prefixes import prefix_of

from inferbus_scheduler.core.degradation import Option, expected_wait, fallback_of, left_of, needs_of
from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.core.drain_rate import DrainRate
from inferbus_scheduler.core.placement import Placement, Policy, place
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Request, base_of
from inferbus_scheduler.fleet import Fleet

# While nobody could take it: then it is looked again.
_AGAIN_SECONDS = 1.0
_NEVER = float("inf")


class Fallbacks:
    """``deployment``: how a model is served. ``model``: its record, None if there is none (an adapter's is its base's).
    ``policy``: what of places are looked for by. ``too_large``: whether there will never be memory for a model."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        queues: Queues,
        rate: DrainRate,
        deployment: Callable[[str], Deployment],
        model: Callable[[str], ModelRecord | None],
        policy: Callable[[str], Policy],
        too_large: Callable[[str], bool] = lambda model: False,
    ) -> None:
        self._fleet = fleet
        self._queues = queues
        self._rate = rate
        self._deployment = deployment
        self._model = model
        self._policy = policy
        self._too_large = too_large
        # Sent to each within this second: they are on their way into a queue that may not be ours.
        self._sent: Counter[str] = Counter()
        self._sent_since = 0.0

    def choose(self, message: GenerateRequest, request: Request, now: float) -> tuple[str | None, float]:
        """(the model to send it to, None: it stays; when to look again, monotonic seconds). It waits in the queue."""
        deployment = self._deployment(message.asked_model or request.model)
        left = left_of(deployment, request.model)
        needs = needs_of(message) if left else None
        if needs is None:
            return None, _NEVER
        wait = expected_wait(
            waited=now - request.waits_since,
            ahead=self._ahead(request, now),
            target=deployment.queue_target,
            served=self._fleet.serves(request.model),
            # Whoever will never have a worker is not waited for.
            scaled=self._deployment(request.model).scaled and not self._too_large(request.model),
        )
        if wait is not None:
            options = (self._option(name, request, now) for name in left)
            chosen = fallback_of(needs, self._capabilities(request.model), wait, options)
            if chosen is not None:
                self._sent[chosen] += 1
            return chosen, now + _AGAIN_SECONDS
        if deployment.queue_target is None:
            # Until its last worker goes, of which nobody tells it.
            return None, now + _AGAIN_SECONDS
        return None, min(max(request.waits_since + deployment.queue_target, now), now + _AGAIN_SECONDS) + 0.001

    def _option(self, name: str, request: Request, now: float) -> Option:
        record = self._model(name)
        return Option(
            model=name,
            capabilities=self._capabilities(name),
            context_length=record.context_length if record is not None else 0,
            wait=self._wait(replace(request, model=name, prefix=()), now),
        )

    def _wait(self, request: Request, now: float) -> float:
        if not self._fleet.serves(request.model):
            return _NEVER
        if now - self._sent_since > _AGAIN_SECONDS:
            self._sent.clear()
            self._sent_since = now
        sent = self._sent[request.model]
        candidates = self._fleet.view.candidates.get(base_of(request.model))
        if (candidates is not None and sent < candidates.free) and isinstance(
            place(request, self._fleet.view, {}, self._policy(request.model), now), Placement
        ):
            return 0.0
        # Of a model that another scheduler has, the queue is not known here.
        ahead = self._ahead(request, now, sent)
        return _NEVER if ahead is None else ahead

    def _ahead(self, request: Request, now: float, more: int = 0) -> float | None:
        """Seconds that the queue before it takes, and ``more`` requests; None: not known."""
        rate = self._rate.rate(request.model, now)
        return (self._queues.state(request, rate).before + more) / rate if rate else None

    def _capabilities(self, name: str) -> frozenset[str]:
        record = self._model(name)
        if record is None:
            return frozenset()
        return frozenset(record.capabilities) or frozenset(("chat",))


def sent_to(message: GenerateRequest, fallback: str) -> GenerateRequest:
    """``message`` as it is asked of ``fallback``."""
    degraded = GenerateRequest()
    degraded.CopyFrom(message)
    degraded.asked_model = message.asked_model or message.context.model
    degraded.context.model = fallback
    degraded.prefix = prefix_of(degraded)
    return degraded
