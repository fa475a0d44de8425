"""The KV blocks of an engine and the prompts that they still hold, as a model: for ``synthetic`` and for the simulator.

A prompt is known by the chunks that it begins with (``inferbus_contracts.prefixes``), each of which stands for
CHUNK_TOKENS tokens. Generations that run share the blocks of the chunks that they have in common. When the last of them
has ended, a chunk stays until its blocks are needed: the least recently used go first, of one prompt the last.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inferbus_contracts.prefixes import CHUNK_TOKENS


def _nobody(_: int) -> None:
    """For whom it is of no interest."""


@dataclass(slots=True)
class _Held:
    """``own``: blocks that nobody else reads. ``shared``: how many of its chunks are, from the first on."""

    chunks: Sequence[int]
    own: int
    shared: int


class KvModel:
    """``blocks`` of ``block_tokens`` tokens each. ``on_stored`` and ``on_removed`` are told each chunk that comes and
    goes."""

    def __init__(
        self,
        blocks: int,
        block_tokens: int,
        on_stored: Callable[[int], None] = _nobody,
        on_removed: Callable[[int], None] = _nobody,
    ) -> None:
        self.total = blocks
        self._block_tokens = block_tokens
        self._chunk_blocks = -(-CHUNK_TOKENS // block_tokens)
        self._on_stored = on_stored
        self._on_removed = on_removed
        self._own = 0
        self._running: dict[bytes, _Held] = {}
        self._readers: dict[int, int] = {}  # of each chunk that runs, how many have it
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks of what runs; those of a chunk that is only kept can be had."""
        return self._own + len(self._readers) * self._chunk_blocks

    def match(self, chunks: Sequence[int]) -> int:
        """How many of ``chunks``, from the first on, are there."""
        for number, chunk in enumerate(chunks):
            if chunk not in self._readers and chunk not in self._idle:
                return number
        return len(chunks)

    def begin(self, key: bytes, chunks: Sequence[int], tokens: int) -> int | None:
        """Takes the blocks of a generation ``tokens`` long, output included: how many of its chunks were there already.
        None: it has to wait, and nothing has changed. What is longer than all there is gets all there is."""
        found = self.match(chunks)
        whole = min(max(-(-tokens // self._block_tokens), len(chunks) * self._chunk_blocks), self.total)
        own = max(0, whole - found * self._chunk_blocks)
        taken = sum(chunk in self._idle for chunk in chunks[:found])
        if own + taken * self._chunk_blocks > self.total - self.used:
            return None
        for chunk in chunks[:found]:
            self._join(chunk)
        self._own += own
        self._running[key] = _Held(chunks, own, found)
        self._evict()
        return found

    def read(self, key: bytes) -> None:
        """The prompt of ``key`` has been read: others find its chunks from now on."""
        held = self._running[key]
        for chunk in held.chunks[held.shared :]:
            if held.own < self._chunk_blocks:
                break
            if chunk not in self._readers and chunk not in self._idle:
                self._on_stored(chunk)
            self._join(chunk)
            held.own -= self._chunk_blocks
            self._own -= self._chunk_blocks
            held.shared += 1
        self._evict()

    def end(self, key: bytes) -> None:
        """``key`` is over, however it ended; one that never began has nothing."""
        held = self._running.pop(key, None)
        if held is None:
            return
        self._own -= held.own
        for chunk in reversed(held.chunks[: held.shared]):
            self._readers[chunk] -= 1
            if not self._readers[chunk]:
                del self._readers[chunk]
                self._idle[chunk] = None

    def _join(self, chunk: int) -> None:
        self._idle.pop(chunk, None)
        self._readers[chunk] = self._readers.get(chunk, 0) + 1

    def _evict(self) -> None:
        while self._idle and self.used + len(self._idle) * self._chunk_blocks > self.total:
            chunk, _ = self._idle.popitem(last=False)
            self._on_removed(chunk)
