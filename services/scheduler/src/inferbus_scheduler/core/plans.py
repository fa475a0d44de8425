"""What each model's workers should be, before any budget: one entry for all of them, or one for each revision. Pure."""

from collections.abc import Mapping, Set
from dataclasses import dataclass

from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.core.dividing import Shares, divide
from inferbus_scheduler.core.residency import Unit
from inferbus_scheduler.core.scaling import REVISIONS, Desired


@dataclass(frozen=True, slots=True)
class Plan:
    """``wanted``: before the bounds of its deployment. ``floor``: of ``replicas``, those that never make room for
    another model. ``decided``: it is told, and not only counted. ``disposable``: another revision takes its place."""

    unit: Unit
    replicas: int
    wanted: int
    reason: str
    floor: int
    decided: bool = True
    disposable: bool = False


def plans_of(
    model: str,
    deployment: Deployment | None,
    wish: Desired | None,
    shares: Shares,
    *,
    taking: Mapping[str, int],
    leaving: Mapping[str, int],
    decided: Set[str],
    fixed: int,
) -> list[Plan]:
    """``deployment`` and ``wish`` None: nobody scales it, and it has ``fixed`` workers. ``taking``, ``leaving``: its
    workers by revision. ``decided``: revisions that were to have some by the last decision."""
    least = deployment.min_replicas if deployment is not None else fixed
    if not shares:
        if wish is None:
            return [Plan((model, ""), fixed, fixed, "", fixed, decided=False)]
        return [Plan((model, ""), wish.replicas, wish.wanted, wish.reason, least)]
    total, reason = (fixed, REVISIONS) if wish is None else (wish.replicas, wish.reason or REVISIONS)
    parts = divide(total, shares)
    floors = divide(least, shares) if least or len(shares) > 1 else dict.fromkeys(parts, 0)
    plans = [
        Plan((model, revision), parts[revision], parts[revision], reason, floors[revision]) for revision, _ in shares
    ]
    # Whoever serves goes on until one of those that are to serve is there.
    served = any(taking.get(revision) for revision, _ in shares) or not any(parts.values())
    for revision in sorted((taking.keys() | leaving.keys() | decided) - parts.keys() - {""}):
        keep = 0 if served else taking.get(revision, 0)
        plans.append(Plan((model, revision), keep, keep, REVISIONS, 0, decided=served, disposable=True))
    return plans
