"""Each policy by its name, on the same arrivals and the same fleet."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from inferbus_scheduler.core.affinity import PrefixIndex
from inferbus_scheduler.core.policies import NAMES, picker
from inferbus_scheduler.core.simulate.engine import Engine, WorkerKind
from inferbus_scheduler.core.simulate.generate import Draws
from inferbus_scheduler.core.simulate.measures import Measures, Summary, Targets, summarize
from inferbus_scheduler.core.simulate.pushing import (
    Pushing,
    at_random,
    least_requests,
    longest_prefix,
    round_robin,
)
from inferbus_scheduler.core.simulate.run import Deaths, Delays, Hands, Policy, Run
from inferbus_scheduler.core.simulate.scheduling import Scheduling, Settings
from inferbus_scheduler.core.simulate.trace import Arrival

Make = Callable[[Hands, Sequence[Engine]], Policy]


@dataclass(frozen=True, slots=True)
class Setup:
    """What all policies of a comparison have in common. ``weights``: of tenants; 1 where there is none."""

    kinds: Sequence[WorkerKind]
    targets: Targets = field(default_factory=Targets)
    weights: Mapping[str, float] = field(default_factory=dict)
    delays: Delays = field(default_factory=Delays)
    deaths: Deaths = field(default_factory=Deaths)
    settings: Settings = field(default_factory=Settings)


def _longest_prefix(hands: Hands, engines: Sequence[Engine]) -> Policy:
    index = PrefixIndex()
    return Pushing(hands, engines, longest_prefix(index), index)


def _make(name: str, setup: Setup, draws: Draws) -> Make:
    """ValueError for a name not in POLICIES."""
    match name:
        case "push_round_robin":
            return lambda hands, engines: Pushing(hands, engines, round_robin())
        case "push_least_requests":
            return lambda hands, engines: Pushing(hands, engines, least_requests)
        case "push_random":
            return lambda hands, engines: Pushing(hands, engines, at_random(draws))
        case "push_prefix":
            return _longest_prefix
    pick = picker(name, draws.random)
    return lambda hands, engines: Scheduling(hands, engines, pick, setup.settings, setup.weights)


POLICIES = (*NAMES, "push_round_robin", "push_least_requests", "push_random", "push_prefix")


def measure(name: str, arrivals: Iterable[Arrival], setup: Setup, draws: Draws, fates: Draws) -> tuple[Run, Measures]:
    """The run of one policy of POLICIES to its end. ``draws`` are the policy's, ``fates`` those of the deaths, so that
    policies can have the same. Equal inputs and draws give equal results."""
    run = Run(setup.kinds, _make(name, setup, draws), setup.delays, setup.deaths, fates)
    return run, run.play(arrivals)


def compare(name: str, arrivals: Iterable[Arrival], setup: Setup, draws: Draws, fates: Draws) -> Summary:
    """What came of it."""
    run, measures = measure(name, arrivals, setup, draws, fates)
    hours = run.now / 3600
    workers = len(run.engines)
    return summarize(
        name,
        measures,
        seconds=max(measures.arrived_at, default=0.0),
        targets=setup.targets,
        weights=setup.weights,
        cost=sum(engine.kind.cost_per_hour for engine in run.engines) * hours,
        busy_share=sum(engine.busy_seconds for engine in run.engines) / (workers * run.now) if run.now else 0.0,
    )
