"""Chunks name beginnings: equal ones are named alike, others, and other tenants', are not."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus_contracts.prefixes import CHUNK_BYTES, HASH_BYTES, MAX_CHUNKS, hashes_of, packed, prefix_of

TURNS = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=700)), max_size=4)


def chat(*turns: tuple[str, str], salt: bytes = b"tenant", model: str = "model") -> GenerateRequest:
    request = GenerateRequest(cache_salt=salt)
    request.context.model = model
    request.chat.SetInParent()
    for role, content in turns:
        request.chat.messages.add(role=role, content=content)
    return request


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


@given(TURNS, TURNS, TURNS)
def test_what_begins_alike_has_its_first_chunks_in_common(
    before: list[tuple[str, str]], one: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    shared = prefix_of(chat(*before))
    first, second = prefix_of(chat(*before, *one)), prefix_of(chat(*before, *other))
    assert first.startswith(shared)
    assert second.startswith(shared)
    assert len(hashes_of(first)) == len(set(hashes_of(first))), "each place of a chain has its own"


@given(TURNS, st.data())
def test_a_chunk_says_all_that_comes_before_it(turns: list[tuple[str, str]], data: st.DataObject) -> None:
    """One letter changed: the chunks after it differ, all of them."""
    if not any(content for _, content in turns):
        return
    at = data.draw(st.sampled_from([number for number, (_, content) in enumerate(turns) if content]))
    role, content = turns[at]
    place = data.draw(st.integers(0, len(content) - 1))
    letter = "x" if content[place] != "x" else "y"
    changed = [*turns[:at], (role, content[:place] + letter + content[place + 1 :]), *turns[at + 1 :]]
    one, other = hashes_of(prefix_of(chat(*turns))), hashes_of(prefix_of(chat(*changed)))
    equal = common(one, other)
    assert not set(one[equal:]) & set(other[equal:])


def test_nobody_shares_a_chunk_with_another_tenant_or_model() -> None:
    turn = ("user", "The same words. " * 100)
    sets = [set(hashes_of(prefix_of(chat(turn, **one)))) for one in ({}, {"salt": b"other"}, {"model": "other"})]
    assert all(len(one) == 6 for one in sets)
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]


def test_tools_calls_and_effort_are_read_too() -> None:
    plain, tool, effort, call, named = (chat(("user", "Words " * 100)) for _ in range(5))
    tool.chat.tools.add(name="look_up")
    effort.chat.reasoning_effort = "high"
    call.chat.messages[0].tool_calls.add(id="1", name="look_up", arguments="{}")
    named.chat.messages[0].name = "Ada"
    first = [hashes_of(prefix_of(one))[0] for one in (plain, tool, effort, call, named)]
    assert len(set(first)) == 5


def test_raw_prompts_and_what_reads_none() -> None:
    text, ids, vectors = GenerateRequest(), GenerateRequest(), GenerateRequest()
    text.prompt.text = "x" * 1000
    ids.prompt.tokens.ids.extend(range(1000))
    vectors.embedding.inputs.add(text="x" * 1000)
    assert len(hashes_of(prefix_of(text))) == 3
    assert len(hashes_of(prefix_of(ids))) == 4000 // CHUNK_BYTES
    assert prefix_of(vectors) == prefix_of(GenerateRequest()) == b""
    longer = GenerateRequest()
    longer.prompt.text = "x" * 2000
    assert prefix_of(longer).startswith(prefix_of(text)), "a prompt that goes on begins alike"


def test_long_inputs_are_told_apart_by_their_beginnings() -> None:
    long = prefix_of(chat(("user", "word " * 100_000)))
    assert len(long) == MAX_CHUNKS * HASH_BYTES
    assert long == prefix_of(chat(("user", "word " * 200_000)))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_numbers_and_bytes_are_each_others_inverse(numbers: list[int]) -> None:
    assert hashes_of(packed(numbers)) == tuple(numbers)
    assert packed(iter(numbers)) == packed(tuple(numbers))
