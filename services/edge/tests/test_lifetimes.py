"""When a generation is cancelled, in virtual time."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus_contracts.ids import choice_id, detached, request_id
from inferbus_edge.core.lifetimes import ATTACHED_SECONDS, Ending, Lifetimes

FIRST = request_id(1_000_000, bytes(range(10)), "edge-0")
ORPHAN = 30.0
MOVES = ["arrive", "finish", "leave", "hold", "stray", "elsewhere", "due"]


def test_the_last_client_to_leave_ends_it_at_once() -> None:
    lifetimes = Lifetimes(ORPHAN)
    lifetimes.arrive(FIRST)
    lifetimes.arrive(FIRST)
    assert lifetimes.leave((FIRST,), "client_gone", 0.0, 1.0) is None
    ending = lifetimes.leave((FIRST,), "client_gone", 0.0, 2.0)
    assert ending is not None
    assert ending.ids == (FIRST,)
    assert ending.reason == "client_gone"


def test_a_hold_ends_when_the_client_comes_back_and_cancels_when_it_does_not() -> None:
    lifetimes = Lifetimes(ORPHAN)
    ids = (FIRST, choice_id(FIRST, 1))
    lifetimes.arrive(FIRST)
    assert lifetimes.leave(ids, "client_gone", 10.0, 0.0) is None
    assert lifetimes.stray(ids[1], FIRST, 5.0) is None
    lifetimes.arrive(FIRST)
    assert lifetimes.due(11.0) == []
    assert lifetimes.leave(ids, "client_gone", 10.0, 20.0) is None
    assert lifetimes.due(29.9) == []
    (ending,) = lifetimes.due(30.0)
    assert ending.ids == ids


def test_what_another_edge_delivers_or_runs_alone_is_left_alone() -> None:
    lifetimes = Lifetimes(ORPHAN)
    lifetimes.arrive(FIRST)
    lifetimes.elsewhere("edge-1", [FIRST], [], 0.0)
    assert lifetimes.leave((FIRST,), "client_gone", 0.0, 1.0) is None
    assert lifetimes.due(ATTACHED_SECONDS - 0.1) == []
    lifetimes.ended(FIRST)
    alone = detached(FIRST)
    lifetimes.arrive(alone)
    assert lifetimes.leave((alone,), "client_gone", 0.0, 1.0) is None
    assert lifetimes.stray(alone, alone, 2.0) is None
    assert lifetimes.due(1e6) == []


def test_an_orphan_gets_its_time_and_is_then_cancelled_unless_it_is_delivered_elsewhere() -> None:
    lifetimes = Lifetimes(ORPHAN)
    assert lifetimes.stray(FIRST, FIRST, 0.0) is None
    assert lifetimes.due(ORPHAN - 0.1) == []
    lifetimes.elsewhere("edge-1", [FIRST], [], ORPHAN - 0.1)
    assert lifetimes.due(ORPHAN) == []
    assert lifetimes.stray(FIRST, FIRST, ORPHAN + 1) is None
    # The other edge has gone silent: from here on its time runs again.
    silent = ORPHAN + ATTACHED_SECONDS
    assert lifetimes.stray(FIRST, FIRST, silent) is None
    assert [ending.reason for ending in lifetimes.due(silent + ORPHAN)] == ["orphan"]


def test_a_lost_cancel_is_said_again_but_not_for_each_token() -> None:
    lifetimes = Lifetimes(ORPHAN)
    lifetimes.arrive(FIRST)
    assert lifetimes.leave((FIRST,), "client_gone", 0.0, 0.0) is not None
    said = [now for now in (x / 100 for x in range(300)) if lifetimes.stray(FIRST, FIRST, now) is not None]
    assert len(said) == 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "finish", "leave", "hold", "stray", "elsewhere", "due"]), st.integers(0, 40)
        ),
        max_size=60,
    )
)
def test_nothing_that_has_a_client_here_is_ever_cancelled(moves: list[tuple[str, int]]) -> None:
    lifetimes, here, now = Lifetimes(ORPHAN), 0, 0.0
    for move, seconds in moves:
        now += seconds
        endings = []
        if move == "arrive":
            lifetimes.arrive(FIRST)
            here += 1
        elif move == "finish" and here:
            lifetimes.finish(FIRST)
            here -= 1
        elif move in ("leave", "hold") and here:
            here -= 1
            endings = [lifetimes.leave((FIRST,), "client_gone", 15.0 if move == "hold" else 0.0, now)]
        elif move == "stray" and not here:
            endings = [lifetimes.stray(FIRST, FIRST, now)]
        elif move == "elsewhere":
            lifetimes.elsewhere("edge-1", [FIRST], [], now)
        elif move == "due":
            endings = list(lifetimes.due(now))
        assert here == 0 or not any(endings)


def test_all_choices_of_an_orphan_end_at_once() -> None:
    lifetimes = Lifetimes(ORPHAN)
    ids = tuple(choice_id(FIRST, choice) for choice in range(3))
    for one in ids:
        assert lifetimes.stray(one, FIRST, 0.0) is None
    (ending,) = lifetimes.due(ORPHAN)
    assert set(ending.ids) == set(ids)


def test_what_another_edge_holds_is_no_orphan_here() -> None:
    lifetimes = Lifetimes(ORPHAN)
    lifetimes.elsewhere("edge-1", [], [FIRST], 0.0)
    assert lifetimes.stray(FIRST, FIRST, 1.0) is None
    assert lifetimes.due(ORPHAN + 2) == []


def test_a_client_that_comes_back_elsewhere_before_its_leaving_is_seen_and_leaves_at_once_is_cancelled() -> None:
    """Each edge hears that the other one has it, and none leaves it to the other."""
    first, second = Lifetimes(ORPHAN), Lifetimes(ORPHAN)
    first.arrive(FIRST)
    second.arrive(FIRST, shared=True)
    news = first.elsewhere("edge-1", [FIRST], [], 0.0, arrived=True)
    assert second.leave((FIRST,), "client_gone", 0.0, 0.1) is None
    assert second.elsewhere("edge-0", news, [], 0.1) == []
    assert second.due(5.0) == []
    assert first.leave((FIRST,), "client_gone", 60.0, 5.0) is None
    assert first.waits(FIRST)
    second.elsewhere("edge-0", [], [FIRST], 5.0)
    assert [ending.ids for ending in second.due(5.0)] == [(FIRST,)]
    assert first.due(ATTACHED_SECONDS + 0.1) == []  # of what became of the other it has heard nothing
    assert [ending.ids for ending in first.due(2 * ATTACHED_SECONDS + ORPHAN)] == [(FIRST,)]


def test_the_hold_of_the_edge_that_a_client_came_to_last_counts() -> None:
    first, second = Lifetimes(ORPHAN), Lifetimes(ORPHAN)
    first.arrive(FIRST)
    second.arrive(FIRST, shared=True)
    first.elsewhere("edge-1", [FIRST], [], 0.0, arrived=True)
    assert second.leave((FIRST,), "client_gone", 20.0, 0.1) is None
    assert first.leave((FIRST,), "client_gone", 0.0, 0.2) is None
    for tick in range(20):
        attached, held = second.shared()
        assert (attached, held) == ([], [FIRST])
        assert first.elsewhere("edge-1", attached, held, float(tick)) == []
        assert first.due(float(tick)) == []
        assert second.due(float(tick)) == []
    assert [ending.ids for ending in second.due(20.2)] == [(FIRST,)]


DELAY, REPEAT, HOLD = 0.4, ATTACHED_SECONDS / 3, 3.0
MOVED = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(["come", "go", "hold"]), st.floats(0.0, 5.0)), max_size=25
)


class TwoEdges:
    """The first client comes to edge 0; each later one comes back, to either. Word between them takes up to DELAY (a
    millisecond, really). ``generating``: the frames are edge 0's, there a token comes all the time."""

    def __init__(self, *, generating: bool) -> None:
        self.edges = [Lifetimes(ORPHAN), Lifetimes(ORPHAN)]
        self.clients = [0, 0]
        self.begun = self.cancelled = False
        self.now = self.known = self.word = 0.0
        self._generating = generating
        self._repeated = 0.0
        self._mail: list[tuple[float, int, list[bytes], list[bytes], bool]] = []

    def come(self, to: int) -> None:
        at = to if self.begun else 0
        self.edges[at].arrive(FIRST, shared=self.begun)
        if self.begun:
            self._say(at, [FIRST], [], arrived=True)
        self.word = self.word if any(self.clients) else self.now + DELAY
        self.clients[at] += 1
        self.begun, self.known = True, self.now + 2 * DELAY

    def go(self, at: int, hold: float) -> None:
        self.clients[at] -= 1
        ending = self.edges[at].leave((FIRST,), "client_gone", hold, self.now)
        if self.edges[at].waits(FIRST):
            self._say(at, [], [FIRST])
        self._ended(ending)

    def run_until(self, end: float) -> None:
        while self.now < end and not self.cancelled:
            self.now = min(end, self.now + 0.1)
            for item in [one for one in self._mail if one[0] <= self.now]:
                self._mail.remove(item)
                _, sender, attached, held, arrived = item
                other = self.edges[1 - sender]
                self._say(1 - sender, other.elsewhere(f"{sender}", attached, held, self.now, arrived=arrived), [])
            if self.now - self._repeated >= REPEAT:
                self._repeated = self.now
                for number, edge in enumerate(self.edges):
                    self._say(number, *edge.shared())
            for edge in self.edges:
                for ending in edge.due(self.now):
                    self._ended(ending)
            if self._generating and self.begun and not self.clients[0]:
                self._ended(self.edges[0].stray(FIRST, FIRST, self.now))

    def _say(self, sender: int, attached: list[bytes], held: list[bytes], *, arrived: bool = False) -> None:
        if attached or held:
            self._mail.append((self.now + DELAY, sender, attached, held, arrived))

    def _ended(self, ending: Ending | None) -> None:
        self.cancelled = self.cancelled or ending is not None


@given(MOVED)
def test_two_edges_never_cancel_what_one_of_them_delivers(moves: list[tuple[int, str, float]]) -> None:
    """Who leaves an edge in the moment after another has come elsewhere is not known to be one of two, since a client
    that nobody knows to be shared is cancelled at once; and who comes back elsewhere in that moment before its hold is
    over comes too late."""
    two = TwoEdges(generating=True)
    for number, move, pause in moves:
        if move == "come":
            two.come(number)
        elif two.clients[number]:
            two.run_until(two.known)
            if not two.cancelled:
                two.go(number, HOLD if move == "hold" else 0.0)
        two.run_until(two.now + pause)
        if two.cancelled:
            assert not any(two.clients) or two.now < two.word
            return


@given(MOVED, st.booleans())
def test_two_edges_always_cancel_what_nobody_wants(moves: list[tuple[int, str, float]], generating: bool) -> None:
    """Whatever crosses, and whether it generates or waits for its worker."""
    two = TwoEdges(generating=generating)
    for number, move, pause in moves:
        if move == "come":
            two.come(number)
        elif two.clients[number]:
            two.go(number, HOLD if move == "hold" else 0.0)
        two.run_until(two.now + pause)
    for number in (0, 1):
        while two.clients[number]:
            two.go(number, HOLD)
    two.run_until(two.now + HOLD + ATTACHED_SECONDS + ORPHAN + REPEAT + 1)
    assert two.cancelled or not two.begun
