"""Single requests become batches, and none is in two."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus_batch.core.gathering import BYTES, LINES, LONGEST, SECONDS, Gathering
from inferbus_batch.core.queue_messages import read_message
from inferbus_batch.core.seen import MOST, Seen, Verdict
from inferbus_batch.core.seen import SECONDS as REMEMBERED

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, BYTES), st.floats(0, 1), st.booleans()), max_size=60)


@given(STEPS)
def test_each_comes_out_once_with_its_like_and_in_time(steps: list[tuple[str, int, float, bool]]) -> None:
    gathering: Gathering[str, tuple[int, str, float]] = Gathering()
    now, out = 0.0, []
    for number, (key, size, pause, look) in enumerate(steps):
        gathering.add(key, (number, key, now), size, now)
        now += pause
        if look:
            due = gathering.next_due()
            groups = gathering.due(now)
            assert bool(groups) == (due is not None and due <= now)
            out += groups
    out += gathering.due(now + SECONDS)
    assert gathering.next_due() is None
    for group in out:
        assert {key for _, key, _ in group.items} == {group.key}
        assert group.since == group.items[0][2]
        assert [number for number, *_ in group.items] == sorted(number for number, *_ in group.items)
    assert sorted(number for group in out for number, *_ in group.items) == list(range(len(steps)))


def test_a_full_group_does_not_wait_and_its_like_begins_anew() -> None:
    gathering: Gathering[str, int] = Gathering()
    for number in range(LINES + 1):
        gathering.add("a", number, 1, 5.0)
    (full,) = gathering.due(5.0)
    assert len(full.items) == LINES
    (rest,) = gathering.due(5.0 + SECONDS)
    assert rest.items == [LINES]


def test_while_there_is_enough_to_do_they_wait_for_each_other_but_a_minute_at_most() -> None:
    gathering: Gathering[str, int] = Gathering()
    gathering.add("a", 1, 1, 0.0)
    gathering.add("b", 1, 1, 0.0)
    (free,) = gathering.due(SECONDS, lambda key: key == "a")
    assert free.key == "b"
    gathering.add("a", 2, 1, LONGEST - 1)
    assert gathering.due(LONGEST - 1, lambda key: True) == []
    (waited,) = gathering.due(LONGEST, lambda key: True)
    assert waited.items == [1, 2]


def test_the_same_again_is_known_and_another_under_its_id_is_not_taken() -> None:
    seen, of = Seen(), ("acme", "key")
    assert seen.add(of, "one", b"line", 0.0) is Verdict.NEW
    assert seen.add(of, "one", b"line", 1.0) is Verdict.AGAIN
    assert seen.add(of, "one", b"other", 2.0) is Verdict.OTHER
    assert seen.add(("acme", "other key"), "one", b"other", 2.0) is Verdict.NEW
    assert seen.add(("globex", "key"), "one", b"other", 2.0) is Verdict.NEW
    seen.forget(of, "one")
    assert seen.add(of, "one", b"other", 3.0) is Verdict.NEW


def test_what_came_long_ago_is_forgotten() -> None:
    seen, of = Seen(), ("acme", "key")
    seen.add(of, "one", b"line", 0.0)
    assert seen.add(of, "one", b"other", REMEMBERED - 1) is Verdict.OTHER
    assert seen.add(of, "one", b"other", REMEMBERED + 1) is Verdict.NEW


def test_it_remembers_so_many() -> None:
    seen, of = Seen(), ("acme", "key")
    for number in range(MOST + 1):
        seen.add(of, str(number), b"line", 0.0)
    assert seen.add(of, "0", b"line", 0.0) is Verdict.NEW
    assert seen.add(of, str(MOST), b"line", 0.0) is Verdict.AGAIN


def test_what_is_read_back_from_a_batch_is_what_came() -> None:
    body = b'{"model": "m", "messages": [{"role": "user", "content": "\\u00fc 1.50"}], "temperature": 1.50}'
    data = b'{"request": {"body": %s, "url": "/v1/chat/completions"}, "id": "\\u00fc"}' % body
    message = read_message(data, "job.result.acme.search.tag", "x")
    seen, of = Seen(), ("acme", "key")
    seen.add_line(of, message.line, 0.0)  # type: ignore[union-attr]
    assert seen.add(of, message.to.name, message.line, 1.0) is Verdict.AGAIN  # type: ignore[union-attr]
