"""What the engine tells of itself between generations: an iteration's statistics, and what its KV cache holds.

Both come out of queues that are emptied by reading and live on the event loop of the requests, so each has one reader.
They are empty until the first request; an iterator that has run dry is asked for again after a pause.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from inferbus_worker.core.block_prefixes import BlockPrefixes
from inferbus_worker.engine import EngineStatistics

log = logging.getLogger(__name__)

_WAIT_SECONDS = 0.01
_FIRST_PAUSE = 0.005
_LAST_PAUSE = 0.5
_UNSIGNED = 2**64


@dataclass(frozen=True, slots=True)
class Iteration:
    """What the engine said of itself last; None: it does not say.

    Blocks of the KV cache: ``kv_used`` of ``kv_max``, and ``kv_reused`` since its start. ``drafted`` and ``accepted``
    tokens, where it speculates: of all iterations.
    """

    number: int = 0
    seconds: float | None = None
    active: int | None = None
    queued: int | None = None
    kv_used: int | None = None
    kv_max: int | None = None
    kv_reused: int | None = None
    drafted: int | None = None
    accepted: int | None = None

    def next(self, told: dict[str, Any]) -> "Iteration":
        """The one after this, as the engine tells it."""
        cache, drafts = told.get("kvCacheStats") or {}, told.get("specDecodingStats") or {}
        milliseconds = told.get("iterLatencyMS")
        return Iteration(
            number=int(told.get("iter", 0)),
            seconds=None if milliseconds is None else float(milliseconds) / 1000,
            active=_count(told, "numActiveRequests"),
            queued=_count(told, "numQueuedRequests"),
            kv_used=_count(cache, "usedNumBlocks"),
            kv_max=_count(cache, "maxNumBlocks"),
            kv_reused=_count(cache, "reusedBlocks"),
            drafted=_sum(self.drafted, _count(drafts, "numDraftTokens")),
            accepted=_sum(self.accepted, _count(drafts, "numAcceptedTokens")),
        )

    def statistics(self, running: int, waiting: int, block_tokens: int | None) -> EngineStatistics:
        """Of an engine with so many generations of its own. Nobody else has any there, and it tells of itself only
        while it computes: with none running, what the last iteration held is free."""
        idle = not running
        return EngineStatistics(
            running=running,
            waiting=waiting,
            engine_running=0 if idle and self.active is not None else self.active,
            engine_waiting=0 if idle and self.queued is not None else self.queued,
            kv_blocks_total=self.kv_max,
            kv_blocks_used=0 if idle and self.kv_used is not None else self.kv_used,
            kv_block_tokens=block_tokens,
            kv_blocks_reused_total=self.kv_reused,
            step_seconds=self.seconds,
            drafted_tokens_total=self.drafted,
            accepted_tokens_total=self.accepted,
        )


def _count(told: dict[str, Any], name: str) -> int | None:
    value = told.get(name)
    return None if value is None else int(value)


def _sum(before: int | None, more: int | None) -> int | None:
    return before if more is None else (before or 0) + more


@dataclass(frozen=True, slots=True)
class Stored:
    """Whole blocks, each the next one's parent; ``parent``: of the first, None at the beginning of a sequence."""

    parent: int | None
    blocks: tuple[tuple[int, tuple[int, ...]], ...]
    """(hash, its token ids)."""


@dataclass(frozen=True, slots=True)
class Removed:
    hashes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Events were lost, or the cache is new: whoever keeps an index begins an empty one."""


KvEvent = Stored | Removed | Forgotten


class KvEvents:
    """From the engine's events to those that an index of whole blocks wants.

    Of a model with several attention windows only the longest is told. A block that is not full is left out, and so is
    its removal: its hash changes when it fills.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._last: int | None = None
        self._window = 0
        self._partial: set[int] = set()

    def take(self, event: dict[str, Any]) -> list[KvEvent]:
        told: list[KvEvent] = []
        number = int(event["event_id"])
        if self._last is not None and number != self._last + 1:
            self._partial.clear()
            told.append(Forgotten())
        self._last = number
        data, window = event["data"], int(event.get("window_size") or 0)
        if data["type"] == "created":
            self._window = max(self._window, window)
            return told or [Forgotten()]
        if window < self._window:
            return told
        if data["type"] == "stored":
            told += self._stored(data)
        elif data["type"] == "removed":
            told += self._removed(data)
        return told

    def _stored(self, data: dict[str, Any]) -> list[KvEvent]:
        whole: list[tuple[int, tuple[int, ...]]] = []
        for block in data["blocks"]:
            number = int(block["block_hash"]) % _UNSIGNED
            ids = tuple(int(token["token_id"]) for token in block["tokens"])
            if len(ids) < self._block_tokens:
                self._partial.add(number)
                break  # nothing follows a block that is not full
            whole.append((number, ids))
        parent = data.get("parent_hash")
        return [Stored(None if parent is None else int(parent) % _UNSIGNED, tuple(whole))] if whole else []

    def _removed(self, data: dict[str, Any]) -> list[KvEvent]:
        hashes = [int(number) % _UNSIGNED for number in data["block_hashes"]]
        gone = tuple(number for number in hashes if number not in self._partial)
        self._partial.difference_update(hashes)
        return [Removed(gone)] if gone else []


def follow(events: list[KvEvent], blocks: BlockPrefixes) -> None:
    for event in events:
        match event:
            case Stored():
                blocks.stored(event.parent, event.blocks)
            case Removed():
                blocks.removed(event.hashes)
            case Forgotten():
                blocks.forgotten()


async def read_all(ask: Callable[[float], AsyncIterator[Any]], take: Callable[[dict[str, Any]], None]) -> None:
    """Everything that ``ask`` (of a wait in seconds) yields, until it is cancelled."""
    pause, silent = _FIRST_PAUSE, False
    while True:
        some = False
        try:
            async for told in ask(_WAIT_SECONDS):
                some = True
                for one in told if isinstance(told, list) else [told]:
                    take(json.loads(one) if isinstance(one, str | bytes) else one)
        except Exception:  # a generation can do without what the engine tells of itself
            if not silent:
                log.exception("the engine's statistics cannot be read")
            silent = True
        pause = _FIRST_PAUSE if some else min(2 * pause, _LAST_PAUSE)
        await asyncio.sleep(pause)
