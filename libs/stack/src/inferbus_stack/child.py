"""One child process: started in a session of its own, bound to our life, with its output in a file of bounded size."""

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferbus_runtime import clock

_LOG_BYTES = 16 << 20
_POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1
# Loaded here, not in the forked child, where only async-signal-safe work is sound.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
Probe = Callable[[], Awaitable[bool]]


class ChildError(Exception):
    """The process ended, or was not ready in time. ``str()`` says which, and shows the end of its log."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """``environ`` is all of the child's environment. Ready: ``ready_file`` names the new process, or ``probe`` says so.

    ``stop_seconds``: how long an orderly stop may take before the process is killed.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    log_file: Path
    stop_seconds: float
    ready_file: Path | None = None
    probe: Probe | None = None


class Child:
    """A running process. Its death is seen by awaiting :meth:`wait`."""

    def __init__(self, spec: ChildSpec, process: asyncio.subprocess.Process) -> None:
        self.spec = spec
        self.started = clock.monotonic()
        self.ready: dict[str, Any] = {}
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: killed by that signal."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    async def become_ready(self, timeout: float) -> None:
        """Returns when the process says that it is ready. Raises ChildError if it dies or takes longer (seconds)."""
        deadline = clock.monotonic() + timeout
        while not await self._is_ready():
            if self.exit_code is not None:
                raise ChildError(f"{self.spec.name} {death(self.exit_code)} while starting\n{self.log_tail()}")
            if clock.monotonic() >= deadline:
                raise ChildError(f"{self.spec.name} was not ready within {timeout:.0f} s\n{self.log_tail()}")
            await asyncio.sleep(_POLL_SECONDS)

    async def _is_ready(self) -> bool:
        if self.spec.probe is not None:
            return await self.spec.probe()
        if self.spec.ready_file is None:
            return self.exit_code is None
        try:
            content: dict[str, Any] = json.loads(self.spec.ready_file.read_text())
        except (FileNotFoundError, ValueError):
            return False
        if content.get("pid") != self.pid:
            return False
        self.ready = content
        return True

    async def stop(self) -> None:
        """An orderly stop; killed, with all its own children, if it takes longer than the spec allows."""
        self.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.spec.stop_seconds):
                await self.wait()
        self.kill()
        await self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Safe at any time. By pid and not through asyncio, which would reap a child that is just dying, and lose
        its exit code."""
        if self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process and all that it started, now. Safe at any time."""
        # The child leads a session of its own, so its group is exactly it and what it started (an engine's process),
        # and the group may outlive it.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of its output, for the operator's terminal."""
        text = self.spec.log_file.read_text(errors="replace") if self.spec.log_file.exists() else ""
        return "\n".join(
            [*(f"  | {line}" for line in text.splitlines()[-lines:]), f"  all of it: {self.spec.log_file}"]
        )


async def start_child(spec: ChildSpec) -> Child:
    """Start the process. It dies with this one, however this one dies (Linux), and gets no signal of our terminal."""
    if spec.ready_file is not None:
        spec.ready_file.unlink(missing_ok=True)
    bound_log(spec.log_file)
    with spec.log_file.open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *spec.command,
            env=dict(spec.environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()) if _LIBC is not None else None,
        )
    return Child(spec, process)


def bound_log(path: Path) -> None:
    """Keep ``path`` below its bound: what is above moves to ``<path>.1``, of which one is kept.

    Copied and emptied, not renamed: the process goes on writing to the file that it has open (in append mode).
    """
    if not path.exists() or path.stat().st_size < _LOG_BYTES:
        return
    path.with_name(path.name + ".1").write_bytes(path.read_bytes())
    os.truncate(path, 0)


def death(exit_code: int) -> str:
    """``exited with code 1`` or ``was killed by SIGKILL``."""
    if exit_code >= 0:
        return f"exited with code {exit_code}"
    return f"was killed by {signal.Signals(-exit_code).name}"


def _die_with(parent: int) -> Callable[[], None]:
    """Run in the child before exec: the kernel kills it when its parent dies, also by SIGKILL.

    SIGKILL and not SIGTERM: an orderly drain needs the others, which are dying at the same moment; the platform is
    built so that a kill loses nothing.
    """

    def bind() -> None:
        assert _LIBC is not None  # noqa: S101 (checked by the caller)
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return bind
