"""Other ways to pick, for comparison: the filters of :mod:`placement`, and no score."""

from collections.abc import Callable, Mapping

from inferbus_scheduler.core.placement import NO_WORKER, Placement, Policy, Rejection, closer, filter_out, place
from inferbus_scheduler.core.request import Request, base_of
from inferbus_scheduler.core.view import ClusterView, WorkerView

INFERBUS = "inferbus"
ROUND_ROBIN = "round_robin"
LEAST_REQUESTS = "least_requests"
RANDOM = "random"
NAMES = (INFERBUS, ROUND_ROBIN, LEAST_REQUESTS, RANDOM)

# As :func:`~inferbus_scheduler.core.placement.place`.
Pick = Callable[[Request, ClusterView, Mapping[str, int], Policy, float], Placement | Rejection]


def picker(name: str, draw: Callable[[], float]) -> Pick:
    """The way to pick of that name. ``draw``: numbers in [0, 1), for ``random``. ValueError for a name not in NAMES."""
    match name:
        case "inferbus":
            return place
        case "round_robin":
            return RoundRobin().pick
        case "least_requests":
            return least_requests
        case "random":
            return lambda request, view, hits, policy, now: at_random(request, view, hits, policy, now, draw())
    raise ValueError(f"no such policy: {name}")


class RoundRobin:
    """The next eligible worker in the order of names after the one of the last time."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}

    def pick(
        self, request: Request, view: ClusterView, hits: Mapping[str, int], policy: Policy, now: float
    ) -> Placement | Rejection:
        eligible, reason = _eligible(request, view, policy, now)
        if not eligible:
            return Rejection(reason)
        last = self._last.get(request.model, "")
        names = [worker.name for worker in eligible]
        name = min((each for each in names if each > last), default=min(names))
        self._last[request.model] = name
        return Placement(name, 0.0, ROUND_ROBIN, prefix_hits=hits.get(name, 0))


def least_requests(
    request: Request, view: ClusterView, hits: Mapping[str, int], policy: Policy, now: float
) -> Placement | Rejection:
    """The eligible worker that has the fewest requests, ties by name."""
    eligible, reason = _eligible(request, view, policy, now)
    if not eligible:
        return Rejection(reason)
    name = min(eligible, key=lambda worker: (worker.active + worker.on_the_way, worker.name)).name
    return Placement(name, 0.0, LEAST_REQUESTS, prefix_hits=hits.get(name, 0))


def at_random(
    request: Request, view: ClusterView, hits: Mapping[str, int], policy: Policy, now: float, draw: float
) -> Placement | Rejection:
    """Any eligible worker, by ``draw`` in [0, 1)."""
    eligible, reason = _eligible(request, view, policy, now)
    if not eligible:
        return Rejection(reason)
    name = sorted(worker.name for worker in eligible)[int(draw * len(eligible))]
    return Placement(name, 0.0, RANDOM, prefix_hits=hits.get(name, 0))


def _eligible(request: Request, view: ClusterView, policy: Policy, now: float) -> tuple[list[WorkerView], str]:
    eligible, reason = [], NO_WORKER
    for worker in view.candidates.get(base_of(request.model), ()):
        obstacle = filter_out(request, worker, policy, now)
        if obstacle is None:
            eligible.append(worker)
        else:
            reason = closer(reason, obstacle)
    return eligible, reason
