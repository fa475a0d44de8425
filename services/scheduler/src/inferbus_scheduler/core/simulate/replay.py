"""Recorded decisions judged again with other weights: what they would have chosen from the same candidates.

Who could be chosen is taken as it was recorded: weights change no filter. What a worker costs is not recorded; it is
worked out of its scores, of which all other parts are. Not known at all are zones and whom a request avoids, by which
equals are told apart: of equals the recorded choice stands.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from inferbus.bus.v1.decision_pb2 import DecisionOutcome, PlacementDecisions

from inferbus_scheduler.core.placement import Policy
from inferbus_scheduler.core.request import Priority, Request, base_of
from inferbus_scheduler.core.score import Weights, alone, for_prefix
from inferbus_scheduler.core.view import WorkerView

# Of the KV cache only the used share was recorded, in thousandths.
_BLOCKS = 1000
# Scores nearer than this are equal: so exact is what was recorded of their parts.
_EQUAL = 5e-4
# The part of the score that a cost gives, to this many digits, and how far off it may come out of rounded numbers.
_COST_DIGITS = 3
_COST_SLACK = 0.02
# Parts nearer than this are of equal costs.
_COST_EQUAL = 5e-3


@dataclass(frozen=True, slots=True)
class Chosen:
    """Means over choices: chunks of the prompt that the worker held, its load in [0, 1], tokens it had yet to read,
    what an hour of one of its slots costs."""

    prefix_chunks: float = 0.0
    load: float = 0.0
    prefill_tokens: float = 0.0
    slot_cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Replay:
    """``decisions``: placements; ``choices``: those with several candidates that could be chosen; ``same``: those that
    the policy makes, too. ``costs``: whether the scores say what workers cost; otherwise all count as equally dear.
    ``costs_differ``: whether some are dearer than others by them."""

    decisions: int
    choices: int
    same: int
    recorded: Chosen
    other: Chosen
    costs: bool
    costs_differ: bool


@dataclass(frozen=True, slots=True)
class Recorded:
    """One placement with what was known of the candidates that could be chosen, the chosen one first. ``scores``: as
    they were recorded; empty if they were not."""

    request: Request
    workers: tuple[WorkerView, ...]
    hits: Mapping[str, int]
    scores: tuple[float, ...]


def replay(messages: Iterable[PlacementDecisions], policy: Policy, recorded_with: Weights | None = None) -> Replay:
    """``recorded_with``: the weights of the scheduler that decided, None: its own. Equal messages and policies give
    equal results."""
    found = [recorded for message in messages for recorded in placements(message)]
    recorded_with = recorded_with or Weights()
    costs = slot_costs(found, recorded_with)
    same = 0
    pairs: list[tuple[int, WorkerView, int, WorkerView]] = []
    for recorded in found:
        if len(recorded.workers) < 2:
            continue
        workers = [
            replace(one, cost_per_hour=costs.get(one.name, 0.0) * one.capacity) if costs else one
            for one in recorded.workers
        ]
        best = _best(workers, recorded.hits, policy.weights)
        same += best is workers[0]
        pairs.append((recorded.hits.get(workers[0].name, 0), workers[0], recorded.hits.get(best.name, 0), best))
    return Replay(
        decisions=len(found),
        choices=len(pairs),
        same=same,
        recorded=_means([(hits, worker) for hits, worker, _, _ in pairs]),
        other=_means([(hits, worker) for _, _, hits, worker in pairs]),
        costs=costs is not None,
        costs_differ=_differ(costs or {}, recorded_with),
    )


def slot_costs(found: Iterable[Recorded], weights: Weights) -> dict[str, float] | None:
    """What an hour of one slot of each worker costs, by its scores; None if they do not say it: they are not there, or
    were made with other weights."""
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for recorded in found:
        for worker, score in zip(recorded.workers, recorded.scores, strict=False):
            # A worker without a cost has one half of its weight for it.
            rest = alone(worker, weights) + for_prefix(recorded.hits.get(worker.name, 0), weights)
            if weights.cost:
                parts[worker.name].append(0.5 + (score - rest) * weights.total / weights.cost)
    usual = {name: median(values) for name, values in parts.items()}
    if not usual or any(abs(part - 0.5) > 0.5 + _COST_SLACK for part in usual.values()):
        return None
    exact = {name: min(1.0, max(10**-_COST_DIGITS, round(part, _COST_DIGITS))) for name, part in usual.items()}
    return {name: weights.cost_scale * (1 - part) / part for name, part in exact.items()}


def _differ(costs: Mapping[str, float], weights: Weights) -> bool:
    parts = [weights.cost_scale / (weights.cost_scale + cost) for cost in costs.values()]
    return bool(parts) and max(parts) - min(parts) > _COST_EQUAL


def placements(message: PlacementDecisions) -> Iterator[Recorded]:
    """The columns of a message as records; ValueError if they contradict each other."""
    start = 0
    for at, outcome in enumerate(message.outcomes):
        end = start + _at(message.candidates, at)
        if end > len(message.workers):
            raise ValueError("a message of decisions has fewer candidates than it says")
        if outcome == DecisionOutcome.DECISION_OUTCOME_PLACED and end > start:
            # What could not be chosen has no score; the first one was.
            able = [one for one in range(start, end) if one == start or not message.scores or message.scores[one] > 0]
            workers = tuple(_worker(message, column) for column in able)
            held = {
                worker.name: hits
                for worker, column in zip(workers, able, strict=True)
                if (hits := _at(message.prefix_hits, column))
            }
            scores = tuple(message.scores[column] for column in able) if message.scores else ()
            yield Recorded(_request(message, at), workers, held, scores)
        start = end


def _best(workers: Sequence[WorkerView], hits: Mapping[str, int], weights: Weights) -> WorkerView:
    """The first of those that are as good as any."""
    scores = [alone(worker, weights) + for_prefix(hits.get(worker.name, 0), weights) for worker in workers]
    enough = max(scores) - _EQUAL
    return next(worker for worker, score in zip(workers, scores, strict=True) if score >= enough)


def _request(message: PlacementDecisions, at: int) -> Request:
    return Request(
        request_id=message.request_ids[16 * at : 16 * at + 16],
        model=message.model,
        tenant=message.names[_at(message.tenants, at)] if message.tenants else "",
        project="",
        priority=Priority(_at(message.classes, at) or Priority.INTERACTIVE),
        arrived_at=0.0,
        expires_at=float("inf"),
        attempt=_at(message.attempts, at) or 1,
        input_tokens=_at(message.input_tokens, at),
        output_tokens=_at(message.output_tokens, at),
    )


def _worker(message: PlacementDecisions, column: int) -> WorkerView:
    used = _at(message.kv_permille, column)
    return WorkerView(
        name=message.names[message.workers[column]],
        boot=0,
        model=base_of(message.model),
        capacity=_at(message.capacities, column),
        active=_at(message.actives, column),
        on_the_way=0,
        draining=False,
        alive_until=float("inf"),
        adapters=frozenset((message.model,)),
        # 0 is what is not known, or of a worker that runs nothing: of that the slots say the same.
        kv_blocks=_BLOCKS if used else 0,
        kv_blocks_used=used,
        kv_block_tokens=1 if used else 0,
        prefill_tokens=_at(message.prefill_tokens, column),
    )


def _means(chosen: Sequence[tuple[int, WorkerView]]) -> Chosen:
    count = len(chosen)
    if not count:
        return Chosen()
    return Chosen(
        prefix_chunks=sum(hits for hits, _ in chosen) / count,
        load=sum(worker.load for _, worker in chosen) / count,
        prefill_tokens=sum(worker.prefill_tokens for _, worker in chosen) / count,
        slot_cost=sum(worker.cost_per_hour / max(1, worker.capacity) for _, worker in chosen) / count,
    )


def _at(column: Sequence[int], at: int) -> int:
    """A column that holds nothing but its default is left out."""
    return column[at] if at < len(column) else 0
