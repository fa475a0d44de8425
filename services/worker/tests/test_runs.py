"""Who runs in an engine, and who gives up his place."""

import asyncio
from dataclasses import dataclass

import pytest
from inferbus_worker.engines.runs import Runs


@dataclass
class Run:
    key: bytes
    task: asyncio.Task[None] | None = None


@pytest.mark.parametrize("by_itself", [True, False])
async def test_who_steps_back_reads_no_further(by_itself: bool) -> None:
    """Else it would say the same tokens as the task that it gets with its next place."""
    runs: Runs[Run] = Runs(2)
    one, other = Run(b"one"), Run(b"other")
    runs.waiting.extend((one, other))
    read: list[str] = []

    async def drive(run: Run) -> None:
        if run is (one if by_itself else other):
            await asyncio.sleep(0)
            runs.step_back(one)
        await asyncio.sleep(0.01)
        read.append(run.key.decode())

    for run in (one, other):
        assert runs.next() is run
        runs.begin(run, drive(run))
    tasks = runs.tasks()
    await asyncio.wait(tasks)
    assert read == ["other"]
    assert tasks[0].cancelled()
    assert (list(runs.running), list(runs.waiting)) == ([b"other"], [one])
