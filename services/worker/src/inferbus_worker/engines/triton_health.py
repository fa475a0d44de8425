"""Whether the model behind Triton still generates.

Ready is no proof: with the model's process dead, the server, the model and its repository go on saying that they are
ready, and a stream that was running says nothing any more. So the proof is a generation of one token, made when nothing
has moved for a while, or when something failed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc
from inferbus_runtime import clock

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25

# What grpc.aio says instead of the status of a call that ends while it is being sent.
_BROKE = "Internal error from Core"


class ProbeError(Exception):
    """The model did not generate. ``str()``: what it said."""


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """``interval``: between probes of an idle model. ``timeout``: of one. ``stall``: how long nothing may come on one
    stream while others move. All in seconds."""

    interval: float
    timeout: float
    stall: float


class Health:
    """``death``: what killed the model, empty while it lives; :meth:`run` returns when there is one."""

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]],
        owed: Callable[[], bool],
        stalled: Callable[[float], None],
        limits: HealthLimits,
    ) -> None:
        """``probe`` raises an error if it fails. ``owed``: tokens are, and we are not the ones who pause. ``stalled``
        ends what has not moved since a time, while the model as a whole has."""
        self.death = ""
        self._probe = probe
        self._owed = owed
        self._stalled = stalled
        self._limits = limits
        self._moved_at = clock.monotonic()
        self._proved_at = self._owed_from = self._moved_at
        self._checking: asyncio.Task[bool] | None = None

    def moved(self) -> float:
        """A response came, or what is owed begins now. When that is."""
        self._moved_at = clock.monotonic()
        return self._moved_at

    async def check(self) -> bool:
        """Whether it generates, asked now; who asks at the same time shares the answer."""
        return await asyncio.shield(self._begin_check())

    async def run(self) -> None:
        """Returns with a ``death``."""
        while not self.death:
            await asyncio.sleep(_TICK_SECONDS)
            now = clock.monotonic()
            if not self._owed():
                self._owed_from = now
            # That none of them moves is the worker's to find.
            if now - self._moved_at < self._limits.stall / 2 and now - self._owed_from > self._limits.stall:
                self._stalled(now - self._limits.stall)
            if now - max(self._moved_at, self._proved_at) >= self._limits.interval:
                self._begin_check()  # not awaited: single streams are looked at meanwhile

    async def stop(self) -> None:
        """Returns when no probe runs."""
        if (checking := self._checking) is not None:
            checking.cancel()
            await asyncio.wait({checking})

    def _begin_check(self) -> asyncio.Task[bool]:
        if self._checking is None:
            self._checking = asyncio.create_task(self._check(), name="probe")
        return self._checking

    async def _check(self) -> bool:
        began = clock.monotonic()
        try:
            async with asyncio.timeout(self._limits.timeout):
                await self._probe()
        except TimeoutError:
            # Others were served meanwhile, or a long prompt is being read: it is slow, and dead only when it stalls.
            if self._moved_at > began or self._owed():
                return True
            self._dies(f"the probe had no token within {self._limits.timeout:g} s")
        except (ProbeError, grpc.RpcError) as error:
            self._dies(f"the probe failed: {described(error)}")
        except Exception as error:  # whatever it is: it did not generate
            log.exception("a probe failed")
            self._dies(f"the probe failed: {described(error)}")
        else:
            self._proved_at = clock.monotonic()
        finally:
            self._checking = None
        return not self.death

    def _dies(self, why: str) -> None:
        self.death = self.death or why
        log.error("the model does not generate", extra={"error": self.death})


def described(error: BaseException) -> str:
    """For an operator, on one line."""
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() is grpc.StatusCode.INTERNAL and error.details() == _BROKE:
            return "UNAVAILABLE, or refused: the call was ended while it was sent"
        return f"{error.code().name}: {error.details()}"
    return repr(error) if not str(error) else f"{type(error).__name__}: {error}"
