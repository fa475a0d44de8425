"""How a worker is picked for a model that has a rollout: of the revisions that a request may go to, the first that has
room. For one without it costs a look into a dict."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from inferbus_scheduler.core.placement import WRONG_REVISION, Placement, Policy, Rejection
from inferbus_scheduler.core.policies import Pick
from inferbus_scheduler.core.request import Request, base_of
from inferbus_scheduler.core.traffic import ANYWHERE, Route, Traffic, route
from inferbus_scheduler.core.view import ClusterView
from inferbus_scheduler.fleet import Fleet


class Routing:
    """``traffic``: of a model, None without a rollout."""

    def __init__(self, fleet: Fleet, traffic: Callable[[str], Traffic | None], pick: Pick) -> None:
        self._fleet = fleet
        self._traffic = traffic
        self._pick = pick

    def splits(self, model: str) -> bool:
        """Whether what one request finds no room for may fit another of the model."""
        return self._traffic(base_of(model)) is not None

    def pick(
        self, request: Request, view: ClusterView, hits: Mapping[str, int], policy: Policy, now: float
    ) -> Placement | Rejection:
        """As :func:`~inferbus_scheduler.core.placement.place`."""
        way = self._route(request)
        if way is ANYWHERE:
            return self._pick(request, view, hits, policy, now)
        outcome: Placement | Rejection = Rejection(WRONG_REVISION)
        for revision in way.revisions:
            outcome = self._pick(replace(request, revision=revision), view, hits, policy, now)
            if isinstance(outcome, Placement):
                return outcome
        # Who waits for one revision stops nobody who does not.
        return Rejection(WRONG_REVISION) if way.waits else outcome

    def wanting(self, request: Request) -> Request:
        """``request`` as it would go best: to the first of its revisions."""
        way = self._route(request)
        return replace(request, revision=way.revisions[0]) if way.revisions else request

    def asking(self, request: Request) -> Request:
        """``request`` as it asks for room: of the revision that it can count on."""
        way = self._route(request)
        return replace(request, revision=way.revisions[-1]) if way.revisions else request

    def fails_over(self, request: Request, revision: str) -> bool:
        """Whether another revision is there to do ``request`` if it fails on this one."""
        traffic = self._traffic(base_of(request.model))
        if traffic is None or request.revision or revision == traffic.stable or request.tenant in traffic.pins:
            return False
        return traffic.stable in self._fleet.revisions(request.model)

    def _route(self, request: Request) -> Route:
        if request.revision:
            return Route((request.revision,), waits=True)
        traffic = self._traffic(base_of(request.model))
        if traffic is None:
            return ANYWHERE
        return route(request, traffic, self._fleet.revisions(request.model))
