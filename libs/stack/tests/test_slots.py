"""Which worker processes are started and drained, as values."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.decision_pb2 import ScalingDecision
from inferbus_stack.slots import Slot, Slots, Step
from inferbus_stack.wanted import Wanted

NAMES = tuple(f"worker-{n}" for n in range(4))
ANY = ("m", "")


def running(*names: str, model: str = "m", revision: str = "r") -> Slots:
    return Slots(NAMES, tuple(Slot(name, model, revision, "running") for name in names))


def names(step: Step) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(one.name for one in step.starting), step.leaving


def test_free_slots_are_started_in_their_order_and_never_more_than_there_are() -> None:
    step = running("worker-0").towards({ANY: 3})
    assert names(step) == (("worker-1", "worker-2"), ())
    assert names(step.slots.towards({ANY: 3})) == ((), ()), "they are on their way"
    more = step.slots.towards({ANY: 9})
    assert (names(more), more.lacking) == ((("worker-3",), ()), (ANY,))


def test_the_newest_leaves_first_and_its_slot_is_free_only_when_it_has_ended() -> None:
    step = running("worker-0", "worker-2", "worker-1").towards({ANY: 1})
    assert names(step) == ((), ("worker-2", "worker-1"))
    step = step.slots.towards({ANY: 2})
    assert names(step)[0] == ("worker-3",)
    assert names(step.slots.gone("worker-1").towards({ANY: 3}))[0] == ("worker-1",)


def test_what_is_starting_is_drained_only_when_it_runs() -> None:
    slots = running("worker-0").towards({ANY: 2}).slots
    step = slots.towards({ANY: 0})
    assert names(step) == ((), ("worker-0",))
    assert names(step.slots.started("worker-1", "r").towards({ANY: 0})) == ((), ("worker-1",))


def test_who_serves_stays_until_those_that_start_serve() -> None:
    slots = running("worker-0").towards({ANY: 4}).slots
    step = slots.towards({ANY: 1})
    assert names(step) == ((), ())
    assert names(step.slots.started("worker-1", "r").towards({ANY: 1})) == ((), ("worker-1",))


def test_a_new_revision_is_started_beside_the_old_one_and_the_old_one_leaves_when_it_is_said() -> None:
    step = running("worker-0", revision="old").towards({("m", "old"): 1, ("m", "new"): 1})
    assert step.starting == (Slot("worker-1", "m", "new", "starting"),)
    step = step.slots.started("worker-1", "new").towards({("m", "old"): 0, ("m", "new"): 1})
    assert names(step) == ((), ("worker-0",))


def test_models_have_workers_of_their_own_and_what_is_not_named_stays() -> None:
    slots = running("worker-0")
    step = slots.towards({("other", ""): 1})
    assert step.starting == (Slot("worker-1", "other", "", "starting"),)
    assert step.leaving == ()
    assert names(step.slots.started("worker-1", "x").towards({("other", "x"): 0})) == ((), ("worker-1",))


def test_what_does_not_start_is_held_back_while_others_start() -> None:
    step = running().towards({("a", ""): 1, ("b", ""): 1}, frozenset({("a", "")}))
    assert step.starting == (Slot("worker-0", "b", "", "starting"),)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=30), st.data())
def test_whatever_is_wanted_each_slot_is_in_one_place_and_in_the_end_there_are_as_many(
    wanted: list[tuple[int, int]], data: st.DataObject
) -> None:
    slots = running("worker-0")
    other = ("other", "x")
    for want, more in wanted:
        before = sum(1 for one in slots.used if one.state == "running" and one.is_of(ANY))
        step = slots.towards({ANY: want, other: more})
        slots = step.slots
        drained = sum(1 for name in step.leaving if slots.of(name).model == "m")
        assert before - drained >= min(want, before)
        for one in slots.used:
            if one.state != "running" and data.draw(st.booleans()):
                revision = one.revision or "r"
                slots = slots.started(one.name, revision) if one.state == "starting" else slots.gone(one.name)
        taken = [one.name for one in slots.used]
        assert len(taken) == len(set(taken)) <= len(NAMES)
    want = min(wanted[-1][0] if wanted else 1, len(NAMES))
    for _ in range(2 * len(NAMES) + 2):
        slots = slots.towards({ANY: want, other: 0}).slots
        for one in slots.used:
            if one.state != "running":
                revision = one.revision or "r"
                slots = slots.started(one.name, revision) if one.state == "starting" else slots.gone(one.name)
    assert [one.model for one in slots.used] == ["m"] * want


def decided(revision: str, replicas: int, reason: str = "queue") -> ScalingDecision:
    return ScalingDecision(model="m", revision=revision, replicas=replicas, reason=reason)


def test_revisions_count_only_as_long_as_their_model_is_divided() -> None:
    wanted = Wanted()
    assert wanted.note([decided("", 2)]) == [decided("", 2)]
    assert wanted.note([decided("", 2, "min")]) == [], "the same number, for another reason"
    assert wanted.units() == {ANY: 2}
    wanted.note([decided("a", 1), decided("b", 2), decided("", 3, "revisions")])
    assert wanted.units() == {("m", "a"): 1, ("m", "b"): 2}
    wanted.note([decided("", 2, "no_load"), decided("a", 0), decided("b", 0)])
    assert wanted.units() == {ANY: 2}
