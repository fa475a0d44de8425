"""Which prompts a KV cache holds, by what an engine tells of its blocks: a block is known by the token ids in it and
before it, a prompt by its chunks.

Blocks of two tenants have the same ids where they say the same, and the engine does not say whose a block is. So a
prompt is taken as held when it has been read, and as gone from a block on when a block with its ids has gone, whoever's
it was: less may be told than there is, never more.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from inferbus_contracts.prefixes import CHUNK_BYTES

from inferbus_worker.core.prefix_cache import PrefixCache

# Of all prompts together: those read longest ago are told no more.
_MAX_BLOCKS = 1 << 17
_ROOT = 0
Place = tuple[int, int]


@dataclass(slots=True)
class _Prompt:
    """``chains``: of its whole blocks, each of its ids and all before them. ``chunks_per_block``: on average."""

    chunks: tuple[int, ...]
    chains: list[int]
    chunks_per_block: float


class BlockPrefixes:
    """Keeps ``prefixes`` right for an engine with blocks of ``block_tokens`` tokens."""

    def __init__(self, prefixes: PrefixCache, block_tokens: int, max_blocks: int = _MAX_BLOCKS) -> None:
        self._prefixes = prefixes
        self._block_tokens = block_tokens
        self._max_blocks = max_blocks
        self._prompts: OrderedDict[Place, _Prompt] = OrderedDict()
        self._readers: dict[int, set[Place]] = {}
        self._chain_of: dict[int, int] = {}  # of each block that the engine has told of
        self._blocks = 0

    def read(self, ids: Sequence[int], size: int, chunks: tuple[int, ...]) -> None:
        """A prompt has been read: so many bytes of text, or of ids, in so many tokens."""
        chains = self._chains(ids)
        if not chunks or not chains or not self._prefixes.bound:
            return
        place = (chunks[-1], chains[-1])
        self._forget(place)
        tokens_per_chunk = len(ids) * CHUNK_BYTES / max(size, len(chunks) * CHUNK_BYTES)
        prompt = _Prompt(chunks, chains, self._block_tokens / tokens_per_chunk)
        self._prompts[place] = prompt
        self._blocks += len(chains)
        for chain in chains:
            self._readers.setdefault(chain, set()).add(place)
        self._tell(place, prompt)
        while self._blocks > self._max_blocks:
            self._forget(next(iter(self._prompts)))

    def stored(self, parent: int | None, blocks: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """The engine holds these, (hash, ids) each, one after the other behind ``parent``; None: from the beginning."""
        chain = _ROOT if parent is None else self._chain_of.get(parent)
        if chain is None:
            return
        for number, ids in blocks:
            chain = self._chain_of[number] = hash((chain, ids))

    def removed(self, hashes: Sequence[int]) -> None:
        """The engine holds these no more."""
        for number in hashes:
            chain = self._chain_of.pop(number, None)
            if chain is None:  # told of when we did not hear: it may be of any prompt
                self._forget_all()
                continue
            for place in list(self._readers.get(chain, ())):
                self._cut(place, chain)

    def forgotten(self) -> None:
        """The cache is new, or nobody knows what happened in it."""
        self._chain_of.clear()
        self._forget_all()

    def _chains(self, ids: Sequence[int]) -> list[int]:
        chain, chains = _ROOT, []
        for start in range(0, len(ids) - self._block_tokens + 1, self._block_tokens):
            chain = hash((chain, tuple(ids[start : start + self._block_tokens])))
            chains.append(chain)
        return chains

    def _tell(self, place: Place, prompt: _Prompt) -> None:
        self._prefixes.hold(place, prompt.chunks[: int(len(prompt.chains) * prompt.chunks_per_block)])

    def _cut(self, place: Place, chain: int) -> None:
        """Of a prompt only what is before the block of ``chain`` is left."""
        prompt = self._prompts[place]
        at = prompt.chains.index(chain)
        for gone in prompt.chains[at:]:
            self._leave(place, gone)
        del prompt.chains[at:]
        if prompt.chains:
            self._tell(place, prompt)
        else:
            del self._prompts[place]
            self._prefixes.drop(place)

    def _forget(self, place: Place) -> None:
        prompt = self._prompts.get(place)
        if prompt is not None:
            self._cut(place, prompt.chains[0])

    def _forget_all(self) -> None:
        self._prompts.clear()
        self._readers.clear()
        self._blocks = 0
        self._prefixes.clear()

    def _leave(self, place: Place, chain: int) -> None:
        self._blocks -= 1
        readers = self._readers[chain]
        readers.discard(place)
        if not readers:
            del self._readers[chain]
