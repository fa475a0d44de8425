"""The wall between tenants in the prefix cache: properties over any history of slots."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from inferbus_worker.core.slots import Content, Lease, SlotTable, common_length

SALTS = (b"", b"a", b"b")
CONTENT = st.one_of(st.text(alphabet="xy", max_size=6), st.lists(st.integers(0, 1), max_size=6).map(tuple))
COUNT = 3


@dataclass
class Engine:
    """What the slots may really hold: of each, every (salt, content) that it is not known to have lost."""

    held: list[set[tuple[bytes, Content]]] = field(default_factory=lambda: [set() for _ in range(COUNT)])


@given(CONTENT, CONTENT)
def test_common_length(one: Content, other: Content) -> None:
    length = common_length(one, other)
    assert one[:length] == other[:length] or isinstance(one, str) is not isinstance(other, str)
    if length < min(len(one), len(other)):
        assert one[length] != other[length]


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["take", "read", "cancel", "lose", "evict"]), st.sampled_from(SALTS), CONTENT, st.integers(0, 9)
    ),
    max_size=40,
)


@given(MOVES)
def test_nobody_reads_on_from_another_salt(moves: list[tuple[str, bytes, Content, int]]) -> None:
    """Whatever ends how, a slot is reused only if all that it may hold was read with the same salt."""
    table, engine = SlotTable(COUNT), Engine()
    taken: list[tuple[Lease, bytes, Content]] = []
    now = 0.0
    for move, salt, content, number in moves:
        now += 0.4
        if move == "take" and len(taken) < COUNT:
            lease = table.take(salt, content, now)
            assert lease.slot not in [other.slot for other, _, _ in taken], "one generation a slot"
            held = engine.held[lease.slot]
            if lease.reuse:
                assert held
                assert {other for other, _ in held} == {salt}
            taken.append((lease, salt, content))
        elif move == "evict":
            for slot in table.evict(number, now):
                engine.held[slot].clear()
        elif taken and move != "take":  # with all slots taken nobody is let in
            lease, salt, content = taken.pop(number % len(taken))
            if move == "read":  # it was read to its end
                engine.held[lease.slot] = {(salt, content)}
                table.release(lease, salt, content, number, now)
            elif move == "cancel":  # it was read, and goes on for a while
                engine.held[lease.slot] = {(salt, content)}
                table.release(lease, salt, content, number, now + 1.0)
            elif move == "lose":  # ended before it was seen to be read: the slot may hold either
                engine.held[lease.slot].add((salt, content))
                table.release(lease, salt, None, number, now + 1.0)


@given(st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=COUNT, max_size=COUNT), st.integers(0, 600))
def test_idle_slots_hold_no_more_than_allowed(held: list[tuple[int, bool]], allowed: int) -> None:
    table = SlotTable(COUNT)
    leases = [table.take(b"", "x" * number, 0.0) for number in range(COUNT)]
    for lease, (cells, leaving) in zip(leases, held, strict=True):
        table.release(lease, b"", "x", cells, 9.0 if leaving else 0.0)
    gone = table.evict(allowed, 1.0)
    left = [cells for lease, (cells, _) in zip(leases, held, strict=True) if lease.slot not in gone]
    stuck = [leaving for lease, (_, leaving) in zip(leases[:-1], held, strict=False) if lease.slot not in gone]
    assert sum(left) <= allowed or all(stuck), "what could be emptied was"
    assert leases[-1].slot not in gone, "the newest stays"
    assert not any(leaving for lease, (_, leaving) in zip(leases, held, strict=True) if lease.slot in gone)
    assert table.evict(allowed, 1.0) == []


@given(st.lists(st.integers(1, 400), min_size=COUNT, max_size=COUNT), st.integers(0, 600))
def test_where_room_is_needed_the_newest_goes_too(held: list[int], allowed: int) -> None:
    table = SlotTable(COUNT)
    leases = [table.take(b"", "x" * number, 0.0) for number in range(COUNT)]
    for lease, cells in zip(leases, held, strict=True):
        table.release(lease, b"", "x", cells, 0.0)
    assert table.idle_cells == sum(held)
    gone = table.evict(allowed, 1.0, keep_newest=False)
    assert table.idle_cells <= allowed
    assert [lease.slot for lease in leases[: len(gone)]] == gone, "the oldest first"


def test_the_longest_prefix_wins_and_little_is_not_worth_a_slot() -> None:
    table = SlotTable(3)
    contents = ("header one", "header one and more", "header" + "z" * 50)
    leases = [table.take(b"t", content, 0.0) for content in contents]
    for lease, content in zip(leases, contents, strict=True):
        table.release(lease, b"t", content, 10, 0.0)
    assert table.take(b"t", "header one and more still", 1.0) == Lease(1, True)
    # Of the last slot a tenth would be of use: it keeps its own, and the oldest goes.
    assert table.take(b"t", "header two", 1.0) == Lease(0, True)
    assert table.take(b"other", "header" + "z" * 50, 1.0) == Lease(2, False)


def test_a_slot_that_is_being_left_comes_last() -> None:
    table = SlotTable(2)
    left = table.take(b"t", "same prompt", 0.0)
    table.release(left, b"t", "same prompt", 10, 1.0)
    other = table.take(b"t", "same prompt", 0.5)
    assert other.slot != left.slot
    assert table.take(b"t", "same prompt", 0.6) == Lease(left.slot, True)
