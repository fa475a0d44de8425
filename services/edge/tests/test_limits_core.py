"""Limits in virtual time: nobody's clock, no bus; what must hold whatever comes in whatever order."""

import heapq
import random
from collections import defaultdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inferbus.bus.v1.control_pb2 import Spend
from inferbus_edge.core.limits import SILENT_MS, TICK_MS, Ledger, Limits, Spent
from inferbus_edge.core.window import SLOTS, WINDOW_MS, Window

SCOPE = "key:k"
START = 1_000_000
NOBODY = Limits(0, 0, 0)


def used(ledger: Ledger, now: int, scope: str = SCOPE) -> tuple[int, int, int]:
    """(requests, tokens, concurrent) as the ledger would hold them against a limit."""
    found = []
    for limits in (Limits(requests=0), Limits(tokens=0), Limits(concurrent=0)):
        refusal = ledger.check([(scope, limits)], 1, 1, now)
        assert refusal is not None
        found.append(refusal.used)
    return found[0], found[1], found[2]


def tell(sender: Ledger, receiver: Ledger, now: int, ticks: int = 10) -> int:
    """All that the sender says in so many ticks reaches the receiver; the time afterwards."""
    for _ in range(ticks):
        now += TICK_MS
        for spend in sender.report(now):
            receiver.heard(Spend.FromString(spend.SerializeToString()), now)
        receiver.report(now)
    return now


def next_word(sender: Ledger, receiver: Ledger, now: int) -> tuple[int, bool]:
    """On to the tick in which the sender speaks again: (its time, whether it does). Only then they know the same: from
    one word to the next a second of the sender's minute may become too old."""
    for _ in range(10):
        now += TICK_MS
        said = sender.report(now)
        for spend in said:
            receiver.heard(spend, now)
        receiver.report(now)
        if said:
            return now, True
    return now, False


# (seconds passed, amount, taken back from one of the earlier seconds, which one)
ADDED = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 3), st.integers(0, 70)), st.integers(0, 50), st.integers(0, 60), st.integers(0, 9)
    ),
    max_size=40,
)


@given(ADDED)
@example([(0, 5, 0, 0), (SLOTS, 5, 5, 1)])
def test_a_window_is_the_sum_of_the_last_sixty_one_seconds(added: list[tuple[int, int, int, int]]) -> None:
    window, log, second = Window(), defaultdict[int, int](int), START
    for passed, amount, back, ago in added:
        second += passed
        window.add(second, amount)
        log[second] += amount
        target = list(log)[-1 - ago % len(log)]
        expected = min(back, log[target]) if target > second - SLOTS else 0
        assert window.take(target, back) == expected
        log[target] -= expected
        last = range(second - SLOTS + 1, second + 1)
        assert window.total == sum(log.get(one, 0) for one in last)
        assert window.slots() == [log.get(one, 0) for one in last]


CALLS = st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 60), st.integers(0, 80)), min_size=1, max_size=80)


@given(CALLS, st.integers(1, 12), st.integers(1, 150))
def test_no_minute_has_more_than_the_limit_and_a_refusal_tells_the_first_moment_that_passes(
    calls: list[tuple[int, int, int]], requests: int, tokens: int
) -> None:
    """A client that comes back at the very moment it was told, as often as it was refused."""
    ledger, scopes, now = Ledger("a", 1), [(SCOPE, Limits(requests, tokens))], START
    accepted: list[tuple[int, int]] = []
    for gap, wanted, _ in calls:
        now += gap
        refusal = ledger.check(scopes, 1, wanted, now)
        if refusal is not None and refusal.wait_ms is None:
            assert wanted > tokens
            continue
        if refusal is not None:
            assert 0 < (refusal.wait_ms or 0) <= WINDOW_MS
            now += refusal.wait_ms or 0
            assert ledger.check(scopes, 1, wanted, now - 1) is not None
            assert ledger.check(scopes, 1, wanted, now) is None
        ledger.spend(scopes, 1, wanted, now)
        accepted.append((now, wanted))
    for end, _ in accepted:
        minute = [wanted for at, wanted in accepted if end - 60_000 < at <= end]
        assert len(minute) <= requests
        assert sum(minute) <= tokens


@given(CALLS)
def test_settled_calls_count_what_they_really_used(calls: list[tuple[int, int, int]]) -> None:
    """More counts when it is known; less is given back as long as the estimate counts, and never twice."""
    ledger, scopes, now = Ledger("a", 1), [(SCOPE, Limits(10**9, 10**9, 10**9))], START
    log: list[tuple[int, int]] = []
    running: list[tuple[Spent, int, int]] = []
    for step, (gap, wanted, real) in enumerate(calls):
        now += gap
        running.append((ledger.spend(scopes, 1, wanted, now), wanted, real))
        log.append((now // 1000, wanted))
        if step % 3 == 0:
            spent, estimate, real = running.pop(0)
            ledger.settle(spent, real, now)
            if real > estimate:
                log.append((now // 1000, real - estimate))
            elif spent.second > now // 1000 - SLOTS:
                log.append((spent.second, real - estimate))
        alive = [tokens for second, tokens in log if second > now // 1000 - SLOTS]
        assert used(ledger, now)[1:] == (sum(alive), len(running))


def test_the_longest_wait_is_told_and_all_scopes_must_have_room() -> None:
    ledger = Ledger("a", 1)
    tenant, project, key = "tenant:t", "project:t/p", "key:k"
    ledger.settle(ledger.spend([(tenant, NOBODY)], 1, 0, START), 0, START)
    scopes = [(tenant, Limits(requests=1)), (project, Limits(requests=5)), (key, Limits(tokens=100, concurrent=1))]
    later = START + 5000
    refusal = ledger.check(scopes, 1, 50, later)
    assert refusal is not None
    assert (refusal.scope, refusal.dimension, refusal.used) == (tenant, "requests", 1)
    refusal = ledger.check(scopes, 1, 101, later)
    assert refusal is not None
    assert (refusal.scope, refusal.dimension, refusal.wait_ms) == (key, "tokens", None)
    assert used(ledger, later, project) == used(ledger, later, key) == (0, 0, 0)


@pytest.mark.parametrize("limits", [Limits(requests=0), Limits(tokens=0), Limits(concurrent=0)])
def test_a_limit_of_nought_lets_nothing_pass(limits: Limits) -> None:
    refusal = Ledger("a", 1).check([(SCOPE, limits)], 1, 0, START)
    assert refusal is not None
    assert refusal.wait_ms is None


def test_concurrent_calls_end_when_settled() -> None:
    ledger, scopes = Ledger("a", 1), [(SCOPE, Limits(concurrent=2))]
    first = ledger.spend(scopes, 1, 5, START)
    ledger.spend(scopes, 1, 5, START)
    assert ledger.check(scopes, 1, 5, START + 100_000) is not None
    ledger.settle(first, 5, START + 100_000)
    assert ledger.check(scopes, 1, 5, START + 100_000) is None


# ---- several edges


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.integers(0, 400), st.integers(0, 40_000)), st.integers(1, 25)), max_size=60),
    st.integers(1, 40),
    st.integers(0, 500),
    st.randoms(use_true_random=False),
)
def test_edges_together_pass_the_limit_only_by_what_they_have_not_yet_heard(
    bursts: list[tuple[int, int]], limit: int, delay: int, chance: random.Random
) -> None:
    """Every message takes up to ``delay`` ms, so it may be overtaken; edges tick at moments of their own."""
    ledgers = [Ledger(f"edge-{one}", 1) for one in range(3)]
    scopes = [(SCOPE, Limits(requests=limit))]
    # (time, order at one time: hear, tick, attempt; tie-break; edge, message)
    queue: list[tuple[int, int, int, int, Spend | None]] = []
    at, order = START, 0
    for gap, attempts in bursts:
        at += gap
        for _ in range(attempts):
            heapq.heappush(queue, (at + chance.randrange(300), 2, (order := order + 1), chance.randrange(3), None))
    for edge in range(3):
        for tick in range(START + chance.randrange(TICK_MS), at + 1000, TICK_MS):
            heapq.heappush(queue, (tick, 1, (order := order + 1), edge, None))
    accepted: list[tuple[int, int]] = []
    while queue:
        now, kind, _, edge, message = heapq.heappop(queue)
        if message is not None:
            ledgers[edge].heard(message, now)
        elif kind == 1:
            for spend in ledgers[edge].report(now):
                for other in {0, 1, 2} - {edge}:
                    arrival = now + chance.randint(0, delay)
                    heapq.heappush(queue, (arrival, 0, (order := order + 1), other, spend))
        elif ledgers[edge].check(scopes, 1, 1, now) is None:
            ledgers[edge].spend(scopes, 1, 1, now)
            accepted.append((now, edge))
            minute = [(then, who) for then, who in accepted if then > now - 60_000]
            unheard = [who for then, who in minute if who != edge and then > now - TICK_MS - delay]
            assert len(minute) <= limit + len(unheard)


# (milliseconds passed, what, number)
GOSSIP = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 300), st.integers(0, 70_000)),
        st.sampled_from(["spend", "spend", "settle", "say", "lose", "late", "again", "reboot"]),
        st.integers(0, 90),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(GOSSIP)
def test_whatever_was_lost_or_late_the_next_second_puts_right(events: list[tuple[int, str, int]]) -> None:
    boot, now, scopes = 1, START, [(SCOPE, NOBODY)]
    sender, receiver = Ledger("a", boot), Ledger("b", 1)
    running: list[Spent] = []
    kept: list[Spend] = []
    rebooted_at = 0
    for gap, what, number in events:
        now += gap
        if what == "spend":
            running.append(sender.spend(scopes, 1, number, now))
        elif what == "settle" and running:
            sender.settle(running.pop(number % len(running)), 90 - number, now)
        elif what == "reboot":
            boot, rebooted_at, running = boot + 1, now, []
            sender = Ledger("a", boot)
        elif what in ("late", "again") and kept:
            receiver.heard(kept[number % len(kept)], now)
            rebooted_at = now if kept[number % len(kept)].boot != boot else rebooted_at
        elif what in ("say", "lose"):
            said = sender.report(now)
            kept += said
            for spend in said if what == "say" else []:
                receiver.heard(spend, now)
    now, spoke = next_word(sender, receiver, tell(sender, receiver, now))
    truth, known = used(sender, now), used(receiver, now)
    if not rebooted_at:
        # Who has long had nothing is silent: what was lost of that is forgotten in its time, see below.
        assert known == truth if spoke else not any(truth)
    # What the sender's earlier life let pass still counts, as far as it was told.
    assert all(there >= here for there, here in zip(known, truth, strict=True))
    now = tell(sender, receiver, now, ticks=(WINDOW_MS + 2000) // TICK_MS)
    assert used(receiver, now) == used(sender, now)
    for spent in running:
        sender.settle(spent, 1, now)
    tell(sender, receiver, now, ticks=(2 * WINDOW_MS + 20_000) // TICK_MS)
    assert (len(sender), len(receiver)) == (0, 0)


def test_an_edge_that_comes_up_knows_the_last_minute_and_not_the_last_hour() -> None:
    old, scopes, now = Ledger("old", 1), [(SCOPE, NOBODY)], START
    for _ in range(60):  # an hour of ten requests a minute
        for _ in range(10):
            old.settle(old.spend(scopes, 1, 7, now), 7, now)
        now += 60_000
        old.report(now)
    now += 2000
    for _ in range(3):
        old.spend(scopes, 1, 5, now)
    old.report(now)  # before the new one listens
    new = Ledger("new", 2)
    tell(old, new, now)
    assert used(new, now + 1000) == (3, 15, 3)


def test_the_calls_of_an_edge_that_fell_silent_are_over_after_three_seconds_and_its_minute_after_one() -> None:
    gone, left, scopes = Ledger("gone", 1), Ledger("left", 1), [(SCOPE, NOBODY)]
    gone.spend(scopes, 1, 9, START)
    now = tell(gone, left, START)
    assert used(left, now + SILENT_MS - TICK_MS) == (1, 9, 1)
    assert used(left, now + SILENT_MS + 1) == (1, 9, 0)
    now += WINDOW_MS + 1000
    tell(left, gone, now)
    assert used(left, now) == (0, 0, 0)


def test_how_long_to_wait_is_known_of_what_other_edges_let_pass_too() -> None:
    other, mine, scopes = Ledger("other", 1), Ledger("mine", 1), [(SCOPE, Limits(requests=8))]
    now = START
    for _ in range(8):
        other.spend(scopes, 1, 1, now)
        now = tell(other, mine, now, ticks=50)
    refusal, truth = mine.check(scopes, 1, 1, now), other.check(scopes, 1, 1, now)
    assert refusal is not None
    assert truth is not None
    assert 0 <= (refusal.wait_ms or 0) - (truth.wait_ms or 0) <= 1000
    assert (truth.wait_ms or 0) < 25_000


def test_a_message_that_was_overtaken_changes_nothing() -> None:
    sender, receiver = Ledger("a", 1), Ledger("b", 1)
    sender.spend([(SCOPE, NOBODY)], 1, 5, START)
    early = sender.report(START)
    sender.spend([(SCOPE, NOBODY)], 1, 5, START + 100)
    for spend in sender.report(START + 100) + early:
        receiver.heard(spend, START + 200)
    assert used(receiver, START + 200) == (2, 10, 2)


def test_a_scope_used_again_after_two_minutes_is_heard_although_its_end_was_lost() -> None:
    sender, receiver, now = Ledger("a", 1), Ledger("b", 1), START
    for _ in range(5):
        sender.settle(sender.spend([(SCOPE, NOBODY)], 1, 5, now), 5, now)
    now = tell(sender, receiver, now, ticks=600)
    assert used(receiver, now) == (5, 25, 0)
    while len(sender):  # nothing arrives
        now += TICK_MS
        sender.report(now)
        receiver.report(now)
    sender.spend([(SCOPE, NOBODY)], 1, 7, now)
    now = tell(sender, receiver, now, ticks=1)
    assert used(receiver, now) == (1, 7, 1)


def test_what_changes_is_said_at_the_next_tick() -> None:
    ledger = Ledger("a", 1)
    spent = ledger.spend([(SCOPE, NOBODY)], 1, 5, START)
    assert [one.concurrent for spend in ledger.report(START) for one in spend.scopes] == [1]
    assert ledger.report(START) == []
    ledger.settle(spent, 3, START)
    assert [one.tokens_total for spend in ledger.report(START) for one in spend.scopes] == [3]


def test_an_edge_says_nothing_without_use_and_each_scope_once_a_second_with_it() -> None:
    ledger, now = Ledger("a", 1), START
    assert [ledger.report(now + tick * TICK_MS) for tick in range(50)] == [[]] * 50
    names = [f"key:{one}" for one in range(37)]
    spent = [ledger.spend([(name, NOBODY)], 1, 1, now) for name in names]
    assert {one.scope for spend in ledger.report(now) for one in spend.scopes} == set(names)
    for second in range(3):
        said = [one.scope for tick in range(10) for spend in ledger.report(now + tick) for one in spend.scopes]
        assert sorted(said) == sorted(names), second
    for one in spent:
        ledger.settle(one, 1, now)
    now += 70_000
    ledger.report(now)
    assert [ledger.report(now + tick * TICK_MS) for tick in range(50)] == [[]] * 50


def test_many_scopes_go_in_several_messages_and_none_is_torn_apart() -> None:
    ledger, other = Ledger("a", 1), Ledger("b", 1)
    names = [f"key:{one}" for one in range(1201)]
    for name in names:
        ledger.spend([(name, NOBODY)], 1, 1, START)
    said = ledger.report(START)
    assert len(said) == 3
    for spend in said:
        assert len(spend.SerializeToString()) < 100_000
        other.heard(spend, START)
    assert all(used(other, START, name) == (1, 1, 1) for name in names)
