"""Whether the upstream may be asked now, whether once more, and whether it is still there."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from inferbus_runtime import clock

from inferbus_worker.engines.openai_errors import Kind, RefusedError, UpstreamError, model_unavailable
from inferbus_worker.engines.openai_http import UpstreamHttp
from inferbus_worker.engines.openai_limits import Breaker, BreakerLimits, RetryBudget

log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0
# No answer this often in a row, this far apart: it is gone.
_ASKED, _ASK_PAUSE = 3, 0.4


@dataclass(frozen=True, slots=True)
class Patience:
    """``retries`` of one generation; ``budget`` of all of them, as a share of the requests of ``window`` seconds, and
    ``floor`` always. ``busy``: how long a generation waits for an upstream that has no room."""

    retries: int
    budget: float
    floor: int
    window: float
    busy: float
    breaker: BreakerLimits


class Health:
    """``died`` says why once the upstream is gone."""

    def __init__(self, http: UpstreamHttp, patience: Patience, on_death: Callable[[str], None]) -> None:
        self.died: str | None = None
        self._http = http
        self._patience = patience
        self._on_death = on_death
        self._budget = RetryBudget(patience.budget, patience.floor, patience.window)
        self._breaker = Breaker(patience.breaker)
        self._paused_until = 0.0
        self._asking: asyncio.Task[None] | None = None

    def request(self) -> None:
        """A generation begins."""
        self._budget.request(clock.monotonic())

    async def gate(self, urgent: bool) -> None:
        """Returns when the upstream may be asked. ``urgent``: it has begun to answer, and waits for the breaker; others
        are refused. Raises UpstreamError, RefusedError."""
        held_until = clock.monotonic() + self._patience.breaker.seconds + self._patience.busy
        while True:
            now = clock.monotonic()
            if (pause := self._paused_until - now) > 0:
                if pause > self._patience.busy:
                    raise RefusedError(
                        UpstreamError(Kind.BUSY, "it asked to be left alone", status=429, after=pause).to_tenant()
                    )
                await asyncio.sleep(pause)
                continue
            wait = self._breaker.wait(now)
            if not wait:
                return
            if not urgent or now + wait > held_until:
                raise RefusedError(model_unavailable(timedelta(seconds=wait), "the breaker is open"))
            await asyncio.sleep(wait)

    def moved(self) -> None:
        """It answers."""
        self._breaker.succeeded()

    async def failed(self, failure: UpstreamError, tries: int) -> bool:
        """Takes note, and waits. Whether the generation, sent ``tries`` times, may be sent again."""
        now = clock.monotonic()
        if failure.kind is not Kind.BUSY and self._breaker.failed(now):
            log.error("upstream fails; it is left alone for a while", extra={"error": str(failure)})
            self.suspect()  # one that hangs breaks no connection
        elif failure.kind is Kind.BUSY and failure.after:
            self._paused_until = max(self._paused_until, now + min(failure.after, 10 * self._patience.busy))
        if failure.kind is Kind.GONE:
            await self._known_alive()
        if failure.kind is Kind.DENIED or tries > self._patience.retries:
            return False
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (tries - 1))
        if failure.after is not None:
            delay = max(delay, failure.after)
        if delay > self._patience.busy or not self._budget.take(now):
            log.warning("not tried again", extra={"error": str(failure), "tries": tries})
            return False
        log.info("tried again", extra={"error": str(failure), "tries": tries})
        await asyncio.sleep(delay)
        return True

    def suspect(self) -> None:
        """It may be gone: asked in the background."""
        if self._asking is None and self.died is None:
            self._asking = asyncio.create_task(self._ask(), name="upstream-alive")

    async def _known_alive(self) -> None:
        """Returns when it is known not to be gone; if it is, then never: the engine is dead."""
        self.suspect()
        if self._asking is not None:
            await asyncio.shield(self._asking)
        if self.died is not None:
            await asyncio.Event().wait()

    async def _ask(self) -> None:
        for attempt in range(_ASKED):
            if attempt:
                await asyncio.sleep(_ASK_PAUSE)
            if await self._http.answers():
                self._asking = None
                return
        self.die("the upstream is gone: it does not even answer what it serves")

    def die(self, why: str) -> None:
        if self.died is None:
            self.died = why
            self._on_death(why)

    async def stop(self) -> None:
        """Returns when nothing is asked any more."""
        if (asking := self._asking) is not None:
            asking.cancel()
            await asyncio.wait({asking})
