"""Starting and stopping, in one order for all services.

Start: config → logs, traces → ``wire`` (stores and bus → workers of the room → listen) → health SERVING → ready file.
Stop:  health NOT_SERVING → ready file gone → drain callbacks in order, within ``drain_timeout`` → contexts and
       background tasks end in reverse order of their start → traces flushed.
A background task that dies stops the process with exit code 1. A second signal ends the drain at once and gives closing
two seconds; a third kills. Closing that takes longer (without a second signal: ten seconds) is cut off, exit code 3.
"""

import asyncio
import gc
import itertools
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack
from datetime import timedelta
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

import uvloop

from inferbus_runtime import logs, metrics
from inferbus_runtime.config import ConfigError, ServiceConfig, load
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.parent import die_with_parent
from inferbus_runtime.ready_file import ready_file
from inferbus_runtime.telemetry import serve_metrics

log = logging.getLogger(__name__)

T = TypeVar("T")
ConfigT = TypeVar("ConfigT", bound=ServiceConfig)
ReadyInfo = Mapping[str, str]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_OK, EXIT_FAILED, EXIT_CONFIG, EXIT_STUCK = 0, 1, 2, 3
CLOSE_TIMEOUT_SECONDS = 10.0
FORCED_CLOSE_SECONDS = 2.0
# Objects made after the start live as long as a request; the collector need not look at them often. Reference counts
# free almost all of them at once.
GC_THRESHOLD = (50_000, 20, 50)


@runtime_checkable
class _Serving(Protocol):
    def set_serving(self, serving: bool) -> None: ...


class Process:
    """What ``wire`` starts things through, so that they are stopped in the right order."""

    def __init__(self) -> None:
        self.ready = False  # between start and stop: what a readiness probe answers
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._failed = False
        self._wiring: asyncio.Task[Any] | None = None
        self._closing: asyncio.Timeout | None = None
        self._last: object = None
        self._servers: list[_Serving] = []
        self._drains: list[Callable[[], Awaitable[None]]] = []
        # what is open, by its place in the order: the thing itself, and how it is closed
        self._open: dict[int, tuple[object, Callable[[], Awaitable[object]]]] = {}
        self._places = itertools.count()

    async def enter(self, cm: AbstractAsyncContextManager[T]) -> T:
        """Enter ``cm`` now and leave it at the end, after all that was started later.

        If it gives something with ``set_serving(bool)``, such as an RpcServer, that follows the process' readiness.
        """
        value = await cm.__aenter__()
        self._open[next(self._places)] = cm, lambda: cm.__aexit__(None, None, None)
        if isinstance(value, _Serving):
            self._servers.append(value)
        return value

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run ``coro`` in the background. If it raises, the process stops with exit code 1; it may end by itself.

        At the end it is cancelled, before the contexts close that were entered before it.
        """
        task = asyncio.create_task(coro, name=name)
        place = next(self._places)
        self._open[place] = task, lambda: _cancel(task)
        task.add_done_callback(lambda _: self._task_done(place, task))
        return task

    def on_drain(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call ``callback`` at the stop, after those registered before it and while all contexts are open."""
        self._drains.append(callback)

    def fail(self, error: BaseException) -> None:
        """Take the process down, exit code 1. Returns at once; may be called from any callback of the loop."""
        reason = error.reason if isinstance(error, InferBusError) else type(error).__qualname__
        log.error("the process fails", exc_info=error, extra={"reason": reason})
        self._failed = True
        self._stop()

    async def run(self, wire: Callable[["Process"], Awaitable[ReadyInfo | None]], config: ServiceConfig) -> int:
        """Start, serve until told to stop, stop. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for signum in SIGNALS:
            loop.add_signal_handler(signum, self._signal, signum)
        try:
            info = await self._wire(wire)
            if not self._stopping.is_set():
                await self._until_stopped(info, config)
        except Exception as error:  # noqa: BLE001 - fail() logs it
            self.fail(error)
        log.info("stopping")
        await self._drain(config.drain_timeout)
        closed = await self._close()
        log.info("stopped", extra={"failed": self._failed})
        return EXIT_STUCK if not closed else EXIT_FAILED if self._failed else EXIT_OK

    async def _wire(self, wire: Callable[["Process"], Awaitable[ReadyInfo | None]]) -> ReadyInfo:
        """What ``wire`` returns, or an empty mapping; also if a stop or a failure interrupts it."""
        task = self._wiring = asyncio.current_task()
        assert task is not None, "runs in a task"  # noqa: S101
        try:
            return await wire(self) or {}
        except asyncio.CancelledError as error:
            if not self._stopping.is_set():
                self.fail(error)
            return {}
        finally:
            self._wiring = None
            while task.cancelling():  # from here on this task goes on with closing
                task.uncancel()

    async def _until_stopped(self, info: ReadyInfo, config: ServiceConfig) -> None:
        try:
            self._serve(True)
            with ExitStack() as files:
                if config.ready_file is not None:
                    files.enter_context(ready_file(config.ready_file, info))
                _settle_gc()
                log.info("ready", extra={"ready": dict(info)})
                await self._stopping.wait()
                self._serve(False)
        finally:
            self._serve(False)

    def _serve(self, serving: bool) -> None:
        self.ready = serving
        for server in self._servers:
            server.set_serving(serving)

    async def _drain(self, timeout: timedelta) -> None:
        """All drain callbacks, until the deadline or the second signal cuts them off."""
        work, forced = asyncio.create_task(self._run_drains()), asyncio.create_task(self._forced.wait())
        await asyncio.wait((work, forced), timeout=timeout.total_seconds(), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            log.warning("the drain was cut off", extra={"drain_timeout": str(timeout)})
        await _cancel(forced)
        work.cancel()
        await asyncio.wait((work,), timeout=FORCED_CLOSE_SECONDS)

    async def _run_drains(self) -> None:
        for callback in self._drains:
            try:
                await callback()
            except Exception as error:  # noqa: BLE001 - fail() logs it
                self.fail(error)

    async def _close(self) -> bool:
        """End all that is open, last started first; False if time ran out.

        In this task, since a context is to be left by the task that entered it.
        """
        seconds = FORCED_CLOSE_SECONDS if self._forced.is_set() else CLOSE_TIMEOUT_SECONDS
        try:
            async with asyncio.timeout(seconds) as self._closing:
                while self._open:
                    _, (self._last, close) = self._open.popitem()
                    try:
                        await close()
                    except Exception as error:  # noqa: BLE001 - fail() logs it
                        self.fail(error)
        except TimeoutError:
            log.error("closing did not end in time", extra={"stuck": _name(self._last), "left_open": len(self._open)})
            return False
        finally:
            self._closing = None
        return True

    def _signal(self, signum: signal.Signals) -> None:
        log.info("signal", extra={"signal": signal.Signals(signum).name, "again": self._stopping.is_set()})
        if self._stopping.is_set():
            self._failed = True
            self._forced.set()
            if self._closing is not None and not self._closing.expired():
                self._closing.reschedule(asyncio.get_running_loop().time() + FORCED_CLOSE_SECONDS)
            for each in SIGNALS:  # the next one kills, even if the loop is stuck
                asyncio.get_running_loop().remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        if self._wiring is not None:
            self._wiring.cancel()

    def _task_done(self, place: int, task: asyncio.Task[Any]) -> None:
        self._open.pop(place, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task died", extra={"task": task.get_name()})
            self.fail(error)


def main(
    config_class: type[ConfigT], prefix: str, wire: Callable[[ConfigT, Process], Awaitable[ReadyInfo | None]]
) -> NoReturn:
    """Run one service from its variables: all that a ``__main__`` does. Never returns.

    ``wire`` starts everything and returns once it listens; what it returns is written to the ready file. With
    ``--check-config`` the configuration is checked and nothing is started. Exit code 2: it has faults, all listed.
    """
    try:
        config = load(config_class, prefix)
    except ConfigError as error:
        print("\n".join(["The configuration has faults:", *error.faults]), file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_CONFIG)
    if "--check-config" in sys.argv[1:]:
        print("The configuration is valid.")  # noqa: T201
        sys.exit(EXIT_OK)
    service = prefix.removeprefix("INFERBUS_").strip("_").lower()
    logs.configure(service, config.name, config.log_level)
    if config.die_with_parent:
        die_with_parent()
    metrics.PROCESS.info({"service": service, "instance": config.name})
    with ExitStack() as stack:
        if config.otlp_endpoint:
            # the SDK costs a quarter of a second and 20 MB to import
            from inferbus_runtime.otlp import exporting

            stack.enter_context(exporting(config.otlp_endpoint, service, config.name))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(_run(config, wire))
            if code == EXIT_STUCK:
                # an orderly end would wait for what has just not ended
                os._exit(code)
    sys.exit(code)


async def _run(config: ConfigT, wire: Callable[[ConfigT, Process], Awaitable[ReadyInfo | None]]) -> int:
    async def wired(process: Process) -> ReadyInfo:
        bound = {}
        if config.metrics_address is not None:
            bound["metrics"] = await process.enter(serve_metrics(config.metrics_address))
        return {**bound, **(await wire(config, process) or {})}

    return await Process().run(wired, config)


async def _cancel(task: asyncio.Task[Any]) -> None:
    """Cancel ``task`` and wait for its end; what it raises is its done callback's business."""
    task.cancel()
    await asyncio.wait((task,))


def _name(opened: object) -> str:
    """Of a task or a context, for the log."""
    return repr(getattr(opened, "gen", opened))


def _settle_gc() -> None:
    """Take what the start made out of the collector's sight: walking it costs milliseconds in the middle of streams."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
