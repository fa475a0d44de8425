"""TOKENS into ClickHouse, each frame exactly once, by any number of meters.

    1  take a claim: the next range of stream sequences that nobody has, written to ``ingest_batches`` and read back
       (see :mod:`.claims`). Or take over one whose meter shows no sign of life any more.
    2  read exactly its frames, and cut them into blocks (see :mod:`.bringing`): a block ends when it has so many tokens
       and ends of requests, and where a month ends. Nothing else decides, so whoever reads the range again cuts it
       alike.
    3  insert each block: its tokens        } one block in one partition each, with the token
                         then its requests  } TOKENS-<table>-<first>-<last>.
    4  write that the claim is done. Everything up to the first one that is not, the low-water mark, is in the tables.

Killed after 1: the claim is open, and another meter (or this one, started again) does steps 2 to 4 of the very same
range. Killed in 3: what was written is recognised by its token and dropped, what was not is written now, in tables and
views. A meter that was only slow, and comes back while another does its claim, does the same work twice, and no more.

A step that fails is tried again with the very same rows and token, for ever: serving goes on and frames wait in the
stream. In memory are, for each of a few claims that are done side by side, one block and what the log reader holds
(1,000 frames).
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from inferbus_bus.errors import StreamApiError
from inferbus_bus.log import FrameLog
from inferbus_rating import PriceBook
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tasks import cancel_all

from inferbus_meter.bringing import NOTHING_PRIVATE, Bringing, GoneError, Privacy
from inferbus_meter.claims import Claims
from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.claims import Claim, Ledger, is_successor, taken_over
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.retrying import Retrying, StoppedError
from inferbus_meter.tail import Tail

log = logging.getLogger(__name__)
# Claims done side by side: while the store takes one in, another is read.
_HANDS = 2
# A claim is counted in frames, before anybody has seen them: as many as make a block, by those that were last seen.
_CLAIM_FRAMES = (16, 16_384)
_CLAIM_SHARE = 0.9
_LOOK_SECONDS = (0.02, 0.25)
_LAG_SECONDS = 1.0
_GONE_SECONDS = 1.0
# How long what is at work may take after a stop; it never does unless the broker is away.
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class FlushLimits:
    """A block ends at ``tokens``. What there is is claimed ``interval`` after the last claim, however small, and a
    claim without a sign of life for ``lease`` is another meter's."""

    tokens: int
    interval: timedelta
    lease: timedelta


class Ingest:
    """One of the writers of the tables. :meth:`run` once, until it is stopped."""

    def __init__(
        self,
        frames: FrameLog,
        store: Store,
        book: Callable[[], PriceBook],
        limits: FlushLimits,
        holder: str,
        privacy: Privacy = NOTHING_PRIVATE,
    ) -> None:
        """``book``: the prices of now. ``holder``: ``<name>-<start>``, and no other running meter has that name."""
        self._frames = frames
        self._limits = limits
        self._holder = holder
        self._claims = Claims(store)
        self._mine: set[int] = set()  # first sequences of the claims that are at work here
        self._choosing = asyncio.Lock()
        self._moved = asyncio.Event()
        self._stopping = asyncio.Event()
        self._retrying = Retrying(self._stopping)
        self._bringing = Bringing(frames, store, self._claims, book, limits.lease, self._retrying, privacy)
        self._due = 0.0
        self._stream_us = 0  # when the stream that there is now was made
        self._tail = Tail(frames)
        self.running = False

    @property
    def position(self) -> int:
        """The low-water mark: everything up to this stream sequence is in the tables, whoever brought it. 0 as long as
        it is not known of the stream that there is now."""
        ledger = self._claims.ledger
        return ledger.position if self._is_of_now(ledger) else 0

    @property
    def epoch(self) -> Epoch:
        """Of the stream whose :attr:`position` it is."""
        return self._claims.epoch(self._stream_us)

    @property
    def waiting_tokens(self) -> int:
        """Tokens gathered here that are not in the tables yet."""
        return self._bringing.waiting_tokens

    async def reached(self, sequence: int, timeout: float) -> bool:
        """Wait until :attr:`position` is at ``sequence``; False if it is not after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.position < sequence:
                    self._moved.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK_SECONDS[1]):
                            await self._moved.wait()
                    if self.position < sequence:
                        await self._read_claims()
        except TimeoutError:
            return False
        return True

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """:meth:`run` returns after the claims that are at work."""
        self._stopping.set()

    async def run(self) -> None:
        """Ingest until :meth:`stop`. The store or the broker being away it waits out."""
        self.running = True
        hands = [asyncio.create_task(self._hand(), name=f"ingest {number}") for number in range(_HANDS)]
        stopping = asyncio.create_task(self._stopping.wait(), name="ingest stop")
        lag = asyncio.create_task(self._measure_lag(), name="ingest lag")
        try:
            # A hand ends when it is told to stop, or by a mistake of ours.
            await asyncio.wait((stopping, lag, *hands), return_when=asyncio.FIRST_COMPLETED)
            if self.stopped:
                await asyncio.wait(hands, timeout=_STOP_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self.running = False
            await cancel_all((stopping, lag, *hands))
        for task in (lag, *hands):
            if not task.cancelled():
                task.result()

    async def _hand(self) -> None:
        with suppress(StoppedError):
            while not self.stopped:
                async with self._choosing:
                    claim = await self._next_claim()
                if claim is not None:
                    await self._do(claim)

    # --- step 1 ---

    async def _next_claim(self) -> Claim | None:
        """The next one that is ours; None if it is time to stop."""
        await self._retrying.until_done("read the claims", self._claims.read)
        shortest, longest = _LOOK_SECONDS
        pause = min(longest, max(shortest, self._limits.interval.total_seconds() / 4))
        while not self.stopped:
            claim = await self._choose()
            if claim is not None:
                if await self._take(claim):
                    return claim
                continue  # another was quicker
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
        return None

    async def _choose(self) -> Claim | None:
        """What is to be done now; None if there is nothing yet."""
        ledger, now = self._claims.ledger, clock.monotonic()
        before, mark = ledger.frontier, ledger.mark
        oldest, last, self._stream_us = await self._retrying.until_done("ask where the stream ends", self._frames.state)
        if not self._is_of_now(ledger):
            await self._begin_epoch(0)
            return None
        # The stream's end was asked for after the claims had been read: else others could have gone on behind it.
        if self._tail.is_shrinking(last, before, now):
            return None
        doubted = self._tail.is_doubted(last, before, now)
        wanted, waiting = self._claim_frames(), last - before
        if not doubted and now < self._due and waiting < wanted:
            return None
        if not doubted and not waiting and not self._others(ledger.open):
            return None
        await self._retrying.until_done("read the claims", self._claims.read)
        now, ledger = clock.monotonic(), self._claims.ledger
        if not self._is_of_now(ledger) or (doubted and ledger.frontier != before):
            return None  # another meter has begun an epoch, or a claim
        lease = self._limits.lease.total_seconds()
        lapsed = self._claims.sightings.lapsed(self._others(ledger.open), now, lease, self._holder)
        if ledger.frontier != before:
            self._due = now + self._limits.interval.total_seconds()
        waiting = last - ledger.frontier
        due = waiting > 0 and (now >= self._due or waiting >= wanted)
        if lapsed is None and not due and not doubted:
            return None
        await self._tail.look(mark, (oldest, last), before, now)
        if lapsed is not None:
            return taken_over(lapsed, self._holder)
        if self._tail.left is not None:
            if not ledger.open:
                await self._begin_epoch(self._tail.left)
            return None
        if not due:
            return None
        self._due = now + self._limits.interval.total_seconds()
        first = ledger.frontier + 1
        end = min(last, max(first, oldest) + wanted - 1)
        return Claim(ledger.epoch, self._stream_us, first, end, 1, self._holder, self._limits.tokens)

    async def _take(self, claim: Claim) -> bool:
        """Whether it is ours."""
        await self._retrying.until_done("write the claim", lambda: self._claims.write(claim))
        await self._retrying.until_done("read the claim back", self._claims.read)
        if claim not in self._claims.ledger.open:
            return False
        self._mine.add(claim.first)
        if claim.attempt > 1:
            metrics.INGEST_TAKEOVERS.inc()
            log.warning(
                "doing what another meter had begun",
                extra={"first_sequence": claim.first, "last_sequence": claim.last, "attempt": claim.attempt},
            )
        return True

    async def _begin_epoch(self, base: int) -> None:
        """Claims begin behind ``base``. Of a stream that lost its tail that is what it still has; all of that which was
        claimed before is done by then. Of one that was made anew it is 0."""
        log.error(
            "the stream has lost frames: what was not inserted of them is lost",
            extra={"left_last": base, "claimed_last": self._claims.ledger.frontier},
        )
        begin = Claim(
            self._claims.ledger.epoch + 1, self._stream_us, base + 1, base, 1, self._holder, self._limits.tokens
        )
        await self._retrying.until_done("begin an epoch", lambda: self._claims.begin_epoch(begin))
        await self._retrying.until_done("read the claims", self._claims.read)

    def _is_of_now(self, ledger: Ledger) -> bool:
        return self._stream_us > 0 and ledger.stream_us in (0, self._stream_us)

    def _others(self, claims: list[Claim]) -> list[Claim]:
        return [claim for claim in claims if claim.first not in self._mine]

    def _claim_frames(self) -> int:
        fewest, most = _CLAIM_FRAMES
        return round(
            min(most, max(fewest, _CLAIM_SHARE * self._limits.tokens / max(self._bringing.tokens_a_frame, 1e-3)))
        )

    # --- steps 2 to 4 ---

    async def _do(self, claim: Claim) -> None:
        left = self._tail.left
        renewing = asyncio.create_task(self._renew(claim), name=f"renew {claim.first}")
        try:
            brought = await self._bringing.bring(claim, left)
            await self._retrying.until_done("say that it is done", lambda: self._claims.finish(claim, brought))
            self._moved.set()
        except GoneError as error:
            # Not done. It is taken again, for what is left of it; or the stream was made anew, and an epoch begins.
            log.error("claimed frames are not on the stream", extra={"first_sequence": claim.first, "why": str(error)})
            await asyncio.sleep(_GONE_SECONDS)
        finally:
            self._mine.discard(claim.first)
            await cancel_all((renewing,))

    async def _renew(self, claim: Claim) -> None:
        """Show that we are alive, for as long as the claim takes; usually it is done before that."""
        while True:
            await asyncio.sleep(self._limits.lease.total_seconds() / 3)
            held = next((one for one in self._claims.ledger.open if one.first == claim.first), claim)
            if held.epoch != claim.epoch or not is_successor(held.holder, self._holder):
                return  # another does it, too: by the insert tokens it comes out right
            try:
                await self._claims.write(taken_over(held, self._holder))
                await self._claims.read()
            except STORE_ERRORS as error:
                log.debug("the claim is not renewed", extra={"error": repr(error)[:200]})

    # --- watching ---

    async def _measure_lag(self) -> None:
        while True:
            try:
                oldest, last = await self._frames.bounds()
            except (InferBusError, StreamApiError) as error:
                log.debug("lag not known", extra={"error": str(error)})
            else:
                metrics.INGEST_LAG_FRAMES.set(max(0, last - max(self.position, oldest - 1)))
                metrics.INGEST_POSITION.set(self.position)
            await asyncio.sleep(_LAG_SECONDS)

    async def _read_claims(self) -> None:
        try:
            await self._claims.read()
        except STORE_ERRORS as error:
            log.debug("the claims are not read", extra={"error": repr(error)[:200]})
