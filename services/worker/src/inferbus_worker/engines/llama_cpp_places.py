"""Who has a place in the child: one of its slots, and room in the KV cache that all of them share.

Which slot runs what is decided here, and an idle one is emptied when idle ones hold too much.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import aiohttp
from inferbus_runtime import clock

from inferbus_worker.core.kv_budget import KvBudget
from inferbus_worker.core.prefix_cache import PrefixCache
from inferbus_worker.core.slots import SlotTable
from inferbus_worker.engine import EngineStatistics
from inferbus_worker.engines.llama_cpp_run import Run
from inferbus_worker.engines.runs import Runs

log = logging.getLogger(__name__)

# Closed generations leave the server up to a second later: until then their slots are not free.
SPARE_SLOTS = 4
_LEAVING_SECONDS = 1.0


class Places:
    """``capacity`` generations, ``kv_tokens`` of KV cache, of which idle prompts keep ``idle_tokens`` at most."""

    def __init__(
        self,
        capacity: int,
        kv_tokens: int,
        idle_tokens: int,
        erase: Callable[[int], Awaitable[None]],
        prefixes: PrefixCache,
    ) -> None:
        """``erase`` empties a slot. ``prefixes`` is kept right, slot by slot."""
        self.runs: Runs[Run] = Runs(capacity)
        self._budget = KvBudget(kv_tokens)
        self._slots = SlotTable(capacity + SPARE_SLOTS)
        self._idle_tokens = idle_tokens
        self._erase = erase
        self._prefixes = prefixes
        self._erasing: set[asyncio.Task[None]] = set()
        self._reused_tokens = 0

    def admit(self, drive: Callable[[Run], Coroutine[Any, Any, None]]) -> None:
        """Whoever is next begins, as long as the cache has room for it."""
        while (run := self.runs.next()) is not None and self._budget.admits(self._held(), run.held):
            run.lease = lease = self._slots.take(run.salt, run.prompt, clock.monotonic())
            run.prefilled = run.read = False
            self._prefixes.shorten(lease.slot, run.generation.prefix if lease.reuse else ())
            self.runs.begin(run, drive(run))

    def read(self, run: Run) -> None:
        """All of its prompt is in its slot now."""
        run.read = True
        if run.lease is not None:
            self._prefixes.hold(run.lease.slot, run.generation.prefix)

    def make_room(self) -> None:
        """The youngest leave the server before its KV cache overflows; they are the first to come back. Idle prompts
        leave before: the server would empty some of them itself, and nobody would know which."""
        held = self._held()
        if (room := self._budget.tokens - sum(held)) < self._slots.idle_cells:
            self._empty(self._slots.evict(max(0, room), clock.monotonic(), keep_newest=False))
        count = self._budget.overflow(held)
        if not count:
            return
        for run in list(self.runs.running.values())[: -count - 1 : -1]:
            log.info("generation waits for KV cache", extra={"held": run.held})
            self.runs.step_back(run)
            self._leave_slot(run, _LEAVING_SECONDS)

    def leave(self, run: Run) -> None:
        """It has ended."""
        self.runs.leave(run)
        self._leave_slot(run, 0.0 if run.ended_there else _LEAVING_SECONDS)
        self._reused_tokens += run.cached_tokens

    def statistics(self) -> EngineStatistics:
        """A cell of the child's KV cache is one token; what is held is our account of it."""
        return EngineStatistics(
            running=len(self.runs.running),
            waiting=len(self.runs.waiting),
            kv_blocks_total=self._budget.tokens,
            kv_blocks_used=min(sum(self._held()), self._budget.tokens),
            kv_block_tokens=1,
            kv_blocks_reused_total=self._reused_tokens,
        )

    def tasks(self) -> list[asyncio.Task[None]]:
        return [*self.runs.tasks(), *self._erasing]

    def _held(self) -> list[int]:
        return [run.held for run in self.runs.running.values()]

    def _leave_slot(self, run: Run, leaving_seconds: float) -> None:
        """It stays the engine's for a while if the engine has not ended it; then others are taken first."""
        lease, run.lease = run.lease, None
        if lease is None:
            return
        now = clock.monotonic()
        content = run.prompt if run.prefilled else None
        self._slots.release(lease, run.salt, content, run.held, now + leaving_seconds)
        self._empty(self._slots.evict(self._idle_tokens, now))

    def _empty(self, slots: list[int]) -> None:
        for slot in slots:
            self._prefixes.drop(slot)
            task = asyncio.create_task(self._emptied(slot), name="erase")
            self._erasing.add(task)
            task.add_done_callback(self._erasing.discard)

    async def _emptied(self, slot: int) -> None:
        if self._slots.busy(slot):
            return  # taken meanwhile, and emptied by that: the server would empty it once more at the end
        try:
            await self._erase(slot)
        except aiohttp.ClientError as error:  # its cells make steps slower and are taken when they are needed
            log.warning("idle slot not emptied", extra={"error": repr(error)})
