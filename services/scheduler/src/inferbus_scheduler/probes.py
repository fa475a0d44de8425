"""Probes of a revision that is to serve: a few greedy answers straight from its engine, past bus and bill. They warm
it, and compared with those of the stable one they show whether it writes what it should."""

import asyncio
import logging
from collections.abc import Sequence

import grpc
from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.worker.v1.worker_pb2 import GenerateRequest
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import channel
from inferbus_runtime.tls import TlsFiles

log = logging.getLogger(__name__)
PROMPTS = (
    "What is the capital of France?",
    "Count from one to ten.",
    "Write one sentence about the sea.",
    "Name three primary colours.",
    "What is 7 times 6?",
    "Translate 'good morning' into Spanish.",
    "Explain in one sentence what rain is.",
    "Complete: the quick brown fox",
)
"""Plain enough for any model that chats."""
TOKENS = 24
_TIMEOUT_SECONDS = 60.0
# The id of a token whose id the engine does not say.
_UNKNOWN = 2**32 - 1


class ProbeError(Exception):
    """The worker could not be probed now."""


class Prober:
    """Calls workers at the addresses of their records, with the operator's token."""

    def __init__(self, rpc_token: str | None, identity: TlsFiles | None) -> None:
        self._rpc_token = rpc_token
        self._identity = identity

    async def answers(self, worker: WorkerRecord) -> tuple[tuple[int, ...] | None, ...]:
        """Token ids of the answer to each of PROMPTS; None: it failed, as a generation may. Raises ProbeError if the
        worker does not answer at all."""
        try:
            async with channel(worker.address, self._rpc_token, self._identity) as to:
                stub = WorkerServiceStub(to)
                return tuple(await asyncio.gather(*(self._answer(stub, prompt) for prompt in PROMPTS)))
        except (grpc.aio.AioRpcError, InferBusError, OSError) as error:
            raise ProbeError(f"{worker.worker} was not probed: {error!r}") from error

    async def _answer(self, stub: WorkerServiceStub, prompt: str) -> tuple[int, ...] | None:
        request = GenerateRequest()
        request.chat.messages.add(role="user", content=prompt)
        request.sampling.temperature = 0.0
        request.sampling.max_tokens = TOKENS
        ids: list[int] = []
        text = ""
        async for part in stub.Generate(request, timeout=_TIMEOUT_SECONDS):
            ids.extend(part.token_id)
            text += part.text
            if part.HasField("error"):
                log.info("a probe failed", extra={"reason": part.error.reason})
                return None
        # An engine that does not say its tokens is known by its text.
        return tuple(ids) if _UNKNOWN not in ids else tuple(text.encode())


def chats(answers: Sequence[tuple[int, ...] | None]) -> bool:
    """Whether it answers at all: a model that makes vectors does not."""
    return any(answer for answer in answers)
