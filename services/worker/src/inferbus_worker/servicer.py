"""The worker's gRPC API."""

import os
from collections.abc import AsyncIterator
from typing import Any

from inferbus.common.v1.usage_pb2 import Usage
from inferbus.worker.v1 import worker_pb2 as api
from inferbus.worker.v1 import worker_pb2_grpc
from inferbus_bus.frames import FramePublisher
from inferbus_contracts.ids import uuid7
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_worker.core.columns import WIRE_FINISH
from inferbus_worker.core.wire import chat_of, sampling_of
from inferbus_worker.direct import Direct
from inferbus_worker.drain import Drain
from inferbus_worker.engine import Chat, Engine, EngineInfo, Finished, Generation, Prompt
from inferbus_worker.engine_report import EngineReport
from inferbus_worker.generations import Generations
from inferbus_worker.registration import Registration


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Translates; decides nothing."""

    def __init__(
        self,
        registration: Registration,
        generations: Generations,
        frames: FramePublisher,
        direct: Direct,
        drain: Drain,
        engine: Engine,
        info: EngineInfo,
        report: EngineReport,
    ) -> None:
        self._registration = registration
        self._generations = generations
        self._frames = frames
        self._direct = direct
        self._drain = drain
        self._engine = engine
        self._info = info
        self._report = report

    async def GetStatus(self, request: api.GetStatusRequest, context: Any) -> api.GetStatusResponse:  # noqa: N802
        return api.GetStatusResponse(
            record=self._registration.record,
            active=len(self._generations.running),
            unacked_frames=self._frames.unacked,
            output_tokens_total=self._generations.output_tokens,
            engine_restarts=len(self._generations.restarts),
            engine=self._report.current(),
        )

    async def Drain(self, request: api.DrainRequest, context: Any) -> api.DrainResponse:  # noqa: N802
        grace = request.grace.ToTimedelta().total_seconds() if request.HasField("grace") else None
        if grace is not None and grace < 0:
            raise invalid("grace is a duration of 0 or more.", param="grace")
        await (self._drain.begin(grace) if request.begin_only else self._drain.finish(grace))
        return api.DrainResponse()

    async def Generate(  # noqa: N802
        self, request: api.GenerateRequest, context: Any
    ) -> AsyncIterator[api.GenerateResponse]:
        key = uuid7(clock.now_us() // 1000, os.urandom(10))
        output_tokens = 0
        generation = Generation(key, chat_of(request.chat), sampling_of(request.sampling))
        async for item in self._direct.generate(generation):
            if isinstance(item, Finished):
                yield api.GenerateResponse(
                    finish_reason=WIRE_FINISH[item.reason],
                    usage=Usage(
                        input_tokens=item.input_tokens,
                        cached_input_tokens=item.cached_input_tokens,
                        output_tokens=output_tokens,
                    ),
                    error=item.error.to_proto() if item.error is not None else None,
                )
            else:
                ids, text = item
                output_tokens += len(ids)
                yield api.GenerateResponse(token_id=ids, text=text.decode())

    async def Tokenize(self, request: api.TokenizeRequest, context: Any) -> api.TokenizeResponse:  # noqa: N802
        match request.WhichOneof("input"):
            case "text":
                source: Prompt | Chat = Prompt(request.text)
            case "chat":
                source = chat_of(request.chat)
            case _:
                raise invalid("Send text or messages.", param="prompt")
        tokens = await self._engine.tokenize(
            source,
            parse_special=request.parse_special,
            add_special=request.add_special if request.HasField("add_special") else request.parse_special,
            open_turn=request.add_generation_prompt,
        )
        return api.TokenizeResponse(
            token_id=tokens.ids,
            piece=tokens.pieces if request.return_pieces else (),
            context_length=self._info.context_length,
        )

    async def Detokenize(self, request: api.DetokenizeRequest, context: Any) -> api.DetokenizeResponse:  # noqa: N802
        return api.DetokenizeResponse(text=await self._engine.detokenize(request.token_id))
