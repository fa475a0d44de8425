"""Inputs are validated in a process of their own each: a million lines are a minute of computing, and a hostile one
must not take the service down. What only a model's tokenizer can say is asked of its workers afterwards."""

import asyncio
import pickle
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus_budgets.budgets import Budgets
from inferbus_bus.registry import Registry
from inferbus_bus.workers import Workers
from inferbus_dialect.translate import capabilities_of
from inferbus_rating import Rate, Scope
from inferbus_runtime import clock
from inferbus_runtime.errors import unavailable

from inferbus_batch.counting import Counting
from inferbus_batch.validating import Report, Served

_AT_ONCE = 2
_RETRY_AFTER = timedelta(seconds=10)
_OPERATIONS = {
    "/v1/chat/completions": Operation.OPERATION_CHAT,
    "/v1/responses": Operation.OPERATION_CHAT,
    "/v1/completions": Operation.OPERATION_TEXT_COMPLETION,
    "/v1/embeddings": Operation.OPERATION_EMBEDDINGS,
}


class Judge:
    """``models``: a running registry. ``max_lines``: of one batch."""

    def __init__(self, models: Registry[ModelRecord], budgets: Budgets, workers: Workers, max_lines: int) -> None:
        self._models = models
        self._budgets = budgets
        self._workers = workers
        self._max_lines = max_lines
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def judge(self, endpoint: str, key: KeyRecord, source: Path, index: Path) -> Report:
        """All faults of ``source``; ``index`` is written if there are none that can be told without asking a worker.
        Raises InferBusError UNAVAILABLE ``validation_failed`` if the process ended without a word."""
        served = {
            one.name: Served(frozenset(capabilities_of(one)), one.context_length, self._rate(key, one, endpoint))
            for one in self._models.items().values()
            if not key.models or one.name in key.models
        }
        report = await self._validated(pickle.dumps((str(source), str(index), endpoint, served, self._max_lines)))
        if report.long:
            report.insert(await Counting(self._workers, source, endpoint, served).faults(report.long))
        return report

    def _rate(self, key: KeyRecord, model: ModelRecord, endpoint: str) -> Rate | None:
        """Of a line that is accepted now; None: there is none, or one that may be meant is malformed."""
        scope = Scope(key.tenant_id, key.project_id, model.name, model.revision)
        operation, priority = _OPERATIONS[endpoint], PriorityClass.PRIORITY_CLASS_BATCH
        rate = self._budgets.rate(key, scope, operation, priority, clock.now_us())
        return rate if rate is not None and rate.version else None

    async def _validated(self, asked: bytes) -> Report:
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
                diagnostic=f"the process that validates ended with {process.returncode}",
            )  # fmt: skip
        report = pickle.loads(said)  # noqa: S301 (what our own child says)
        assert isinstance(report, Report)  # noqa: S101
        return report
