"""What a start refuses, by the name of the setting: with tensorrt_llm_double.py, a double, and no engine."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from inferbus_runtime.errors import InferBusError
from inferbus_worker.config import Config, TensorRtLlmConfig
from inferbus_worker.engines.tensorrt_llm_args import Plan, plan
from inferbus_worker.engines.tensorrt_llm_model import read_folder
from inferbus_worker.engines.tensorrt_llm_package import load, settle_environment


def beside(name: str) -> ModuleType:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


double = beside("tensorrt_llm_double")
LLAMA = {"max_position_embeddings": 4096, "vocab_size": 128, "eos_token_id": [2, 3]}
ENGINE = {
    "build_config": {"max_seq_len": 2048, "max_batch_size": 16},
    "pretrained_config": {"vocab_size": 128, "quantization": {"quant_algo": "FP8"}},
}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Plan]:
    double.install(monkeypatch, tmp_path)

    def make(config: dict[str, Any] = LLAMA, **settings: Any) -> Plan:
        (tmp_path / "config.json").write_text(json.dumps(config))
        shared = {name: settings.pop(name) for name in ("capacity", "context_length", "model") if name in settings}
        room = TensorRtLlmConfig(**{"model_path": tmp_path} | settings)
        worker = Config(name="t", engine="tensorrt_llm", tensorrt_llm=room, **shared)
        folder = read_folder(room.model_path, room.tokenizer_path)
        return plan(worker, folder, load(folder.backend))

    return make


def refused(make: Callable[..., Any], *args: Any, **settings: Any) -> str:
    """The variable's name, and why."""
    with pytest.raises(InferBusError) as fault:
        make(*args, **settings)
    assert fault.value.reason == "engine_settings"
    assert "INFERBUS" not in fault.value.message
    return fault.value.diagnostic.removeprefix("INFERBUS_WORKER_")


def test_settings_become_arguments(planned: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "extra.json").write_text('{"scheduler_config": {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}}')
    made = planned(
        tensor_parallel=2, pipeline_parallel=2, expert_parallel=4, batch_tokens=2048, kv_memory_fraction=0.5,
        kv_tokens=1000, kv_host_bytes=5, kv_block_tokens=64, kv_dtype="fp8", kv_events=9, sampler="TRTLLMSampler",
        overlap=False, trust_remote_code=True, arguments_file=tmp_path / "extra.json", capacity=3,
    )  # fmt: skip
    args = double.TorchLlmArgs(model="m", **made.arguments)
    assert (args.tensor_parallel_size, args.pipeline_parallel_size, args.moe_expert_parallel_size) == (2, 2, 4)
    assert (args.max_batch_size, args.max_num_tokens, args.max_seq_len) == (3, 2048, 4096)
    assert (args.sampler_type, args.disable_overlap_scheduler, args.enable_iter_perf_stats) == (
        "TRTLLMSampler", True, True
    )  # fmt: skip
    assert args.scheduler_config == {"capacity_scheduler_policy": "GUARANTEED_NO_EVICT"}
    cache = args.kv_cache_config
    assert (cache.max_tokens, cache.free_gpu_memory_fraction, cache.host_cache_size) == (1000, 0.5, 5)
    assert (cache.tokens_per_block, cache.dtype, cache.event_buffer_max_size) == (64, "fp8", 9)
    assert (made.capacity, made.context_length, made.longest_input, made.guided) == (3, 4096, 4095, "llguidance")


def test_a_built_engine_brings_its_own_limits(planned: Callable[..., Plan]) -> None:
    made = planned(ENGINE)
    double.TrtLlmArgs(model="m", **made.arguments)
    assert (made.capacity, made.context_length, made.guided) == (16, 2048, "xgrammar")
    assert "max_seq_len" not in made.arguments
    assert refused(planned, ENGINE, capacity=17).startswith("CAPACITY: ")
    assert refused(planned, ENGINE, guided="llguidance").startswith("TENSORRT_LLM__GUIDED: ")
    assert refused(planned, ENGINE, kv_dtype="fp8").startswith("TENSORRT_LLM__KV_DTYPE: ")
    assert refused(planned, ENGINE, speculation="NGram").startswith("TENSORRT_LLM__SPECULATION: ")
    assert refused(planned, ENGINE, sampler="TorchSampler").startswith("TENSORRT_LLM__SAMPLER: ")
    assert refused(planned, ENGINE, overlap=False).startswith("TENSORRT_LLM__OVERLAP: ")


def test_a_version_without_built_engines_says_so(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt_llm._tensorrt_engine")
    sys.modules["tensorrt_llm"].__path__ = []
    assert refused(planned, ENGINE).startswith("TENSORRT_LLM__MODEL_PATH: it is a built engine")


def test_what_the_version_lacks_is_named(planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(planned, priority=0.7).startswith("TENSORRT_LLM__PRIORITY: ")
    assert refused(planned, kv_dtype="nvfp4").startswith("TENSORRT_LLM__KV_DTYPE: ")
    assert refused(planned, speculation="DraftTarget").startswith("TENSORRT_LLM__SPECULATION: ")
    monkeypatch.delattr(double.LLM, "get_kv_cache_events_async")
    assert refused(planned, kv_events=5).startswith("TENSORRT_LLM__KV_EVENTS: ")
    api = sys.modules["tensorrt_llm.llmapi"]
    monkeypatch.setattr(api, "KvCacheConfig", type("KvCacheConfig", (double.StrictModel,), {}))
    assert refused(planned).startswith("TENSORRT_LLM__BLOCK_REUSE: ")
    old = type("TorchLlmArgs", (double.StrictModel,), {})
    monkeypatch.setattr(api, "TorchLlmArgs", old)
    assert refused(planned).startswith("CAPACITY: tensorrt_llm 1.2.1 has no 'max_batch_size'")

    def generate_async(self: Any, inputs: Any, sampling_params: Any = None, streaming: bool = False) -> None: ...

    monkeypatch.setattr(double.LLM, "generate_async", generate_async)
    assert "apart" in refused(planned), "no salt, no shared prefixes"


def test_what_contradicts_itself_is_named(planned: Callable[..., Plan], tmp_path: Path) -> None:
    assert refused(planned, kv_events=5, block_reuse=False).startswith("TENSORRT_LLM__KV_EVENTS: ")
    assert refused(planned, context_length=5000).startswith("CONTEXT_LENGTH: ")
    assert refused(planned, {"vocab_size": 5}).startswith("CONTEXT_LENGTH: set it")
    assert refused(planned, speculation="Eagle3").startswith("TENSORRT_LLM__SPECULATION_MODEL: ")
    assert refused(planned, lora=("poet=/nowhere",)).startswith("TENSORRT_LLM__LORA: ")
    assert refused(planned, lora=(f"poet={tmp_path}",), model="other").startswith("MODEL: ")
    assert planned(chunked_prefill=False, batch_tokens=100).longest_input == 100
    assert planned(speculation="NGram").arguments["disable_overlap_scheduler"]
    assert (
        planned(speculation="MTP", speculation_tokens=2).arguments["speculative_config"].num_nextn_predict_layers == 2
    )
    eagle = planned(speculation="Eagle3", speculation_model=tmp_path).arguments["speculative_config"]
    assert (eagle.max_draft_len, eagle.speculative_model_dir) == (3, str(tmp_path))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "no file with a JSON object"),
        ("[1]", "no JSON object"),
        ('{"max_batch_size": 3}', "set by another setting"),
        ('{"model": "x"}', "set by another setting"),
        ('{"moe_confg": {}}', "no 'moe_confg'"),
        ('{"scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"}}', "breaks structured output"),
    ],
)
def test_further_arguments_are_checked(planned: Callable[..., Plan], tmp_path: Path, content: str, why: str) -> None:
    (tmp_path / "extra.json").write_text(content)
    said = refused(planned, arguments_file=tmp_path / "extra.json")
    assert said.startswith("TENSORRT_LLM__ARGUMENTS_FILE: ")
    assert why in said


def test_folders_say_what_they_hold(tmp_path: Path) -> None:
    for missing in (None, tmp_path / "nowhere"):
        assert refused(read_folder, missing).startswith("TENSORRT_LLM__MODEL_PATH: ")
    (tmp_path / "config.json").write_text(json.dumps({"text_config": LLAMA, "vocab_size": 7}))
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    folder = read_folder(tmp_path)
    assert (folder.backend, folder.context_length, folder.logits, folder.quantization) == (
        "pytorch",
        4096,
        128,
        "NVFP4",
    )
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": {"quant_method": "awq"}}))
    (tmp_path / "hf_quant_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 9}))
    again = read_folder(tmp_path)
    assert (again.quantization, again.end_ids) == ("awq", (9,))
    assert again.digest != folder.digest
    (tmp_path / "config.json").write_text(json.dumps(ENGINE))
    built = read_folder(tmp_path, tmp_path)
    assert (built.backend, built.context_length, built.capacity, built.quantization) == ("tensorrt", 2048, 16, "FP8")


def test_without_the_package_the_worker_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    assert refused(load, "pytorch").startswith("ENGINE: tensorrt_llm cannot be used here")


def test_the_environment_is_settled_before_the_import() -> None:
    environ = {"OMPI_COMM_WORLD_RANK": "0", "PMIX_RANK": "0", "OMPI_MCA_orte_x": "1", "OMPI_MCA_btl": "self"}
    settle_environment(environ)
    assert environ == {
        "OMPI_MCA_btl": "self", "TRTLLM_NO_USAGE_STATS": "1", "TELEMETRY_DISABLED": "1", "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    launched = {"OMPI_COMM_WORLD_RANK": "0", "TLLM_SPAWN_PROXY_PROCESS": "1"}
    settle_environment(launched)
    assert "OMPI_COMM_WORLD_RANK" in launched, "an engine over several nodes was launched for it"
