"""Recorded decisions judged again by another policy: what it would have chosen from the same candidates."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from inferbus.bus.v1.decision_pb2 import DecisionOutcome, PlacementDecisions

from inferbus_scheduler.core.placement import Policy, judge
from inferbus_scheduler.core.request import Priority, Request, base_of
from inferbus_scheduler.core.view import WorkerView

# Of the KV cache only the used share was recorded, in thousandths. With blocks this large what is left always suffices:
# whoever was recorded as a candidate had room.
_BLOCKS = 1000
_BLOCK_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Chosen:
    """Means over choices: chunks of the prompt that the worker held, its load in [0, 1], tokens it had yet to read."""

    prefix_chunks: float = 0.0
    load: float = 0.0
    prefill_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Replay:
    """``decisions``: placements; ``choices``: those with several candidates; ``same``: those the policy makes, too."""

    decisions: int
    choices: int
    same: int
    recorded: Chosen
    other: Chosen


@dataclass(frozen=True, slots=True)
class Recorded:
    """One placement with what was known of its candidates, the chosen one first."""

    request: Request
    workers: tuple[WorkerView, ...]
    hits: dict[str, int]


def replay(messages: Iterable[PlacementDecisions], policy: Policy) -> Replay:
    """Equal messages and policies give equal results."""
    decisions = same = 0
    pairs: list[tuple[Recorded, str]] = []
    for message in messages:
        for recorded in placements(message):
            decisions += 1
            if len(recorded.workers) < 2:
                continue
            best = judge(recorded.request, recorded.workers, recorded.hits, policy, 0.0)[0]
            # Where it takes none of them it would have waited: that is another choice, of nobody.
            name = best.worker if best.eligible else ""
            same += name == recorded.workers[0].name
            pairs.append((recorded, name))
    return Replay(
        decisions=decisions,
        choices=len(pairs),
        same=same,
        recorded=_means((recorded, recorded.workers[0].name) for recorded, _ in pairs),
        other=_means((recorded, name) for recorded, name in pairs if name),
    )


def placements(message: PlacementDecisions) -> Iterator[Recorded]:
    """The columns of a message as records; ValueError if they contradict each other."""
    start = 0
    for at, outcome in enumerate(message.outcomes):
        count = _at(message.candidates, at)
        end = start + count
        if end > len(message.workers):
            raise ValueError("a message of decisions has fewer candidates than it says")
        if outcome == DecisionOutcome.DECISION_OUTCOME_PLACED and count:
            names = [message.names[message.workers[column]] for column in range(start, end)]
            workers = tuple(
                _worker(message, column, name) for column, name in zip(range(start, end), names, strict=True)
            )
            hits = {name: _at(message.prefix_hits, start + number) for number, name in enumerate(names)}
            yield Recorded(_request(message, at), workers, {name: held for name, held in hits.items() if held})
        start = end


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


def _worker(message: PlacementDecisions, column: int, name: str) -> WorkerView:
    used = _at(message.kv_permille, column)
    return WorkerView(
        name=name,
        boot=0,
        model=base_of(message.model),
        capacity=_at(message.capacities, column),
        active=_at(message.actives, column),
        on_the_way=0,
        draining=False,
        alive_until=float("inf"),
        adapters=frozenset((message.model,)),
        kv_blocks=_BLOCKS,
        kv_blocks_used=used,
        kv_block_tokens=_BLOCK_TOKENS,
        prefill_tokens=_at(message.prefill_tokens, column),
    )


def _means(chosen: Iterable[tuple[Recorded, str]]) -> Chosen:
    count = chunks = tokens = 0
    load = 0.0
    for recorded, name in chosen:
        worker = next(each for each in recorded.workers if each.name == name)
        count += 1
        chunks += recorded.hits.get(name, 0)
        load += worker.load
        tokens += worker.prefill_tokens
    return Chosen(chunks / count, load / count, tokens / count) if count else Chosen()


def _at(column: Sequence[int], at: int) -> int:
    """A column that holds nothing but its default is left out."""
    return column[at] if at < len(column) else 0
