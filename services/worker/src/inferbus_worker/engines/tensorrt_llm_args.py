"""From the worker's settings to the arguments of LLM().

What the installed version cannot do is refused here, by the name of the setting: its own refusal would come minutes
later and name something else, or none would come.
"""

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferbus_worker.config import Config, TensorRtLlmConfig
from inferbus_worker.core.start_faults import refusal
from inferbus_worker.engines.tensorrt_llm_model import ModelFolder
from inferbus_worker.engines.tensorrt_llm_package import Package

DEFAULT_CAPACITY = 128
_ROOM = "TENSORRT_LLM__"
_SPECULATION_FOLDERS = ("speculative_model_dir", "speculative_model")  # 1.0 to 1.2, and the others


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be served. ``longest_input``: tokens of a prompt at most. ``guided``: who holds outputs to a form:
    llguidance, xgrammar or none. ``adapter``: (name, id, path) of the LoRA adapter that every generation is made with.
    """

    arguments: dict[str, Any]
    capacity: int
    context_length: int
    longest_input: int
    guided: str
    adapter: tuple[str, int, str] | None


def plan(config: Config, folder: ModelFolder, package: Package) -> Plan:
    """Raises InferBusError for what cannot be."""
    settings = config.tensorrt_llm
    guided = _guided(settings, folder)
    _check(settings, folder, package)
    context = _context_length(config, folder)
    capacity = config.capacity or folder.capacity or DEFAULT_CAPACITY
    if folder.capacity and capacity > folder.capacity:
        raise refusal("CAPACITY", f"the engine was built for {folder.capacity} generations at once")
    asked = _Asked(package)
    asked.put("max_batch_size", capacity, "CAPACITY")
    asked.put("max_num_tokens", settings.batch_tokens, "BATCH_TOKENS")
    asked.put("enable_chunked_prefill", settings.chunked_prefill, "CHUNKED_PREFILL", unset=False)
    asked.put("trust_remote_code", settings.trust_remote_code, "TRUST_REMOTE_CODE", unset=False)
    asked.put("tensor_parallel_size", settings.tensor_parallel, "TENSOR_PARALLEL", unset=1)
    asked.put("pipeline_parallel_size", settings.pipeline_parallel, "PIPELINE_PARALLEL", unset=1)
    asked.put("moe_expert_parallel_size", settings.expert_parallel, "EXPERT_PARALLEL")
    asked.put("guided_decoding_backend", _unless(guided, "none"), "GUIDED")
    asked.put("sampler_type", _unless(settings.sampler, "auto"), "SAMPLER")
    asked.put("disable_overlap_scheduler", _no_overlap(settings), "OVERLAP", unset=False)
    if folder.backend == "pytorch":  # a built engine has its own length, and always counts its iterations
        asked.put("enable_iter_perf_stats", settings.statistics, "STATISTICS", unset=False)
        asked.put("max_seq_len", context, "CONTEXT_LENGTH")
        if "max_input_len" in package.features.arguments:  # 1024 if it is not said
            asked.put("max_input_len", context, "CONTEXT_LENGTH")
    asked.put("tokenizer", _text(settings.tokenizer_path), "TOKENIZER_PATH")
    asked.put("kv_cache_config", _kv_cache(settings, package), "KV_MEMORY_FRACTION")
    asked.put("speculative_config", _speculation(settings, package), "SPECULATION")
    adapters = _adapters(settings)
    if adapters:
        paths = [path for _, _, path in adapters.values()]
        lora = package.lora_config(
            lora_dir=paths, max_lora_rank=settings.lora_rank, max_loras=len(paths), max_cpu_loras=len(paths)
        )
        asked.put("lora_config", lora, "LORA")
    arguments = asked.arguments | _extra(settings, asked, guided)
    longest = context - 1 if settings.chunked_prefill else min(context - 1, settings.batch_tokens)
    return Plan(arguments, capacity, context, longest, guided, _adapter(adapters, config.model))


class _Asked:
    """Arguments so far, each under a name that the version has."""

    def __init__(self, package: Package) -> None:
        self.arguments: dict[str, Any] = {}
        self._known = package.features.arguments
        self._version = package.features.version

    def put(self, name: str, value: Any, setting: str, unset: Any = None) -> None:
        """A value that is ``unset`` is left to the version's own default where the version does not know the name."""
        if value is None or (name not in self._known and value == unset):
            return
        self.check(name, setting)
        self.arguments[name] = value

    def check(self, name: str, setting: str) -> None:
        if name not in self._known:
            room = "" if setting in ("CAPACITY", "CONTEXT_LENGTH") else _ROOM
            raise refusal(f"{room}{setting}", f"tensorrt_llm {self._version} has no '{name}' for this kind of model")


def _check(settings: TensorRtLlmConfig, folder: ModelFolder, package: Package) -> None:
    features, built = package.features, folder.backend == "tensorrt"
    if settings.block_reuse and "cache_salt" not in features.generate:
        why = f"tensorrt_llm {features.version} cannot keep tenants' prefixes apart; set it to false"
        raise refusal(_ROOM + "BLOCK_REUSE", why)
    if settings.kv_events and not settings.block_reuse:
        raise refusal(_ROOM + "KV_EVENTS", "there are none without BLOCK_REUSE")
    if settings.kv_events and not hasattr(package.llm, "get_kv_cache_events_async"):
        raise refusal(_ROOM + "KV_EVENTS", f"tensorrt_llm {features.version} tells none")
    if settings.priority is not None and "priority" not in features.generate:
        raise refusal(_ROOM + "PRIORITY", f"tensorrt_llm {features.version} has no priorities")
    if settings.speculation != "none" and built:
        raise refusal(_ROOM + "SPECULATION", "a built engine speculates as it was built")
    if built and settings.kv_dtype != "auto":
        raise refusal(_ROOM + "KV_DTYPE", "a built engine has the one that it was built with")
    if settings.kv_dtype == "nvfp4" and "nvfp4" not in _source(package.api.TorchLlmArgs).lower():
        raise refusal(_ROOM + "KV_DTYPE", f"tensorrt_llm {features.version} does not know nvfp4 here")


def _guided(settings: TensorRtLlmConfig, folder: ModelFolder) -> str:
    built = folder.backend == "tensorrt"
    if settings.guided == "auto":
        return "xgrammar" if built else "llguidance"
    if built and settings.guided == "llguidance":
        raise refusal(_ROOM + "GUIDED", "a built engine knows xgrammar and none")
    return settings.guided


def _context_length(config: Config, folder: ModelFolder) -> int:
    length = config.context_length or folder.context_length
    if not length:
        raise refusal("CONTEXT_LENGTH", "set it, since the model's folder does not say how long a sequence may be")
    if folder.context_length and length > folder.context_length:
        raise refusal("CONTEXT_LENGTH", f"the model was made for {folder.context_length} tokens")
    return length


def _no_overlap(settings: TensorRtLlmConfig) -> bool:
    """Drafts out of n-grams, or by a model of their own, are made between two steps: then steps cannot overlap."""
    return not settings.overlap or settings.speculation in ("NGram", "DraftTarget")


def _kv_cache(settings: TensorRtLlmConfig, package: Package) -> Any:
    wanted = {
        "enable_block_reuse": (settings.block_reuse, "BLOCK_REUSE"),
        "free_gpu_memory_fraction": (settings.kv_memory_fraction, "KV_MEMORY_FRACTION"),
        "max_tokens": (settings.kv_tokens, "KV_TOKENS"),
        "host_cache_size": (settings.kv_host_bytes or None, "KV_HOST_BYTES"),
        "tokens_per_block": (settings.kv_block_tokens, "KV_BLOCK_TOKENS"),
        "dtype": (_unless(settings.kv_dtype, "auto"), "KV_DTYPE"),
        "event_buffer_max_size": (settings.kv_events or None, "KV_EVENTS"),
    }
    chosen: dict[str, Any] = {}
    for name, (value, setting) in wanted.items():
        if value is None:
            continue
        if name not in package.features.kv_cache:
            why = f"tensorrt_llm {package.features.version} has no '{name}' in its KvCacheConfig"
            raise refusal(_ROOM + setting, why)
        chosen[name] = value
    return package.kv_cache_config(**chosen)


def _speculation(settings: TensorRtLlmConfig, package: Package) -> Any:
    """Classes and their fields have changed their names from version to version."""
    if settings.speculation == "none":
        return None
    setting = _ROOM + "SPECULATION"
    names = ["Eagle3DecodingConfig", "EagleDecodingConfig"]
    if settings.speculation != "Eagle3":
        names = [f"{settings.speculation}DecodingConfig"]
    kind = next((found for name in names if (found := getattr(package.api, name, None)) is not None), None)
    if kind is None:
        raise refusal(setting, f"tensorrt_llm {package.features.version} has no {names[-1]}")
    known = frozenset(kind.model_fields)
    length = "num_nextn_predict_layers" if "num_nextn_predict_layers" in known else "max_draft_len"
    options: dict[str, Any] = {length: settings.speculation_tokens}
    if settings.speculation in ("Eagle3", "DraftTarget"):
        if settings.speculation_model is None:
            raise refusal(_ROOM + "SPECULATION_MODEL", f"set it: {settings.speculation} needs weights of its own")
        folder = next((name for name in _SPECULATION_FOLDERS if name in known), _SPECULATION_FOLDERS[0])
        options[folder] = str(settings.speculation_model)
    try:
        return kind(**options)
    except (ValueError, TypeError) as error:
        raise refusal(setting, f"tensorrt_llm {package.features.version} does not take it: {error}") from error


def _adapters(settings: TensorRtLlmConfig) -> dict[str, tuple[str, int, str]]:
    """By name: (name, id, path). The id is the same in every process that has the adapter."""
    adapters: dict[str, tuple[str, int, str]] = {}
    for entry in settings.lora:
        name, _, path = entry.partition("=")
        if not name or not Path(path).is_dir():
            raise refusal(_ROOM + "LORA", f"'{entry}' is not name=folder, or the folder is not there")
        number = int.from_bytes(hashlib.sha256(f"{name}={path}".encode()).digest()[:4], "big")
        adapters[name] = (name, number % (2**31 - 1) + 1, path)
    return adapters


def _adapter(adapters: dict[str, tuple[str, int, str]], model: str | None) -> tuple[str, int, str] | None:
    """A worker serves one model: the one with this adapter, if an adapter has its name, is what it serves."""
    if not adapters:
        return None
    if model not in adapters:
        raise refusal("MODEL", f"it must be one of the adapters in {_ROOM}LORA: {', '.join(sorted(adapters))}")
    return adapters[model]


def _extra(settings: TensorRtLlmConfig, asked: _Asked, guided: str) -> dict[str, Any]:
    if settings.arguments_file is None:
        return {}
    try:
        extra = json.loads(settings.arguments_file.read_bytes())
    except (OSError, ValueError) as error:
        raise refusal(_ROOM + "ARGUMENTS_FILE", f"it is no file with a JSON object: {error}") from error
    if not isinstance(extra, dict):
        raise refusal(_ROOM + "ARGUMENTS_FILE", "it is no JSON object")
    for name in extra:
        if name in asked.arguments or name in ("model", "backend"):
            raise refusal(_ROOM + "ARGUMENTS_FILE", f"'{name}' is set by another setting; leave it out")
        asked.check(name, "ARGUMENTS_FILE")
    scheduler = extra.get("scheduler_config") or {}
    if guided != "none" and scheduler.get("capacity_scheduler_policy") == "MAX_UTILIZATION":
        # A generation that it pauses begins its form again in the middle (issue 18891 of that project).
        raise refusal(_ROOM + "ARGUMENTS_FILE", "MAX_UTILIZATION breaks structured output; set GUIDED=none for it")
    return extra


def _unless(value: str, default: str) -> str | None:
    return None if value == default else value


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _source(kind: Any) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""
