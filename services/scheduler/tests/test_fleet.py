"""The account of room against the truth: whatever is late or lost, no worker is given more than it can run."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from inferbus.bus.v1.control_pb2 import CacheEvents, EngineStatistics, GpuStatus, Heartbeat, RunningRequests, Served
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus_contracts.prefixes import packed
from inferbus_runtime import clock
from inferbus_scheduler.core.placement import Placement, Policy, Rejection, place
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.running import RunningView
from inferbus_scheduler.core.score import alone
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


def request(number: int = 0, **fields: Any) -> Request:
    priority = fields.pop("priority", Priority.INTERACTIVE)
    return Request(number.to_bytes(16, "big"), MODEL, "t", "p", priority, 0.0, 60.0, **fields)


def decide(fleet: Fleet, now: float = 0.0, asked: Request | None = None) -> Placement | Rejection:
    asked = asked if asked is not None else request()
    return place(asked, fleet.view, fleet.matches(asked), Policy(), now)


def gone_from(fleet: Fleet) -> list[tuple[str, int, str]]:
    gone: list[tuple[str, int, str]] = []
    fleet.on_gone = lambda *said: gone.append(said)
    return gone


def placed(fleet: Fleet, name: str, number: int, now: float = 0.0, sequence: int = 0, **fields: Any) -> Request:
    asked = request(number, **fields)
    fleet.reserve(name, asked, now)
    if sequence:
        fleet.settle(name, asked.key, sequence, now)
    return asked


def only(fleet: Fleet) -> Any:
    [view] = fleet.views()
    return view


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
            asked = request(self.count)
            self.fleet.reserve(decision.worker, asked, self.now)
            self.truth[decision.worker].on_work.append(self.sequence)
            self.answers.append((decision.worker, asked.key, self.sequence))

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
            weights = self.fleet.view.weights
            with_room = [view for view in candidates if view.room]
            assert with_room == sorted(with_room, key=lambda view: (-alone(view, weights), view.name))
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
        placed(fleet, "w1", number, sequence=number + 1)
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


def test_another_boot_begins_with_an_empty_account_and_the_work_of_the_first_is_to_be_moved() -> None:
    fleet = fleet_of("w1", capacity=1)
    gone, ended = gone_from(fleet), list[RunningView]()
    fleet.on_ended = ended.append
    one, two = placed(fleet, "w1", 1, sequence=5), placed(fleet, "w1", 2)
    fleet.registered("w1", record("w1", capacity=3, boot=2), 0.0)
    assert gone == [("w1", 1, "worker_lost")]
    assert sorted(each.key for each in ended) == [one.key, two.key]
    fleet.heartbeat(Heartbeat(worker="w1", boot=2), 0.0)
    assert only(fleet).room == 3
    fleet.settle("w1", two.key, 6, 0.0)
    assert only(fleet).room == 3, "what was published for the first one never comes to the second"
    assert (fleet.knows("w1", 1), fleet.knows("w1", 2)) == (False, True)


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


def test_what_ends_is_told_and_what_was_told_while_nobody_heard_it_is_found_out() -> None:
    fleet = fleet_of("w1", capacity=4)
    ended: list[RunningView] = []
    fleet.on_ended = ended.append
    one, two, three = (placed(fleet, "w1", number, sequence=number) for number in (1, 2, 3))
    beat = Heartbeat(worker="w1", boot=1, active=2, work_sequence=2, ended_ids=one.request_id)
    fleet.heartbeat(beat, 1.0)
    assert [each.key for each in ended] == [one.key]
    running = RunningRequests(request_ids=three.request_id, attempts=[1], output_tokens=[7])
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1, work_sequence=3, running=running), 2.0)
    assert [each.key for each in ended] == [one.key, two.key]
    [left] = fleet.running("w1")
    assert (left.key, left.sequence, left.output_tokens) == (three.key, 3, 7)


def test_a_generation_that_ends_before_its_publish_is_answered_is_not_kept() -> None:
    fleet = fleet_of("w1")
    quick = placed(fleet, "w1", 1)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, work_sequence=4, ended_ids=quick.request_id), 1.0)
    assert only(fleet).on_the_way == 1
    fleet.settle("w1", quick.key, 4, 1.0)
    assert (only(fleet).room, fleet.running("w1")) == (2, ())


def test_the_end_of_an_earlier_attempt_is_not_that_of_the_next_one_on_the_same_worker() -> None:
    fleet = fleet_of("w1")
    first = placed(fleet, "w1", 1, sequence=1)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1, work_sequence=1), 1.0)
    fleet.moved("w1", first.key, 1.0)
    assert fleet.running("w1") == ()
    again = placed(fleet, "w1", 1, attempt=2, sequence=2)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, work_sequence=1, ended_ids=first.request_id), 2.0)
    [left] = fleet.running("w1")
    assert left.key == again.key


def test_tokens_that_are_promised_take_their_room_until_the_engine_shows_them() -> None:
    fleet = fleet_of("w1", capacity=8)
    engine = EngineStatistics(kv_blocks_total=100, kv_blocks_used=0, kv_block_tokens=10, step_seconds=0.02)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, engine=engine), 0.0)
    large = request(1, input_tokens=300, output_tokens=400)
    fleet.reserve("w1", large, 0.0)
    assert isinstance(decide(fleet, asked=request(2, input_tokens=400)), Rejection)
    fleet.settle("w1", large.key, 1, 0.0)
    used = EngineStatistics(kv_blocks_total=100, kv_blocks_used=30, kv_block_tokens=10)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1, work_sequence=1, engine=used), 1.0)
    assert only(fleet).kv_tokens_free == 300, "what runs will grow to 700"
    reserved = EngineStatistics(kv_blocks_total=100, kv_blocks_used=70, kv_block_tokens=10)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1, work_sequence=1, engine=reserved), 2.0)
    assert only(fleet).kv_tokens_free == 300, "an engine that has reserved that is not charged twice"
    ended = Heartbeat(worker="w1", boot=1, work_sequence=1, engine=engine, ended_ids=large.request_id)
    fleet.heartbeat(ended, 3.0)
    assert only(fleet).kv_tokens_free == 1000


def test_a_shared_prefix_is_not_promised_twice_and_the_backlog_counts_what_is_on_the_way() -> None:
    fleet = fleet_of("w1", capacity=8)
    fleet.reserve("w1", request(1, input_tokens=1000), 0.0, cached_chunks=10)
    assert (only(fleet).prefill_tokens, only(fleet).kv_tokens_promised) == (360, 360)
    fleet.settle("w1", request(1).key, 1, 0.0)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1, work_sequence=1, prefill_tokens=200), 1.0)
    assert only(fleet).prefill_tokens == 200


def test_room_is_also_told_when_a_backlog_falls() -> None:
    fleet = fleet_of("w1", capacity=8)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, prefill_tokens=9000), 0.0)
    rooms: list[str] = []
    fleet.on_room = rooms.append
    asked = request(1, input_tokens=1000)
    assert isinstance(decide(fleet, asked=asked), Rejection)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, prefill_tokens=100), 0.1)
    assert rooms == [MODEL]
    assert isinstance(decide(fleet, asked=asked), Placement)


def test_a_suspect_counts_until_it_has_made_a_token() -> None:
    fleet = fleet_of("w1", capacity=8)
    doubted = placed(fleet, "w1", 1, sequence=1, suspect=True, attempt=2, resumed_tokens=5)
    assert only(fleet).suspects == 1
    for tokens, suspects in ((5, 1), (6, 0)):
        running = RunningRequests(request_ids=doubted.request_id, attempts=[2], output_tokens=[tokens])
        fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1, work_sequence=1, running=running), 1.0)
        assert only(fleet).suspects == suspects


def test_who_has_lost_its_connection_is_given_up_once_and_taken_back_when_it_is_heard() -> None:
    fleet = fleet_of("w1")
    gone = gone_from(fleet)
    placed(fleet, "w1", 1, sequence=1)
    assert fleet.silent(0.5) == []
    assert fleet.silent(1.0) == [("w1", 1)]
    fleet.connection_gone("w1", 1, 1.0)
    fleet.connection_gone("w1", 1, 1.1)
    fleet.connection_gone("w1", 7, 1.1)
    assert gone == [("w1", 1, "worker_lost")]
    assert not fleet.knows("w1", 1)
    assert (fleet.serves(MODEL), fleet.takes_work("w1"), fleet.silent(5.0)) == (False, False, [])
    fleet.heartbeat(Heartbeat(worker="w1", boot=1), 1.2)
    assert not fleet.serves(MODEL), "what was still on its way says nothing"
    fleet.heartbeat(Heartbeat(worker="w1", boot=1), 3.0)
    assert fleet.serves(MODEL)
    fleet.lease_ended("w1", 9.0)
    assert gone == [("w1", 1, "worker_lost")] * 2, "it may have had new work"


def test_whose_lease_ends_after_its_connection_is_given_up_only_once() -> None:
    fleet = fleet_of("w1")
    gone = gone_from(fleet)
    fleet.connection_gone("w1", 1, 1.0)
    fleet.lease_ended("w1", 9.0)
    assert gone == [("w1", 1, "worker_lost")]


def test_nobody_is_probed_or_given_up_while_the_broker_may_be_the_reason() -> None:
    fleet = fleet_of("w1")
    gone = gone_from(fleet)
    fleet.bus_away()
    assert fleet.silent(50.0) == []
    fleet.bus_back(60.0)
    assert fleet.silent(64.0) == []
    fleet.connection_gone("w1", 1, 64.0)
    fleet.lease_ended("w1", 64.0)
    assert gone == []
    fleet.sweep(70.0)
    assert gone == [("w1", 1, "worker_lost")]


def test_what_a_worker_did_not_finish_in_time_is_handed_over() -> None:
    fleet = fleet_of("w1")
    gone = gone_from(fleet)
    placed(fleet, "w1", 1, sequence=1)
    leaves = record("w1", state=WorkerState.WORKER_STATE_DRAINING)
    leaves.hand_over_time.CopyFrom(clock.timestamp(clock.now_us() + 5_000_000))
    fleet.registered("w1", leaves, 100.0)
    fleet.sweep(103.0)
    assert (gone, fleet.serves(MODEL), fleet.knows("w1", 1)) == ([], False, True)
    fleet.sweep(106.0)
    fleet.sweep(107.0)
    assert gone == [("w1", 1, "drained")]
    assert len(fleet.running("w1")) == 1, "it runs there until it has been moved"
    late = placed(fleet, "w1", 2)
    fleet.settle("w1", late.key, 9, 107.0)
    assert gone == [("w1", 1, "drained")] * 2, "what came behind the move is moved, too"
    fleet.registered("w1", record("w1"), 108.0)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1), 108.0)
    assert fleet.serves(MODEL), "it may think better of it"
    fleet.lease_ended("w1", 109.0)
    assert gone[2:] == [("w1", 1, "worker_lost")]


def test_a_drained_worker_that_leaves_was_not_lost() -> None:
    fleet = fleet_of("w1")
    gone = gone_from(fleet)
    fleet.registered("w1", record("w1", state=WorkerState.WORKER_STATE_DRAINING), 0.0)
    fleet.lease_ended("w1", 1.0)
    assert gone == [("w1", 1, "drained")]


def test_what_an_earlier_scheduler_placed_is_found_and_counts_once() -> None:
    fleet = fleet_of("w1", capacity=4)
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, active=1, work_sequence=5), 0.0)
    for sequence in (5, 6):
        found = RunningView(
            sequence.to_bytes(16, "big"), 1, "t", "p", Priority.BATCH, MODEL, "w1", 1, sequence, 10, 0, 50, 0.0, False
        )
        fleet.found("w1", 1, found)
        fleet.found("w1", 2, found)
        fleet.found("w1", 1, found)
    assert (only(fleet).active, only(fleet).on_the_way) == (1, 1)
    assert [each.sequence for each in fleet.running("w1")] == [5, 6]
    assert [each.sequence for each in fleet.lower_running(MODEL, Priority.INTERACTIVE)["w1"]] == [5, 6]
    assert fleet.lower_running(MODEL, Priority.BATCH) == {}


def test_of_many_workers_a_few_are_looked_through_and_others_the_next_time() -> None:
    names = [f"w{number}" for number in range(10)]
    fleet = fleet_of(*names)
    for number, name in enumerate(names):
        placed(fleet, name, number, sequence=1, priority=(Priority.BATCH, Priority.BACKGROUND)[number % 2])
    first, second, third = (set(fleet.lower_running(MODEL, Priority.INTERACTIVE, 4)) for _ in range(3))
    assert [len(each) for each in (first, second, third)] == [4, 4, 4]
    assert first | second | third == set(names)
    assert set(fleet.lower_running(MODEL, Priority.BACKGROUND)) == set(names[::2])
    assert fleet.lower_running(MODEL, Priority.BATCH) == {}
    assert not fleet.runs_below(MODEL, Priority.BATCH)


def test_the_first_worker_of_a_model_and_the_end_of_its_last_one_are_told() -> None:
    fleet = fleet_of()
    told: list[tuple[str, bool, float]] = []
    fleet.on_serving = lambda *said: told.append(said)
    for name in ("w1", "w2"):
        fleet.registered(name, record(name), 1.0)
        assert (told == []) == (name == "w1"), "it is not heard yet"
        fleet.heartbeat(Heartbeat(worker=name, boot=1), 2.0)
    fleet.lease_ended("w1", 6.0)
    assert told == [(MODEL, True, 2.0)]
    fleet.registered("w2", record("w2", state=WorkerState.WORKER_STATE_DRAINING), 7.0)
    fleet.lease_ended("w2", 8.0)
    assert told[1:] == [(MODEL, False, 7.0)]


def test_prefixes_are_followed_forgotten_at_a_gap_and_told_anew() -> None:
    fleet = fleet_of("w1", "w2")
    asked = request(prefix=(1, 2, 3))

    def tell(sequence: int, stored: tuple[int, ...] = (), removed: tuple[int, ...] = (), whole: bool = False) -> None:
        events = CacheEvents(
            worker="w2", boot=1, sequence=sequence, stored=packed(stored), removed=packed(removed), all=whole
        )
        fleet.cache_events(events, 0.0)

    tell(1, (1, 2))
    assert fleet.matches(asked) == {}, "it has not told all"
    tell(2, (1, 2), whole=True)
    tell(3, (3,))
    assert fleet.matches(asked) == {"w2": 3}
    decision = decide(fleet, asked=asked)
    assert isinstance(decision, Placement)
    assert (decision.worker, decision.reason, decision.prefix_hits) == ("w2", "prefix", 3)
    tell(4, removed=(3,))
    assert fleet.matches(asked) == {"w2": 2}
    tell(6, (3,))
    assert fleet.matches(asked) == {}
    tell(7, (1,), whole=True)
    assert fleet.matches(asked) == {"w2": 1}
    fleet.lease_ended("w2", 0.0)
    assert fleet.matches(asked) == {}


def test_what_was_served_is_handed_on_with_the_model() -> None:
    fleet = fleet_of("w1")
    served: list[tuple[str, int]] = []
    fleet.on_served = lambda model, beat: served.append((model, beat.served[0].output_tokens))
    fleet.heartbeat(Heartbeat(worker="w1", boot=1, served=[Served(tenant_id="t", output_tokens=9)]), 0.0)
    fleet.heartbeat(Heartbeat(worker="w1", boot=2, served=[Served(tenant_id="t", output_tokens=9)]), 0.0)
    assert served == [(MODEL, 9)]


def test_an_adapter_is_served_by_whoever_has_loaded_it() -> None:
    fleet = fleet_of("w1")
    fleet.registered("w2", record("w2", adapters=[f"{MODEL}:x"]), 0.0)
    assert (fleet.serves(f"{MODEL}:x"), fleet.knows_model(f"{MODEL}:x")) == (False, True)
    fleet.heartbeat(Heartbeat(worker="w2", boot=1), 0.0)
    assert fleet.serves(f"{MODEL}:x")
    assert not fleet.serves(f"{MODEL}:y")
    assert not fleet.knows_model(f"{MODEL}:y")
