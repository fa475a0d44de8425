"""How many workers each model has, and how full they are together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from inferbus_scheduler.core.request import base_of
from inferbus_scheduler.core.residency import Unit
from inferbus_scheduler.core.view import WorkerView


class Fleet(Protocol):
    """What is needed of it: all with a lease, as a decision would see them."""

    def views(self) -> Iterable[WorkerView]: ...


@dataclass(slots=True)
class Workers:
    """Of one model: those that are alive. All but ``leaving`` is of those that take work."""

    taking: int = 0
    leaving: int = 0
    slots: int = 0
    running: int = 0
    kv_blocks: int = 0
    kv_blocks_used: int = 0


@dataclass(slots=True)
class Headcount:
    """``workers`` by model, and by model and revision; ``unit_of`` each incarnation (name, boot)."""

    workers: dict[str, Workers] = field(default_factory=dict)
    revisions: dict[Unit, Workers] = field(default_factory=dict)
    unit_of: dict[tuple[str, int], Unit] = field(default_factory=dict)

    def of(self, unit: Unit) -> Workers:
        """All workers of a model, or those of one revision of it."""
        model, revision = unit
        return (self.revisions.get(unit) if revision else self.workers.get(model)) or Workers()


def count(fleet: Fleet) -> Headcount:
    """As of now. Who was never heard is not alive yet."""
    counted = Headcount()
    for view in fleet.views():
        if view.alive_until == float("-inf"):
            continue
        model = base_of(view.model)
        unit = counted.unit_of[view.name, view.boot] = model, view.revision
        _add(counted.workers.setdefault(model, Workers()), view)
        _add(counted.revisions.setdefault(unit, Workers()), view)
    return counted


def _add(workers: Workers, view: WorkerView) -> None:
    if view.draining:
        workers.leaving += 1
        return
    workers.taking += 1
    workers.slots += view.capacity
    workers.running += view.active + view.on_the_way
    workers.kv_blocks += view.kv_blocks
    workers.kv_blocks_used += view.kv_blocks_used
