"""What a worker is told, by variables INFERBUS_WORKER_…"""

import os
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Literal

from inferbus_artifacts.settings import ArtifactsSettings
from inferbus_runtime.config import ADDRESS, ConfigError, Section, ServiceConfig, describe, load
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

PREFIX = "INFERBUS_WORKER_"

OpenAiCapability = Literal[
    "chat", "completions", "embeddings", "tools", "structured_output", "logprobs", "logit_bias", "reasoning"
]


class LlamaCppConfig(Section):
    """Variables INFERBUS_WORKER_LLAMA_CPP__…"""

    weights: Path | None = None
    """GGUF file of any model that llama.cpp knows, taken as it is; unset: the shipped model, widened to PRECISION."""
    chat_template: Path | None = None
    """Jinja file that takes the place of the weights' own chat template; one that cannot be read: it does not start."""
    precision: Literal["f32", "f16"] = "f32"
    """Of the shipped weights, and of the KV cache: with f32 a greedy text does not depend on its neighbours in a batch;
    f16 takes half."""
    kv_tokens: int = Field(default=16384, ge=512)
    """Tokens in the KV cache that all generations share, 46 KB each (f16: 23); when full the youngest wait a while."""
    batch_tokens: int = Field(default=256, ge=32, le=2048)
    """Tokens that one engine call takes at most; more makes prefill faster and the gaps of running streams longer."""
    prompt_cache_tokens: int = Field(default=2048, ge=0)
    """KV cells kept for ended prompts that may come again; the oldest leave above it. Each cell slows every step."""
    omp_wait_policy: Literal["passive", "active", "default"] = "passive"
    """Whether engine threads spin while they wait: passive shares the cores with other processes, active does not."""
    lora: tuple[str, ...] = ()
    """LoRA adapters in GGUF, each name=file: MODEL:name is served with that one, MODEL with none of them."""


class SyntheticConfig(Section):
    """Variables INFERBUS_WORKER_SYNTHETIC__…"""

    itl: timedelta = Field(default=timedelta(milliseconds=20), gt=timedelta(0))
    """Time of one engine step: each running generation gets one token."""
    step_per_sequence: timedelta = Field(default=timedelta(0), ge=timedelta(0))
    """A step is longer by this for each generation that gets a token in it."""
    prefill: timedelta = Field(default=timedelta(microseconds=50), ge=timedelta(0))
    """Time per input token before the first token, with PREFILL_RATE 0."""
    prefill_rate: float = Field(default=0.0, ge=0.0)
    """Input tokens read a second, one prompt after the other; 0: each by itself, PREFILL a token."""
    kv_blocks: int = Field(default=0, ge=0)
    """Blocks of KV cache, which keep prompts; who finds no room for its length waits. 0: no bound, and none is kept."""
    kv_block_tokens: int = Field(default=16, ge=1)
    """Tokens of one block."""
    jitter: float = Field(default=0.0, ge=0.0, le=1.0)
    """Each step takes up to this fraction longer or shorter, by a fixed sequence; 0 switches it off."""
    dies_after: timedelta | None = Field(default=None, gt=timedelta(0))
    """The engine dies this long after each start, with all that runs: to see what follows; unset: never."""
    fails: float = Field(default=0.0, ge=0.0, le=1.0)
    """This part of the generations, evenly spread, ends with an error before the first token: to see what follows."""


class GpuConfig(Section):
    """Variables INFERBUS_WORKER_GPU__…"""

    devices: tuple[str, ...] = ("auto",)
    """GPUs it computes on: indices, UUIDs, 0:1 for a MIG instance, or none; auto: those that CUDA shows its engine."""
    drain_on: tuple[Literal["ecc", "xid", "lost", "hot", "none"], ...] = ("ecc", "xid", "lost", "hot")
    """Faults of a GPU after which the worker drains itself and stays out, nothing cut; none: they are only told."""
    ignored_xids: tuple[int, ...] = (13, 31, 43, 45, 68, 109)
    """Xid faults that are a program's own, after which the GPU is sound: counted, and no fault of the GPU."""
    hot_for: timedelta = Field(default=timedelta(seconds=10), ge=timedelta(0))
    """A GPU at or above its slowdown temperature for this long is hot; a shorter peak is not."""


class TensorRtLlmConfig(Section):
    """Variables INFERBUS_WORKER_TENSORRT_LLM__…; what the installed version cannot do is refused at the start."""

    model_path: Path | None = None
    """Folder of the model: a checkpoint in Hugging Face's form, or a built engine. Must be set; none is downloaded."""
    tokenizer_path: Path | None = None
    """Folder of the model's tokenizer, if the model's own has none, as with engines of trtllm-build."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model is run; without it a model that needs some does not start."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that each layer is divided over; more than there are: it does not start."""
    pipeline_parallel: int = Field(default=1, ge=1)
    """Groups of GPUs that the layers are divided over."""
    expert_parallel: int | None = Field(default=None, ge=1)
    """GPUs that a mixture's experts are divided over; unset: the engine decides."""
    batch_tokens: int = Field(default=8192, ge=32)
    """Tokens of one engine step at most; without CHUNKED_PREFILL also of a prompt, and longer ones are refused."""
    chunked_prefill: bool = True
    """Whether a long prompt is read in parts, between the others' tokens."""
    kv_memory_fraction: float = Field(default=0.9, gt=0.0, lt=1.0)
    """Part of the memory free beside the weights that the KV cache takes; lower it when the start runs out of it."""
    kv_tokens: int | None = Field(default=None, ge=64)
    """Tokens that the KV cache holds at most; unset: as many as KV_MEMORY_FRACTION gives."""
    kv_host_bytes: int = Field(default=0, ge=0)
    """Main memory for blocks that leave the GPU and may come back; 0: they are gone."""
    kv_block_tokens: int | None = Field(default=None, ge=8, le=256)
    """Tokens of one KV block, the unit in which prefixes are found again; unset: the engine's own, 32."""
    kv_dtype: Literal["auto", "fp8", "nvfp4"] = "auto"
    """How the KV cache is stored; auto: as the checkpoint says."""
    block_reuse: bool = True
    """Whether prefixes are found again in the KV cache, each tenant's own; needs a version that takes a cache salt."""
    kv_events: int = Field(default=0, ge=0)
    """Events of the KV cache that wait to be read, the oldest are lost above it; 0: none are made."""
    statistics: bool = True
    """Whether the engine tells of every iteration, which costs it a little."""
    guided: Literal["auto", "llguidance", "xgrammar", "none"] = "auto"
    """Who holds outputs to a form; auto: llguidance, or xgrammar for a built engine, which cannot force a call."""
    sampler: Literal["auto", "TorchSampler", "TRTLLMSampler"] = "auto"
    """Its sampler; which parameters of a request work depends on it, and those that do not are refused."""
    overlap: bool = True
    """Whether the next step begins while the last one is still being read."""
    speculation: Literal["none", "NGram", "Eagle3", "MTP", "DraftTarget"] = "none"
    """How tokens are guessed ahead; with any, seeds, min_p and penalties are refused."""
    speculation_tokens: int = Field(default=3, ge=1, le=32)
    """Tokens that are guessed at once at most."""
    speculation_model: Path | None = None
    """Folder of the weights that guess, for Eagle3 and DraftTarget."""
    lora: tuple[str, ...] = ()
    """LoRA adapters, each name=folder; the one whose name MODEL is, is served."""
    lora_rank: int = Field(default=64, ge=1)
    """Largest rank of an adapter; a larger one is refused by the engine."""
    priority: float | None = Field(default=None, ge=0.0, le=1.0)
    """Priority of every generation in the engine's own queue; unset: the engine's own, 0.5."""
    arguments_file: Path | None = None
    """JSON object with further arguments of LLM(); one that another setting sets, or an unknown one, is refused."""
    start_timeout: timedelta = Field(default=timedelta(minutes=30), gt=timedelta(0))
    """A start that takes longer has failed; large models take minutes."""
    stop_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """An engine that does not free its memory within this time is left behind, and its end is the process's."""


class TransformersConfig(Section):
    """Variables INFERBUS_WORKER_TRANSFORMERS__…"""

    model_path: Path | None = None
    """Folder of a model in Hugging Face's form; with RANDOM_WEIGHTS its config.json is enough. None is downloaded."""
    tokenizer_path: Path | None = None
    """Folder of the model's tokenizer.json, if it is another."""
    random_weights: bool = False
    """Whether the weights are drawn, not read: a real model's shape and speed, and a text without sense."""
    random_seed: int = Field(default=0, ge=0)
    """Of the weights that are drawn."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where it computes; auto: on the GPU that CUDA shows first, on the CPU if it shows none."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Of weights and KV cache; auto: as the model's config.json says, and float32 on the CPU."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "auto"
    """How attention is computed; auto: a flash attention that is installed, else PyTorch's own, which is slower."""
    samples: bool = True
    """Whether tokens may be drawn; if not, temperatures above 0 are refused and no step sorts the vocabulary."""
    batch_tokens: int = Field(default=1024, ge=32)
    """Tokens of one engine step at most; more makes prefill faster and the gaps of running streams longer."""
    kv_tokens: int | None = Field(default=None, ge=512)
    """Tokens that the KV cache, and the longest generation, has; unset: as KV_MEMORY_FRACTION gives, 16384 on a CPU."""
    kv_memory_fraction: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Part of the GPU memory free beside the weights that cache and batch take; lower it when a step runs out of it."""
    kv_block_tokens: int | None = Field(default=None, ge=4)
    """Tokens of one KV block, of which each generation has whole ones; unset: 256 for flash attentions, else 32."""
    start_timeout: timedelta = Field(default=timedelta(minutes=15), gt=timedelta(0))
    """A start, weights and a first token included, that takes longer has failed."""


class TritonConfig(Section):
    """Variables INFERBUS_WORKER_TRITON__…"""

    url: str = Field(default="127.0.0.1:8001", pattern=ADDRESS)
    """host:port of the server's gRPC; while it is away nothing is generated."""
    tls: bool = False
    """Whether the server is spoken to over TLS."""
    tls_ca: Path | None = None
    """PEM certificate of the authority that signed the server's, with tls; unset: those that the machine trusts."""
    server_model: str = Field(default="tensorrt_llm", min_length=1)
    """Its name on the server. With a tokenizer, the core model of an ensemble or BLS is taken instead of it. One that
    is none of TensorRT-LLM's takes calls with tensors: set neither a tokenizer nor a context length for it."""
    tokenizer: Path | None = None
    """Folder, or tokenizer.json, of the model's tokenizer with its chat template; unset: no chat, text only, no ids."""
    vocabulary: int | None = Field(default=None, ge=1)
    """Logits of the model, for logit_bias; unset: as many as the tokenizer has tokens. If wrong, the server refuses."""
    control: Literal["leave", "reload", "own"] = "leave"
    """The server's repository: leave: untouched; reload: a dead model is loaded anew; own: also loaded and unloaded."""
    start_timeout: timedelta = Field(default=timedelta(minutes=5), gt=timedelta(0))
    """How long the server and the loading of the model may take; then the start has failed."""
    call_timeout: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))
    """How long the server may take for an answer about itself."""
    probe_interval: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))
    """An idle model generates a token, or answers a call of zeros, this often: being ready is no proof that it can."""
    probe_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """A model that takes longer for that is dead, unless other requests moved meanwhile."""
    metrics_url: str | None = Field(default=None, pattern=r"^https?://")
    """The server's metrics page; unset: its KV blocks and queue are not known."""
    metrics_interval: timedelta = Field(default=timedelta(seconds=5), gt=timedelta(0))
    """How often the metrics page is read."""
    kv_block_tokens: int = Field(default=0, ge=0)
    """Tokens of a KV cache block: with it, input tokens read from the cache are reported; 0: they are not."""
    max_answer_bytes: int = Field(default=8 << 20, ge=1 << 20, le=16 << 20)
    """A call with tensors whose answer is larger ends with an error that says so; at most 16 MiB, as an edge takes."""


class OpenAiConfig(Section):
    """Variables INFERBUS_WORKER_OPENAI__…"""

    base_url: str = Field(default="http://127.0.0.1:8000/v1", pattern=r"^https?://[^\s?#]+$")
    """Of the upstream's API, with its /v1."""
    api_key: SecretStr | None = None
    """Sent as a bearer token; unset: API_KEY_FILE's, or none."""
    api_key_file: Path | None = None
    """File that holds the key, read at each start of the engine: a renewed one counts from there on."""
    tls_ca: Path | None = None
    """PEM certificate of the authority that signed the upstream's; unset: the system's authorities."""
    upstream_model: str | None = Field(default=None, min_length=1)
    """The model's name there; unset: the only one that it serves. With several and none named it does not start."""
    dialect: Literal["auto", "plain", "vllm", "sglang", "tensorrt_llm", "llama_cpp"] = "auto"
    """What it understands beyond OpenAI's API; auto: by the owner that its models name, plain if that is unknown."""
    capabilities: tuple[OpenAiCapability, ...] | None = None
    """What it can do, believed as it is; unset: a few requests of some tokens find out at each start."""
    continues: Literal["auto", "final_message", "prefill", "none"] = "auto"
    """How a chat that broke off is gone on with; none: it is made again and compared; auto: by the dialect."""
    unary: bool = False
    """Whether answers are asked for whole, of an upstream that cannot stream: all tokens then come at the end."""
    tokenizer: Path | None = None
    """The model's tokenizer.json, to count tokens where the upstream does not; unset: one an event, and a guess."""
    shared_prefixes: bool = False
    """Whether tenants may share its prefix cache, and see that they do, where it keeps no salts apart."""
    connect_timeout: timedelta = Field(default=timedelta(seconds=5), gt=timedelta(0))
    """A connection that takes longer has failed."""
    first_token_timeout: timedelta = Field(default=timedelta(seconds=60), gt=timedelta(0))
    """An answer whose first token takes longer is given up and asked for again."""
    stall_timeout: timedelta = Field(default=timedelta(seconds=20), gt=timedelta(0))
    """An answer that says nothing for this long between two tokens is given up and gone on with."""
    answer_timeout: timedelta = Field(default=timedelta(minutes=10), gt=timedelta(0))
    """A whole answer that takes longer, of vectors or with UNARY, is given up and asked for again."""
    start_timeout: timedelta = Field(default=timedelta(seconds=60), ge=timedelta(0))
    """How long a start waits for an upstream that does not answer yet."""
    busy_timeout: timedelta = Field(default=timedelta(seconds=20), ge=timedelta(0))
    """How long a generation waits for an upstream without room; where Retry-After is longer, it is refused at once."""
    max_retries: int = Field(default=3, ge=0, le=20)
    """Times that one generation is asked for again, after what broke off or was refused for lack of room."""
    retry_budget: float = Field(default=0.1, ge=0.0, le=1.0)
    """Retries of all generations, as a share of the requests of RETRY_WINDOW; above it none is asked for again."""
    retry_floor: int = Field(default=10, ge=0)
    """Retries in RETRY_WINDOW that are always allowed, however few requests there were."""
    retry_window: timedelta = Field(default=timedelta(minutes=1), gt=timedelta(0))
    """The time over which requests and retries are counted."""
    breaker_failures: int = Field(default=5, ge=1)
    """Failures in a row after which the upstream is left alone: new requests get 503 at once."""
    breaker_rate: float = Field(default=0.5, gt=0.0, le=1.0)
    """Share of failures among its last twenty answers after which it is left alone, too."""
    breaker_open: timedelta = Field(default=timedelta(seconds=10), gt=timedelta(0))
    """How long it is left alone; then one request is let through, whose outcome decides."""


class Config(ServiceConfig):
    """One worker: one engine, one model."""

    engine: Literal["llama_cpp", "minilm", "openai", "synthetic", "tensorrt_llm", "transformers", "triton"] = (
        "llama_cpp"
    )
    """The software that generates; its packages must be installed, else the worker does not start."""
    model: str | None = Field(default=None, min_length=1, max_length=128)
    """Public model name; unset: the engine's own."""
    revision: str | None = Field(default=None, min_length=1, max_length=128)
    """Of MODEL, as it was made for it: engine and settings are the revision's, whatever else is set here. One that is
    not there, is retired or failed its validation: it does not start. Unset: what these variables say, no revision."""
    capacity: int | None = Field(default=None, ge=1, le=65536)
    """Generations that run at once, more wait; unset: 16 (llama_cpp), 64 (minilm, openai, transformers, triton),
    128 (tensorrt_llm), 1024 (synthetic)."""
    threads: int | None = Field(default=None, ge=1, le=512)
    """Threads of the engine; unset: one for each core that this process may use."""
    context_length: int | None = Field(default=None, ge=128)
    """Input and output tokens of one generation: longer input is refused, output ends there; unset: the model's own."""
    model_cache: Path | None = None
    """Folder for prepared model files (540 MB) and artifacts; unset: the user's cache folder."""
    lease_ttl: timedelta = Field(default=timedelta(seconds=6), ge=timedelta(seconds=1))
    """A worker that cannot renew its lease for this long stops publishing; others go on with what it ran."""
    heartbeat_interval: timedelta = Field(default=timedelta(milliseconds=500), gt=timedelta(0))
    """Load is told at least this often, and at once when it changes."""
    max_unacked_frames: int = Field(default=4096, ge=1)
    """Frames not yet stored; above it generation pauses until the broker has caught up."""
    max_engine_restarts: int = Field(default=3, ge=0)
    """Restarts of a dead engine within engine_restart_window; one more stops the worker, and others go on."""
    engine_restart_window: timedelta = Field(default=timedelta(minutes=5), gt=timedelta(0))
    """The time over which restarts are counted."""
    engine_stall: timedelta = Field(default=timedelta(seconds=120), gt=timedelta(0))
    """An engine that owes tokens and gives none for this long counts as dead, and is started again."""
    engine_max_memory: int | None = Field(default=None, ge=1 << 20)
    """Bytes that the engine's processes may hold; above it the engine is started again, and nothing is lost."""
    engine_memory_grace: timedelta = Field(default=timedelta(seconds=15), ge=timedelta(0))
    """How long what runs may take to end before that; the rest goes on elsewhere, or in the new engine."""
    node: str | None = Field(default=None, min_length=1, max_length=128)
    """The machine that it runs on, as the fleet and `inferbus drain` name it; unset: the host's name."""
    zone: str = Field(default="", max_length=128)
    """What fails together with it (a zone, a rack): replicas of a model are spread over several; empty: not known."""
    cost_per_hour: float = Field(default=0.0, ge=0.0)
    """What an hour of it costs, to compare workers of one model by: of equal ones the cheaper is taken; 0: unknown."""
    prefixes_told: int = Field(default=4096, ge=0, le=65536)
    """Chunks of prompts (256 bytes each) in its KV cache that schedulers are told of, the newest ones; 0: none."""
    artifacts: ArtifactsSettings = ArtifactsSettings()
    artifacts_max_bytes: int = Field(default=64 << 30, ge=0)
    """Of artifacts kept in model_cache; above it those go that no worker uses, the ones used longest ago first."""
    llama_cpp: LlamaCppConfig = LlamaCppConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    openai: OpenAiConfig = OpenAiConfig()
    triton: TritonConfig = TritonConfig()
    tensorrt_llm: TensorRtLlmConfig = TensorRtLlmConfig()
    transformers: TransformersConfig = TransformersConfig()
    gpu: GpuConfig = GpuConfig()

    @field_validator("revision")
    @classmethod
    def _revision_of_a_model(cls, revision: str | None, info: ValidationInfo) -> str | None:
        if revision is not None and info.data.get("model") is None:
            raise PydanticCustomError("together", "set MODEL too: a revision is one of a model")
        return revision


# What no revision says: who this process is, where it stands, what it keeps, and what opens doors.
_OWN = frozenset(ServiceConfig.model_fields) | {
    "model", "revision", "engine", "model_cache", "node", "zone", "gpu", "artifacts", "artifacts_max_bytes",
}  # fmt: skip


def of_revision(engine: str, settings: Mapping[str, str], environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of this process (``environ`` None: its own variables) as a revision changes it. ``settings``:
    by variable without INFERBUS_WORKER_. Raises ConfigError, with all faults, of settings that it cannot take."""
    known = {variable.name: variable for variable in describe(Config, PREFIX)}
    faults = []
    for name in sorted(settings):
        variable = known.get(PREFIX + name)
        if variable is None:
            faults.append(f"{PREFIX}{name}: no such variable")
        elif variable.secret or name.lower() in _OWN or name.partition("__")[0].lower() in _OWN:
            faults.append(f"{PREFIX}{name}: is a worker's own, no revision's")
    if faults:
        raise ConfigError(faults)
    said = {PREFIX + name: value for name, value in settings.items()}
    return load(Config, PREFIX, environ, instead={**said, f"{PREFIX}ENGINE": engine})


def visible_gpus() -> str | None:
    """What CUDA is told to show to programs; None: every GPU."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")  # noqa: TID251 (CUDA's own variable, not one of ours)


def host_name() -> str:
    """Of this machine, or of the container that this is."""
    return socket.gethostname()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
