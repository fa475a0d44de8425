"""Who asks for room, how often, and how much is taken for them: each gets its own, and nobody is paused twice."""

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.control_pb2 import EngineStatistics, Heartbeat, RunningRequests
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus_scheduler.core.fairness import Shares
from inferbus_scheduler.core.placement import Placement, Policy, place
from inferbus_scheduler.core.preemption import Victims
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.running import RunningView
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.making_room import MakingRoom

MODEL = "m"
POLICY = Policy()
# What was placed at 0 may be paused by then.
NOW = 10.0
BLOCK = 16


class Watched(Fleet):
    """Counts how often what runs is looked through."""

    looks = 0

    def lower_running(self, model: str, above: Priority, most: int = 64) -> Mapping[str, Sequence[RunningView]]:
        self.looks += 1
        return super().lower_running(model, above, most)


class Desk:
    """Workers that are full, who waits for them, and whom it pauses."""

    def __init__(self, **batch: int) -> None:
        self.fleet = Watched(heartbeat_timeout=1e9, reconnect_grace=0.0, now=0.0)
        self.queues = Queues(Shares())
        self.paused: list[RunningView] = []
        self.making_room = MakingRoom(self.fleet, self.queues, self._preempt)
        self._numbers = iter(range(1, 1_000_000))
        self._runs: dict[str, list[Request]] = {}
        for name, count in batch.items():
            self.full(name, [Priority.BATCH] * count)

    def _preempt(self, victims: Victims) -> None:
        self.paused += victims.running

    def request(self, priority: Priority = Priority.INTERACTIVE, tokens: int = 0, model: str = MODEL) -> Request:
        number = next(self._numbers)
        return Request(number.to_bytes(16, "big"), model, "t", "p", priority, 0.0, 1e9, input_tokens=tokens)

    def waits(self, *heads: Request) -> tuple[Request, ...]:
        for head in heads:
            self.queues.push(head)
        return heads

    def full(self, name: str, priorities: list[Priority], tokens: int = 0, made: int = 100, spare: int = 0) -> None:
        record = WorkerRecord(
            worker=name, boot=1, model=MODEL, capacity=len(priorities) + spare, state=WorkerState.WORKER_STATE_ACTIVE
        )
        self.fleet.registered(name, record, 0.0)
        self.fleet.heartbeat(Heartbeat(worker=name, boot=1), 0.0)
        runs = self._runs[name] = [self.request(priority, tokens) for priority in priorities]
        for sequence, each in enumerate(runs, 1):
            self.fleet.reserve(name, each, 0.0)
            self.fleet.settle(name, each.key, sequence, 0.0)
        self.beat(name, made, tokens)

    def beat(self, name: str, made: int = 100, tokens: int = 0) -> None:
        runs = self._runs[name]
        blocks = sum(-(-each.input_tokens // BLOCK) for each in runs)
        statistics = EngineStatistics(kv_blocks_total=40, kv_blocks_used=blocks, kv_block_tokens=BLOCK)
        beat = Heartbeat(
            worker=name, boot=1, active=len(runs), work_sequence=len(runs), engine=statistics if tokens else None,
            running=RunningRequests(
                request_ids=b"".join(each.request_id for each in runs), attempts=[1] * len(runs),
                output_tokens=[made] * len(runs),
            ),
        )  # fmt: skip
        self.fleet.heartbeat(beat, NOW)

    def gone(self) -> None:
        """The paused ones have been moved, and their workers say so."""
        for view in self.paused:
            self.fleet.moved(view.worker, view.key, NOW)
            self._runs[view.worker] = [each for each in self._runs[view.worker] if each.key != view.key]
        for name in self._runs:
            self.beat(name)

    def placed(self, head: Request) -> bool:
        decision = place(head, self.fleet.view, {}, POLICY, NOW)
        if not isinstance(decision, Placement):
            return False
        self.queues.take(head)
        self.fleet.reserve(decision.worker, head, NOW)
        return True


def test_two_that_wait_get_two_places_and_one_that_asks_again_gets_no_second_one() -> None:
    desk = Desk(w=4)
    first, second = desk.waits(desk.request(), desk.request())
    for now in (NOW, NOW + 0.1, NOW + 0.9, NOW + 1.9):
        for head in (first, second):
            desk.making_room.for_(head, POLICY, now)
            desk.making_room.for_(first, POLICY, now)
    assert len({view.key for view in desk.paused}) == len(desk.paused) == 2
    desk.gone()
    assert desk.placed(first)
    assert desk.placed(second)


def test_who_did_not_get_it_may_ask_again_after_a_while() -> None:
    desk = Desk(w=4)
    [head] = desk.waits(desk.request())
    for now in (NOW, NOW + 1.0, NOW + 2.1):
        desk.making_room.for_(head, POLICY, now)
    assert len(desk.paused) == 2


def test_where_nothing_may_be_paused_what_runs_is_not_looked_at() -> None:
    desk = Desk()
    desk.full("w", [Priority.INTERACTIVE, Priority.BACKGROUND])
    heads = desk.waits(desk.request(), desk.request(), desk.request(Priority.BACKGROUND))
    for head in heads:
        desk.making_room.for_(head, POLICY, NOW)
    assert desk.fleet.looks == 0
    desk.full("v", [Priority.BATCH])
    [lower] = desk.waits(desk.request(Priority.BACKGROUND))
    desk.making_room.for_(lower, POLICY, NOW)
    assert desk.fleet.looks == 0, "it is not interactive"
    assert not desk.paused


def test_what_runs_is_looked_through_a_few_times_a_second_however_many_ask_in_vain() -> None:
    desk = Desk()
    desk.full("w", [Priority.BATCH] * 4, made=1)  # too few tokens to be paused
    heads = desk.waits(*(desk.request() for _ in range(8)))
    for tenth in range(40):
        for head in heads:
            desk.making_room.for_(head, POLICY, NOW + tenth / 10)
    assert desk.fleet.looks <= 17
    assert not desk.paused


@given(st.permutations(range(3)))
def test_who_can_be_helped_is_looked_for_although_others_ask_in_vain_before_it(order: list[int]) -> None:
    desk = Desk()
    desk.full("w", [Priority.BATCH] * 4, tokens=32, spare=1)
    # Larger than all that can be paused besides what else runs there.
    desk.full("v", [Priority.INTERACTIVE, Priority.BATCH], tokens=300)
    heads = desk.waits(desk.request(tokens=9_000), desk.request(tokens=9_000), desk.request(tokens=560))
    for tenth in range(40):
        for at in order:
            desk.making_room.for_(heads[at], POLICY, NOW + tenth / 10)
    assert desk.paused


def test_room_that_one_leaves_over_is_for_the_next() -> None:
    desk = Desk()
    desk.full("w", [Priority.BATCH] * 4, tokens=140, made=20, spare=4)  # 160 tokens each: all 40 blocks
    small = desk.waits(desk.request(tokens=64), desk.request(tokens=64), desk.request(tokens=64))
    for head in small:
        desk.making_room.for_(head, POLICY, NOW)
    assert len(desk.paused) == 2, "10 blocks of the first are enough for two of 4 blocks each"


def test_an_adapter_and_its_model_ask_for_room_of_their_own() -> None:
    desk = Desk(w=3)
    record = WorkerRecord(
        worker="w", boot=1, model=MODEL, capacity=3, state=WorkerState.WORKER_STATE_ACTIVE, adapters=[f"{MODEL}:x"]
    )
    desk.fleet.registered("w", record, NOW)
    for head in desk.waits(desk.request(), desk.request(model=f"{MODEL}:x")):
        desk.making_room.for_(head, POLICY, NOW)
    assert len({view.key for view in desk.paused}) == 2


@given(
    workers=st.lists(st.lists(st.sampled_from(Priority), min_size=1, max_size=4), min_size=1, max_size=3),
    count=st.integers(1, 8),
    asks=st.lists(st.tuples(st.integers(0, 7), st.floats(0.0, 1.9)), max_size=30),
)
def test_each_gets_its_own_place_while_there_are_some_and_nobody_is_paused_twice(
    workers: list[list[Priority]], count: int, asks: list[tuple[int, float]]
) -> None:
    desk = Desk()
    for number, priorities in enumerate(workers):
        desk.full(f"w{number}", priorities)
    heads = desk.waits(*(desk.request() for _ in range(count)))
    for head in heads:
        desk.making_room.for_(head, POLICY, NOW)
    for at, after in sorted(asks, key=lambda each: each[1]):
        desk.making_room.for_(heads[at % count], POLICY, NOW + after)
    batch = sum(priorities.count(Priority.BATCH) for priorities in workers)
    assert len({view.key for view in desk.paused}) == len(desk.paused) == min(count, batch)
    assert all(view.priority is Priority.BATCH for view in desk.paused)
    desk.gone()
    assert sum(desk.placed(head) for head in heads) == min(count, batch)
    for head in heads:
        if head.key in desk.queues:
            desk.queues.remove(head.key)
    desk.making_room.prune()
    assert not desk.making_room._models
