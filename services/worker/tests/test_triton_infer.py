"""Models of tensors on a real tritonserver: served as they are, by calls."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tritonclient", reason="the extra triton is not installed")

from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Operation
from inferbus.inference.v1.inference_pb2 import ModelInferRequest, ModelInferResponse, ModelMetadataResponse
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_runtime.errors import InferBusError
from inferbus_worker.config import Config, TritonConfig
from inferbus_worker.engine import (
    Chat,
    Embed,
    EngineDiedError,
    EngineInfo,
    Finish,
    Finished,
    Generation,
    Infer,
    Message,
    Prompt,
    Source,
    ToolMode,
)
from inferbus_worker.engines import engine_class
from inferbus_worker.engines.triton_call import unfit_text
from inferbus_worker.engines.triton_calls import STEP_BYTES
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

from services.worker.tests.triton_repository import classic, server
from services.worker.tests.triton_repository.server import TritonServer

pytestmark = pytest.mark.skipif(bool(server.missing()), reason=server.missing() or "installed")

# The first flower of each kind in Fisher's data.
FLOWERS = np.array([[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]], np.float32)
INVALID, UNAVAILABLE = ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, ErrorClass.ERROR_CLASS_UNAVAILABLE
STOP, CANCELLED = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_CANCELLED
NO_LANGUAGE_MODEL = "127.0.0.1:1"
RELOAD = {"control": "reload"}


def call(*, outputs: tuple[str, ...] = (), name: str = "", parameters: Any = None, **inputs: Any) -> ModelInferRequest:
    """A request with these arrays as its inputs; texts are BYTES. ``name``: of the request."""
    request = ModelInferRequest(model_name="of the edge", model_version="of the edge", id=name)
    for tensor, given in inputs.items():
        values = np.array([text.encode() for text in given], np.object_) if isinstance(given, list) else given
        request.inputs.add(name=tensor, datatype=np_to_triton_dtype(values.dtype), shape=values.shape)
        texts = values.dtype == np.object_
        request.raw_input_contents.append(serialized(values) if texts else values.tobytes())
    for output in outputs:
        request.outputs.add(name=output)
    for parameter, value in (parameters or {}).items():
        kind = {float: "double_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(request.parameters[parameter], kind, value)
    return request


def serialized(texts: np.ndarray) -> bytes:
    raw = serialize_byte_tensor(texts)
    return raw.item() if raw.size else b""


def arrays(response: ModelInferResponse) -> dict[str, np.ndarray]:
    """The outputs of an answer, by name."""
    kinds = {"FP32": np.float32, "INT64": np.int64}
    found = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        texts = output.datatype == "BYTES"
        values = deserialize_bytes_tensor(raw) if texts else np.frombuffer(raw, kinds[output.datatype])
        found[output.name] = values.reshape(output.shape)
    return found


@dataclass
class Answer:
    key: bytes
    parts: list[bytes] = field(default_factory=list)
    end: Finished | None = None

    @property
    def error(self) -> InferBusError:
        assert self.end is not None
        assert self.end.error is not None
        return self.end.error

    @property
    def response(self) -> ModelInferResponse:
        assert self.end is not None
        assert self.end.reason is Finish.STOP, self.end
        return ModelInferResponse.FromString(b"".join(self.parts))

    @property
    def outputs(self) -> dict[str, np.ndarray]:
        return arrays(self.response)


class Reading:
    """A started engine whose steps are read, by the laws of its seam."""

    def __init__(self, engine: Any, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self.answers: dict[bytes, Answer] = {}
        self.moved = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for step in self.engine.steps():
            assert sum(len(output.data) for output in step.outputs) <= STEP_BYTES
            for output in step.outputs:
                answer = self.answers[output.key]
                assert answer.end is None
                assert output.index == len(answer.parts)
                answer.parts.append(output.data)
            for finished in step.finished:
                assert self.answers[finished.key].end is None
                assert (finished.input_tokens, finished.cached_input_tokens) == (0, 0)
                self.answers[finished.key].end = finished
            self.moved.set()
            await self.reads.wait()

    def submit(self, source: ModelInferRequest | Source, **more: Any) -> Answer:
        if isinstance(source, ModelInferRequest):
            source = Infer(source.SerializeToString())
        answer = Answer((len(self.answers) + 1).to_bytes(16, "big"))
        self.answers[answer.key] = answer
        self.engine.submit(Generation(answer.key, source, **more))
        return answer

    async def ended(self, *answers: Answer, timeout: float = 60.0) -> None:
        async with asyncio.timeout(timeout):
            while not all(answer.end is not None for answer in answers):
                self.moved.clear()
                await self.moved.wait()

    async def ask(self, source: ModelInferRequest | Source, **more: Any) -> Answer:
        answer = self.submit(source, **more)
        await self.ended(answer)
        return answer

    async def died(self, timeout: float = 60.0) -> str:
        """What killed it."""
        with pytest.raises(EngineDiedError) as death:
            await asyncio.wait_for(self.reader, timeout)
        return str(death.value)


@pytest.fixture(scope="module")
async def triton(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonServer]:
    folder = tmp_path_factory.mktemp("triton")
    async with server.triton(folder, NO_LANGUAGE_MODEL, list(classic.CONFIGS)) as running:
        yield running


def engine_of(running: TritonServer, model: str, **changes: Any) -> Any:
    settings = {
        "url": running.grpc, "server_model": model, "probe_interval": timedelta(seconds=30),
        "start_timeout": timedelta(seconds=20), **changes.pop("triton", {}),
    }  # fmt: skip
    config = Config(name="w", engine="triton", model="public-name", triton=TritonConfig(**settings), **changes)
    return engine_class("triton").from_config(config)


@asynccontextmanager
async def reading(running: TritonServer, model: str, **changes: Any) -> AsyncIterator[Reading]:
    engine = engine_of(running, model, **changes)
    try:
        yield Reading(engine, await engine.start())
    finally:
        await engine.stop()


# --- what it is -------------------------------------------------------------------------------------------------------


async def test_a_model_of_tensors_says_what_it_takes_and_takes_nothing_else(triton: TritonServer) -> None:
    async with reading(triton, "tabular", capacity=7) as engine:
        info = engine.info
        assert (info.model, info.capabilities, info.capacity) == ("public-name", ("inference",), 7)
        metadata = ModelMetadataResponse.FromString(info.inference_metadata)
        assert (metadata.name, list(metadata.versions)) == ("", []), "those of the server are nobody's"
        assert [(one.name, one.datatype, list(one.shape)) for one in metadata.inputs] == [("FLOWERS", "FP32", [-1, 4])]
        assert [(one.name, one.datatype) for one in metadata.outputs] == [
            ("SPECIES", "INT64"),
            ("PROBABILITIES", "FP32"),
        ]
        chat = Chat((Message("user", "hi"),), tool_mode=ToolMode.NONE)
        for source, param in ((chat, "messages"), (Prompt("hi"), "prompt"), (Embed((Prompt("hi"),)), "input")):
            answer = await engine.ask(source)
            assert (answer.error.error_class, answer.error.param) == (INVALID, param)
        for asked in (engine.engine.tokenize(Prompt("x")), engine.engine.detokenize([1])):
            with pytest.raises(InferBusError) as refused:
                await asked
            assert (refused.value.reason, refused.value.error_class) == ("unsupported_parameter", INVALID)
    async with reading(triton, "shout") as other:
        assert other.info.revision != info.revision


async def test_models_that_cannot_be_served_are_refused_at_the_start(triton: TritonServer) -> None:
    for model, changes, why in (
        ("many", {}, "decoupled"),
        ("stateful", {}, "keeps state"),
        ("tabular", {"context_length": 4096}, "none of TensorRT-LLM's"),
    ):
        engine = engine_of(triton, model, **changes)
        with pytest.raises(InferBusError) as refused:
            await engine.start()
        assert refused.value.reason == "engine_start_failed"
        assert why in refused.value.diagnostic
        assert model not in refused.value.message
        await engine.stop()


# --- answers ----------------------------------------------------------------------------------------------------------


async def test_flowers_are_told_apart(triton: TritonServer) -> None:
    async with reading(triton, "tabular") as engine:
        answer = await engine.ask(call(FLOWERS=FLOWERS, name="mine"))
        response = answer.response
        assert (response.id, response.model_name, response.model_version) == ("mine", "", "")
        assert answer.outputs["SPECIES"].tolist() == [[0], [1], [2]]
        chances = answer.outputs["PROBABILITIES"]
        assert np.allclose(chances.sum(axis=1), 1)
        assert chances.max(axis=1).min() > 0.99
        alone = await engine.ask(call(FLOWERS=FLOWERS[1:2], outputs=("PROBABILITIES",)))
        assert list(alone.outputs) == ["PROBABILITIES"]
        assert np.array_equal(alone.outputs["PROBABILITIES"], chances[1:2])
        typed = call(FLOWERS=FLOWERS[:1])
        del typed.raw_input_contents[:]
        typed.inputs[0].contents.fp32_contents.extend(FLOWERS[0].tolist())
        assert (await engine.ask(typed)).outputs["SPECIES"].tolist() == [[0]]


async def test_texts_and_inputs_that_may_be_left_out(triton: TritonServer) -> None:
    async with reading(triton, "shout") as engine:
        plain = await engine.ask(call(TEXTS=["straße", "", "x" * 100_000]))
        assert plain.outputs["SHOUTED"].tolist() == [b"STRASSE", b"", b"X" * 100_000]
        behind = await engine.ask(call(TEXTS=["a", "b"], SUFFIX=["!"]))
        assert behind.outputs["SHOUTED"].tolist() == [b"A!", b"B!"]


async def test_a_picture_in_and_megabytes_out_come_in_parts(triton: TritonServer) -> None:
    image = np.random.default_rng(7).random((3, 224, 224), np.float32)
    means = image.reshape(3, 8, 28, 8, 28).mean(axis=(2, 4)).reshape(-1)
    expected = means @ np.cos(np.outer(np.arange(192), np.arange(1000))).astype(np.float32)
    async with reading(triton, "vision") as engine:
        several = [engine.submit(call(IMAGE=image)) for _ in range(3)]
        small = engine.submit(call(IMAGE=image, outputs=("SCORES",)))
        await engine.ended(*several, small)
        for answer in several:
            assert len(answer.parts) >= 5
            assert np.allclose(answer.outputs["SCORES"], expected, atol=1e-3)
            assert np.array_equal(answer.outputs["LARGE"], image.repeat(2, axis=1).repeat(2, axis=2))
        assert np.array_equal(small.outputs["SCORES"], several[0].outputs["SCORES"])
    async with reading(triton, "vision", triton={"max_answer_bytes": 1 << 20}) as engine:
        answer = await engine.ask(call(IMAGE=image))
        assert (answer.error.error_class, answer.error.reason) == (INVALID, "answer_too_large"), answer.error.diagnostic
        assert "1 MiB" in answer.error.message
        assert not answer.parts
        assert (await engine.ask(call(IMAGE=image, outputs=("SCORES",)))).outputs["SCORES"].shape == (1000,)


# --- what is wrong is said --------------------------------------------------------------------------------------------


def changed(request: ModelInferRequest, change: Callable[[ModelInferRequest], Any]) -> ModelInferRequest:
    change(request)
    return request


FLOWER = FLOWERS[:1]
BAD: list[tuple[str, ModelInferRequest, str]] = [
    ("tabular", call(flowers=FLOWER), "Send the input 'FLOWERS'"),
    ("tabular", call(), "Send the input 'FLOWERS'"),
    ("tabular", call(FLOWERS=FLOWER, other=FLOWER), "Expected 1 inputs but got 2 inputs"),
    ("tabular", call(FLOWERS=FLOWER, outputs=("SPECIE",)), "Unexpected inference output 'SPECIE'"),
    ("tabular", call(FLOWERS=FLOWER.astype(np.float64)), "data-type is 'FP64', but the model expects 'FP32'"),
    ("tabular", call(FLOWERS=FLOWERS[:, :3]), "Unexpected shape for input 'FLOWERS'. Expected [-1,4], got [3,3]"),
    ("tabular", call(FLOWERS=FLOWERS[0]), "Unexpected shape for input 'FLOWERS'. Expected [-1,4], got [4]"),
    ("tabular", call(FLOWERS=FLOWERS.repeat(22, axis=0)), "Inference request batch-size must be <= 64"),
    ("tabular", changed(call(FLOWERS=FLOWER), lambda r: r.ClearField("raw_input_contents")), "Unable to find data for"),
    ("tabular", changed(call(FLOWERS=FLOWER), lambda r: r.inputs[0].shape.__setitem__(0, 2)), "Expected 32, got 16"),
    ("tabular", changed(call(FLOWERS=FLOWER), lambda r: r.inputs[0].shape.__setitem__(0, -1)), "Send a shape of the"),
    ("tabular", changed(call(FLOWERS=FLOWER), lambda r: r.inputs[0].shape.__setitem__(0, 1 << 62)), "Send a shape of"),
    ("tabular", changed(call(FLOWERS=FLOWER), lambda r: r.inputs[0].shape.MergeFrom([1 << 61, 0])), "Send a shape of"),
    ("shout", call(SUFFIX=["!"]), "Send the input 'TEXTS'"),
    ("shout", call(TEXTS=[]), "TEXTS has no text"),
    ("shout", changed(call(TEXTS=["a"]), lambda r: r.raw_input_contents.__setitem__(0, b"\x09\0\0\0a")), "length 9"),
    ("shout", changed(call(TEXTS=["ab"]), lambda r: r.inputs[0].shape.__setitem__(0, 2)), "Expected 2 string elements"),
]  # fmt: skip


async def test_tensors_that_do_not_fit_are_the_callers_fault_and_told_in_the_servers_words(
    triton: TritonServer,
) -> None:
    for model in ("tabular", "shout"):
        async with reading(triton, model) as engine:
            for _, request, words in (one for one in BAD if one[0] == model):
                error = (await engine.ask(request)).error
                assert error.error_class == INVALID, error
                assert (error.param, error.reason) in {("inputs", "invalid_value")}
                assert words in error.message
                assert not re.search(f"{model}|request id|/|max_batch_size", error.message), error.message
            assert not (await engine.ask(call(**GOOD[model]))).response.model_name, "and nobody died of it"


GOOD: dict[str, dict[str, Any]] = {"tabular": {"FLOWERS": FLOWER}, "shout": {"TEXTS": ["a"]}}


async def test_what_is_not_a_callers_to_ask_is_refused_by_name(triton: TritonServer) -> None:
    """A region of the server's shared memory may hold what another tenant sent."""

    def shared(tensors: str) -> ModelInferRequest:
        request = call(TEXTS=["a"], outputs=("SHOUTED",))
        getattr(request, tensors)[0].parameters["shared_memory_region"].string_param = "somebody's"
        return request

    asked = [(shared(tensors), tensors) for tensors in ("inputs", "outputs")]
    for name in ("sequence_id", "sequence_start", "priority", "triton_enable_empty_final_response"):
        asked.append((call(TEXTS=["a"], parameters={name: 1}), "parameters"))
    async with reading(triton, "shout") as engine:
        for request, param in asked:
            error = (await engine.ask(request)).error
            assert (error.error_class, error.param, error.reason) == (INVALID, param, "unsupported_parameter")
        no_message = await engine.ask(Infer(b"\xff\xff"))
        assert (no_message.error.error_class, no_message.error.param) == (INVALID, "inputs")


async def test_a_model_that_fails_on_a_call_shows_nothing_of_its_inside(triton: TritonServer) -> None:
    """Its operator learns what was raised, and where, but not what the caller had sent."""
    async with reading(triton, "shout") as engine:
        answer = await engine.ask(call(TEXTS=["a"], parameters={"seconds": "a secret"}))
        assert answer.error.error_class == ErrorClass.ERROR_CLASS_INTERNAL
        assert not re.search("shout|/|ValueError|secret", answer.error.message)
        assert "ValueError" in answer.error.diagnostic
        assert "shout/1/model.py" in answer.error.diagnostic
        assert "secret" not in answer.error.diagnostic
        assert (await engine.ask(call(TEXTS=["a"]))).outputs["SHOUTED"].tolist() == [b"A"]


def test_words_of_a_model_that_show_the_inside_are_not_passed_on() -> None:
    ours = "The model does not take these tensors; compare them with its metadata."
    for text, shown in (
        ("IMAGE must be RGB", "IMAGE must be RGB."),
        ("[request id: a] input byte size mismatch for input 'IMAGE' for model 'm-7'. Expected 4, got 3",
         "Input byte size mismatch for input 'IMAGE'. Expected 4, got 3."),
        ("IMAGE: cannot read /models/m/labels", ours),
        ("IMAGE: no answer of 10.0.0.3", ours),
        ("IMAGE: std::bad_alloc", ours),
        ("IMAGE does not fit 'm-7'", ours),
        ("IMAGE\nTraceback", ours),
        ("out of patience", ours),
        ("", ours),
    ):  # fmt: skip
        assert unfit_text(text, "m-7", {"IMAGE"}) == shown


async def test_a_full_queue_of_the_server_may_be_tried_again(triton: TritonServer) -> None:
    async with reading(triton, "queued") as engine:
        request = call(TEXTS=np.array([[b"a"]], np.object_), parameters={"seconds": 0.3})
        answers = [engine.submit(request) for _ in range(6)]
        await engine.ended(*answers)
        refused = [answer.error for answer in answers if answer.end.reason is Finish.ERROR]
        assert 1 <= len(refused) <= 5
        for error in refused:
            assert (error.error_class, error.reason) == (ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, "engine_full")
            assert error.retry_after == timedelta(seconds=1)


# --- capacity and cancel ----------------------------------------------------------------------------------------------

NEVER = {"seconds": 600.0}


async def test_a_cancel_ends_the_call_at_the_server_too(triton: TritonServer) -> None:
    async with reading(triton, "shout", capacity=2) as engine:
        first, second = (engine.submit(call(TEXTS=["a"], parameters=NEVER)) for _ in range(2))
        third, fourth = (engine.submit(call(TEXTS=["b"])) for _ in range(2))
        said = engine.engine.statistics()
        assert (said.running, said.waiting) == (2, 2)
        engine.engine.close(third.key)
        await engine.ended(third)
        for answer in (first, second):
            engine.engine.close(answer.key)
            await engine.ended(answer)
        assert {answer.end.reason for answer in (first, second, third)} == {Finish.CANCELLED}
        await engine.ended(fourth)  # the model works at one call at a time: it has left the ones that took for ever
        assert fourth.outputs["SHOUTED"].tolist() == [b"B"]
        engine.engine.close(fourth.key)
        engine.engine.close(b"unknown")
        assert engine.engine.statistics().running == 0


async def test_calls_whose_answers_might_not_fit_into_memory_wait(triton: TritonServer) -> None:
    async with reading(triton, "tabular", capacity=40, triton={"max_answer_bytes": 16 << 20}) as engine:
        answers = [engine.submit(call(FLOWERS=FLOWER)) for _ in range(34)]
        said = engine.engine.statistics()
        assert (said.running, said.waiting) == (32, 2)
        await engine.ended(*answers)
        assert {answer.end.reason for answer in answers if answer.end} == {Finish.STOP}


async def test_what_is_left_of_a_cancelled_answer_is_dropped(triton: TritonServer) -> None:
    image = np.zeros((3, 224, 224), np.float32)
    async with reading(triton, "vision") as engine:
        engine.reads.clear()  # after one step
        gone, other = (engine.submit(call(IMAGE=image)) for _ in range(2))
        async with asyncio.timeout(20):
            while engine.engine.statistics().running:
                await asyncio.sleep(0.01)
        engine.engine.close(gone.key)
        engine.reads.set()
        await engine.ended(gone, other)
        assert gone.end.reason is Finish.CANCELLED
        assert len(b"".join(gone.parts)) <= STEP_BYTES
        assert other.outputs["LARGE"].shape == (3, 448, 448)


# --- death ------------------------------------------------------------------------------------------------------------


async def test_a_killed_model_is_found_and_loaded_again(triton: TritonServer) -> None:
    """What it was at ends as unavailable, what waited is the worker's to submit again; being ready is no proof."""
    brief = {"probe_interval": timedelta(seconds=0.3), "start_timeout": timedelta(seconds=6)}
    async with (
        reading(triton, "shout", triton=brief) as idle,
        reading(triton, "shout", capacity=1, triton=RELOAD) as engine,
    ):
        health = idle.engine._calls._health
        began = health._proved_at
        async with asyncio.timeout(60):  # a probe alone kills nobody
            while health._proved_at == began:
                await asyncio.sleep(0.02)
        assert not idle.reader.done()
        running = engine.submit(call(TEXTS=["a"], parameters=NEVER))
        waiting = engine.submit(call(TEXTS=["b"]))
        await asyncio.sleep(0.2)
        os.kill(triton.stub("shout"), signal.SIGKILL)
        assert "not healthy" in await engine.died()
        assert "not healthy" in await idle.died()
        assert await triton.status("/v2/models/shout/ready") == 200
        assert (running.error.error_class, running.error.reason) == (UNAVAILABLE, "engine_failed")
        assert running.error.retry_after is not None
        assert "shout" not in running.error.message
        assert waiting.end is None
        await idle.engine.stop()
        with pytest.raises(InferBusError) as refused:
            await idle.engine.start()
        assert "not healthy" in refused.value.diagnostic
        await engine.engine.stop()
        again = Reading(engine.engine, await engine.engine.start())
        assert (await again.ask(call(TEXTS=["b"]))).outputs["SHOUTED"].tolist() == [b"B"]


async def test_a_model_that_answers_nobody_is_found(triton: TritonServer) -> None:
    async with reading(triton, "shout", engine_stall=timedelta(seconds=6)) as engine:
        answer = engine.submit(call(TEXTS=["a"], parameters=NEVER))
        assert "no answer" in await engine.died()
        assert (answer.error.error_class, answer.error.reason) == (UNAVAILABLE, "engine_failed")
        await engine.engine.stop()
        again = Reading(engine.engine, await engine.engine.start())
        assert (await again.ask(call(TEXTS=["b"]))).outputs["SHOUTED"].tolist() == [b"B"]


async def test_a_call_that_takes_too_long_ends_alone_where_others_are_answered(triton: TritonServer) -> None:
    async with reading(triton, "shout", engine_stall=timedelta(seconds=8)) as engine:
        long = engine.submit(call(TEXTS=["a"], parameters=NEVER))
        await asyncio.sleep(0.2)
        assert (await engine.ask(call(TEXTS=FLOWER))).error.error_class == INVALID
        await engine.ended(long)
        assert (long.error.error_class, long.error.reason) == (UNAVAILABLE, "engine_failed")
        assert (await engine.ask(call(TEXTS=["b"]))).outputs["SHOUTED"].tolist() == [b"B"]


async def test_an_unloaded_model_is_found_by_a_probe_or_by_a_call(triton: TritonServer) -> None:
    often = {"probe_interval": timedelta(seconds=0.3)}
    async with reading(triton, "queued", triton=often) as idle, reading(triton, "queued") as busy:
        async with reading(triton, "queued", triton={"control": "own"}):
            pass
        assert await triton.status("/v2/models/queued/ready") != 200, "what is ours is unloaded"
        answer = busy.submit(call(TEXTS=["a"]))
        said = "not ready|no available versions|unknown model"  # by what the server says first
        assert re.search(said, await busy.died())
        assert (answer.error.error_class, answer.error.reason) == (UNAVAILABLE, "engine_failed")
        assert re.search(said, await idle.died())


# --- through a worker -------------------------------------------------------------------------------------------------


def asked(edge: Any, request: ModelInferRequest) -> Any:
    made = edge.request("", reply=b"as tensors")
    made.inference.request = request.SerializeToString()
    made.ClearField("sampling")
    return made


async def test_calls_through_a_worker_are_frames_of_parts(
    bus: Bus, edge: Any, new_worker: Callable[..., Any], triton: TritonServer
) -> None:
    worker = new_worker(ENGINE="triton", MODEL="eyes", TRITON__URL=triton.grpc, TRITON__SERVER_MODEL="vision")
    await worker.start()
    image = np.random.default_rng(3).random((3, 224, 224), np.float32)
    received = [await edge.place(worker.name, asked(edge, call(IMAGE=image))) for _ in range(3)]
    bad = await edge.place(worker.name, asked(edge, call(IMAGE=image[:1])))
    chat = await edge.place(worker.name, edge.request("hello"))
    await edge.closed(*received, bad, chat)
    for one in received:
        response = ModelInferResponse.FromString(one.output)
        assert np.array_equal(arrays(response)["LARGE"][:, ::2, ::2], image)
        assert (one.replies, one.attempts, one.ids) == ([b"as tensors"], [1], [])
        close = one.close
        assert (close.finish_reason, close.operation) == (STOP, Operation.OPERATION_INFERENCE)
        assert (close.usage.input_tokens, close.usage.output_tokens, close.usage.estimated) == (0, 0, False)
        assert (close.attempt, close.engine) == (1, "triton")
    assert max(frame.ByteSize() for frame in edge.frames) < 1 << 20
    assert (bad.close.error.error_class, bad.close.error.param) == (INVALID, "inputs")
    assert (chat.close.error.param, chat.close.operation) == ("messages", Operation.OPERATION_CHAT)
    models = Registry(bus, "models", ModelRecord)
    await models.start()
    async with asyncio.timeout(30):
        while (record := models.get("eyes")) is None:
            await asyncio.sleep(0.02)
    assert list(record.capabilities) == ["inference"]
    assert ModelMetadataResponse.FromString(record.inference_metadata).inputs[0].name == "IMAGE"
    await models.stop()


async def test_a_call_is_cancelled_and_one_whose_worker_died_is_made_again_as_another_attempt(
    bus: Bus, edge: Any, new_worker: Callable[..., Any], triton: TritonServer
) -> None:
    """The model works at one call at a time, and has none to spare while the first attempt waits for it."""
    worker = new_worker(ENGINE="triton", TRITON__URL=triton.grpc, TRITON__SERVER_MODEL="shout")
    await worker.start()
    page = {"metrics_url": f"http://{triton.metrics}/metrics", "metrics_interval": timedelta(seconds=0.05)}
    async with reading(triton, "shout", triton=page) as others:
        busy = [others.submit(call(TEXTS=["a"], parameters=NEVER)) for _ in range(2)]

        async def waiting(count: int) -> None:
            async with asyncio.timeout(30):
                while others.engine.statistics().engine_waiting != count:
                    await asyncio.sleep(0.02)

        await waiting(1)
        request = asked(edge, call(TEXTS=["gone"]))
        gone = await edge.place(worker.name, request)
        await waiting(2)
        bus.send(Cancel(request_id=request.request_id, reason="client_gone"))
        await edge.closed(gone)
        again = asked(edge, call(TEXTS=["kept"]))
        received = await edge.place(worker.name, again)
        await waiting(3)  # the server looks at what was cancelled when its turn comes
        await worker.kill()
        for answer in busy:
            others.engine.close(answer.key)
    await worker.start()
    await edge.place(worker.name, edge.moved(again))
    await edge.closed(received)
    assert arrays(ModelInferResponse.FromString(received.output))["SHOUTED"].tolist() == [b"KEPT"]
    assert (received.close.attempt, received.attempts) == (2, [2])
    assert (gone.close.finish_reason, gone.output) == (CANCELLED, b"")
