"""The ledger of claims against a plain model, and who is taken for dead."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from inferbus_meter.core.claims import Claim, Ledger, Sightings, is_successor, taken_over

LEASE = 6.0


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Claim], list[bool], random.Random]:
    """A chain of claims, each tried once or more, and which of them are done."""
    sizes = draw(st.lists(st.integers(1, 5), max_size=12))
    borders = [0, *(sum(sizes[: number + 1]) for number in range(len(sizes)))]
    claims = [
        Claim(0, 0, begin + 1, end, attempt, f"m{attempt}", 100)
        for begin, end in pairwise(borders)
        for attempt in range(1, draw(st.integers(1, 3)) + 1)
    ]
    done = [draw(st.booleans()) for _ in sizes]
    return claims, done, draw(st.randoms(use_true_random=False))


@given(histories())
def test_the_position_is_the_end_of_the_done_beginning_whatever_the_order_of_the_rows(history) -> None:
    claims, done, source = history
    finished = {first for first, is_done in zip(sorted({c.first for c in claims}), done, strict=True) if is_done}
    rows = [(claim, False) for claim in claims] + [(claim, True) for claim in claims if claim.first in finished]
    rows += source.sample(rows, len(rows) // 2)
    source.shuffle(rows)
    ledger, seen = Ledger(), 0
    for claim, is_done in rows:
        ledger.add(claim, done=is_done)
        assert ledger.position >= seen, "it never goes back"
        seen = ledger.position
    latest = {claim.first: claim for claim in claims}  # the highest attempt comes last
    wanted = 0
    for first in sorted(latest):
        if first not in finished:
            break
        wanted = latest[first].last
    assert ledger.position == wanted
    assert ledger.frontier == max((claim.last for claim in claims), default=0)
    assert ledger.open == [latest[first] for first in sorted(latest) if first not in finished]


@given(histories())
def test_rows_up_to_the_mark_need_not_be_read(history) -> None:
    claims, done, _ = history
    firsts = sorted({claim.first for claim in claims})
    whole = Ledger()
    for claim in claims:
        whole.add(claim, done=done[firsts.index(claim.first)])
    short = Ledger(0, whole.position)
    for claim in claims:
        if claim.last > whole.position:
            short.add(claim, done=done[firsts.index(claim.first)])
    assert (short.position, short.open) == (whole.position, whole.open)


def test_rows_of_another_epoch_are_another_streams() -> None:
    ledger = Ledger(1)
    ledger.add(Claim(0, 0, 1, 10, 1, "m-1", 100), done=True)
    assert (ledger.position, ledger.frontier, ledger.open) == (0, 0, [])


def test_a_holder_that_says_nothing_for_the_lease_is_dead_and_one_that_does_is_not() -> None:
    silent, living = Claim(0, 0, 1, 5, 1, "a-1", 100), Claim(0, 0, 6, 9, 1, "b-1", 100)
    sightings = Sightings()
    sightings.look([silent, living], 100.0)
    assert sightings.lapsed([silent, living], 105.9, LEASE, "me-1") is None
    renewed = taken_over(living, "b-1")
    sightings.look([silent, renewed], 106.0)
    assert sightings.lapsed([silent, renewed], 106.0, LEASE, "me-1") == silent
    assert sightings.lapsed([renewed], 111.9, LEASE, "me-1") is None
    assert sightings.lapsed([renewed], 112.0, LEASE, "me-1") == renewed


def test_while_the_store_is_away_nobody_can_show_life() -> None:
    claim, sightings = Claim(0, 0, 1, 5, 1, "a-1", 100), Sightings()
    sightings.look([claim], 100.0)
    sightings.forget()
    sightings.look([claim], 200.0)
    assert sightings.lapsed([claim], 200.0, LEASE, "me-1") is None
    assert sightings.lapsed([claim], 206.0, LEASE, "me-1") == claim


def test_what_a_meter_of_the_same_name_had_begun_is_taken_at_once() -> None:
    before = Claim(0, 0, 1, 5, 1, "meter-a-1", 100)
    assert Sightings().lapsed([before], 0.0, LEASE, "meter-a-2") == before
    assert not is_successor("meter-b-2", before.holder)
