"""Who holds memory when all models need more than there is, as values: no clock, no bus."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus_scheduler.core.dividing import WHOLE, divide
from inferbus_scheduler.core.residency import (
    BUDGET,
    LRU,
    TOO_LARGE,
    Claim,
    Residence,
    Rules,
    Unit,
    Verdict,
    reside,
)

RULES = Rules(budget=10, min_residence=20.0, max_wait=30.0, idle_grace=2.0)
NOW = 1000.0


def unit(name: str) -> Unit:
    return name, ""


def claim(name: str, need: int, replicas: int = 1, **fields: object) -> Claim:
    return Claim(unit(name), replicas, need, **fields)  # type: ignore[arg-type]


def loaded(name: str, need: int, **fields: object) -> tuple[Claim, Residence]:
    """One worker, for long; idle unless ``fields`` say otherwise."""
    made = claim(name, need, **{"taking": 1, "idle_seconds": 60.0} | fields)
    return made, Residence(made.taking, None, NOW - 500)


def made(*pairs: tuple[Claim, Residence], rules: Rules = RULES) -> dict[str, Verdict]:
    before = {one.unit: residence for one, residence in pairs}
    return {name: verdict for (name, _), verdict in reside([one for one, _ in pairs], before, rules, NOW).items()}


def test_what_fits_is_loaded_beside_what_is_there() -> None:
    verdicts = made(loaded("a", 4), (claim("b", 6, queued=1), Residence()))
    assert {name: (one.replicas, one.reason) for name, one in verdicts.items()} == {"a": (1, ""), "b": (1, "")}


def test_the_one_that_is_idle_for_longest_leaves_first_and_only_as_many_as_must() -> None:
    verdicts = made(
        loaded("old", 3, idle_seconds=900.0), loaded("new", 3, idle_seconds=30.0), loaded("busy", 3, running=1),
        (claim("next", 4, queued=1), Residence()),
    )  # fmt: skip
    assert (verdicts["old"].replicas, verdicts["old"].reason) == (0, LRU)
    assert verdicts["new"].replicas == verdicts["busy"].replicas == 1
    assert (verdicts["next"].replicas, verdicts["next"].reason) == (0, BUDGET), "its memory is not free yet"
    assert verdicts["next"].residence.waiting_since == NOW


def test_it_is_loaded_when_who_left_has_gone() -> None:
    leaving = claim("old", 8, 0, leaving=1), Residence(0)
    waiting = claim("next", 8, queued=1), Residence(0, NOW - 3)
    assert made(leaving, waiting)["next"].replicas == 0
    gone = claim("old", 8, 0), Residence(0)
    assert made(gone, waiting)["next"].replicas == 1


def test_one_with_work_leaves_only_for_who_has_waited_and_not_before_its_time() -> None:
    busy = loaded("busy", 8, running=3)
    assert made(busy, (claim("next", 8, queued=1), Residence(0, NOW - 29)))["busy"].replicas == 1
    assert made(busy, (claim("next", 8, queued=1), Residence(0, NOW - 30)))["busy"].reason == LRU
    fresh = busy[0], Residence(1, None, NOW - 19)
    assert made(fresh, (claim("next", 8, queued=1), Residence(0, NOW - 90)))["busy"].replicas == 1


def test_a_second_worker_leaves_before_an_only_one() -> None:
    two = claim("two", 3, 2, taking=2, running=9), Residence(2, None, NOW - 500)
    verdicts = made(two, loaded("one", 3, running=1), (claim("next", 3, queued=1), Residence(0, NOW - 60)))
    assert (verdicts["two"].replicas, verdicts["one"].replicas) == (1, 1)


def test_who_is_still_starting_is_never_asked_to_leave() -> None:
    starting = claim("starting", 8, taking=0, idle_seconds=None), Residence(1)
    verdicts = made(starting, (claim("next", 8, queued=1), Residence(0, NOW - 600)))
    assert (verdicts["starting"].replicas, verdicts["next"].reason) == (1, BUDGET)


def test_what_can_never_be_loaded_is_said_also_of_one_that_nobody_asks_for() -> None:
    assert made((claim("large", 11, 0), Residence()))["large"].reason == TOO_LARGE
    stays = loaded("stays", 6, floor=1)
    assert made(stays, (claim("large", 5), Residence()))["large"].reason == TOO_LARGE
    assert made(stays, (claim("fits", 4), Residence()))["fits"].replicas == 1


def test_a_floor_stays_however_long_another_waits() -> None:
    verdicts = made(loaded("stays", 4, floor=1), (claim("next", 6, queued=1), Residence()), loaded("idle", 4))
    assert (verdicts["stays"].replicas, verdicts["idle"].replicas) == (1, 0)


def test_one_whose_need_is_not_known_is_loaded_alone() -> None:
    verdicts = made(loaded("a", 1), (claim("new", 0, queued=1), Residence()))
    assert (verdicts["a"].reason, verdicts["new"].reason) == (LRU, BUDGET)


def test_without_a_budget_everybody_has_what_he_wants() -> None:
    verdicts = made(loaded("a", 400), (claim("b", 0, 3), Residence()), rules=Rules())
    assert [one.replicas for one in verdicts.values()] == [1, 3]


# --- for all ---------------------------------------------------------------------------------------------------------

_claims = st.lists(
    st.builds(
        lambda replicas, need, taking, leaving, starting, floor, queued, running, idle, since: (
            (replicas, need, taking, leaving, min(floor, replicas), queued, running, idle),
            (taking + starting, since),
        ),
        st.integers(0, 3), st.integers(0, 12), st.integers(0, 3), st.integers(0, 2), st.integers(0, 1),
        st.integers(0, 1), st.integers(0, 3), st.integers(0, 3), st.one_of(st.none(), st.floats(0, 900)),
        st.one_of(st.none(), st.floats(0, NOW)),
    ),
    max_size=6,
)  # fmt: skip


def built(rows: list[tuple[tuple[object, ...], tuple[int, float | None]]]) -> tuple[list[Claim], dict[Unit, Residence]]:
    claims = [Claim(unit(f"m{n}"), *fields) for n, (fields, _) in enumerate(rows)]  # type: ignore[arg-type]
    kept = {
        one.unit: Residence(had, since, NOW - 100 if one.taking else None)
        for one, (_, (had, since)) in zip(claims, rows, strict=True)
    }
    return claims, kept


def held(claims: list[Claim], granted: dict[Unit, int]) -> int:
    """By those that are there, and those that are to come."""
    return sum((one.leaving + max(one.taking, granted[one.unit])) * (one.need or RULES.budget) for one in claims)


@given(_claims)
@settings(max_examples=400)
def test_nothing_is_granted_that_there_is_no_memory_for(rows: list[object]) -> None:
    claims, kept = built(rows)  # type: ignore[arg-type]
    verdicts = reside(claims, kept, RULES, NOW)
    # What was granted before and is still wanted counts: it may be starting.
    before = held(claims, {one.unit: min(one.replicas, kept[one.unit].granted) for one in claims})
    after = held(claims, {one.unit: verdicts[one.unit].replicas for one in claims})
    assert after <= max(RULES.budget, before)
    assert all(0 <= verdicts[one.unit].replicas <= one.replicas for one in claims)
    assert verdicts == reside(list(reversed(claims)), kept, RULES, NOW)


@given(_claims)
@settings(max_examples=400)
def test_who_has_work_leaves_only_where_idle_ones_would_not_do(rows: list[object]) -> None:
    claims, kept = built(rows)  # type: ignore[arg-type]
    verdicts = reside(claims, kept, RULES, NOW)
    evicted = [one for one in claims if verdicts[one.unit].reason == LRU]
    for one in evicted:
        assert verdicts[one.unit].replicas >= min(one.floor, one.taking)
        assert kept[one.unit].granted <= one.taking, "it is not starting"
    gave_up = [one for one in evicted if one.busy and verdicts[one.unit].replicas == 0]
    idle = [
        one for one in claims
        if one not in evicted and not one.busy and (one.idle_seconds or 0) >= RULES.idle_grace and not one.floor
        and 0 < verdicts[one.unit].replicas == kept[one.unit].granted <= one.taking
    ]  # fmt: skip
    # Whoever was idle and stays is too small to have spared the smallest of those with work.
    if gave_up and len(evicted) == 1:
        assert all((one.need or RULES.budget) < (gave_up[0].need or RULES.budget) for one in idle)


@given(
    st.lists(st.integers(1, 10), min_size=2, max_size=4),
    st.integers(1, 6),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_models_that_are_always_busy_take_turns_each_within_a_bound(needs: list[int], start: int, drain: int) -> None:
    """A machine that loads in ``start`` seconds and drains in ``drain``, looked at every second."""
    units = [unit(f"m{n}") for n in range(len(needs))]
    kept: dict[Unit, Residence] = {}
    ready: dict[Unit, int] = {}  # since when it takes work, or will
    gone: dict[Unit, int] = {}  # when it has drained
    waits = dict.fromkeys(units, 0)
    longest = 0
    for second in range(600):
        claims = []
        for one, need in zip(units, needs, strict=True):
            granted = kept.get(one, Residence()).granted
            taking = int(granted > 0 and ready.get(one, second) <= second)
            leaving = int(gone.get(one, 0) > second)
            claims.append(Claim(one, 1, need, taking, leaving, queued=5, running=4 * taking, idle_seconds=0.0))
            waits[one] = 0 if taking else waits[one] + 1
        longest = max(longest, *waits.values())
        total = sum(
            (one.leaving + max(one.taking, kept.get(one.unit, Residence()).granted)) * one.need for one in claims
        )
        assert total <= RULES.budget
        for one, verdict in reside(claims, kept, RULES, NOW + second).items():
            had = kept.get(one, Residence()).granted
            if verdict.replicas > had:
                ready[one] = second + start
            elif verdict.replicas < had:
                assert second - ready[one] >= RULES.min_residence, "it was loaded for nothing"
                gone[one] = second + drain
            kept[one] = verdict.residence
    # Each of the others may have a whole turn before.
    turn = RULES.max_wait + RULES.min_residence + start + drain + 4
    assert longest <= turn * len(needs)


# --- revisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "shares", "parts"),
    [
        (4, (("r1", 950), ("r2", 50)), {"r1": 3, "r2": 1}),
        (1, (("r1", 950), ("r2", 50)), {"r1": 1, "r2": 1}),
        (4, (("new", 1000), ("old", 1000)), {"new": 4, "old": 4}),
        (3, (("r", 1000),), {"r": 3}),
        (0, (("r", 1000),), {"r": 0}),
        (0, (("r1", 900), ("r2", 100)), {"r1": 1, "r2": 1}),
        (5, (), {}),
    ],
)
def test_workers_are_divided_as_requests_are(total: int, shares: object, parts: dict[str, int]) -> None:
    assert divide(total, shares) == parts  # type: ignore[arg-type]


@given(st.integers(1, 40), st.lists(st.integers(1, WHOLE), min_size=1, max_size=4))
def test_each_revision_has_at_least_its_part_and_all_have_one(total: int, permille: list[int]) -> None:
    shares = [(f"r{n}", one) for n, one in enumerate(permille)]
    parts = divide(total, shares)
    assert min(parts.values()) >= 1
    most = max(shares, key=lambda one: one[1])[0]
    for revision, one in shares:
        if revision != most or sum(permille) > WHOLE:
            assert parts[revision] * WHOLE >= one * total
    if sum(permille) <= WHOLE:
        assert sum(parts.values()) == max(total, len(shares)) or parts[most] == 1


def test_a_verdict_keeps_since_when_it_waits() -> None:
    waiting = claim("next", 8, queued=1), Residence(0, NOW - 7)
    verdict = made(loaded("busy", 8, running=1), waiting)["next"]
    assert verdict.residence.waiting_since == NOW - 7
    assert replace(verdict.residence, waiting_since=None) == Residence()
