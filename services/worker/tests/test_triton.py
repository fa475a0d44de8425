"""What only ``triton`` has: families of models, and the traps of a real tritonserver, each met here on one."""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

pytest.importorskip("tritonclient", reason="the extra triton is not installed")

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.worker.v1.worker_pb2 import GetStatusRequest
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import channel
from inferbus_stack.certificates import Authority, Wanted
from inferbus_worker.engine import (
    UNKNOWN_TOKEN,
    Chat,
    Constraint,
    ConstraintKind,
    EngineDiedError,
    EngineInfo,
    Finish,
    Finished,
    Generation,
    Message,
    Prompt,
    Sampling,
    Tool,
    ToolMode,
)
from inferbus_worker.engines import engine_class
from inferbus_worker.engines.llama_cpp_model import default_cache
from inferbus_worker.engines.llama_cpp_process import ServerProcess
from inferbus_worker.engines.triton_request import Task, request_of
from inferbus_worker.engines.triton_tokenizer import load

from services.worker.tests import engine_triton, smollm2_tokenizer
from services.worker.tests.triton_repository import server
from services.worker.tests.triton_repository.server import TritonServer
from services.worker.tests.turns import at_once

pytestmark = pytest.mark.skipif(bool(server.missing()), reason=server.missing() or "installed")

GREEDY = Sampling(temperature=0.0, max_tokens=12)
STORY = Prompt("Once upon a time, in a land far away, there")
CORE = {"chat", "completions", "structured_output", "logit_bias"}
# Longer than anybody waits for it.
LONG = replace(GREEDY, max_tokens=4000)


@dataclass
class Answer:
    """What one generation yielded. ``deltas``: how many had text."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    deltas: int = 0
    end: Finished | None = None

    @property
    def error(self) -> Any:
        return self.end.error if self.end is not None else None


class Reading:
    """A started engine whose steps are read."""

    def __init__(self, engine: Any, info: EngineInfo) -> None:
        self.engine = engine
        self.info = info
        self.answers: dict[bytes, Answer] = {}
        self.moved = asyncio.Event()
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for step in self.engine.steps():
            at = 0
            for key, count, text in zip(step.keys, step.counts, step.texts, strict=True):
                answer = self.answers[key]
                answer.ids += step.token_ids[at : at + count]
                answer.text += text.decode()
                answer.deltas += bool(text)
                at += count
            for finished in step.finished:
                self.answers[finished.key].end = finished
            self.moved.set()

    def submit(self, source: Chat | Prompt, sampling: Sampling = GREEDY, **more: Any) -> Answer:
        key = (len(self.answers) + 1).to_bytes(16, "big")
        answer = self.answers[key] = Answer()
        self.engine.submit(Generation(key, source, sampling, **more))
        return answer

    def close(self, answer: Answer) -> None:
        self.engine.close(next(key for key, value in self.answers.items() if value is answer))

    async def until(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self.moved.clear()
                await self.moved.wait()

    async def ask(self, source: Chat | Prompt, sampling: Sampling = GREEDY, **more: Any) -> Answer:
        answer = self.submit(source, sampling, **more)
        await self.until(lambda: answer.end is not None)
        return answer


@dataclass
class Parts:
    """``folder``: with a tokenizer of its own in ``tokenizer``, and its chat template alone in ``template``."""

    model: ServerProcess
    triton: TritonServer
    folder: Path

    async def busy(self) -> int:
        """Generations that the model behind is at."""
        async with aiohttp.ClientSession(self.model.url) as session, session.get("/slots") as answer:
            return sum(slot["is_processing"] for slot in await answer.json())

    async def idle(self, timeout: float = 20.0) -> None:
        async with asyncio.timeout(timeout):
            while await self.busy():
                await asyncio.sleep(0.05)

    @asynccontextmanager
    async def reading(self, model: str, files: str = "tokenizer", **changes: Any) -> AsyncIterator[Reading]:
        """An engine on one of the server's models. ``files``: tokenizer, template or none."""
        engine = self.engine(model, files, **changes)
        try:
            yield Reading(engine, await engine.start())
        finally:
            await engine.stop()

    def engine(self, model: str, files: str = "tokenizer", **changes: Any) -> Any:
        settings = {"server_model": model, **changes.pop("triton", {})}
        more = {"triton": settings, "context_length": smollm2_tokenizer.CONTEXT, **changes}
        config = engine_triton.config_of(self.triton, self.folder / files if files else None, **more)
        return engine_class("triton").from_config(config)


@pytest.fixture(scope="module")
async def model() -> AsyncIterator[ServerProcess]:
    async with server.llama(default_cache()) as process:
        yield process


@pytest.fixture(scope="module")
async def parts(model: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Parts]:
    """Both families."""
    async with made(model, tmp_path_factory.mktemp("triton"), "ensemble", "tensorrt_llm_bls", "llmapi") as parts:
        yield parts


@asynccontextmanager
async def made(model: ServerProcess, folder: Path, *models: str, arguments: Sequence[str] = ()) -> AsyncIterator[Parts]:
    smollm2_tokenizer.write(folder / "tokenizer")
    (folder / "template").mkdir()
    (folder / "template" / "tokenizer_config.json").write_text(
        (folder / "tokenizer" / "tokenizer_config.json").read_text()
    )
    address = model.url.removeprefix("http://")
    async with server.triton(folder, address, models, arguments=arguments) as triton:
        yield Parts(model, triton, folder)


@pytest.fixture
async def frail(model: ServerProcess, tmp_path: Path) -> AsyncIterator[Parts]:
    """A server of the test's own, which it may hurt."""
    async with made(model, tmp_path, "llmapi") as parts:
        yield parts


# --- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "files", "served", "by_text", "able"),
    [
        ("tensorrt_llm", "tokenizer", "tensorrt_llm", False, CORE),
        ("ensemble", "tokenizer", "tensorrt_llm", False, CORE),
        ("tensorrt_llm_bls", "tokenizer", "tensorrt_llm", False, CORE),
        ("ensemble", "template", "ensemble", True, {"chat", "completions"}),
        ("tensorrt_llm_bls", "", "tensorrt_llm_bls", True, {"completions", "structured_output"}),
        ("llmapi", "tokenizer", "llmapi", True, {"chat", "completions"}),
    ],
)
async def test_the_family_is_told_by_the_models_inputs(
    parts: Parts, name: str, files: str, served: str, by_text: bool, able: set[str]
) -> None:
    async with parts.reading(name, files) as engine:
        assert engine.engine._service.served.name == served
        assert engine.info.resumes_by_text is by_text
        assert set(engine.info.capabilities) == able


async def test_all_families_say_the_same(parts: Parts) -> None:
    """Greedily, with equal counts; text models say no ids, and those of family B count by their own tokenizer."""
    sampling = replace(GREEDY, max_tokens=20)
    async with parts.reading("tensorrt_llm") as engine:
        core = await engine.ask(STORY, sampling)
    assert UNKNOWN_TOKEN not in core.ids
    for name, files, estimated in (
        ("ensemble", "template", False),
        ("tensorrt_llm_bls", "", False),
        ("llmapi", "tokenizer", False),
        ("llmapi", "", True),
    ):
        async with parts.reading(name, files) as engine:
            answer = await engine.ask(STORY, sampling)
        assert answer.text == core.text, name
        assert answer.ids == [UNKNOWN_TOKEN] * 20
        assert answer.deltas >= 18, "streamed"
        assert answer.end.reason is Finish.LENGTH
        assert answer.end.estimated is estimated
        assert answer.end.input_tokens == core.end.input_tokens or estimated


@pytest.mark.parametrize("name", ["tensorrt_llm", "ensemble", "tensorrt_llm_bls", "llmapi"])
async def test_the_end_token_is_nobodys(parts: Parts, name: str) -> None:
    files = "tokenizer" if name in ("tensorrt_llm", "llmapi") else "template"
    async with parts.reading(name, files) as engine:
        answer = await engine.ask(Chat((Message("user", "Say hi"),)), Sampling(temperature=0.0, max_tokens=60))
        assert answer.end.reason is Finish.STOP
        assert len(answer.ids) == len(load(parts.folder / "tokenizer").tokenizer.encode(answer.text))
        assert name == "llmapi" or not answer.end.estimated


@pytest.mark.parametrize("name", ["ensemble", "llmapi"])
async def test_a_text_model_goes_on_by_text(parts: Parts, name: str) -> None:
    async with parts.reading(name, "template") as engine:
        whole = await engine.ask(STORY)
        for given in (1, 5):
            first = await engine.ask(STORY, replace(GREEDY, max_tokens=given))
            resumed = {"resume_ids": (UNKNOWN_TOKEN,) * given, "resume_text": first.text}
            rest = await engine.ask(STORY, **resumed)
            assert first.text + rest.text == whole.text
            assert len(rest.ids) == 12 - given
            assert rest.end.estimated, "what the server counts as input has output in it"
        done = await engine.ask(STORY, resume_ids=(UNKNOWN_TOKEN,) * 12, resume_text=whole.text)
        assert (done.ids, done.end.reason) == ([], Finish.LENGTH)
        stop = replace(GREEDY, stop=(whole.text[3:9],))
        stopped = await engine.ask(STORY, stop, resume_ids=(UNKNOWN_TOKEN,) * 5, resume_text=whole.text[:6])
        assert (stopped.text, stopped.end.reason, stopped.end.stop_index) == ("", Finish.STOP, 0)


async def test_accumulated_text_is_delivered_once(parts: Parts) -> None:
    """And a model that is ours is loaded for us, and unloaded when we leave."""
    async with parts.reading("tensorrt_llm_bls", "") as engine:
        deltas = await engine.ask(STORY)
    assert await parts.triton.status("/v2/models/accumulating/ready") != 200
    async with parts.reading("accumulating", "", triton={"control": "own"}) as engine:
        assert await parts.triton.status("/v2/models/accumulating/ready") == 200
        assert (await engine.ask(STORY)).text == deltas.text
    assert await parts.triton.status("/v2/models/accumulating/ready") != 200


@pytest.mark.parametrize("name", ["ensemble", "llmapi"])
async def test_text_models_deliver_whole_characters(parts: Parts, name: str) -> None:
    async with parts.reading(name, "template") as engine:
        source = Chat((Message("user", "Repeat this: 🎉🚀🎉🚀"),))
        answer = await engine.ask(source, replace(GREEDY, max_tokens=16))
        assert answer.text
        assert answer.end.reason is not Finish.ERROR


# --- what a family cannot do is refused by name -----------------------------------------------------------------------


async def test_what_a_family_lacks_is_refused_by_name(parts: Parts) -> None:
    person = Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "object"}')
    chat = Chat((Message("user", "x"),), (Tool("f"),))
    asked = [
        (STORY, {"constraint": person}, "response_format"),
        (STORY, {"sampling": replace(GREEDY, logprobs=0)}, "logprobs"),
        (STORY, {"sampling": replace(GREEDY, logit_bias=((1, 1.0),))}, "logit_bias"),
        (STORY, {"sampling": replace(GREEDY, repetition_penalty=1.1)}, "repetition_penalty"),
        (STORY, {"sampling": replace(GREEDY, min_p=0.1)}, "min_p"),
        (replace(chat, tool_mode=ToolMode.REQUIRED), {}, "tool_choice"),
    ]
    async with parts.reading("llmapi") as engine:
        for source, more, param in asked:
            answer = await engine.ask(source, **more)
            assert (answer.error.param, answer.error.reason) == (param, "unsupported_parameter")
            assert param in answer.error.message
        # What changes nothing is not refused.
        assert (await engine.ask(STORY, replace(GREEDY, repetition_penalty=1.0, min_p=0.0))).text
    async with parts.reading("tensorrt_llm") as engine:
        both = await engine.ask(chat, constraint=person)
        assert (both.error.param, both.error.reason) == ("response_format", "unsupported_parameter")
    async with parts.reading("tensorrt_llm_bls", "") as engine:
        for source, param in ((Chat((Message("user", "x"),)), "messages"), (Prompt((1, 2)), "prompt")):
            assert (await engine.ask(source)).error.param == param
        with pytest.raises(InferBusError) as refused:
            await engine.engine.tokenize(STORY)
        assert refused.value.reason == "unsupported_parameter"


async def test_a_model_without_guides_holds_no_form(parts: Parts) -> None:
    async with parts.reading("unguided", triton={"control": "own"}) as engine:
        assert "structured_output" not in engine.info.capabilities
        answer = await engine.ask(STORY, constraint=Constraint(ConstraintKind.JSON_OBJECT))
        assert answer.error.param == "response_format"


async def test_a_text_model_holds_a_form_too_and_goes_on_in_it(parts: Parts) -> None:
    """It is made again from its first token; a draw has a seed of its own, though the backend's is always the same."""
    form = Constraint(ConstraintKind.REGEX, "(red|green|blue) and (red|green|blue|white)")
    async with parts.reading("tensorrt_llm_bls", "") as engine:
        whole = await engine.ask(Prompt("Two colours:"), constraint=form)
        assert whole.end.reason is Finish.STOP
        given, text = 2, whole.text[: whole.text.index("and")]
        rest = await engine.ask(
            Prompt("Two colours:"), constraint=form, resume_ids=(UNKNOWN_TOKEN,) * given, resume_text=text
        )
        assert text + rest.text == whole.text
        assert len(rest.ids) == len(whole.ids) - given
        other = await engine.ask(Prompt("Two colours:"), constraint=form, resume_ids=(9,), resume_text="white ")
        assert other.error.reason == "engine_failed"
        hot = [engine.submit(Prompt("A colour and"), Sampling(max_tokens=6)) for _ in range(4)]
        await engine.until(lambda: all(answer.end is not None for answer in hot))
        assert len({answer.text for answer in hot}) > 1


async def test_models_that_cannot_be_served_are_refused_at_the_start(parts: Parts) -> None:
    brief = {"start_timeout": timedelta(seconds=6)}  # a server that stands still for a moment has not said it yet
    for name, files, changes, why in (
        ("coupled", "tokenizer", {"control": "own"}, "not decoupled"),
        ("tensorrt_llm", "", {}, "takes token ids"),
        ("preprocessing", "", {}, "none of TensorRT-LLM's"),
        ("nobody", "", brief, "unknown model"),
        ("nobody", "", {"control": "own"}, "not loaded"),
        ("llmapi", "", {"url": "127.0.0.1:1", **brief}, "does not serve"),
    ):
        engine = parts.engine(name, files, triton=changes)
        with pytest.raises(InferBusError) as refused:
            await engine.start()
        assert refused.value.reason == "engine_start_failed"
        assert why in refused.value.diagnostic
        assert name not in refused.value.message
        await engine.stop()


async def test_a_server_with_tls(model: ServerProcess, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority", clock.now())
    files = authority.certificates([Wanted("triton", ("127.0.0.1",))])["triton"]
    secure = ("--grpc-use-ssl", "true", "--grpc-server-cert", str(files.cert), "--grpc-server-key", str(files.key))
    async with made(model, tmp_path / "triton", "llmapi", arguments=secure) as parts:
        async with parts.reading("llmapi", "", triton={"tls": True, "tls_ca": authority.ca}) as engine:
            assert (await engine.ask(STORY)).text
        brief = {"start_timeout": timedelta(seconds=0.5), "call_timeout": timedelta(seconds=1)}
        for changes in ({}, {"tls": True}, {"tls": True, "tls_ca": tmp_path / "nothing.pem"}):
            engine = parts.engine("llmapi", "", triton=changes | brief)
            with pytest.raises(InferBusError):
                await engine.start()
            await engine.stop()


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorrt_llm", "ensemble", "llmapi"])
async def test_a_cancel_ends_one_stream_and_its_work(parts: Parts, name: str) -> None:
    """Of an ensemble only because its core model is told to stop: see the next test."""
    async with parts.reading(name, "tokenizer" if name == "tensorrt_llm" else "template") as engine:
        await parts.idle()
        gone, other = engine.submit(STORY, LONG), engine.submit(STORY, replace(GREEDY, max_tokens=40))
        await engine.until(lambda: len(gone.ids) >= 3 and len(other.ids) >= 3)
        engine.close(gone)
        await at_once(lambda: gone.end is not None)
        assert gone.end.reason is Finish.CANCELLED
        await engine.until(lambda: other.end is not None)
        assert (len(other.ids), other.end.reason) == (40, Finish.LENGTH)
        await parts.idle()


async def test_an_ensemble_goes_on_for_a_client_that_is_gone(parts: Parts) -> None:
    async with parts.reading("ensemble", "template") as engine:
        service = engine.engine._service
        stop, service.served = service.served.core, replace(service.served, core="")
        assert stop == "tensorrt_llm"
        answer = engine.submit(STORY, replace(GREEDY, max_tokens=600))
        await engine.until(lambda: len(answer.ids) >= 3)
        engine.close(answer)
        await asyncio.sleep(0.3)
        assert await parts.busy(), "the cancel did not reach the running step"
        await parts.idle(90)


async def test_a_stop_string_also_ends_a_bls_that_looks_at_no_cancel(parts: Parts) -> None:
    async with parts.reading("tensorrt_llm_bls", "") as engine:
        whole = (await engine.ask(STORY)).text
        answer = await engine.ask(STORY, replace(LONG, stop=(whole[4:12],)))
        assert (answer.text, answer.end.reason) == (whole[:4], Finish.STOP)
        await parts.idle()


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_a_full_queue_may_be_tried_again(parts: Parts) -> None:
    async with parts.reading("narrow", "", triton={"control": "own"}) as engine:
        answers = [engine.submit(STORY, replace(GREEDY, max_tokens=30)) for _ in range(6)]
        await engine.until(lambda: all(answer.end is not None for answer in answers))
        errors = [answer.error for answer in answers if answer.error is not None]
        assert 1 <= len(errors) <= 5
        assert any(len(answer.ids) == 30 for answer in answers)
        for error in errors:
            assert error.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
            assert (error.reason, error.retry_after) == ("engine_full", timedelta(seconds=1))
            assert "queue size" in error.diagnostic.lower()
            assert "queue size" not in error.message
        assert (await engine.ask(STORY)).text, "and nobody died of it"


@pytest.mark.parametrize("name", ["tensorrt_llm_bls", "llmapi"])
async def test_a_prompt_that_the_server_finds_too_long(parts: Parts, name: str) -> None:
    async with parts.reading(name, "") as engine:
        answer = await engine.ask(Prompt("word " * 9000))
        assert (answer.error.reason, answer.error.param) == ("context_length_exceeded", "prompt")
        assert "9001" in answer.error.message or "9000" in answer.error.message


async def test_what_the_server_does_not_take_is_no_fault_of_the_caller(parts: Parts) -> None:
    async with parts.reading("tensorrt_llm") as engine:
        service = engine.engine._service
        served, service.served = service.served, replace(service.served, batched=False)
        answer = await engine.ask(STORY)
        assert answer.error.error_class == ErrorClass.ERROR_CLASS_INTERNAL, answer.error.diagnostic
        assert "tensorrt_llm" in answer.error.diagnostic
        assert "tensorrt_llm" not in answer.error.message
        service.served = served
        assert (await engine.ask(STORY)).text


async def test_a_decoupled_model_takes_no_unary_call(parts: Parts) -> None:
    """Why everything goes over streams."""
    async with parts.reading("llmapi") as engine:
        service = engine.engine._service
        request = request_of(service.served, Task("x", 1, GREEDY, 0), "1")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await service.client._stub.ModelInfer(request)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_reused_blocks_are_cached_input_though_family_b_says_them_as_text(parts: Parts) -> None:
    async with parts.reading("llmapi", triton={"kv_block_tokens": 32}) as engine:
        source = Prompt("This beginning is long enough for some blocks of the cache. " * 12)
        first = await engine.ask(source, replace(GREEDY, max_tokens=2))
        again = await engine.ask(source, replace(GREEDY, max_tokens=2))
        assert first.end.cached_input_tokens < again.end.cached_input_tokens <= again.end.input_tokens
        assert again.end.cached_input_tokens >= 96


async def test_the_metrics_page_is_read(parts: Parts) -> None:
    interval = {"metrics_interval": timedelta(seconds=0.2)}
    async with parts.reading("tensorrt_llm", triton=interval) as engine:
        answer = engine.submit(STORY, LONG)
        async with asyncio.timeout(30):
            while engine.engine.statistics().engine_running != 1:
                await asyncio.sleep(0.05)
        now = engine.engine.statistics()
        assert (now.kv_blocks_total, now.kv_block_tokens, now.engine_waiting) == (256, 32, 0)
        assert 0 < now.kv_blocks_used < 256
        engine.close(answer)
        await engine.until(lambda: answer.end is not None)


# --- death ------------------------------------------------------------------------------------------------------------


async def dies(engine: Reading, timeout: float = 60.0) -> str:
    """What killed it."""
    with pytest.raises(EngineDiedError) as died:
        await asyncio.wait_for(engine.reader, timeout)
    return str(died.value)


async def test_ready_lies_when_the_models_process_is_dead(frail: Parts) -> None:
    """A probe finds it; whoever may reload the model does, and the stream goes on."""
    triton = frail.triton
    async with frail.reading("llmapi", triton={"control": "leave", "start_timeout": timedelta(seconds=8)}) as engine:
        answer = engine.submit(STORY, LONG)
        await engine.until(lambda: len(answer.ids) >= 3)
        os.kill(triton.stub("llmapi"), signal.SIGKILL)
        assert "not healthy" in await dies(engine)
        paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/llmapi/ready")
        assert [await triton.status(path) for path in paths] == [200, 200, 200]
        assert answer.end is None, "its worker submits it again"
        await engine.engine.stop()
        with pytest.raises(InferBusError) as refused:
            await engine.engine.start()
        assert "not healthy" in refused.value.diagnostic
        await engine.engine.stop()
    async with frail.reading("llmapi", triton={"control": "reload"}) as engine:
        given = (UNKNOWN_TOKEN,) * len(answer.ids)
        sampling = replace(GREEDY, max_tokens=len(given) + 3)
        rest = await engine.ask(STORY, sampling, resume_ids=given, resume_text=answer.text)
        assert len(rest.ids) == 3
    await frail.idle()


async def test_a_client_gets_its_whole_answer_though_the_models_process_died(
    model: ServerProcess, tmp_path: Path, edge: Any, new_worker: Callable[..., Any]
) -> None:
    """Through a worker: the model is loaded again, and the stream goes on in the same attempt."""
    async with made(model, tmp_path / "triton", "tensorrt_llm") as parts:
        worker = new_worker(
            ENGINE="triton", TRITON__URL=parts.triton.grpc, TRITON__TOKENIZER=str(parts.folder / "tokenizer"),
            TRITON__CONTROL="reload", TRITON__PROBE_INTERVAL="1s",
        )  # fmt: skip
        await worker.start()
        request = edge.request("Write a long story.", 60)
        request.sampling.temperature = 0
        whole = await edge.place(worker.name, request)
        await edge.closed(whole)
        request.request_id = request.request_id[:-1] + b"x"
        received = await edge.place(worker.name, request)
        await edge.until(lambda: len(received.ids) >= 5)
        os.kill(parts.triton.stub("tensorrt_llm"), signal.SIGKILL)
        await edge.until(lambda: received.close is not None)
        assert (received.ids, received.text, received.attempts) == (whole.ids, whole.text, [1])
        assert len(received.ids) == received.close.usage.output_tokens == 60


async def test_a_model_that_stands_still_is_found_by_its_worker(
    model: ServerProcess, tmp_path: Path, edge: Any, new_worker: Callable[..., Any]
) -> None:
    """Nothing is broken: its tokens only do not come any more."""
    async with made(model, tmp_path / "triton", "tensorrt_llm") as parts:
        worker = new_worker(
            ENGINE="triton", ENGINE_STALL="3s", MAX_ENGINE_RESTARTS="20", TRITON__URL=parts.triton.grpc,
            TRITON__TOKENIZER=str(parts.folder / "tokenizer"), TRITON__CONTROL="reload",
            TRITON__PROBE_INTERVAL="1s", TRITON__PROBE_TIMEOUT="20s",
        )  # fmt: skip
        await worker.start()
        request = edge.request("Write a long story.", 200)
        request.sampling.temperature = 0
        whole = await edge.place(worker.name, request)
        await edge.until(lambda: whole.close is not None, timeout=60)
        request.request_id = request.request_id[:-1] + b"x"
        received = await edge.place(worker.name, request)
        await edge.until(lambda: len(received.ids) >= 5)
        os.kill(model.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(60), channel(worker.address, None) as asked:
                while not (await WorkerServiceStub(asked).GetStatus(GetStatusRequest())).engine_restarts:
                    await asyncio.sleep(0.1)
        finally:
            os.kill(model.pid, signal.SIGCONT)
        await edge.until(lambda: received.close is not None, timeout=60)
        assert (received.ids, received.text, received.attempts) == (whole.ids, whole.text, [1])


async def test_one_stream_that_stands_still_ends_alone(parts: Parts) -> None:
    async with parts.reading("tensorrt_llm") as engine:
        still, other = engine.submit(STORY, LONG), engine.submit(STORY, replace(GREEDY, max_tokens=200))
        await engine.until(lambda: len(still.ids) >= 3 and len(other.ids) >= 3)
        runs = list(engine.engine._runs.running.values())
        runs[0].moved_at -= 100
        engine.engine._stalled(runs[1].moved_at - 1)
        await engine.until(lambda: other.end is not None)
        assert (still.error.reason, other.end.reason) == ("engine_failed", Finish.LENGTH)
        assert "stands still" in still.error.diagnostic
    await parts.idle()


async def test_a_server_that_is_told_to_end_lets_its_streams_end(model: ServerProcess, tmp_path: Path) -> None:
    """And one that is killed leaves its shared memory behind, which the fixture removes."""
    async with made(model, tmp_path / "one", "llmapi") as parts, parts.reading("llmapi") as engine:
        answer = engine.submit(STORY, replace(GREEDY, max_tokens=60))
        await engine.until(lambda: len(answer.ids) >= 3)
        parts.triton.signal(signal.SIGTERM)
        await engine.until(lambda: answer.end is not None)
        assert (len(answer.ids), answer.end.reason) == (60, Finish.LENGTH)
        assert await parts.triton.ended() == 0
        assert not parts.triton.regions()
        assert re.search("UNAVAILABLE|no available versions", await dies(engine))
    async with made(model, tmp_path / "two", "llmapi") as parts:
        async with parts.reading("llmapi") as engine:
            answer = engine.submit(STORY, LONG)
            await engine.until(lambda: len(answer.ids) >= 3)
            await parts.triton.kill()
            assert "UNAVAILABLE" in await dies(engine), "the stream broke, and nobody listens any more"
        assert parts.triton.regions()
    assert not parts.triton.regions()
