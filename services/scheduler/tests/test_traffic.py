"""Which revision a request goes to."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.revision_pb2 import RevisionPin, RolloutRecord, RolloutState, RolloutStrategy, Shadow
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.traffic import ANYWHERE, WHOLE, Traffic, part_of, route, shares, traffic_of, use_of

REQUEST = Request(b"i" * 16, "m", "acme", "web", Priority.INTERACTIVE, 0.0, 10.0)
NAMES = st.sampled_from(["a", "b", "c", "d"])
IDS = st.binary(min_size=16, max_size=16)
TRAFFIC = st.builds(
    Traffic,
    stable=NAMES,
    candidate=st.one_of(st.just(""), NAMES),
    weight=st.integers(0, WHOLE),
    pins=st.dictionaries(st.sampled_from(["acme", "other"]), NAMES),
)


@given(traffic=TRAFFIC, request_id=IDS, alive=st.sets(NAMES), failed=st.lists(NAMES, max_size=3))
def test_a_request_always_has_a_way_and_never_one_that_it_must_not_take(
    traffic: Traffic, request_id: bytes, alive: set[str], failed: list[str]
) -> None:
    request = replace(REQUEST, request_id=request_id, failed_revisions=tuple(failed))
    way = route(request, traffic, alive)
    assert way == route(request, traffic, tuple(sorted(alive, reverse=True)))
    if "acme" in traffic.pins:
        assert (way.revisions, way.waits) == ((traffic.pins["acme"],), True)
        return
    assert not way.waits
    assert set(way.revisions) <= alive
    assert way.revisions or way is ANYWHERE
    if way is ANYWHERE:
        assert alive <= set(failed)  # whoever is there has failed it, or nobody is
    if traffic.stable in alive and traffic.stable not in failed:
        assert traffic.stable in way.revisions  # nobody waits for a candidate alone
        assert way.revisions[0] == traffic.stable or way.revisions[0] == traffic.candidate
    if part_of(request_id) >= traffic.weight and traffic.stable in alive and traffic.candidate != traffic.stable:
        assert traffic.candidate not in way.revisions


@given(request_id=IDS, low=st.integers(0, WHOLE), more=st.integers(0, WHOLE))
def test_who_was_with_the_candidate_stays_there_when_its_part_grows(request_id: bytes, low: int, more: int) -> None:
    request = replace(REQUEST, request_id=request_id)
    alive = {"old", "new"}
    if route(request, Traffic("old", "new", low), alive).revisions[0] == "new":
        assert route(request, Traffic("old", "new", min(WHOLE, low + more)), alive).revisions[0] == "new"


def test_an_answer_goes_on_where_it_was_begun_if_it_can() -> None:
    """Whoever has another vocabulary would go on with something else."""
    traffic, alive = Traffic("old", "new", WHOLE), {"old", "new"}
    begun = replace(REQUEST, attempt=2, resumed_tokens=5, last_revision="old")
    assert route(begun, traffic, alive).revisions == ("old", "new")
    assert route(begun, traffic, {"new"}).revisions == ("new",)
    assert route(replace(begun, failed_revisions=("old",)), traffic, alive).revisions == ("new",)
    assert route(replace(begun, resumed_tokens=0), traffic, alive).revisions[0] == "new"


def test_parts_are_even() -> None:
    """Of 20,000 ids as they are made, a weight of 5 % is met within one per cent of all."""
    ids = [number.to_bytes(8, "big") + (number * 2654435761 % 2**64).to_bytes(8, "big") for number in range(20_000)]
    for weight in (50, 250, 500):
        met = sum(part_of(one) < weight for one in ids) / len(ids)
        assert abs(met - weight / WHOLE) < 0.01


def test_a_candidate_that_is_not_warm_gets_nothing() -> None:
    record = RolloutRecord(
        model="m", stable_revision="old", candidate_revision="new", weight_permille=50,
        state=RolloutState.ROLLOUT_STATE_WARMING,
    )  # fmt: skip
    assert traffic_of(record).candidate == ""
    record.state = RolloutState.ROLLOUT_STATE_RUNNING
    assert (traffic_of(record).candidate, traffic_of(record).weight) == ("new", 50)


def test_workers_are_wanted_of_all_that_serves_or_may() -> None:
    record = RolloutRecord(model="m", stable_revision="old", candidate_revision="new", step_permille=[50, 1000])
    record.strategy = RolloutStrategy.ROLLOUT_STRATEGY_CANARY
    assert shares(record) == (("old", 950), ("new", 50))
    record.weight_permille = WHOLE
    assert shares(record) == (("old", 1), ("new", 1000))
    record.strategy = RolloutStrategy.ROLLOUT_STRATEGY_BLUE_GREEN
    assert shares(record) == (("old", 1000), ("new", 1000))
    done = RolloutRecord(model="m", stable_revision="new", previous_revision="old")
    assert shares(done) == (("new", 1000),)
    done.keep_previous = True
    done.pins.append(RevisionPin(tenant_id="acme", revision="older"))
    done.shadow.CopyFrom(Shadow(revision="next", permille=100))
    assert shares(done) == (("new", 1000), ("old", 1000), ("next", 100), ("older", 1))
    assert shares(RolloutRecord(model="m")) == ()


REVISIONS = st.sampled_from(("", "r1", "r2", "r3", "r4"))


@given(
    st.sampled_from(("r1", "r2")), REVISIONS, REVISIONS, st.booleans(), REVISIONS,
    st.lists(st.sampled_from(("r3", "r4", "r5")), max_size=2),
)  # fmt: skip
def test_what_has_a_share_is_in_use_and_nothing_else(
    stable: str, candidate: str, previous: str, keep: bool, shadowed: str, pinned: list[str]
) -> None:
    record = RolloutRecord(
        model="m", stable_revision=stable, candidate_revision=candidate, previous_revision=previous,
        keep_previous=keep, pins=[RevisionPin(tenant_id=f"t{n}", revision=one) for n, one in enumerate(pinned)],
        shadow=Shadow(revision=shadowed, permille=10) if shadowed else None,
    )  # fmt: skip
    used = {one for one in ("r1", "r2", "r3", "r4", "r5") if use_of(record, one)}
    assert used == {revision for revision, _ in shares(record)}
