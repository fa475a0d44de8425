"""The account of room against the truth: whatever is late or lost, no worker is given more than it can run."""

from bisect import bisect_right

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from inferbus.bus.v1.control_pb2 import EngineStatistics, GpuStatus, Heartbeat
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus_scheduler.core.placement import Placement, place
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.view import by_load
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.servicer import _fleet_worker

NAMES = ("w1", "w2", "w3")
MODEL = "m"


def record(name: str, capacity: int = 2, boot: int = 1, **fields: object) -> WorkerRecord:
    return WorkerRecord(
        **{
            "worker": name, "boot": boot, "model": MODEL, "capacity": capacity,
            "state": WorkerState.WORKER_STATE_ACTIVE, **fields,
        }
    )  # fmt: skip


def fleet_of(*names: str, now: float = 0.0, capacity: int = 2) -> Fleet:
    fleet = Fleet(heartbeat_timeout=3.0, reconnect_grace=5.0, now=now)
    for name in names:
        fleet.registered(name, record(name, capacity), now)
        fleet.heartbeat(Heartbeat(worker=name, boot=1), now)
    return fleet


def decide(fleet: Fleet, now: float = 0.0):
    return place(Request(b"", MODEL, "t", Priority.INTERACTIVE, now, now + 60), fleet.view, now)


class Truth:
    """What really is with one worker."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.unanswered: list[bytes] = []  # published; the answer is still to come
        self.on_work: list[int] = []  # stored on WORK, not taken over
        self.active: list[int] = []
        self.work_sequence = 0

    @property
    def outstanding(self) -> int:
        return len(self.unanswered) + len(self.on_work) + len(self.active)


class FleetMachine(RuleBasedStateMachine):
    """Publishes are answered late, heartbeats are lost and come when they like (but in order: one connection)."""

    @initialize(capacities=st.tuples(*[st.integers(1, 3)] * len(NAMES)))
    def start(self, capacities: tuple[int, ...]) -> None:
        self.now = 0.0
        self.fleet = Fleet(heartbeat_timeout=1e9, reconnect_grace=5.0, now=0.0)
        self.truth = dict(zip(NAMES, map(Truth, capacities), strict=True))
        # Stored on WORK before the scheduler has its answer: the worker may be quicker than the answer.
        self.sequence = 0
        self.answers: list[tuple[str, bytes, int]] = []
        self.beats: dict[str, list[Heartbeat]] = {name: [] for name in NAMES}
        self.count = 0
        for name, truth in self.truth.items():
            self.fleet.registered(name, record(name, truth.capacity), 0.0)
            self.fleet.heartbeat(Heartbeat(worker=name, boot=1), 0.0)

    @rule()
    def place_one(self) -> None:
        decision = decide(self.fleet, self.now)
        if isinstance(decision, Placement):
            self.count += 1
            self.sequence += 1
            request_id = self.count.to_bytes(16, "big")
            self.fleet.reserve(decision.worker, request_id, self.now)
            self.truth[decision.worker].on_work.append(self.sequence)
            self.answers.append((decision.worker, request_id, self.sequence))

    @precondition(lambda self: self.answers)
    @rule()
    def answer(self) -> None:
        name, request_id, sequence = self.answers.pop(0)
        self.fleet.settle(name, request_id, sequence, self.now)

    @rule(name=st.sampled_from(NAMES))
    def take_over(self, name: str) -> None:
        truth = self.truth[name]
        if truth.on_work:
            truth.work_sequence = truth.on_work.pop(0)
            truth.active.append(truth.work_sequence)

    @rule(name=st.sampled_from(NAMES))
    def finish(self, name: str) -> None:
        if self.truth[name].active:
            self.truth[name].active.pop(0)

    @rule(name=st.sampled_from(NAMES))
    def send_heartbeat(self, name: str) -> None:
        truth = self.truth[name]
        self.beats[name].append(
            Heartbeat(worker=name, boot=1, active=len(truth.active), work_sequence=truth.work_sequence)
        )

    @rule(name=st.sampled_from(NAMES), lost=st.booleans())
    def heartbeat_arrives(self, name: str, lost: bool) -> None:
        if self.beats[name]:
            beat = self.beats[name].pop(0)
            if not lost:
                self.fleet.heartbeat(beat, self.now)

    @invariant()
    def no_worker_has_more_than_it_can_run(self) -> None:
        for name, truth in getattr(self, "truth", {}).items():
            assert truth.outstanding <= truth.capacity, name

    @invariant()
    def the_index_is_in_order_and_says_what_the_accounts_say(self) -> None:
        if hasattr(self, "fleet"):
            candidates = list(self.fleet.view.candidates[MODEL])
            assert candidates == sorted(candidates, key=by_load)
            assert set(candidates) == set(self.fleet.views())

    def teardown(self) -> None:
        """When all is said, all room is there again: nothing is lost."""
        if not hasattr(self, "fleet"):
            return
        while self.answers:
            self.answer()
        for name, truth in self.truth.items():
            while truth.on_work:
                self.take_over(name)
            truth.active.clear()
            self.fleet.heartbeat(Heartbeat(worker=name, boot=1, work_sequence=truth.work_sequence), self.now)
        assert all(view.room == view.capacity for view in self.fleet.views())


TestFleetMachine = FleetMachine.TestCase
TestFleetMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


def test_a_worker_counts_only_after_its_first_heartbeat() -> None:
    fleet = Fleet(heartbeat_timeout=3.0, reconnect_grace=5.0, now=0.0)
    rooms: list[str] = []
    fleet.on_room = rooms.append
    fleet.registered("w1", record("w1"), 0.0)
    assert not fleet.serves(MODEL)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1), 1.0)
    assert rooms == [MODEL]
    assert isinstance(decide(fleet, 1.0), Placement)


def test_room_is_told_when_it_grows_and_only_then() -> None:
    fleet = fleet_of("w1", capacity=2)
    rooms: list[str] = []
    fleet.on_room = rooms.append
    for number in range(2):
        fleet.reserve("w1", bytes([number]), 0.0)
        fleet.settle("w1", bytes([number]), number + 1, 0.0)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=2, work_sequence=2), 1.0)
    assert rooms == []
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1, work_sequence=2), 1.0)
    assert rooms == [MODEL]


def test_a_heartbeat_of_another_boot_says_nothing() -> None:
    fleet = fleet_of("w1", capacity=1)
    fleet.heartbeat(Heartbeat(worker="w1", boot=7, active=1), 0.0)
    assert isinstance(decide(fleet), Placement)


def test_gpus_are_as_they_were_told_last() -> None:
    fleet = fleet_of("w1")
    for gpus in ([GpuStatus(uuid="GPU-a", utilization=0.5)], [], [GpuStatus(uuid="GPU-a", fault="ecc")], []):
        fleet.heartbeat(Heartbeat(worker="w1", boot=1, gpus=gpus), 0.0)
    (worker,) = fleet.workers()
    (gpu,) = worker.gpus
    assert (gpu.fault, gpu.HasField("utilization")) == ("ecc", False)
    assert _fleet_worker(worker, 0.0).gpus[0] == gpu


def test_an_engine_is_as_the_last_heartbeat_said() -> None:
    fleet = fleet_of("w1")
    (worker,) = fleet.workers()
    told = EngineStatistics(running=2, kv_blocks_used=0)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, engine=told), 0.0)
    shown = _fleet_worker(worker, 0.0)
    assert shown.engine == told
    assert (shown.engine.HasField("kv_blocks_used"), shown.engine.HasField("kv_blocks_total")) == (True, False)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1), 0.0)
    assert not _fleet_worker(worker, 0.0).HasField("engine"), "not known any more"


def test_another_boot_begins_with_an_empty_account() -> None:
    fleet = fleet_of("w1", capacity=1)
    fleet.reserve("w1", b"1", 0.0)
    fleet.settle("w1", b"1", 5, 0.0)
    fleet.reserve("w1", b"2", 0.0)
    fleet.registered("w1", record("w1", capacity=3, boot=2), 0.0)
    fleet.heartbeat(Heartbeat(worker="w1", boot=2), 0.0)
    [worker] = fleet.workers()
    assert worker.on_the_way == 1, "what is being published still comes"
    fleet.settle("w1", b"2", 6, 0.0)
    assert bisect_right(worker.placed, 6) == 1


def test_silence_takes_a_worker_out_but_not_while_the_broker_is_away() -> None:
    fleet = fleet_of("w1", "w2")
    fleet.heartbeat(Heartbeat(worker="w2", boot=1), 4.0)
    fleet.sweep(5.0)
    assert [view.name for view in fleet.view.candidates[MODEL]] == ["w2"]
    fleet.bus_away()
    fleet.sweep(100.0)
    fleet.lease_ended("w2", 100.0)
    assert fleet.serves(MODEL)
    fleet.bus_back(101.0)
    fleet.lease_ended("w2", 101.5)
    assert isinstance(decide(fleet, 102.0), Placement), "leases that ran out meanwhile may be renewed"
    fleet.registered("w2", record("w2"), 103.0)
    fleet.heartbeat(Heartbeat(worker="w2", boot=1), 107.0)
    fleet.sweep(108.0)
    assert [view.name for view in fleet.view.candidates[MODEL]] == ["w2"]
    fleet.lease_ended("w2", 108.0)
    assert fleet.unserved_since(MODEL) == 108.0
    assert not fleet.takes_work("w2")


def test_grace_ends() -> None:
    fleet = fleet_of("w1")
    fleet.bus_away()
    fleet.bus_back(10.0)
    fleet.lease_ended("w1", 11.0)
    fleet.sweep(20.0)
    assert not fleet.takes_work("w1")
    assert not list(fleet.workers())


def test_who_drains_is_no_candidate_and_a_foreign_name_is_no_worker() -> None:
    fleet = fleet_of("w1")
    fleet.registered("w1", record("w1", state=WorkerState.WORKER_STATE_DRAINING), 0.0)
    fleet.registered("w9", record("w8"), 0.0)
    assert not fleet.serves(MODEL)
    assert [worker.record.worker for worker in fleet.workers()] == ["w1"]
    assert fleet.knows_model(MODEL)
