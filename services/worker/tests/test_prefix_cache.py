"""What an engine's cache holds and what is told of it: whoever follows the changes knows what is true."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from inferbus_worker.core.prefix_cache import PrefixCache

CHUNKS = st.lists(st.integers(0, 9), max_size=5, unique=True).map(tuple)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), st.integers(0, 3), CHUNKS),
        st.tuples(st.just("shorten"), st.integers(0, 3), CHUNKS),
        st.tuples(st.just("drop"), st.integers(0, 3), st.just(())),
        st.tuples(st.just("stored"), st.integers(0, 9), st.just(())),
        st.tuples(st.just("removed"), st.integers(0, 9), st.just(())),
        st.tuples(st.just("used"), st.just(0), CHUNKS),
        st.tuples(st.sampled_from(["clear", "changes", "all"]), st.just(0), st.just(())),
    ),
    max_size=60,
)


class Follower:
    """What a scheduler knows that hears every change; and what is true."""

    def __init__(self, bound: int) -> None:
        self.cache = PrefixCache(bound)
        self.known: set[int] = set()
        self.places: dict[int, tuple[int, ...]] = {}
        self.loose: Counter[int] = Counter()

    def move(self, move: str, number: int, chunks: tuple[int, ...]) -> None:
        match move:
            case "hold":
                self.cache.hold(number, chunks)
                self.places[number] = chunks
            case "shorten":
                self.cache.shorten(number, chunks)
                before = self.places.get(number, ())
                same = [one == other for one, other in zip(before, chunks, strict=False)] + [False]
                self.places[number] = before[: same.index(False)]
            case "drop":
                self.cache.drop(number)
                self.places.pop(number, None)
            case "stored":
                self.cache.stored(number)
                self.loose[number] += 1
            case "removed" if self.loose[number]:
                self.cache.removed(number)
                self.loose[number] -= 1
            case "used":
                self.cache.used(chunks)
            case "clear":
                self.cache.clear()
                self.places.clear()
                self.loose.clear()
            case "changes":
                self.hear()
            case "all":
                self.known = set(self.cache.all())

    def hear(self) -> None:
        stored, removed = self.cache.changes()
        assert not set(stored) & set(removed)
        assert len(stored) == len(set(stored))
        assert not set(stored) & self.known, "told once"
        assert set(removed) <= self.known, "nothing goes that was not there"
        self.known |= set(stored)
        self.known -= set(removed)

    @property
    def true(self) -> set[int]:
        return {chunk for held in self.places.values() for chunk in held} | {one for one, n in self.loose.items() if n}


@given(MOVES)
def test_whoever_follows_the_changes_knows_what_is_held(moves: list[tuple[str, int, tuple[int, ...]]]) -> None:
    follower = Follower(bound=100)
    for move in moves:
        follower.move(*move)
    follower.hear()
    assert follower.known == follower.true == set(follower.cache.all())
    assert follower.cache.changes() == ([], [])


@given(MOVES, st.integers(1, 4))
def test_no_more_is_told_than_the_bound_and_nothing_that_is_gone(
    moves: list[tuple[str, int, tuple[int, ...]]], bound: int
) -> None:
    follower = Follower(bound)
    for move in moves:
        follower.move(*move)
        assert len(follower.known) <= bound
    follower.hear()
    assert follower.known <= follower.true
    assert set(follower.cache.all()) == follower.known


def test_of_many_the_newest_are_told_and_of_each_its_beginning() -> None:
    cache = PrefixCache(4)
    cache.hold("a", (1, 2, 3))
    assert sorted(cache.changes()[0]) == [1, 2, 3]
    cache.hold("b", (11, 12, 13))
    assert cache.changes() == ([13, 12, 11], [3, 2])
    cache.used((1,))
    cache.hold("c", (21, 22))
    stored, removed = cache.changes()
    assert (sorted(stored), sorted(removed)) == ([21, 22], [12, 13])


def test_what_two_places_hold_is_there_until_both_have_let_it_go() -> None:
    cache = PrefixCache(10)
    cache.hold("slot 1", (1, 2))
    cache.hold("slot 2", (1, 3))
    cache.changes()
    cache.shorten("slot 1", (9,))
    assert cache.changes() == ([], [2])
    cache.drop("slot 2")
    stored, removed = cache.changes()
    assert (stored, sorted(removed)) == ([], [1, 3])


def test_with_no_bound_to_tell_nothing_is_kept() -> None:
    cache = PrefixCache(0)
    cache.hold("a", (1, 2))
    cache.stored(3)
    assert cache.all() == []
    cache.drop("a")
    cache.removed(3)
    assert cache.changes() == ([], [])
