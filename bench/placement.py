"""Placements a second, and microseconds each, at 10, 100 and 1,000 workers: the scheduler's decision by itself.

A round is what the dispatcher does for one request: find who holds its prefix, decide, and count the placement (which
puts the worker at its new place in the order). A heartbeat puts a worker there, too. Workers are heard and generations
end as fast as new ones are placed, so that the fleet stays about half full. Nothing is published. The times are CPU
times, so that a busy machine changes little.
"""

import random
import time
from collections import deque
from dataclasses import dataclass
from itertools import count

from inferbus.bus.v1.control_pb2 import CacheEvents, EngineStatistics, Heartbeat
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus_contracts.prefixes import packed
from inferbus_scheduler.core.placement import Placement, Policy, place
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.fleet import Fleet

from bench.measure import percentile, table

MODEL = "m"
CAPACITY = 64
# Chunks: a system prompt that everybody shares, and the turns of a conversation that one worker has read.
SHARED, TURNS = 12, 20
CONVERSATIONS_PER_WORKER = 50


@dataclass(slots=True)
class Round:
    """Microseconds of one round, by step."""

    match: float
    place: float
    account: float

    @property
    def whole(self) -> float:
        return self.match + self.place + self.account


class Bench:
    """A fleet under a steady load."""

    def __init__(self, workers: int, *, prefixes: bool) -> None:
        self.draw = random.Random(workers)
        self.fleet = Fleet(heartbeat_timeout=1e9, reconnect_grace=0.0, now=0.0)
        self.names = [f"worker-{number:04d}" for number in range(workers)]
        self.numbers = count(1)
        self.sequences = dict.fromkeys(self.names, 0)
        self.running: dict[str, deque[bytes]] = {name: deque() for name in self.names}
        self.prefixes = prefixes
        self.system = self._hashes(SHARED)
        self.conversations: list[tuple[int, ...]] = []
        for name in self.names:
            zone = f"zone-{self.draw.randrange(3)}"
            self.fleet.registered(name, record(name, zone), 0.0)
            self._beat(name, [])
            if prefixes:
                self._tell(name)

    def round(self) -> Round:
        request = self._request()
        began = time.thread_time()
        hits = self.fleet.matches(request)
        matched = time.thread_time()
        decision = place(request, self.fleet.view, hits, Policy(), 0.0)
        placed = time.thread_time()
        if not isinstance(decision, Placement):
            raise AssertionError(decision.reason)
        name = decision.worker
        self.sequences[name] += 1
        self.fleet.reserve(name, request, 0.0, decision.prefix_hits)
        self.fleet.settle(name, request.key, self.sequences[name], 0.0)
        counted = time.thread_time()
        self.running[name].append(request.request_id)
        return Round((matched - began) * 1e6, (placed - matched) * 1e6, (counted - placed) * 1e6)

    def heartbeat(self) -> float:
        """A worker takes over what is on its way, and what is above half of its capacity ends; microseconds."""
        name = self.draw.choice(self.names)
        running = self.running[name]
        over = [running.popleft() for _ in range(max(0, len(running) - CAPACITY // 2))]
        began = time.thread_time()
        self._beat(name, over)
        return (time.thread_time() - began) * 1e6

    def _beat(self, name: str, over: list[bytes]) -> None:
        active = len(self.running[name])
        engine = EngineStatistics(
            kv_blocks_total=20_000, kv_blocks_used=active * 60, kv_block_tokens=16, step_seconds=0.02
        )
        sequence = self.sequences[name]
        ended = b"".join(over)
        beat = Heartbeat(worker=name, boot=1, active=active, work_sequence=sequence, ended_ids=ended, engine=engine)
        self.fleet.heartbeat(beat, 0.0)

    def _tell(self, name: str) -> None:
        own = [self._hashes(TURNS) for _ in range(CONVERSATIONS_PER_WORKER)]
        self.conversations += [self.system + turns for turns in own]
        stored = packed([*self.system, *(one for turns in own for one in turns)])
        self.fleet.cache_events(CacheEvents(worker=name, boot=1, sequence=1, stored=stored, all=True), 0.0)

    def _request(self) -> Request:
        number = next(self.numbers)
        prefix: tuple[int, ...] = ()
        if self.prefixes:
            # Half go on with a conversation, half begin one: those find the system prompt with everybody.
            prefix = self.draw.choice(self.conversations) if number % 2 else self.system + self._hashes(2)
        return Request(
            number.to_bytes(16, "big"), MODEL, "tenant", "project", Priority.INTERACTIVE, 0.0, 1e9,
            input_tokens=500, output_tokens=200, prefix=prefix,
        )  # fmt: skip

    def _hashes(self, chunks: int) -> tuple[int, ...]:
        return tuple(self.draw.getrandbits(64) for _ in range(chunks))


def record(name: str, zone: str) -> WorkerRecord:
    active = WorkerState.WORKER_STATE_ACTIVE
    return WorkerRecord(worker=name, boot=1, model=MODEL, capacity=CAPACITY, state=active, zone=zone)


def measured(workers: int, prefixes: bool, rounds: int) -> list[object]:
    bench = Bench(workers, prefixes=prefixes)
    found: list[Round] = []
    beats: list[float] = []
    # First until the fleet is about half full.
    for number in range(workers * CAPACITY // 2 + rounds):
        one = bench.round()
        if number >= workers * CAPACITY // 2:
            found.append(one)
        beats.append(bench.heartbeat())
    whole = [one.whole for one in found]
    mean = sum(whole) / len(whole)
    parts = " + ".join(f"{sum(getattr(one, name) for one in found) / len(found):.1f}" for name in Round.__slots__)
    return [
        f"{workers:,}", "yes" if prefixes else "no", f"{1e6 / mean:,.0f}", f"{mean:.1f}", parts,
        f"{percentile(whole, 0.5):.1f} / {percentile(whole, 0.99):.1f}",
        f"{sum(beats[-rounds:]) / rounds:.1f}",
    ]  # fmt: skip


async def run(rounds: int = 10_000, levels: tuple[int, ...] = (10, 100, 1000)) -> str:
    rows = [measured(workers, prefixes, rounds) for workers in levels for prefixes in (False, True)]
    head = [
        "workers", "prefixes", "placements a second", "us each", "match + place + account", "p50 / p99 us",
        "us a heartbeat",
    ]  # fmt: skip
    title = "(j) One placement: who holds its prefix, the decision, the account; one core, half full, three zones"
    return table(title, head, rows)
