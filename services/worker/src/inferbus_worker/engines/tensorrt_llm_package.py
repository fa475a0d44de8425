"""The package tensorrt_llm, imported: the only module that does, and it does so when the engine starts.

It is read by name, since names come and go between its versions; what a version lacks is found here, at the start. The
names are those of its sources from 1.1 to pre-releases of 1.4: llmapi (llm, llm_args, __init__), sampling_params,
executor (result, request, utils, proxy) and _torch/pyexecutor (sampler, grammar_matcher, guided_decoder).
"""

import inspect
import os
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.start_faults import refusal

Backend = Literal["pytorch", "tensorrt"]
PENALTIES = frozenset({"frequency_penalty", "presence_penalty", "repetition_penalty"})
_SAMPLER = "tensorrt_llm._torch.pyexecutor.sampler"
# Where LoraConfig was: 1.1 and 1.2, before, since.
_LORA_MODULES = ("tensorrt_llm.lora_helper", "tensorrt_llm.lora_manager", "tensorrt_llm._torch.peft.lora.config")


@dataclass(frozen=True, slots=True)
class Features:
    """What the installed version has, by the names of its own parameters.

    ``arguments``: of LLM. ``generate``: of generate_async. ``sampling``, ``guides``, ``kv_cache``: fields of
    SamplingParams, GuidedDecodingParams and KvCacheConfig. ``torch_sampler``: of seed, min_p and the penalties, those
    that its sampler in PyTorch looks at; others it takes and forgets.
    """

    version: str
    backend: Backend
    arguments: frozenset[str]
    generate: frozenset[str]
    sampling: frozenset[str]
    guides: frozenset[str]
    kv_cache: frozenset[str]
    torch_sampler: frozenset[str] = frozenset()

    def honoured(self, sampler: str, *, speculating: bool) -> frozenset[str]:
        """Those of seed, min_p and the penalties that change what is drawn, with this choice of ``sampler``."""
        asked = PENALTIES | {"seed", "min_p"}
        if speculating:  # each kind of speculation has a sampler of its own, with fewer parameters
            return frozenset()
        in_cpp = self.backend == "tensorrt" or sampler == "TRTLLMSampler"
        return (asked if in_cpp else self.torch_sampler) & self.sampling


@dataclass(frozen=True, slots=True)
class Package:
    """Its classes. ``api``: tensorrt_llm.llmapi, for those that a setting names."""

    features: Features
    llm: Any
    api: Any
    sampling_params: Any
    guided_decoding_params: Any
    kv_cache_config: Any
    request_error: type[Exception]

    def lora_request(self, name: str, number: int, path: str) -> Any:
        kind = getattr(self.api, "LoRARequest", None) or import_module("tensorrt_llm.executor").LoRARequest
        return kind(name, number, path)

    def lora_config(self, **options: Any) -> Any:
        for module in _LORA_MODULES:
            if (kind := getattr(_found(module), "LoraConfig", None)) is not None:
                return kind(**options)
        raise refusal("TENSORRT_LLM__LORA", "this version of tensorrt_llm has no LoraConfig")


def settle_environment(environ: MutableMapping[str, str]) -> None:
    """Before the import: the package reads these when it is loaded, and hands them to its own processes.

    No usage reports, nothing downloaded in passing, and no MPI job of whoever started us: its workers make one of
    their own, unless they were launched for it (several nodes).
    """
    for name in ("TRTLLM_NO_USAGE_STATS", "TELEMETRY_DISABLED", "DO_NOT_TRACK", "HF_HUB_OFFLINE"):
        environ[name] = "1"
    if environ.get("TLLM_SPAWN_PROXY_PROCESS") != "1":
        for name in [name for name in environ if _of_a_job(name)]:
            del environ[name]


def _of_a_job(name: str) -> bool:
    """Whether an environment variable is about an MPI job; those with MCA in their names are MPI's settings."""
    if name.startswith(("OMPI_MCA_orte_", "ORTE_")):
        return True
    return name.startswith(("OMPI_", "PMIX_", "PMI_")) and "_MCA_" not in name


def load(backend: Backend) -> Package:
    """Imports it, which takes tens of seconds. Raises InferBusError if it is not there or cannot be used."""
    settle_environment(os.environ)  # noqa: TID251  (it is that package's, and read by nobody here)
    try:
        top = import_module("tensorrt_llm")
        api = import_module("tensorrt_llm.llmapi")
        llm = api.LLM if backend == "pytorch" else import_module("tensorrt_llm._tensorrt_engine").LLM
        arguments = api.TorchLlmArgs if backend == "pytorch" else api.TrtLlmArgs
    except ModuleNotFoundError as error:
        if error.name == "tensorrt_llm._tensorrt_engine":
            why = "it is a built engine, and this version of tensorrt_llm serves checkpoints only"
            raise refusal("TENSORRT_LLM__MODEL_PATH", why) from error
        raise _unusable(error) from error
    except (ImportError, AttributeError, OSError) as error:
        raise _unusable(error) from error
    features = Features(
        version=str(getattr(top, "__version__", "unknown")),
        backend=backend,
        arguments=names_of(arguments),
        generate=names_of(llm.generate_async),
        sampling=names_of(api.SamplingParams),
        guides=names_of(api.GuidedDecodingParams),
        kv_cache=names_of(api.KvCacheConfig),
        torch_sampler=_torch_sampler() if backend == "pytorch" else frozenset(),
    )
    if "streaming" not in features.generate:
        raise _unusable(AttributeError("the signature of LLM.generate_async cannot be read"))
    return Package(
        features, llm, api, api.SamplingParams, api.GuidedDecodingParams, api.KvCacheConfig, api.RequestError
    )


def names_of(kind: Any) -> frozenset[str]:
    """Parameters of a function, or fields of a dataclass or a pydantic model."""
    if is_dataclass(kind):
        return frozenset(field.name for field in fields(kind) if field.init)
    named: Iterable[str] | None = getattr(kind, "model_fields", None)
    return frozenset(inspect.signature(kind).parameters if named is None else named)


def _torch_sampler() -> frozenset[str]:
    """Found by the parts that do it: its sampler takes every parameter and, until 1.3, forgot most without a word
    (pull requests 16485 for penalties, 17172 for seeds)."""
    sampler = _found(_SAMPLER)
    if sampler is None:
        return frozenset()
    looked_at: set[str] = set()
    if hasattr(getattr(sampler, "TorchSampler", None), "PenaltyHandler") or _has(f"{_SAMPLER}.penalties"):
        looked_at |= PENALTIES
    if _has(f"{_SAMPLER}.seed_manager"):
        looked_at.add("seed")
    for module in (sampler, _found(f"{_SAMPLER}.sampler_common"), _found(f"{_SAMPLER}.sampling_utils")):
        known = getattr(module, "UtilsSamplingParams", None)
        if known is not None and "min_p" in names_of(known):
            looked_at.add("min_p")
    return frozenset(looked_at)


def _has(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its parent is no package in this version
        return False


def _found(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        return None


def _unusable(error: Exception) -> InferBusError:
    return refusal("ENGINE", f"tensorrt_llm cannot be used here: {error!r}")
