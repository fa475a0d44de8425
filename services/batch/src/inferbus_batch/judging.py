"""Inputs are validated in a process of their own each: a million lines are a minute of computing, and a hostile one
must not take the service down."""

import asyncio
import pickle
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus_bus.registry import Registry
from inferbus_dialect.translate import capabilities_of
from inferbus_runtime.errors import unavailable

from inferbus_batch.validating import Report

_AT_ONCE = 2
_RETRY_AFTER = timedelta(seconds=10)


class Judge:
    """``models``: a running registry. ``max_lines``: of one batch."""

    def __init__(self, models: Registry[ModelRecord], max_lines: int) -> None:
        self._models = models
        self._max_lines = max_lines
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def judge(self, record: JobRecord, key: KeyRecord, source: Path, index: Path) -> Report:
        """All faults of ``source``; ``index`` is written if there are none. Raises InferBusError UNAVAILABLE
        ``validation_failed`` if the process ended without a word."""
        models = {
            one.name: frozenset(capabilities_of(one))
            for one in self._models.items().values()
            if not key.models or one.name in key.models
        }
        asked = pickle.dumps((str(source), str(index), record.endpoint, models, self._max_lines))
        async with self._room:
            # Without our variables it has no credentials to lose.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "inferbus_batch.judging_process", env={},
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            try:
                said, _ = await process.communicate(asked)
            finally:
                if process.returncode is None:
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
        if process.returncode != 0:
            raise unavailable(
                "validation_failed", "The batch is validated again later.", retry_after=_RETRY_AFTER,
                diagnostic=f"the validation of {record.job_id} ended with {process.returncode}",
            )  # fmt: skip
        report = pickle.loads(said)  # noqa: S301 (what our own child says)
        assert isinstance(report, Report)  # noqa: S101
        return report
