"""Asking workers to leave: their own service does it, and tells everybody by their lease."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

import grpc
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.worker.v1.worker_pb2 import DrainRequest
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_runtime.errors import InferBusError, unavailable
from inferbus_runtime.rpc import channel
from inferbus_runtime.tls import TlsFiles

log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 5.0
_RETRY_AFTER = timedelta(seconds=1)


class Draining:
    """Calls workers at the addresses of their records, with the operator's token."""

    def __init__(self, rpc_token: str | None, identity: TlsFiles | None) -> None:
        self._rpc_token = rpc_token
        self._identity = identity

    async def begin(self, workers: Sequence[WorkerRecord], grace: timedelta) -> None:
        """Returns when all of them drain. Raises InferBusError UNAVAILABLE ``worker_unreachable`` that names those that
        did not answer; the others drain all the same, and asking again is harmless."""
        asked = [worker.worker for worker in workers]
        log.info("asking workers to leave", extra={"workers": asked, "grace_seconds": grace.total_seconds()})
        answers = await asyncio.gather(*(self._ask(each, grace) for each in workers), return_exceptions=True)
        silent = []
        for worker, answer in zip(workers, answers, strict=True):
            if isinstance(answer, grpc.aio.AioRpcError | InferBusError):
                silent.append((worker.worker, answer))
            elif answer is not None:
                raise answer
        if silent:
            names = ", ".join(name for name, _ in silent)
            raise unavailable(
                "worker_unreachable",
                f"These workers did not answer: {names}. One that is gone needs no drain; ask again for the others.",
                retry_after=_RETRY_AFTER,
                diagnostic="; ".join(f"{name}: {error!r}" for name, error in silent),
            )

    async def _ask(self, worker: WorkerRecord, grace: timedelta) -> None:
        request = DrainRequest(begin_only=True)
        request.grace.FromTimedelta(grace)
        async with channel(worker.address, self._rpc_token, self._identity) as to:
            await WorkerServiceStub(to).Drain(request, timeout=_TIMEOUT_SECONDS)
