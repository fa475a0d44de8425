"""When a generation is cancelled, in virtual time."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus_contracts.ids import choice_id, detached, request_id
from inferbus_edge.core.lifetimes import ATTACHED_SECONDS, Lifetimes

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
    lifetimes.elsewhere([FIRST], [], 0.0)
    assert lifetimes.leave((FIRST,), "client_gone", 0.0, 1.0) is None
    alone = detached(FIRST)
    lifetimes.arrive(alone)
    assert lifetimes.leave((alone,), "client_gone", 0.0, 1.0) is None
    assert lifetimes.stray(alone, alone, 2.0) is None
    assert lifetimes.due(1e6) == []


def test_an_orphan_gets_its_time_and_is_then_cancelled_unless_it_is_delivered_elsewhere() -> None:
    lifetimes = Lifetimes(ORPHAN)
    assert lifetimes.stray(FIRST, FIRST, 0.0) is None
    assert lifetimes.due(ORPHAN - 0.1) == []
    lifetimes.elsewhere([FIRST], [], ORPHAN - 0.1)
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
            lifetimes.elsewhere([FIRST], [], now)
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
    lifetimes.elsewhere([], [FIRST], 0.0)
    assert lifetimes.stray(FIRST, FIRST, 1.0) is None
    assert lifetimes.due(ORPHAN + 2) == []


DELAY, REPEAT = 0.4, ATTACHED_SECONDS / 3


@given(
    st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["come", "go", "hold"]), st.floats(0.0, 5.0)), max_size=25)
)
def test_two_edges_never_cancel_what_one_of_them_delivers(moves: list[tuple[int, str, float]]) -> None:
    """The first client comes to edge 0; each later one comes back, to either. Word between them takes up to DELAY (a
    millisecond, really): who leaves an edge in that time after another has come elsewhere is not known to be one of
    two, since a client that nobody knows to be shared is cancelled at once; and who comes back elsewhere in that time
    before its hold is over comes too late."""
    edges = [Lifetimes(ORPHAN), Lifetimes(ORPHAN)]
    clients = [0, 0]
    mail: list[tuple[float, int, list[bytes], list[bytes]]] = []
    now, repeat, first, known, word = 0.0, 0.0, True, 0.0, 0.0

    def say(sender: int, attached: list[bytes], held: list[bytes], at: float) -> None:
        if attached or held:
            mail.append((at + DELAY, 1 - sender, attached, held))

    def run_until(end: float) -> None:
        nonlocal now, repeat
        while now < end:
            now = min(end, now + 0.1)
            for item in [one for one in mail if one[0] <= now]:
                mail.remove(item)
                say(item[1], edges[item[1]].elsewhere(item[2], item[3], now), [], now)
            if now - repeat >= REPEAT:
                repeat = now
                for number, edge in enumerate(edges):
                    say(number, *edge.shared(), now)
            for number, edge in enumerate(edges):
                # The frames are edge 0's: there a token comes all the time.
                strays = [edge.stray(FIRST, FIRST, now)] if number == 0 and not clients[0] and not first else []
                for ending in (*edge.due(now), *strays):
                    assert ending is None or not any(clients) or now < word, (ending, clients, now)
                    if ending is not None:
                        raise StopIteration

    try:
        for number, move, pause in moves:
            if move == "come":
                at = 0 if first else number
                edges[at].arrive(FIRST, shared=not first)
                if not first:
                    say(at, [FIRST], [], now)
                word = word if any(clients) else now + DELAY
                clients[at] += 1
                first, known = False, now + 2 * DELAY
            elif clients[number]:
                run_until(known)
                clients[number] -= 1
                ending = edges[number].leave((FIRST,), "client_gone", 3.0 if move == "hold" else 0.0, now)
                assert ending is None or not any(clients)
                if ending is not None:
                    return
            run_until(now + pause)
    except StopIteration:
        return
