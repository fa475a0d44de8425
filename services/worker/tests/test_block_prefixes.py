"""From the blocks of an engine to the prompts that schedulers are told of: never more than there is."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus_worker.core.block_prefixes import BlockPrefixes
from inferbus_worker.core.prefix_cache import PrefixCache

BLOCK = 4
# A prompt of some blocks; as many bytes a token as make a chunk a block.
SIZE = 256 // BLOCK
TENANTS = st.sampled_from(["a", "b"])
IDS = st.lists(st.integers(0, 2), min_size=1, max_size=4).map(
    lambda one: tuple(number for number in one for _ in range(BLOCK))
)


def chunks(tenant: str, ids: tuple[int, ...]) -> tuple[int, ...]:
    """A chain, by its tenant."""
    return tuple(hash((tenant, ids[: at + BLOCK])) for at in range(0, len(ids), BLOCK))


def hashes(tenant: str, ids: tuple[int, ...]) -> list[tuple[int, tuple[int, ...]]]:
    """Blocks as an engine names them: its hashes know the salt, and do not say it."""
    return [(hash(("block", tenant, ids[: at + BLOCK])), ids[at : at + BLOCK]) for at in range(0, len(ids), BLOCK)]


class Engine:
    """Stores a prompt's blocks when it has been read, and evicts the end of a chain first."""

    def __init__(self, max_blocks: int = 1000) -> None:
        self.prefixes = PrefixCache(1000)
        self.known = BlockPrefixes(self.prefixes, BLOCK, max_blocks)
        self.held: dict[int, tuple[str, tuple[int, ...]]] = {}

    def read(self, tenant: str, ids: tuple[int, ...]) -> None:
        parent = None
        for (number, block), at in zip(hashes(tenant, ids), range(0, len(ids), BLOCK), strict=True):
            if number not in self.held:
                self.held[number] = (tenant, ids[: at + BLOCK])
                self.known.stored(parent, [(number, block)])
            parent = number
        self.known.read(ids, len(ids) * SIZE, chunks(tenant, ids))

    def evict(self, at: int) -> None:
        if not self.held:
            return
        number = list(self.held)[at % len(self.held)]
        tenant, ids = self.held[number]
        gone = [other for other, (whose, more) in self.held.items() if whose == tenant and more[: len(ids)] == ids]
        for other in sorted(gone, key=lambda one: -len(self.held[one][1])):
            del self.held[other]
            self.known.removed([other])

    @property
    def true(self) -> set[int]:
        return {chunks(tenant, ids)[-1] for tenant, ids in self.held.values()}


@given(st.lists(st.tuples(st.booleans(), TENANTS, IDS, st.integers(0, 30)), max_size=40), st.sampled_from([6, 1000]))
def test_nothing_is_told_that_is_not_there(
    moves: list[tuple[bool, str, tuple[int, ...], int]], max_blocks: int
) -> None:
    engine = Engine(max_blocks)
    for reads, tenant, ids, at in moves:
        if reads:
            engine.read(tenant, ids)
            newest = set(chunks(tenant, ids))
            assert newest <= set(engine.prefixes.all()), "what was just read is told"
        else:
            engine.evict(at)
        assert set(engine.prefixes.all()) <= engine.true
    for _ in range(len(engine.held)):
        engine.evict(0)
    assert engine.prefixes.all() == []


def test_of_one_tenant_all_that_is_there_is_told() -> None:
    engine = Engine()
    long, short = (0,) * 3 * BLOCK, (0,) * BLOCK + (1,) * BLOCK
    engine.read("a", long)
    engine.read("a", short)
    assert set(engine.prefixes.all()) == engine.true
    engine.evict(2)
    assert set(engine.prefixes.all()) == engine.true == {*chunks("a", long)[:2], *chunks("a", short)}


def test_two_who_say_the_same_may_lose_together() -> None:
    engine = Engine()
    for tenant in ("a", "b"):
        engine.read(tenant, (0,) * 2 * BLOCK)
    engine.evict(1)
    assert set(engine.prefixes.all()) == {chunks(tenant, (0,) * BLOCK)[0] for tenant in ("a", "b")}
    engine.read("b", (0,) * 2 * BLOCK)
    assert set(chunks("b", (0,) * 2 * BLOCK)) <= set(engine.prefixes.all())


def test_a_block_that_nobody_heard_of_takes_everything_along() -> None:
    engine = Engine()
    engine.read("a", (0,) * BLOCK)
    engine.known.removed([12345])
    assert engine.prefixes.all() == []
    engine.read("a", (0,) * BLOCK)
    engine.known.forgotten()
    assert engine.prefixes.all() == []


def test_what_fills_no_block_is_not_told() -> None:
    known = BlockPrefixes(prefixes := PrefixCache(10), 32)
    known.read(tuple(range(100)), 400, (1,))
    assert prefixes.all() == [1], "three blocks hold 96 of the tokens, and the chunk has 64"
    known.read(tuple(range(31)), 300, (2,))
    assert prefixes.all() == [1]
