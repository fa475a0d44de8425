"""The model that a tritonserver serves: found, proved by a generation, and asked for others."""

import asyncio
import hashlib
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from inferbus_runtime import clock

from inferbus_worker.config import TritonConfig
from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engine import Sampling
from inferbus_worker.engines.triton_client import RECEIVE_SLACK, AbsentModelError, TritonClient
from inferbus_worker.engines.triton_errors import Trouble, trouble_of
from inferbus_worker.engines.triton_health import ProbeError, described
from inferbus_worker.engines.triton_model import Family, Served, family_of, served_of
from inferbus_worker.engines.triton_request import Task, request_of, stop_request
from inferbus_worker.engines.triton_stream import IdsReader, LlmApiReader, Reader, TextReader
from inferbus_worker.engines.triton_tensors import TensorService, tensors_of
from inferbus_worker.engines.triton_tokenizer import ModelFiles, TextTokenizer, load

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")
_RETRY_SECONDS = 0.25
# Said of a model that is being loaded or unloaded, or is not there.
_ABSENT = re.compile(r"unknown model|no available versions|is not ready|unloading", re.IGNORECASE)
_PROBE_TEXT = "Hi"


@dataclass(slots=True, eq=False)
class Service:
    """``context_length``: tokens of one generation."""

    settings: TritonConfig
    client: TritonClient
    served: Served
    files: ModelFiles | None
    context_length: int
    version: str
    _stopping: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def models(self) -> frozenset[str]:
        """Those whose figures on the metrics page are its own."""
        return self.served.models

    @property
    def by_ids(self) -> bool:
        return self.served.family is Family.CORE

    @property
    def tokenizer(self) -> TextTokenizer | None:
        return self.files.tokenizer if self.files is not None else None

    @property
    def revision(self) -> str:
        """Another one if the server, the model's configuration or the tokenizer is."""
        build = f"{self.version} {self.served.digest} {self.files.digest if self.files else ''} {self.context_length}"
        return hashlib.sha256(build.encode()).hexdigest()[:12]

    def reader(self, max_new: int, given: list[int]) -> Reader:
        """Of the responses to a request that follows the output tokens ``given``."""
        match self.served.family:
            case Family.CORE:
                assert self.tokenizer is not None  # noqa: S101  (else there is no such family)
                return IdsReader(self.tokenizer, given)
            case Family.TEXT:
                return TextReader(cumulative=self.served.cumulative, max_new=max_new)
            case Family.LLMAPI:
                return LlmApiReader()

    async def stream(self, task: Task) -> AsyncGenerator[Any, None]:
        """Responses, each a ModelStreamInferResponse; closed before its end it cancels the request.

        Raises grpc.RpcError.
        """
        request_id = str(secrets.randbits(63))
        call = await self.client.open(request_of(self.served, task, request_id))
        ended = False
        try:
            async for response in call:
                yield response
            ended = True
        finally:
            if not ended:
                call.cancel()
                if self.served.core:
                    self._stop_in_core(request_id)

    async def probe(self) -> None:
        """Generates a token. Raises ProbeError, grpc.RpcError."""
        prompt = self.tokenizer.encode(_PROBE_TEXT) if self.by_ids and self.tokenizer is not None else _PROBE_TEXT
        ends = self.tokenizer.end_ids if self.tokenizer is not None else ()
        answered = False
        async for response in self.stream(Task(prompt, 1, Sampling(temperature=0.0), 0, end_ids=ends)):
            if not response.error_message:
                answered = True
            elif trouble_of(response.error_message) is Trouble.FULL:
                return  # its queue is full of others' requests
            else:
                raise ProbeError(response.error_message)
        if not answered:
            raise ProbeError("it ended a request without an answer")

    async def stop(self) -> None:
        """Safe twice."""
        for task in self._stopping:
            task.cancel()
        await asyncio.gather(*self._stopping, return_exceptions=True)
        await self.client.leave(self.settings.server_model if self.settings.control == "own" else None)

    def _stop_in_core(self, request_id: str) -> None:
        task = asyncio.create_task(self._stopped(request_id), name="stop-request")
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stopped(self, request_id: str) -> None:
        """A client's cancel does not reach a step of an ensemble that runs."""
        try:
            call = await self.client.open(stop_request(self.served.core, request_id, batched=self.served.batched))
            async for _ in call:
                pass
        except grpc.RpcError as error:
            log.warning("a cancelled request was not stopped in its core model", extra={"error": described(error)})


async def start(settings: TritonConfig, context_length: int | None) -> Service | TensorService:
    """Waits for the server and the model, and for a token of it, or an answer. Raises InferBusError."""
    files = await asyncio.to_thread(load, settings.tokenizer) if settings.tokenizer is not None else None
    length = context_length or (files.context_length if files is not None else None)
    seconds = settings.start_timeout.total_seconds()
    try:
        client = TritonClient(
            settings.url, tls=settings.tls, ca=settings.tls_ca,
            call_seconds=settings.call_timeout.total_seconds(), load_seconds=seconds,
            receive_bytes=settings.max_answer_bytes + RECEIVE_SLACK,
        )  # fmt: skip
    except OSError as error:
        raise start_failed(f"the certificate authority cannot be read: {error}") from error
    try:
        return await _found(settings, client, files, length, clock.monotonic() + seconds)
    except BaseException:
        await client.leave(None)
        raise


async def _found(
    settings: TritonConfig, client: TritonClient, files: ModelFiles | None, length: int | None, deadline: float
) -> Service | TensorService:
    async def until(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        return await _until(deadline, call)

    version = await until(client.version)
    if settings.control == "own":
        await _load(settings, client)
    config = await until(lambda: client.config(settings.server_model))
    service: Service | TensorService
    if family_of(config) is None and files is None and length is None:
        metadata = await until(lambda: client.metadata(settings.server_model))
        service = TensorService(settings, client, tensors_of(config, metadata), version)
    else:
        ids = files is not None and files.tokenizer is not None
        served = await until(lambda: served_of(settings.server_model, client.config, ids=ids))
        if length is None:
            raise start_failed("the model's context length is not known: set it, or a tokenizer whose files say it")
        service = Service(settings, client, served, files, length, version)
    try:
        await _proved(service)
    except (ProbeError, grpc.RpcError) as error:
        if settings.control == "leave":
            await until(lambda: _proved(service))
        else:
            log.warning("the model does not generate and is loaded again", extra={"error": described(error)})
            await _load(settings, client, loaded=not _ABSENT.search(str(error)))
            await until(lambda: _proved(service))
    return service


async def _proved(service: Service | TensorService) -> None:
    """Raises ProbeError, grpc.RpcError."""
    try:
        async with asyncio.timeout(service.settings.probe_timeout.total_seconds()):
            await service.probe()
    except TimeoutError as error:
        raise ProbeError("no answer came in time") from error


async def _load(settings: TritonConfig, client: TritonClient, *, loaded: bool = False) -> None:
    """``loaded``: it is, and has to be anew; another worker may be at it otherwise, and is not disturbed."""
    try:
        if loaded:
            await client.unload(settings.server_model)
        await client.load(settings.server_model)
    except grpc.RpcError as error:
        raise start_failed(f"the model '{settings.server_model}' was not loaded: {described(error)}") from error


async def _until(deadline: float, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """The first answer: a server, or a model, may be on its way. Raises InferBusError after the deadline."""
    while True:
        try:
            return await call()
        except (grpc.RpcError, AbsentModelError, ProbeError) as error:
            if clock.monotonic() >= deadline:
                raise start_failed(f"the model does not serve: {described(error)}") from error
        await asyncio.sleep(_RETRY_SECONDS)
