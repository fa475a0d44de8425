"""Which worker processes are started and drained, as values."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus_stack.slots import Slots

NAMES = tuple(f"worker-{n}" for n in range(4))


def test_free_slots_are_started_in_their_order_and_never_more_than_there_are() -> None:
    slots, start, drain = Slots(NAMES, running=("worker-0",)).towards(3)
    assert (start, drain) == (("worker-1", "worker-2"), ())
    assert slots.towards(3)[1:] == ((), ()), "they are on their way"
    assert slots.towards(9)[1] == ("worker-3",)


def test_the_newest_leaves_first_and_its_slot_is_free_only_when_it_has_ended() -> None:
    slots, start, drain = Slots(NAMES, running=("worker-0", "worker-2", "worker-1")).towards(1)
    assert (start, drain) == ((), ("worker-2", "worker-1"))
    slots, start, _ = slots.towards(2)
    assert start == ("worker-3",)
    assert slots.gone("worker-1").towards(3)[1] == ("worker-1",)


def test_what_is_starting_is_drained_only_when_it_runs() -> None:
    slots, _, drain = Slots(NAMES, running=("worker-0",), starting=("worker-1",)).towards(0)
    assert drain == ("worker-0",)
    assert slots.started("worker-1").towards(0)[2] == ("worker-1",)


def test_a_worker_that_did_not_start_is_tried_again() -> None:
    slots, start, _ = Slots(NAMES).towards(1)
    assert slots.gone(start[0]).towards(1)[1] == start


def test_who_serves_stays_until_those_that_start_serve() -> None:
    slots = Slots(NAMES, running=("worker-0",), starting=("worker-1", "worker-2", "worker-3"))
    slots, start, drain = slots.towards(1)
    assert (start, drain) == ((), ())
    assert slots.started("worker-1").towards(1)[2] == ("worker-1",)


@given(st.lists(st.integers(0, 6), max_size=30), st.data())
def test_whatever_is_wanted_each_slot_is_in_one_place_and_in_the_end_there_are_as_many(
    wanted: list[int], data: st.DataObject
) -> None:
    slots = Slots(NAMES, running=NAMES[:1])
    for want in wanted:
        before = slots
        slots, _, drained = slots.towards(want)
        assert len(before.running) - len(drained) >= min(want, len(before.running))
        if slots.starting and data.draw(st.booleans()):
            slots = slots.started(slots.starting[0])
        if slots.leaving and data.draw(st.booleans()):
            slots = slots.gone(slots.leaving[0])
        taken = (*slots.running, *slots.starting, *slots.leaving)
        assert len(taken) == len(set(taken)) <= len(NAMES)
    want = min((wanted or [1])[-1], len(NAMES))
    for _ in range(len(NAMES) + 1):
        slots, _, _ = slots.towards(want)
        for name in slots.starting:
            slots = slots.started(name)
        for name in slots.leaving:
            slots = slots.gone(name)
    assert len(slots.running) == want
