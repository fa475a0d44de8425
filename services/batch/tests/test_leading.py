"""Of lines that begin alike one reads first; nobody waits for ever."""

from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus_batch.core.leading import Leading

beginnings = st.lists(st.sampled_from("ab"), max_size=4).map(
    lambda parts: tuple("".join(parts[: at + 1]).encode() for at in range(len(parts)))
)


@settings(max_examples=200)
@given(st.lists(beginnings, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_nothing_is_read_by_two_at_a_time_and_all_of_them_go(lines, draw):
    leading = Leading()
    waiting = {str(number).encode(): beginning for number, beginning in enumerate(lines)}
    running: dict[bytes, set[bytes]] = {}
    read: set[bytes] = set()
    while waiting or running:
        gone = False
        for name, beginning in list(waiting.items()):
            if leading.may_go(name, beginning, 0.0):
                cold = set(beginning) - read
                assert all(cold.isdisjoint(other) for other in running.values())
                running[name] = cold
                del waiting[name]
                gone = True
        assert gone or running, "all wait, and for nobody"
        if running:
            name = draw.choice(sorted(running))
            leading.has_read(name)
            read |= running.pop(name)


def test_who_waits_for_one_that_says_nothing_goes_after_a_while():
    leading = Leading()
    assert leading.may_go(b"first", (b"a", b"ab"), 0.0)
    assert leading.may_go(b"first", (b"a", b"ab"), 1.0), "asked again it is the same"
    assert not leading.may_go(b"second", (b"a",), 29.0)
    assert leading.may_go(b"second", (b"a",), 31.1)
    leading.has_read(b"first")
    assert leading.may_go(b"third", (b"a", b"ab"), 32.0) is False
    leading.has_read(b"second")
    assert leading.may_go(b"third", (b"a", b"ab"), 32.0)


def test_lines_too_short_to_have_a_beginning_wait_for_nobody():
    leading = Leading()
    assert all(leading.may_go(str(number).encode(), (), 0.0) for number in range(5))
