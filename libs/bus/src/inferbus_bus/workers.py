"""Which workers serve a model, and asking one of them about its tokens.

Tokenizers live in the workers. A question is no work: it goes by gRPC, past bus and scheduler, to any worker that
serves the model; if that one is just going, to the next. Who takes no work at the moment (an engine that is about to be
replaced) still knows its tokens, and is asked if there is nobody else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import TypeVar

import grpc
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus.bus.v1.request_pb2 import ChatInput
from inferbus.worker.v1.worker_pb2 import DetokenizeRequest, TokenizeRequest, TokenizeResponse
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_runtime.errors import InferBusError, unavailable
from inferbus_runtime.rpc import error_of

from inferbus_bus.registry import Registry

_SECONDS = 5.0
_RETRY_AFTER = timedelta(seconds=1)
_SHOWN_NAME = 128

Answer = TypeVar("Answer")


class Workers:
    """``fleet``: started and stopped here. ``connect``: a channel to an address, with token and identity."""

    def __init__(self, fleet: Registry[WorkerRecord], connect: Callable[[str], grpc.aio.Channel]) -> None:
        self._fleet = fleet
        self._connect = connect
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._turn = 0
        fleet.on_change(self._changed)

    async def start(self) -> None:
        """Returns when the fleet is known. Raises like :meth:`Registry.start`."""
        await self._fleet.start()

    async def stop(self) -> None:
        await self._fleet.stop()
        for address in list(self._channels):
            self._close(address)
        if self._closing:
            await asyncio.wait(self._closing)

    def active(self, model: str) -> bool:
        """Whether somebody takes work for the model now."""
        active = WorkerState.WORKER_STATE_ACTIVE
        return any(one.model == model and one.state == active for one in self._fleet.items().values())

    async def tokenize(self, model: str, request: TokenizeRequest) -> TokenizeResponse:
        """Raises InferBusError: UNAVAILABLE without a worker that answers within 5 s, INVALID_ARGUMENT from it."""
        return await self._ask(model, lambda stub: stub.Tokenize(request))

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> bytes:
        """The text of ``token_ids`` as UTF-8, maybe with a part of a character at its ends. Raises like
        :meth:`tokenize`."""
        request = DetokenizeRequest(token_id=token_ids)
        answer = await self._ask(model, lambda stub: stub.Detokenize(request))
        return bytes(answer.text)

    async def count(self, model: str, chat: ChatInput) -> int:
        """The input tokens of ``chat`` with the beginning of the answer. Raises like :meth:`tokenize`."""
        answer = await self.tokenize(model, TokenizeRequest(chat=chat, add_generation_prompt=True))
        return len(answer.token_id)

    async def _ask(self, model: str, call: Callable[[WorkerServiceStub], Awaitable[Answer]]) -> Answer:
        self._turn += 1
        missing = _nobody(model)
        try:
            async with asyncio.timeout(_SECONDS):
                for address in addresses(self._fleet.items().values(), model, self._turn):
                    try:
                        return await call(WorkerServiceStub(self._channel(address)))
                    except grpc.aio.AioRpcError as error:
                        if error.code() != grpc.StatusCode.UNAVAILABLE:
                            raise error_of(error) from error
                        missing = error_of(error)  # gone since the fleet was told; the next one serves the same model
                    except (asyncio.CancelledError, grpc.aio.UsageError):
                        if _leaving():
                            raise
                        missing = _nobody(model)  # its channel was closed with the call in flight
        except TimeoutError:
            raise unavailable(
                "worker_slow", "The model's workers did not answer in time; retry.", retry_after=_RETRY_AFTER
            ) from None
        raise missing

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._connect(address)
        return channel

    def _changed(self, _name: str, _record: WorkerRecord | None) -> None:
        known = {record.address for record in self._fleet.items().values()}
        for address in self._channels.keys() - known:
            self._close(address)

    def _close(self, address: str) -> None:
        """Calls in flight have their time to end: the worker may have left the fleet by draining."""
        closing = self._channels.pop(address).close(grace=_SECONDS)
        task = asyncio.create_task(closing, name=f"close the channel to {address}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def addresses(fleet: Iterable[WorkerRecord], model: str, turn: int) -> list[str]:
    """Whom to ask about ``model``, in this order: its active workers, beginning with another one each ``turn``; if
    there is none, its draining ones."""
    serving = [record for record in fleet if record.model == model and record.address]
    for state in (WorkerState.WORKER_STATE_ACTIVE, WorkerState.WORKER_STATE_DRAINING):
        if able := sorted(record.address for record in serving if record.state == state):
            break
    start = turn % len(able) if able else 0
    return able[start:] + able[:start]


def _leaving() -> bool:
    """It is this task that was cancelled, by its client or its deadline, and not only a call of it by its channel."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _nobody(model: str) -> InferBusError:
    message = f"The model '{model[:_SHOWN_NAME]}' has no running worker at the moment; retry."
    return unavailable("no_worker", message, retry_after=_RETRY_AFTER)
