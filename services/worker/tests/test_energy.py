"""Whose the joules are: properties of the ledger."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus_worker.core.energy import EnergyLedger, Meter, drawn, input_weight, power, read_weight
from inferbus_worker.engine import Finish, Finished

KEYS = [bytes([number]) * 16 for number in range(4)]
JOULES = st.floats(0, 500)
BEGIN = st.tuples(st.just("begin"), st.sampled_from(KEYS), st.integers(1, 3000))
GOT = st.tuples(st.just("got"), st.dictionaries(st.sampled_from([*KEYS, b"direct" * 3]), st.integers(0, 5)))
END = st.tuples(st.just("end"), st.sampled_from(KEYS), st.integers(0, 3000), st.floats(0, 0.2))
READING = st.tuples(st.just("reading"), JOULES, st.floats(0.1, 2.0))
MOVES = st.lists(st.one_of(BEGIN, GOT, END, READING), max_size=40)


def test_calls_without_tokens_have_equal_shares() -> None:
    """And one that was cut off has none: nobody knows how far it had come."""
    ledger = EnergyLedger()
    ledger.reading(100.0, None, 50.0)
    request = GenerateRequest(inference={"request": b"x" * 600_000})
    for key in KEYS[:3]:
        ledger.begin(key, input_weight(request))
    ended = {key: read_weight(Finished(key, Finish.STOP, 0)) for key in KEYS[:2]}
    ended[KEYS[2]] = read_weight(Finished(KEYS[2], Finish.CANCELLED, 0))
    given = ledger.end(ended, 101.0)
    assert given[KEYS[2]] == 0
    assert given[KEYS[0]] > 0
    ledger.reading(101.0, 50.0, 50.0)
    assert given[KEYS[0]] + given[KEYS[1]] + ledger.idle + ledger.held == pytest.approx(50.0)
    assert read_weight(Finished(KEYS[0], Finish.STOP, 9, 4)) == 5


def end(ledger: EnergyLedger, key: bytes, now: float, input_tokens: int) -> float | None:
    return ledger.end({key: input_tokens}, now).get(key)


@dataclass
class Run:
    """Plays moves against a ledger, from the first reading on."""

    ledger: EnergyLedger = field(default_factory=EnergyLedger)
    now: float = 100.0
    measured: float = 0.0
    given: list[float] = field(default_factory=list)
    running: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ledger.reading(self.now, None, 50.0)

    def play(self, moves: list[tuple]) -> None:
        for name, *arguments in moves:
            getattr(self, name)(*arguments)

    def begin(self, key: bytes, weight: int) -> None:
        self.running.add(key)
        self.ledger.begin(key, weight)

    def got(self, counts: dict[bytes, int]) -> None:
        self.ledger.got(counts.keys(), counts.values())

    def end(self, key: bytes, input_tokens: int, later: float) -> None:
        joules = self.ledger.end({key: input_tokens}, self.now + later).get(key)
        assert (joules is None) == (key not in self.running)
        self.running.discard(key)
        if joules is not None:
            self.given.append(joules)

    def reading(self, joules: float, seconds: float) -> None:
        self.now += seconds
        self.measured += joules
        self.ledger.reading(self.now, joules, joules / seconds)

    def finish(self) -> None:
        """Everything ends, and the GPU draws until what was given too early is paid."""
        for key in list(self.running):
            self.end(key, 0, 0.0)
        self.reading(0.0, 1.0)
        self.reading(self.ledger.owed, 1.0)


@given(MOVES)
def test_requests_and_idle_are_what_was_measured(moves: list[tuple]) -> None:
    run = Run()
    run.play(moves)
    run.finish()
    assert run.ledger.owed == pytest.approx(0, abs=1e-6)
    assert run.ledger.held == 0
    assert math.isclose(sum(run.given) + run.ledger.idle, run.measured, rel_tol=1e-9, abs_tol=1e-6)


@given(MOVES)
def test_nothing_is_ever_negative(moves: list[tuple]) -> None:
    run = Run()
    for move in moves:
        run.play([move])
        assert min(run.ledger.idle, run.ledger.held, run.ledger.owed, *run.given, 0.0) == 0.0


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), st.integers(0, 5)), max_size=8), st.randoms())
def test_with_a_steady_power_nothing_is_given_too_early(steps: list[dict[bytes, int]], random) -> None:
    run = Run()
    for key in KEYS:
        run.begin(key, 10)
    for step in steps:
        run.got(step)
        if random.random() < 0.3 and run.running:
            run.end(random.choice(sorted(run.running)), 0, random.uniform(0, 0.2))
        run.reading(50.0 * 0.2, 0.2)
        assert run.ledger.owed == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 5)), max_size=20), st.permutations(KEYS), st.randoms())
def test_the_order_within_an_interval_changes_nothing(tokens, ends, random) -> None:
    shuffled = random.sample(tokens, len(tokens))
    found = []
    for order, leave in ((tokens, KEYS), (shuffled, ends)):
        run = Run()
        for key in KEYS:
            run.begin(key, 1 + KEYS.index(key) * 100)
        run.reading(30.0, 0.3)
        for key, count in order:
            run.ledger.got([key], [count])
        joules = run.ledger.end(dict.fromkeys(leave, 50), run.now + 0.1)
        run.reading(20.0, 0.2)
        found.append((joules, run.ledger.idle))
    (first, idle), (second, other) = found
    assert idle == pytest.approx(other)
    assert {key: pytest.approx(value) for key, value in first.items()} == second


def test_energy_goes_by_tokens_input_and_output() -> None:
    ledger, (long, short, *_) = EnergyLedger(), KEYS
    ledger.reading(0.0, None, 100.0)
    ledger.begin(long, 70)
    ledger.begin(short, 10)
    ledger.got([long, short], [10, 10])
    ledger.reading(1.0, 100.0, 100.0)
    ledger.got([long, short], [10, 10])  # the input is paid
    ledger.reading(2.0, 100.0, 100.0)
    assert end(ledger, long, 2.0, 70) == pytest.approx(80 + 50)
    assert end(ledger, short, 2.0, 10) == pytest.approx(20 + 50)
    assert ledger.idle == 0


def test_a_request_within_one_interval_gets_its_part_and_the_rest_is_idle() -> None:
    ledger = EnergyLedger()
    ledger.reading(0.0, None, 200.0)
    ledger.begin(KEYS[0], 5)
    ledger.got([KEYS[0]], [7])
    assert end(ledger, KEYS[0], 0.1, 5) == pytest.approx(20)
    ledger.reading(0.2, 40.0, 200.0)
    assert ledger.idle == pytest.approx(20)


def test_a_long_prefill_belongs_to_who_waits_for_it() -> None:
    ledger = EnergyLedger()
    ledger.reading(0.0, None, 300.0)
    ledger.begin(KEYS[0], 20_000)
    for second in range(1, 4):
        ledger.reading(float(second), 300.0, 300.0)
    assert (ledger.held, ledger.idle) == (900.0, 0)
    ledger.got([KEYS[0]], [1])
    ledger.reading(4.0, 300.0, 300.0)
    assert end(ledger, KEYS[0], 4.0, 20_000) == pytest.approx(1200)


def test_vectors_are_paid_by_their_input_alone() -> None:
    ledger = EnergyLedger()
    ledger.reading(0.0, None, 100.0)
    ledger.begin(KEYS[0], 10)
    ledger.begin(KEYS[1], 10)
    ledger.begin(KEYS[2], 10)
    joules = ledger.end({KEYS[0]: 30, KEYS[1]: 10, KEYS[2]: 0}, 0.1)
    assert joules == {KEYS[0]: pytest.approx(7.5), KEYS[1]: pytest.approx(2.5), KEYS[2]: 0}, "the last was refused"


def test_what_falls_after_it_was_given_is_owed_and_paid_by_the_next() -> None:
    ledger = EnergyLedger()
    ledger.reading(0.0, None, 400.0)
    ledger.begin(KEYS[0], 1)
    ledger.got([KEYS[0]], [9])
    assert end(ledger, KEYS[0], 0.2, 1) == pytest.approx(80)
    ledger.reading(0.2, 50.0, 100.0)
    assert (ledger.owed, ledger.idle) == (pytest.approx(30), 0)
    ledger.reading(0.4, 40.0, 100.0)
    assert (ledger.owed, ledger.idle) == (0, pytest.approx(10))


def test_what_was_not_measured_is_not_known_instead_of_zero() -> None:
    ledger = EnergyLedger()
    ledger.begin(KEYS[0], 1)  # before the first reading
    ledger.got([KEYS[0]], [3])
    assert end(ledger, KEYS[0], 0.0, 1) is None
    ledger.reading(0.0, None, None)
    ledger.begin(KEYS[1], 1)
    ledger.got([KEYS[1]], [3])
    assert end(ledger, KEYS[1], 0.1, 1) is None, "no power is known"
    ledger.reading(1.0, 100.0, 100.0)
    ledger.begin(KEYS[2], 1)
    ledger.got([KEYS[2]], [3])
    ledger.reading(2.0, 100.0, 100.0)
    ledger.reading(3.0, None, 100.0)  # a meter that did not answer once
    ledger.got([KEYS[2]], [3])
    ledger.reading(4.0, 100.0, 100.0)
    assert end(ledger, KEYS[2], 4.0, 1) is None
    assert ledger.idle == pytest.approx(300)
    ledger.begin(KEYS[3], 1)
    ledger.got([KEYS[3]], [3])
    assert end(ledger, KEYS[3], 60.0, 1) is None, "the meter fell silent"
    assert end(ledger, b"never" * 3, 60.0, 1) is None


METERS = st.builds(
    Meter, st.none() | st.floats(0, 1e9), st.none() | st.floats(0, 1000)
)  # fmt: skip


@given(st.lists(st.tuples(METERS, METERS), max_size=4), st.floats(0.01, 10))
def test_what_was_drawn_is_that_of_all_or_unknown(pairs: list[tuple[Meter, Meter]], seconds: float) -> None:
    before, after = [old for old, _ in pairs], [new for _, new in pairs]
    whole = drawn(before, after, seconds)
    parts = [drawn([old], [new], seconds) for old, new in pairs]
    if not pairs or None in parts:
        assert whole is None
    else:
        assert whole == pytest.approx(sum(part for part in parts if part is not None))
        assert whole >= 0


def test_a_counter_is_believed_before_a_power_and_one_that_began_anew_is_not() -> None:
    assert drawn([Meter(10.0, 500.0)], [Meter(17.0, 500.0)], 1.0) == 7.0
    assert drawn([Meter(10.0, 100.0)], [Meter(2.0, 300.0)], 2.0) == 400.0
    assert drawn([Meter(10.0)], [Meter(2.0)], 2.0) is None
    assert power([Meter(watts=100.0), Meter(watts=50.0)]) == 150.0
    assert power([Meter(watts=100.0), Meter(1.0)]) is None
    assert power([]) is None


def test_about_how_much_a_prefill_reads() -> None:
    request = GenerateRequest()
    assert input_weight(request) == 1
    request.prompt.tokens.ids.extend(range(50_000, 50_120))
    assert input_weight(request) == 120
    assert input_weight(request, resumed=30) == 150
    request.prompt.text = "word " * 100
    assert 100 <= input_weight(request) <= 150
    request.chat.messages.add(role="user", content="word " * 100)
    assert 100 <= input_weight(request) <= 150
    request.embedding.inputs.add(text="word " * 100)
    assert 100 <= input_weight(request) <= 150
