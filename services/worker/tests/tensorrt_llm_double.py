"""A double of the package tensorrt_llm: names and signatures, no engine. What passes with it proves the mapping only.

Written from NVIDIA/TensorRT-LLM's own sources (llmapi/llm.py, llm_args.py, sampling_params.py, executor/result.py of
1.2's time). Its "model" says what the test tells it to, token by token.
"""

import asyncio
import json
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class RequestError(RuntimeError):
    pass


@dataclass(slots=True, kw_only=True)
class GuidedDecodingParams:
    json: Any = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | None = None


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop: Any = None
    stop_token_ids: list[int] | None = None
    embedding_bias: Any = None
    logits_processor: Any = None
    n: int = 1
    best_of: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_p: float | None = None
    logprobs: int | None = None
    return_perf_metrics: bool = False
    guided_decoding: GuidedDecodingParams | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    _stop_word_ids: Any = field(default=None, init=False, repr=False)


@dataclass(slots=True)
class Logprob:
    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: Any = None
    request_perf_metrics: Any = None


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


class KvCacheConfig(StrictModel):
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    host_cache_size: int | None = None
    event_buffer_max_size: int = 0
    dtype: str = "auto"
    tokens_per_block: int = 32


class SharedArgs(StrictModel):
    model: Any
    tokenizer: Any = None
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    moe_expert_parallel_size: int | None = None
    lora_config: Any = None
    kv_cache_config: KvCacheConfig = KvCacheConfig()
    enable_chunked_prefill: bool = False
    guided_decoding_backend: Literal["xgrammar", "llguidance"] | None = None
    scheduler_config: Any = None
    speculative_config: Any = None
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = 8192


class TorchLlmArgs(SharedArgs):
    disable_overlap_scheduler: bool = False
    sampler_type: str = "auto"
    enable_iter_perf_stats: bool = False


class TrtLlmArgs(SharedArgs):
    fast_build: bool = False


class NGramDecodingConfig(StrictModel):
    max_draft_len: int
    max_matching_ngram_size: int = 2


class EagleDecodingConfig(StrictModel):
    max_draft_len: int
    speculative_model_dir: str


class MTPDecodingConfig(StrictModel):
    num_nextn_predict_layers: int


@dataclass
class LoraConfig:
    lora_dir: list[str]
    max_lora_rank: int = 64
    max_loras: int | None = None
    max_cpu_loras: int | None = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class RequestOutput:
    """One object, that grows: iterated like the real one, whose queue an engine's thread fills."""

    def __init__(self, llm: "LLM", ids: list[int], params: SamplingParams) -> None:
        self.outputs = [CompletionOutput()]
        self.prompt_token_ids = ids
        self.finished = False
        self.was_aborted = False
        self.cached_tokens = llm.double.cached
        if llm.double.forgets_cached:
            del self.cached_tokens
        self._steps = llm.double.answer(ids, params)

    def abort(self) -> None:
        self.was_aborted = True

    def aborted(self) -> bool:
        return self.was_aborted

    def __aiter__(self) -> "RequestOutput":
        return self

    async def __anext__(self) -> "RequestOutput":
        if self.finished:
            raise StopAsyncIteration
        step = await anext(self._steps, None)
        if step is None:
            raise StopAsyncIteration
        completion = self.outputs[0]
        completion.token_ids.extend(step.ids)
        completion.logprobs.extend(step.logprobs)
        completion.request_perf_metrics = step.metrics
        if step.finish is not None:
            completion.finish_reason = step.finish
            self.finished = True
        return self


@dataclass
class Said:
    """What one engine step adds to an output."""

    ids: list[int] = field(default_factory=list)
    finish: str | None = None
    logprobs: list[Any] = field(default_factory=list)
    metrics: Any = None


@dataclass
class Double:
    """What a test tells the double, and what the double was told. ``answer``: a generation's steps."""

    folder: Path
    answer: Callable[[list[int], SamplingParams], AsyncIterator[Said]] = None  # type: ignore[assignment]
    llms: list["LLM"] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[RequestOutput] = field(default_factory=list)
    cached: int = 0
    forgets_cached: bool = False
    healthy: bool = True
    statistics: list[Any] = field(default_factory=list)
    kv_events: list[Any] = field(default_factory=list)
    shutdowns: int = 0
    may_shut_down: threading.Event = field(default_factory=threading.Event)
    refuses: Exception | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """The newest call of generate_async."""
        return self.calls[-1]

    @property
    def params(self) -> SamplingParams:
        params: SamplingParams = self.asked["sampling_params"]
        return params


class FastTokenizer:
    """What transformers' fast tokenizers have of what is used here, around the real one of the package tokenizers."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        config = json.loads((folder / "tokenizer_config.json").read_text())
        self.backend_tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.chat_template = config.get("chat_template")
        self.bos_token, self.eos_token = config.get("bos_token"), config.get("eos_token")
        self.eos_token_id = self.backend_tokenizer.token_to_id(self.eos_token)


class LLM:
    """Of the current test: ``double`` is set by :func:`install`."""

    double: Double
    Args: type[SharedArgs] = TorchLlmArgs

    def __init__(self, model: str, tokenizer: str | None = None, **options: Any) -> None:
        assert threading.current_thread() is not threading.main_thread(), "it blocks for minutes"
        self.args = self.Args(model=model, tokenizer=tokenizer, **options)
        self.tokenizer = types.SimpleNamespace(tokenizer=FastTokenizer(Path(tokenizer or model)))
        self.double.llms.append(self)

    def generate_async(
        self,
        inputs: Any,
        sampling_params: SamplingParams | None = None,
        lora_request: Any = None,
        prompt_adapter_request: Any = None,
        streaming: bool = False,
        kv_cache_retention_config: Any = None,
        disaggregated_params: Any = None,
        _postproc_params: Any = None,
        scheduling_params: Any = None,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        asyncio.get_running_loop()
        assert isinstance(inputs, list)
        assert all(type(one) is int for one in inputs)
        assert sampling_params is not None
        assert streaming
        if self.double.refuses is not None:
            raise self.double.refuses
        call = {"inputs": inputs, "sampling_params": sampling_params, "cache_salt": cache_salt}
        self.double.calls.append(call | {"lora_request": lora_request})
        result = RequestOutput(self, inputs, sampling_params)
        self.double.results.append(result)
        return result

    async def get_stats_async(self, timeout: float | None = 2) -> AsyncIterator[Any]:
        while self.double.statistics:
            yield self.double.statistics.pop(0)

    async def get_kv_cache_events_async(self, timeout: float | None = 2) -> AsyncIterator[Any]:
        while self.double.kv_events:
            yield self.double.kv_events.pop(0)

    def _check_health(self) -> bool:
        return self.double.healthy

    def shutdown(self) -> None:
        assert threading.current_thread() is not threading.main_thread(), "it blocks"
        self.double.may_shut_down.wait(60)
        self.double.shutdowns += 1


class PriorityLLM(LLM):
    """Of later versions."""

    def generate_async(self, inputs: Any, *, priority: float = 0.5, **options: Any) -> RequestOutput:  # type: ignore[override]
        result = super().generate_async(inputs, **options)
        self.double.asked["priority"] = priority
        return result


class EngineLLM(LLM):
    """Of tensorrt_llm._tensorrt_engine."""

    Args = TrtLlmArgs


class FloatTensor(list[float]):
    """As much of a torch tensor as a bias needs."""


def install(monkeypatch: Any, folder: Path, **changes: Any) -> Double:
    """Puts the double where ``import tensorrt_llm`` finds it, until the test ends. ``changes``: names of llmapi."""
    double = Double(folder)
    double.may_shut_down.set()
    LLM.double = double
    api = types.ModuleType("tensorrt_llm.llmapi")
    for one in (
        LLM, SamplingParams, GuidedDecodingParams, KvCacheConfig, RequestError, TorchLlmArgs, TrtLlmArgs, LoRARequest,
        NGramDecodingConfig, EagleDecodingConfig, MTPDecodingConfig,
    ):  # fmt: skip
        setattr(api, one.__name__, one)
    for name, value in changes.items():
        setattr(api, name, value)
    torch = types.ModuleType("torch")
    torch.float32 = "float32"  # type: ignore[attr-defined]
    torch.zeros = lambda size, dtype: FloatTensor([0.0] * size)  # type: ignore[attr-defined]
    sampler = types.ModuleType("tensorrt_llm._torch.pyexecutor.sampler")
    sampler.TorchSampler = type("TorchSampler", (), {})  # type: ignore[attr-defined]
    modules: dict[str, Any] = {
        "tensorrt_llm": types.ModuleType("tensorrt_llm"),
        "tensorrt_llm.llmapi": api,
        "tensorrt_llm._tensorrt_engine": types.SimpleNamespace(LLM=EngineLLM),
        "tensorrt_llm.lora_helper": types.SimpleNamespace(LoraConfig=LoraConfig),
        "tensorrt_llm._torch": types.ModuleType("tensorrt_llm._torch"),
        "tensorrt_llm._torch.pyexecutor": types.ModuleType("tensorrt_llm._torch.pyexecutor"),
        "tensorrt_llm._torch.pyexecutor.sampler": sampler,
        "torch": torch,
    }
    modules["tensorrt_llm"].__version__ = "1.2.1"
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return double


def model_folder(folder: Path, tokenizer: Path, **config: Any) -> Path:
    """A checkpoint's small files, with a real tokenizer's."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    known = {"max_position_embeddings": 512, "vocab_size": 49152, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(known | config))
    return folder
