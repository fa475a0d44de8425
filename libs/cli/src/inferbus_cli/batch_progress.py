"""How far a batch or a transfer is: a bar on a terminal, a line now and then elsewhere. On stderr."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from inferbus_runtime import clock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from inferbus_cli.text import age

_WINDOW_SECONDS = 30.0
_SAY_SECONDS = 10.0


class Rate:
    """Lines a second over the last half minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> float:
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[0][0] < now - _WINDOW_SECONDS:
            self._seen.popleft()
        since, before = self._seen[0]
        return (done - before) / (now - since) if now > since else 0.0


def described(batch: dict[str, Any], rate: float) -> str:
    """``in_progress 40 of 100 lines (1 failed), 12.5 lines/s, 5 s left``."""
    counts = batch["request_counts"]
    done = counts["completed"] + counts["failed"]
    said = f"{batch['status']} {done} of {counts['total']} lines"
    if counts["failed"]:
        said += f" ({counts['failed']} failed)"
    if rate > 0 and done < counts["total"]:
        said += f", {rate:.1f} lines/s, {age((counts['total'] - done) / rate)} left"
    return said


def following(states: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Shows each state; gives the last one."""
    rate, last = Rate(), None
    console = Console(stderr=True)
    if not console.is_terminal:
        said_at = 0.0
        for last in states:
            now = clock.monotonic()
            text = described(last, rate.add(now, _done(last)))
            if now >= said_at + _SAY_SECONDS:
                said_at = now
                click.echo(text, err=True)
        if last is not None:
            click.echo(described(last, 0.0), err=True)
    else:
        with Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=False) as progress:
            task = progress.add_task("", total=None)
            for last in states:
                text = described(last, rate.add(clock.monotonic(), _done(last)))
                total = last["request_counts"]["total"] or None
                progress.update(task, description=text, completed=_done(last), total=total)
    if last is None:
        raise ValueError("no state at all")
    return last


@contextmanager
def transfer(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """Shows bytes as they go, on a terminal; else it says nothing."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=size)
        yield lambda count: progress.advance(task, count)


def _done(batch: dict[str, Any]) -> int:
    counts = batch["request_counts"]
    return int(counts["completed"] + counts["failed"])
