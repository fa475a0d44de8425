"""The formula and the KV blocks that the engine ``synthetic`` and the simulator share."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus_contracts.prefixes import CHUNK_TOKENS
from inferbus_runtime.kv_model import KvModel
from inferbus_runtime.timing_model import TimingModel

BLOCK_TOKENS = 16
CHUNK_BLOCKS = CHUNK_TOKENS // BLOCK_TOKENS
# Chains: whoever has a chunk has those before it.
FAMILIES = tuple(tuple(family * 100 + at for at in range(6)) for family in range(3))
PROMPTS = st.tuples(st.sampled_from(FAMILIES), st.integers(0, 6)).map(lambda one: one[0][: one[1]])
MOVES = st.lists(
    st.tuples(st.sampled_from(["begin", "read", "end"]), st.integers(0, 7), PROMPTS, st.integers(1, 600)), max_size=60
)


def test_a_step_grows_with_those_in_it_and_reading_with_its_tokens() -> None:
    model = TimingModel(0.010, 0.0005, prefill_tokens_per_second=10_000.0, kv_block_tokens=16)
    assert model.step(0) == 0.010
    assert model.step(20) == 0.020
    assert model.prefill(5000) == 0.5
    assert [model.blocks(tokens) for tokens in (0, 1, 16, 17)] == [0, 1, 1, 2]
    assert TimingModel(0.010).prefill(5000) == 0.0, "at once"


@given(MOVES)
def test_blocks_are_never_more_than_there_are_and_all_come_back(
    moves: list[tuple[str, int, tuple[int, ...], int]],
) -> None:
    there: set[int] = set()
    gone: list[int] = []

    def stored(chunk: int) -> None:
        assert chunk not in there, "said once"
        there.add(chunk)

    def removed(chunk: int) -> None:
        there.remove(chunk)
        gone.append(chunk)

    kv = KvModel(64, BLOCK_TOKENS, stored, removed)
    running: dict[bytes, tuple[int, ...]] = {}
    unread: set[bytes] = set()
    for move, number, chunks, tokens in moves:
        key = bytes([number])
        if move == "begin" and key not in running:
            before = (kv.used, set(there))
            expected = next((at for at, one in enumerate(chunks) if one not in there), len(chunks))
            assert kv.match(chunks) == expected
            found = kv.begin(key, chunks, tokens)
            if found is None:
                assert (kv.used, there) == before, "who waits has changed nothing"
                continue
            assert found == expected
            running[key] = chunks
            unread.add(key)
        elif move == "read" and key in unread:
            unread.discard(key)
            kv.read(key)
        elif move == "end":
            kv.end(key)
            running.pop(key, None)
            unread.discard(key)
        assert kv.used >= 0
        assert kv.used + CHUNK_BLOCKS * len(there - {one for held in running.values() for one in held}) <= kv.total
    for key in running:
        kv.end(key)
    assert kv.used == 0, "what runs no more can be had"


@given(MOVES)
def test_one_alone_always_has_room(moves: list[tuple[str, int, tuple[int, ...], int]]) -> None:
    kv = KvModel(8, BLOCK_TOKENS)
    for _, number, chunks, tokens in moves:
        assert kv.begin(bytes([number]), chunks, tokens) is not None
        kv.read(bytes([number]))
        kv.end(bytes([number]))


def test_those_that_run_share_a_prompt_and_its_end_goes_first() -> None:
    kv = KvModel(16, BLOCK_TOKENS)
    system, one, other = (1, 2), (1, 2, 3), (1, 2, 4)
    assert kv.begin(b"a", one, 3 * CHUNK_TOKENS + 16) == 0
    kv.read(b"a")
    assert kv.used == 13
    assert kv.begin(b"b", (9, 10), 2 * CHUNK_TOKENS) is None, "three blocks are left"
    assert kv.begin(b"b", system, 2 * CHUNK_TOKENS + 32) == 2, "its prompt costs nothing"
    kv.end(b"a")
    kv.end(b"b")
    assert kv.match(one) == 3
    assert kv.begin(b"c", (9,), 2 * CHUNK_TOKENS) == 0
    assert (kv.match(one), kv.match(other)) == (2, 2), "of a prompt the last chunk goes first"
