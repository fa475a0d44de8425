"""With a double of tensorrt_llm (tensorrt_llm_double.py): proves how requests and results are mapped, and no engine.

The tokenizer is real: SmolLM2's. What runs on the real engine is in test_tensorrt_llm.py and in the engine contract.
"""

import asyncio
import importlib.util
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from inferbus_runtime.errors import InferBusError
from inferbus_worker.config import Config, TensorRtLlmConfig
from inferbus_worker.engine import (
    Chat,
    Constraint,
    ConstraintKind,
    EngineDiedError,
    Finish,
    Finished,
    Generation,
    Message,
    Prompt,
    Sampling,
    Step,
    TokenLogprob,
    Tool,
    ToolMode,
)
from inferbus_worker.engines import engine_class
from inferbus_worker.engines.tensorrt_llm import TensorRtLlm
from inferbus_worker.engines.tensorrt_llm_guided import grammar_for, guide


def beside(name: str) -> ModuleType:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


double = beside("tensorrt_llm_double")
Said = double.Said
at_once = beside("turns").at_once
GREEDY = Sampling(temperature=0.0, max_tokens=24)
END = 2  # <|im_end|>, SmolLM2's end of a turn
OTHER_END = 0  # <|endoftext|>, of the generation config


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = beside("smollm2_tokenizer").write(tmp_path_factory.mktemp("smollm2"))
    return folder


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer_folder: Path) -> Any:
    made = double.install(monkeypatch, double.model_folder(tmp_path / "model", tokenizer_folder))
    made.answer = steps([100])
    (made.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [OTHER_END, END]}))
    return made


def steps(*said: Sequence[int] | Any, finish: str | None = "length") -> Callable[..., AsyncIterator[Any]]:
    """A generation: each is a step's ids, or a Said; the last one ends it."""

    async def answer(ids: list[int], params: Any) -> AsyncIterator[Any]:
        for number, one in enumerate(said):
            await asyncio.sleep(0)
            step = one if isinstance(one, Said) else Said(list(one))
            if number == len(said) - 1 and step.finish is None:
                step = replace(step, finish=finish)
            yield step

    return answer


def config_of(installed: Any, **settings: Any) -> Config:
    shared = {name: settings.pop(name) for name in ("capacity", "context_length", "model") if name in settings}
    room = TensorRtLlmConfig(**{"model_path": installed.folder, "statistics": False} | settings)
    return Config(name="t", engine="tensorrt_llm", tensorrt_llm=room, **shared)


class Reader:
    """An engine and what it said of each generation."""

    def __init__(self, engine: TensorRtLlm) -> None:
        self.engine = engine
        self.ids: dict[bytes, list[int]] = {}
        self.texts: dict[bytes, bytes] = {}
        self.ends: dict[bytes, Finished] = {}
        self.logprobs: dict[bytes, list[TokenLogprob]] = {}
        self.moved = asyncio.Condition()
        self._count = 0

    async def start(self) -> Any:
        self.info = await self.engine.start()
        self.task = asyncio.create_task(self._read())
        return self.info

    async def _read(self) -> None:
        async for step in self.engine.steps():
            self._take(step)
            async with self.moved:
                self.moved.notify_all()

    def _take(self, step: Step) -> None:
        position = 0
        for number, (key, count, text) in enumerate(zip(step.keys, step.counts, step.texts, strict=True)):
            text.decode()
            self.ids[key] += step.token_ids[position : position + count]
            self.texts[key] += text
            position += count
            self.logprobs[key] += step.logprobs.get(number, [])
        for finished in step.finished:
            assert finished.key not in self.ends
            self.ends[finished.key] = finished

    def submit(self, source: Any, sampling: Sampling = GREEDY, **more: Any) -> bytes:
        self._count += 1
        key = self._count.to_bytes(16, "big")
        self.ids[key], self.texts[key], self.logprobs[key] = [], b"", []
        source = Chat((Message("user", source),)) if isinstance(source, str) else source
        self.engine.submit(Generation(key, source, sampling, **more))
        return key

    async def ended(self, key: bytes) -> Finished:
        async with asyncio.timeout(60), self.moved:
            while key not in self.ends:
                await self.moved.wait()
        return self.ends[key]

    async def ask(self, source: Any, sampling: Sampling = GREEDY, **more: Any) -> Finished:
        self.key = self.submit(source, sampling, **more)
        return await self.ended(self.key)

    @property
    def text(self) -> str:
        return self.texts[self.key].decode()


@pytest.fixture
async def make(installed: Any) -> AsyncIterator[Callable[..., Any]]:
    """Starts engines that stop with the test."""
    made: list[Reader] = []

    async def started(**settings: Any) -> Reader:
        reader = Reader(engine_class("tensorrt_llm").from_config(config_of(installed, **settings)))
        made.append(reader)
        await reader.start()
        return reader

    yield started
    for reader in made:
        await reader.engine.stop()


def encode(reader: Reader, text: str) -> list[int]:
    return list(reader.engine._started.encoder.encode(text, add_special=False))


# --- the start --------------------------------------------------------------------------------------------------------


async def test_starts_after_a_first_token(make: Any, installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    reader = await make(model="smol", capacity=8, batch_tokens=1024)
    args = installed.llms[0].args
    assert (args.max_batch_size, args.max_num_tokens, args.max_seq_len, args.max_input_len) == (8, 1024, 512, 512)
    assert (args.enable_chunked_prefill, args.guided_decoding_backend) == (True, "llguidance")
    assert args.kv_cache_config.enable_block_reuse
    assert installed.params.max_tokens == 1
    assert installed.params.top_k == 1
    assert (reader.info.engine, reader.info.model, reader.info.capacity) == ("tensorrt_llm", "smol", 8)
    assert reader.info.context_length == 512
    assert reader.info.capabilities == (
        "chat", "completions", "tools", "structured_output", "logprobs", "logit_bias"
    )  # fmt: skip
    assert os.environ["TRTLLM_NO_USAGE_STATS"] == "1"
    assert "OMPI_COMM_WORLD_SIZE" not in os.environ


async def test_an_engine_whose_first_token_fails_has_not_started(installed: Any) -> None:
    installed.answer = steps([100], finish="cancelled")
    engine = TensorRtLlm(config_of(installed))
    with pytest.raises(InferBusError) as refused:
        await engine.start()
    assert refused.value.reason == "engine_start_failed"
    await engine.stop()
    assert installed.shutdowns == 1


async def test_revisions_differ_by_what_decides_the_text(make: Any, installed: Any) -> None:
    first, again = await make(), await make()
    assert first.info.revision == again.info.revision
    assert (await make(capacity=7, kv_tokens=500)).info.revision == first.info.revision
    assert (await make(kv_dtype="fp8")).info.revision != first.info.revision
    (installed.folder / "model.safetensors").write_bytes(b"other weights")
    assert (await make()).info.revision != first.info.revision


async def test_stops_twice_and_starts_again(make: Any, installed: Any) -> None:
    reader = await make()
    installed.answer = endless
    key = reader.submit("hi", replace(GREEDY, max_tokens=300))
    await calls(installed, 2)
    await reader.engine.stop()
    await reader.engine.stop()
    assert reader.task.done()
    assert installed.results[-1].was_aborted
    assert key not in reader.ends
    installed.answer = steps([100])
    await reader.start()
    assert (await reader.ask("hi")).reason is Finish.LENGTH
    assert installed.shutdowns == 1


async def test_an_engine_that_does_not_shut_down_is_left_behind(installed: Any) -> None:
    engine = TensorRtLlm(config_of(installed, stop_timeout=timedelta(seconds=0.1)))
    await engine.start()
    installed.may_shut_down.clear()
    await engine.stop()
    assert not installed.shutdowns
    installed.may_shut_down.set()
    async with asyncio.timeout(60):
        while not installed.shutdowns:
            await asyncio.sleep(0.05)


async def test_a_start_that_takes_too_long_leaves_nothing_behind(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, given_up = double.LLM.__init__, threading.Event()

    def slow(self: Any, *args: Any, **options: Any) -> None:
        given_up.wait(60)
        build(self, *args, **options)

    monkeypatch.setattr(double.LLM, "__init__", slow)
    engine = TensorRtLlm(config_of(installed, start_timeout=timedelta(seconds=0.1)))
    with pytest.raises(InferBusError, match="engine_start_failed"):
        await engine.start()
    given_up.set()
    await engine.stop()
    async with asyncio.timeout(60):
        while not installed.shutdowns:
            await asyncio.sleep(0.05)
    assert len(installed.llms) == 1


async def calls(installed: Any, count: int) -> None:
    """Returns when the engine has been asked so often; a moment later it is not more."""
    async with asyncio.timeout(60):
        while len(installed.calls) < count:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    assert len(installed.calls) == count


async def endless(ids: list[int], params: Any) -> AsyncIterator[Any]:
    while True:
        await asyncio.sleep(0.01)
        yield Said([100])


async def nothing(ids: list[int], params: Any) -> AsyncIterator[Any]:
    await asyncio.sleep(3600)
    yield Said()


# --- how it is asked --------------------------------------------------------------------------------------------------


async def test_a_chat_goes_in_as_ids_of_its_template(make: Any, installed: Any) -> None:
    reader = await make()
    end = await reader.ask("Say hi")
    tokens = await reader.engine.tokenize(Chat((Message("user", "Say hi"),)))
    assert installed.asked["inputs"] == tokens.ids
    assert b"".join(tokens.pieces).endswith(b"<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\n")
    assert end.input_tokens == len(tokens.ids)
    await reader.ask(Prompt((5, 6, 7)))
    assert installed.asked["inputs"] == [5, 6, 7]
    await reader.ask(Prompt("Once upon a time"))
    assert installed.asked["inputs"] == encode(reader, "Once upon a time")


async def test_special_tokens_in_a_text_are_read_as_asked(make: Any) -> None:
    reader = await make()
    plain = await reader.engine.tokenize(Prompt("<|im_end|>"), parse_special=False)
    assert END not in plain.ids
    assert b"".join(plain.pieces) == b"<|im_end|>"
    assert (await reader.engine.tokenize(Prompt("<|im_end|>"))).ids == [END]
    assert await reader.engine.detokenize(plain.ids) == b"<|im_end|>"
    assert await reader.engine.detokenize([END]) == b"", "an output does not show it"


async def test_greedy_is_top_1_and_a_draw_says_everything(make: Any, installed: Any) -> None:
    reader = await make(sampler="TRTLLMSampler")
    await reader.ask("x", Sampling(temperature=0.0, seed=7, max_tokens=3))
    params = installed.params
    assert (params.top_k, params.temperature, params.top_p, params.seed) == (1, None, None, None)
    assert (params.max_tokens, params.end_id, params.stop_token_ids) == (3, END, [OTHER_END])
    assert (params.detokenize, params.logprobs, params.stop) == (False, None, None)
    await reader.ask("x", Sampling())
    params = installed.params
    assert (params.temperature, params.top_p, params.top_k) == (1.0, 1.0, None), "OpenAI's defaults, not greedy"
    assert params.max_tokens == 512 - len(installed.asked["inputs"]), "never the engine's own 32"
    first = params.seed
    await reader.ask("x", Sampling())
    assert installed.params.seed not in (None, first), "a draw of its own each time"
    await reader.ask(
        "x",
        Sampling(
            temperature=0.7, top_p=0.9, top_k=20, seed=2**64 - 1, min_p=0.05, frequency_penalty=0.5,
            presence_penalty=-0.5, repetition_penalty=1.1, max_tokens=8,
        ),
    )  # fmt: skip
    params = installed.params
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.7, 0.9, 20, 0.05)
    assert params.seed == 2**63 - 1, "one of its samplers keeps it in a signed number"
    assert (params.frequency_penalty, params.presence_penalty, params.repetition_penalty) == (0.5, -0.5, 1.1)
    await reader.ask("x", Sampling(temperature=1e-30))
    assert installed.params.temperature == 1e-3, "its logits would not be numbers any more"


FORGOTTEN = {
    "seed": Sampling(seed=7),
    "min_p": Sampling(min_p=0.1),
    "frequency_penalty": Sampling(temperature=0.0, frequency_penalty=0.5),
    "presence_penalty": Sampling(temperature=0.0, presence_penalty=0.5),
    "repetition_penalty": Sampling(temperature=0.0, repetition_penalty=1.1),
}


@pytest.mark.parametrize("param", FORGOTTEN)
async def test_what_its_sampler_would_forget_is_refused_by_name(make: Any, installed: Any, param: str) -> None:
    reader = await make()
    end = await reader.ask("x", FORGOTTEN[param])
    assert (end.error.reason, end.error.param) == ("unsupported_parameter", param)
    neutral = Sampling(temperature=0.0, seed=7, min_p=0.1, frequency_penalty=0.0, repetition_penalty=1.0, max_tokens=1)
    assert (await reader.ask("x", neutral)).reason is Finish.LENGTH, "what changes nothing is no reason"
    speculating = await make(sampler="TRTLLMSampler", speculation="MTP")
    assert (await speculating.ask("x", FORGOTTEN[param])).error.param == param


async def test_a_version_whose_sampler_looks_at_them_is_found_out(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    sampler = sys.modules["tensorrt_llm._torch.pyexecutor.sampler"]
    sampler.__path__ = []  # a package, in later versions
    for part in ("penalties", "seed_manager"):
        module = ModuleType(f"{sampler.__name__}.{part}")
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, loader=None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    common = double.dataclass(type("UtilsSamplingParams", (), {"__annotations__": {"min_p": float}}))
    monkeypatch.setitem(sys.modules, f"{sampler.__name__}.sampler_common", SimpleNamespace(UtilsSamplingParams=common))
    reader = await make()
    for sampling in FORGOTTEN.values():
        assert (await reader.ask("x", replace(sampling, max_tokens=1))).reason is Finish.LENGTH


async def test_bias_logprobs_salt_and_adapter(make: Any, installed: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    reader = await make(lora=(f"poet={tmp_path / 'adapter'}",), model="poet")
    sampling = replace(GREEDY, logit_bias=((28, 100.0), (30, -1.5), (28, 0.5)), logprobs=0)
    await reader.ask("x", sampling, cache_salt=b"\x00tenant")
    bias = installed.params.embedding_bias
    assert (len(bias), bias[28], bias[30], sum(map(bool, bias))) == (49152, 100.5, -1.5, 2)
    assert installed.params.logprobs == 1
    assert installed.asked["cache_salt"] == b"\x00tenant".hex()
    adapter = installed.asked["lora_request"]
    assert (adapter.lora_name, adapter.lora_path) == ("poet", str(tmp_path / "adapter"))
    assert adapter.lora_int_id > 0
    assert installed.llms[0].args.lora_config.max_loras == 1
    await reader.ask("x")
    assert (installed.asked["cache_salt"], installed.params.embedding_bias) == (None, None)


async def test_priority_where_the_version_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer_folder: Path
) -> None:
    folder = double.model_folder(tmp_path / "model", tokenizer_folder)
    later = double.install(monkeypatch, folder, LLM=double.PriorityLLM)
    later.answer = steps([100])
    monkeypatch.setattr(double.PriorityLLM, "generate_async", with_salt(double.PriorityLLM.generate_async))
    reader = Reader(TensorRtLlm(config_of(later, priority=0.9)))
    await reader.start()
    await reader.ask("x")
    assert later.asked["priority"] == 0.9
    await reader.engine.stop()


def with_salt(generate: Any) -> Any:
    def later(
        self: Any, inputs: Any, sampling_params: Any = None, streaming: bool = False, cache_salt: str | None = None,
        priority: float = 0.5,
    ) -> Any:  # fmt: skip
        options = {"sampling_params": sampling_params, "streaming": streaming, "cache_salt": cache_salt}
        return generate(self, inputs, priority=priority, **options)

    return later


# --- what it answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [True, False], ids=["the end's token shown", "not shown"])
async def test_results_that_grow_become_deltas(make: Any, installed: Any, shown: bool) -> None:
    reader = await make()
    ids = encode(reader, "The sea is wide.")
    last = [[END]] if shown else []
    installed.answer = steps(ids[:1], ids[1:3], ids[3:], *last, [], finish="stop")
    end = await reader.ask("x")
    assert (reader.ids[reader.key], reader.text, end.reason) == (ids, "The sea is wide.", Finish.STOP)
    assert end.stop_index is None


async def test_another_end_token_ends_too(make: Any, installed: Any) -> None:
    """And an engine that would go on behind it is stopped."""
    reader = await make()
    installed.answer = steps([100], [101, OTHER_END, 102], [103])
    end = await reader.ask("x")
    assert (reader.ids[reader.key], end.reason) == ([100, 101], Finish.STOP)
    assert installed.results[-1].was_aborted


async def test_characters_come_whole(make: Any, installed: Any) -> None:
    reader = await make()
    ids = encode(reader, "🎉é🚀")
    assert len(ids) > 5
    installed.answer = steps(*[[token] for token in ids])
    end = await reader.ask("x", replace(GREEDY, logprobs=1))
    assert (reader.ids[reader.key], reader.text, end.reason) == (ids, "🎉é🚀", Finish.LENGTH)
    assert b"".join(one.text for one in reader.logprobs[reader.key]) == "🎉é🚀".encode()
    installed.answer = steps(*[[token] for token in ids[:2]])
    await reader.ask("x")
    assert reader.text == "\N{REPLACEMENT CHARACTER}", "an end inside a character says so"


async def test_logprobs_of_either_form(make: Any, installed: Any) -> None:
    reader = await make()
    named = {30: double.Logprob(-2.0, 2), 31: double.Logprob(-3.0, 3), 29: double.Logprob(-0.5, 1)}
    installed.answer = steps(Said([29], logprobs=[named]), Said([30], logprobs=[-1.5]), Said([31]))
    await reader.ask("x", replace(GREEDY, logprobs=2))
    first, second, third = reader.logprobs[reader.key]
    assert (first.token_id, first.logprob, [one.token_id for one in first.top]) == (29, -0.5, [29, 30])
    assert (second.logprob, second.top, third.logprob) == (-1.5, (), -9999.0)


async def test_cached_tokens_as_the_version_tells_them(make: Any, installed: Any) -> None:
    installed.cached = 10_000
    reader = await make()
    end = await reader.ask("x")
    assert end.cached_input_tokens == end.input_tokens, "never more than there were"
    assert not installed.params.return_perf_metrics
    installed.forgets_cached = True
    reader = await make(kv_block_tokens=8)
    metrics = SimpleNamespace(kv_cache_metrics=SimpleNamespace(num_reused_blocks=2))
    installed.answer = steps(Said([100], metrics=metrics))
    assert (await reader.ask("x")).cached_input_tokens == 16
    assert installed.params.return_perf_metrics


async def test_stop_strings_are_ours(make: Any, installed: Any) -> None:
    reader = await make()
    ids = encode(reader, "The sea is wide and deep.")
    installed.answer = steps(*[[token] for token in ids])
    end = await reader.ask("x", replace(GREEDY, stop=("nowhere", "wide")))
    assert (reader.text, end.reason, end.stop_index) == ("The sea is ", Finish.STOP, 1)
    assert installed.results[-1].was_aborted
    end = await reader.ask("x", replace(GREEDY, stop=("deep.not",)))
    assert (reader.text, end.reason) == ("The sea is wide and deep.", Finish.LENGTH)


async def test_close_is_answered_whatever_the_engine_does(make: Any, installed: Any) -> None:
    reader = await make(capacity=1)
    installed.answer = nothing
    running, waiting = reader.submit("x"), reader.submit("y")
    await calls(installed, 2)
    for key in (waiting, running):
        reader.engine.close(key)
        reader.engine.close(key)
        await at_once(lambda: key in reader.ends)  # noqa: B023 (awaited here)
        assert reader.ends[key].reason is Finish.CANCELLED
    assert installed.results[-1].was_aborted
    assert len(installed.calls) == 2, "the canary's and the one that ran"


async def test_no_more_run_than_it_has_room_for(make: Any, installed: Any) -> None:
    reader = await make(capacity=2)
    installed.answer = endless
    keys = [reader.submit("x", replace(GREEDY, max_tokens=400)) for _ in range(4)]
    await calls(installed, 1 + 2)
    reader.engine.close(keys[0])
    await calls(installed, 1 + 3)
    for key in keys:
        reader.engine.close(key)


async def test_nothing_begins_while_nobody_reads(installed: Any) -> None:
    engine = TensorRtLlm(config_of(installed))
    await engine.start()
    installed.answer = steps([100] * 5000)
    engine.submit(Generation(b"a" * 16, Prompt("x"), Sampling(max_tokens=500)))
    async with asyncio.timeout(60):
        while engine._outbox.room.is_set():
            await asyncio.sleep(0.01)
    engine.submit(Generation(b"b" * 16, Prompt("x"), Sampling(max_tokens=500)))
    await calls(installed, 2)
    stepping = engine.steps()
    assert len((await anext(stepping)).token_ids) == 5000
    pending = asyncio.create_task(anext(stepping))
    await asyncio.wait_for(pending, 60)
    assert len(installed.calls) == 3
    await stepping.aclose()
    await engine.stop()


# --- going on ---------------------------------------------------------------------------------------------------------


async def test_goes_on_after_given_ids(make: Any, installed: Any) -> None:
    reader = await make(sampler="TRTLLMSampler")
    ids = encode(reader, "The sea is 🎉 deep.")
    prompt = (await reader.engine.tokenize(Chat((Message("user", "x"),)))).ids
    for given in (1, 4, 5, 6):
        installed.answer = steps(ids[given:])
        await reader.ask("x", Sampling(seed=2**63 - 1, max_tokens=20), resume_ids=tuple(ids[:given]))
        assert installed.asked["inputs"] == prompt + ids[:given]
        assert installed.params.max_tokens == 20 - given
        assert installed.params.seed == given - 1, "another part of the same draw"
        assert reader.ids[reader.key] == ids[given:]
        assert "The sea is 🎉 deep.".endswith(reader.text), "a character that was begun is completed"
    assert reader.ends[reader.key].input_tokens == len(prompt)


async def test_what_was_complete_is_not_asked_for(make: Any, installed: Any) -> None:
    reader = await make()
    ids = tuple(encode(reader, "The sea is wide."))
    calls = len(installed.calls)
    end = await reader.ask("x", replace(GREEDY, max_tokens=len(ids)), resume_ids=ids)
    assert (end.reason, reader.text) == (Finish.LENGTH, "")
    end = await reader.ask("x", replace(GREEDY, stop=("sea",)), resume_ids=ids)
    assert (end.reason, end.stop_index) == (Finish.STOP, 0)
    held = await reader.ask("x", replace(GREEDY, max_tokens=len(ids), stop=("wide.!",)), resume_ids=ids)
    assert (held.reason, reader.text) == (Finish.LENGTH, "wide."), "what was held back is not lost"
    assert len(installed.calls) == calls


async def test_contexts_that_are_too_small(make: Any, installed: Any) -> None:
    reader = await make(chunked_prefill=False, batch_tokens=64)
    end = await reader.ask(Prompt((100,) * 65))
    assert (end.error.reason, end.error.param) == ("context_length_exceeded", "prompt")
    reader = await make()
    assert (await reader.ask(Prompt((100,) * 511))).reason is Finish.LENGTH
    assert installed.params.max_tokens == 1
    assert (await reader.ask(Prompt((100,) * 512))).error.reason == "context_length_exceeded"
    end = await reader.ask(Prompt((100,) * 500), resume_ids=(100,) * 12)
    assert end.reason is Finish.LENGTH, "it fitted when it began"
    for bad in (Prompt((49_152,)), Prompt((-1,))):
        assert (await reader.ask(bad)).error.param == "prompt"
    assert (await reader.ask("x", resume_ids=(10**9,))).error.param == "messages"
    assert (await reader.ask("x", replace(GREEDY, logit_bias=((10**6, 1.0),)))).error.param == "logit_bias"


# --- forms ------------------------------------------------------------------------------------------------------------

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)
A_PERSON = '{"name": "Ann", "age": 31}'
FORM = Constraint(ConstraintKind.JSON_SCHEMA, PERSON)
WEATHER = Tool("get_weather", "", json.dumps({"type": "object", "properties": {"city": {"type": "string"}}}))
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def with_tools(mode: ToolMode = ToolMode.AUTO) -> Chat:
    return Chat((Message("user", "x"),), (WEATHER,), tool_mode=mode)


async def test_our_grammar_is_the_guide_and_the_watch(make: Any, installed: Any) -> None:
    reader = await make()
    ids = encode(reader, A_PERSON)
    installed.answer = steps(*[[token] for token in ids], [END], finish="stop")
    end = await reader.ask("x", constraint=FORM)
    assert (reader.text, end.reason) == (A_PERSON, Finish.STOP)
    guided = installed.params.guided_decoding
    assert guided.grammar.startswith("%llguidance {}\nstart: %json ")
    assert (guided.json, guided.regex, guided.structural_tag, guided.json_object) == (None, None, None, False)
    installed.answer = steps(encode(reader, '{"name": "Ann", "size": 3}'), [100])
    end = await reader.ask("x", constraint=FORM)
    assert (end.error.reason, end.error.param) == ("invalid_schema", "response_format"), "it left its form"
    assert reader.ids[reader.key] == []
    assert installed.results[-1].was_aborted
    installed.answer = steps(encode(reader, '{"name": "Ann"'), finish="stop")
    assert (await reader.ask("x", constraint=FORM)).error.reason == "invalid_schema", "no place to end"
    installed.answer = steps(encode(reader, '{"name": "Ann"'))
    assert (await reader.ask("x", constraint=FORM)).reason is Finish.LENGTH


def test_a_guide_compiles_as_the_engine_compiles_it(tokenizer_folder: Path) -> None:
    """With the real library, as its guided decoder does: our grammar as Lark, over the model's own tokens."""
    from llguidance import LLMatcher, LLTokenizer
    from tokenizers import Tokenizer

    content = (tokenizer_folder / "tokenizer.json").read_text()
    tokens = LLTokenizer(content, n_vocab=49152, eos_token=END)
    encoded = Tokenizer.from_str(content).encode

    def ends(generation: Generation, text: str) -> bool:
        grammar = grammar_for(generation, "llguidance", tags=False)
        guide_of = guide(generation, grammar, "llguidance")["grammar"]
        matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(guide_of))
        taken = all(matcher.try_consume_tokens([token]) == 1 for token in encoded(text).ids)
        assert not matcher.is_error()
        return taken and matcher.is_accepting()

    person = Generation(b"k" * 16, Prompt("x"), constraint=FORM)
    assert ends(person, A_PERSON)
    assert not ends(person, A_PERSON[:-1])
    for mode, free in ((ToolMode.AUTO, True), (ToolMode.REQUIRED, False)):
        calls = Generation(b"k" * 16, with_tools(mode))
        assert ends(calls, CALL)
        assert ends(calls, f"{CALL}\n{CALL}")
        assert ends(calls, "The sea.") is ends(calls, f"Now: {CALL}") is free
        assert not ends(calls, CALL.replace('Rome"', 'Rome", "x": [}'))


async def test_bad_forms_never_reach_the_engine(make: Any, installed: Any) -> None:
    reader = await make()
    calls = len(installed.calls)
    for source in ("{", '{"type": "frog"}', '{"type": "string", "pattern": "(?=x)"}'):
        end = await reader.ask("x", constraint=Constraint(ConstraintKind.JSON_SCHEMA, source))
        assert end.error.reason == "invalid_schema"
    assert len(installed.calls) == calls


async def test_an_answer_under_a_form_is_made_again(make: Any, installed: Any) -> None:
    """A form begins at the end of the prompt. What comes again is compared and not said twice."""
    reader = await make()
    ids = encode(reader, A_PERSON)
    prompt = (await reader.engine.tokenize(Chat((Message("user", "x"),)))).ids
    installed.answer = steps(ids[:2], ids[2:], [END], finish="stop")
    for given in (1, 4, len(ids)):
        end = await reader.ask("x", constraint=FORM, resume_ids=tuple(ids[:given]))
        assert (installed.asked["inputs"], installed.params.max_tokens) == (prompt, 24)
        assert (reader.ids[reader.key], end.reason) == (ids[given:], Finish.STOP)
        assert A_PERSON.endswith(reader.text)
    other = encode(reader, '{"name": "Bob')
    end = await reader.ask("x", constraint=FORM, resume_ids=tuple(other))
    assert end.error.reason == "engine_failed", "it came out differently"
    calls = len(installed.calls)
    end = await reader.ask("x", constraint=FORM, resume_ids=tuple(encode(reader, "Once upon")))
    assert end.error.reason == "engine_failed", "that was never said under this form"
    assert len(installed.calls) == calls


async def test_a_draw_under_a_form_is_made_again_by_its_seed_or_not_at_all(make: Any, installed: Any) -> None:
    forgetful, reader = await make(), await make(sampler="TRTLLMSampler")
    ids = encode(reader, A_PERSON)
    end = await forgetful.ask("x", Sampling(max_tokens=24), constraint=FORM, resume_ids=tuple(ids[:4]))
    assert end.error.reason == "engine_failed"
    installed.answer = steps(ids, [END], finish="stop")
    seeds = []
    for given in (0, 4):
        reader._count = 1000
        await reader.ask("x", Sampling(max_tokens=24), constraint=FORM, resume_ids=tuple(ids[:given]))
        seeds.append(installed.params.seed)
        reader.ends.clear()
    assert seeds[0] == seeds[1]


async def test_an_answer_that_may_call_and_has_not_goes_on_by_its_ids(make: Any, installed: Any) -> None:
    reader = await make()
    ids = encode(reader, "The sea is wide.")
    installed.answer = steps(ids[3:], [END], finish="stop")
    end = await reader.ask(with_tools(), Sampling(max_tokens=24), resume_ids=tuple(ids[:3]))
    assert (reader.ids[reader.key], end.reason) == (ids[3:], Finish.STOP)
    assert installed.asked["inputs"][-3:] == ids[:3]
    assert "head[lazy]" in installed.params.guided_decoding.grammar
    begun = encode(reader, CALL)[:6]
    installed.answer = steps(encode(reader, CALL), [END], finish="stop")
    await reader.ask(with_tools(), replace(GREEDY, max_tokens=100), resume_ids=tuple(begun))
    assert installed.asked["inputs"][-6:] != begun, "inside a call it is made again"
    assert reader.texts[reader.key].decode() in CALL


async def test_calls_that_must_be(make: Any, installed: Any) -> None:
    reader = await make()
    installed.answer = steps(encode(reader, CALL), [END], finish="stop")
    end = await reader.ask(with_tools(ToolMode.REQUIRED), replace(GREEDY, max_tokens=99, stop=("}",)))
    assert (reader.text, end.reason, end.stop_index) == (CALL, Finish.STOP, None)
    assert "<tool_call>" in installed.params.guided_decoding.grammar
    await reader.ask(with_tools(ToolMode.NONE))
    assert installed.params.guided_decoding is None


async def test_with_xgrammar_it_is_asked_in_its_own_words(make: Any, installed: Any) -> None:
    reader = await make(guided="xgrammar")
    assert "tools" not in reader.info.capabilities
    installed.answer = steps(encode(reader, '{"name":"Ann","age":31}'), [END], finish="stop")
    end = await reader.ask("x", constraint=FORM)
    assert (installed.params.guided_decoding.json, end.reason) == (PERSON, Finish.STOP)
    await reader.ask("x", constraint=Constraint(ConstraintKind.JSON_OBJECT))
    assert installed.params.guided_decoding.json_object
    await reader.ask("x", constraint=Constraint(ConstraintKind.REGEX, "[A-Z]{2}"))
    assert installed.params.guided_decoding.regex == "[A-Z]{2}"
    await reader.ask(with_tools())
    tag = json.loads(installed.params.guided_decoding.structural_tag)["format"]
    assert (tag["type"], tag["triggers"], tag["stop_after_first"]) == ("triggered_tags", ["<tool_call>"], False)
    assert tag["tags"][0]["begin"] + '{"city": "Rome"}' + tag["tags"][0]["end"] == CALL
    assert (await reader.ask(with_tools(ToolMode.REQUIRED))).error.param == "tool_choice"
    both = await reader.ask(with_tools(), constraint=FORM)
    assert (both.error.reason, both.error.param) == ("unsupported_parameter", "response_format")
    none = await make(guided="none")
    assert (await none.ask(with_tools())).error.param == "tools"
    assert (await none.ask("x", constraint=FORM)).error.param == "response_format"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def raising(error: Exception, *said: Sequence[int]) -> Callable[..., AsyncIterator[Any]]:
    async def answer(ids: list[int], params: Any) -> AsyncIterator[Any]:
        for one in said:
            yield Said(list(one))
        raise error

    return answer


async def test_a_request_error_ends_that_request(make: Any, installed: Any) -> None:
    reader = await make()
    installed.answer = raising(double.RequestError("no room"), [100])
    end = await reader.ask("x")
    assert (end.error.reason, end.error.diagnostic, reader.ids[reader.key]) == ("engine_failed", "no room", [100])
    assert "no room" not in end.error.message
    installed.answer = raising(double.RequestError("Guided decoding error: too many states"))
    assert (await reader.ask("x", constraint=FORM)).error.reason == "invalid_schema"
    installed.answer = raising(double.RequestError("`default_max_tokens` (-3) must be greater than 0"))
    assert (await reader.ask("x")).error.reason == "context_length_exceeded"
    assert (await reader.ask("x", resume_ids=(100,))).reason is Finish.LENGTH
    for error in (ValueError("odd"), TypeError("odd"), double.RequestError("odd")):
        installed.refuses = error
        end = await reader.ask("x")
        assert (end.error.reason, end.error.diagnostic) == ("invalid_value", "odd")
    installed.refuses = None
    for finish in ("timeout", "cancelled"):
        installed.answer = steps([100], finish=finish)
        assert (await reader.ask("x")).error.reason == "engine_failed"
    installed.answer = steps([100], finish=None)
    assert (await reader.ask("x")).error.reason == "engine_failed"
    installed.answer = steps([100])
    assert (await reader.ask("x")).reason is Finish.LENGTH, "and the engine serves on"


@pytest.mark.parametrize("when", ["asked", "in the middle", "unhealthy", "unhealthy and loud"])
async def test_anything_else_is_the_engines_death(
    make: Any, installed: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    reader = await make()
    installed.answer = raising(RuntimeError("CUDA error"), [100]) if when == "in the middle" else endless
    if when == "asked":
        installed.refuses = RuntimeError("LLM is shutting down")
    key = reader.submit("x", replace(GREEDY, max_tokens=500))
    if when == "unhealthy":
        installed.healthy = False
    if when == "unhealthy and loud":
        monkeypatch.setattr(double.LLM, "_check_health", lambda _: 1 / 0)
    with pytest.raises(EngineDiedError) as death:
        await asyncio.wait_for(reader.task, 60)
    assert str(death.value)
    assert key not in reader.ends
    await reader.engine.stop()


# --- what it tells of itself ------------------------------------------------------------------------------------------


async def test_statistics_and_kv_events_have_one_reader_each(make: Any, installed: Any) -> None:
    reader = await make(statistics=True, kv_events=1024, kv_block_tokens=8)
    assert installed.llms[0].args.enable_iter_perf_stats
    assert installed.llms[0].args.kv_cache_config.event_buffer_max_size == 1024
    told: list[Any] = []
    reader.engine.on_kv_events.append(told.extend)
    installed.statistics += [{"iter": 1}, json.dumps({"iter": 2, "kvCacheStats": {"maxNumBlocks": 7}})]
    block = {"block_hash": -1, "tokens": [{"token_id": n} for n in range(8)]}
    installed.kv_events.append({"event_id": 0, "data": {"type": "stored", "parent_hash": None, "blocks": [block]}})
    async with asyncio.timeout(30):
        while not told or reader.engine.statistics().kv_blocks_total is None:
            await asyncio.sleep(0.01)
    assert (reader.engine.statistics().kv_blocks_total, told[0].blocks) == (7, ((2**64 - 1, tuple(range(8))),))


async def test_prompts_are_told_of_until_a_block_of_theirs_has_gone(make: Any, installed: Any) -> None:
    reader = await make(kv_events=1024, kv_block_tokens=8)
    prompt, chunks = tuple(range(100, 228)), (11, 12)
    told = reader.engine.prefixes
    await reader.ask(Prompt(prompt), prefix=chunks)
    assert set(told.all()) == {11, 12}
    blocks = [
        {"block_hash": number, "tokens": [{"token_id": one} for one in prompt[8 * number : 8 * number + 8]]}
        for number in range(16)
    ]
    installed.kv_events += [
        {"event_id": 0, "data": {"type": "stored", "parent_hash": None, "blocks": blocks[:4]}},
        {"event_id": 1, "data": {"type": "stored", "parent_hash": 3, "blocks": blocks[4:]}},
        {"event_id": 2, "data": {"type": "removed", "block_hashes": [15, 14]}},
    ]
    async with asyncio.timeout(30):
        while set(told.all()) != {11}:
            await asyncio.sleep(0.01)
    installed.kv_events.append({"event_id": 9, "data": {"type": "removed", "block_hashes": [13]}})
    async with asyncio.timeout(30):
        while told.all():
            await asyncio.sleep(0.01)
    quiet = await make()
    await quiet.ask(Prompt(prompt), prefix=chunks)
    assert quiet.engine.prefixes.all() == [], "without events nobody would say what is gone"
