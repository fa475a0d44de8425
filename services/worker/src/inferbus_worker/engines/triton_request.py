"""A generation as a request to Triton, by the family of its model, and what a family cannot do.

Nothing is left to the server's defaults: without top_k and top_p the backend is greedy, without a seed every draw of it
is the same, and family B ends after 32 tokens and repeats the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.engine import Constraint, ConstraintKind, Sampling
from inferbus_worker.engines.triton_model import Family, Served
from inferbus_worker.engines.triton_wire import RequestBuilder

_SEEDS = 1 << 64
# Sampling's field: (family's tensor, value that changes nothing). What a model has no tensor for is refused by name.
_TEXT_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "seed": "seed",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "min_p": "min_p",
}
_NAMES = {
    Family.TEXT: _TEXT_NAMES,
    Family.CORE: _TEXT_NAMES | {"top_p": "runtime_top_p", "top_k": "runtime_top_k"},
    Family.LLMAPI: {field: f"sampling_param_{name}" for field, name in _TEXT_NAMES.items()},
}
_TYPES = {"top_k": "INT32", "seed": "UINT64"}
_NEUTRAL = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "min_p": 0.0,
}  # fmt: skip
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty", "min_p")


@dataclass(frozen=True, slots=True)
class Task:
    """What the server is asked for. ``prompt``: ids for a core model, else text. ``seed``: used if ``sampling`` has
    none. ``end_ids``: tokens that end the answer, for a core model. ``vocabulary``: how many logits there are.
    ``measures``: its figures are wanted, too."""

    prompt: str | Sequence[int]
    max_new: int
    sampling: Sampling
    seed: int
    constraint: Constraint | None = None
    end_ids: tuple[int, ...] = ()
    vocabulary: int = 0
    measures: bool = False


def capabilities_of(served: Served, *, chat: bool, reasons: bool) -> tuple[str, ...]:
    """``chat``: there is a template for messages. ``reasons``: it can be told how much to think."""
    able = [
        ("chat", chat),
        ("completions", True),
        ("structured_output", served.guided),
        ("reasoning", chat and reasons),
    ]
    able.append(("logit_bias", served.family is Family.CORE and "embedding_bias" in served.inputs))
    return tuple(name for name, is_able in able if is_able)


def sampling_fault(served: Served, sampling: Sampling) -> InferBusError | None:
    """The first parameter that this model has no tensor for."""
    for field, tensor in _NAMES[served.family].items():
        value = getattr(sampling, field)
        if value is None or value == _NEUTRAL.get(field) or tensor in served.inputs:
            continue
        if field == "temperature" and value == 0:
            continue  # said by top_k
        return invalid(f"This model does not support '{field}'.", param=field, reason="unsupported_parameter")
    return None


def request_of(served: Served, task: Task, request_id: str) -> Any:
    """The ModelInferRequest. ``request_id``: unique among the server's requests, in digits: the backend reads any other
    as a number where it begins like one, or as its hash."""
    builder = RequestBuilder(served.name, request_id, batched=served.batched)
    match served.family:
        case Family.CORE:
            _core(builder, task)
        case Family.TEXT:
            _text(builder, served, task)
        case Family.LLMAPI:
            _llmapi(builder, task)
    _sampling(builder, served, task)
    _guide(builder, task.constraint)
    return builder.message


def stop_request(core: str, request_id: str, *, batched: bool) -> Any:
    """Ends the request of this id in the core model: what it needs besides ``stop`` is not read."""
    builder = RequestBuilder(core, request_id, batched=batched)
    for name in ("input_ids", "input_lengths", "request_output_len"):
        builder.value(name, "INT32", 0)
    builder.value("stop", "BOOL", True)
    return builder.message


def _core(builder: RequestBuilder, task: Task) -> None:
    builder.values("input_ids", "INT32", tuple(task.prompt))
    builder.value("input_lengths", "INT32", len(task.prompt))
    builder.value("request_output_len", "INT32", task.max_new)
    builder.value("streaming", "BOOL", True)
    builder.value("exclude_input_in_output", "BOOL", True)
    builder.value("end_id", "INT32", task.end_ids[0])
    builder.value("pad_id", "INT32", task.end_ids[0])
    if more := task.end_ids[1:]:
        # Words of a token each: in one row the tokens, in the other where each word ends.
        builder.values("stop_words_list", "INT32", (*more, *range(1, len(more) + 1)), (2, len(more)))
    if task.sampling.logit_bias:
        bias = [0.0] * task.vocabulary
        for token, value in task.sampling.logit_bias:
            bias[token] += value
        builder.values("embedding_bias", "FP32", bias)
    builder.wants("output_ids", "sequence_length")
    if task.measures:
        builder.value("return_perf_metrics", "BOOL", True)
        builder.wants("kv_cache_reused_blocks")


def _text(builder: RequestBuilder, served: Served, task: Task) -> None:
    builder.values("text_input", "BYTES", (str(task.prompt).encode(),))
    builder.value("max_tokens", "INT32", task.max_new)
    builder.wants("text_output")
    for name, value in (("stream", True), ("exclude_input_in_output", True)):
        if name in served.inputs:
            builder.value(name, "BOOL", value)
    if "stop_words" in served.inputs and (stops := [stop.encode() for stop in task.sampling.stop if stop]):
        # We stop by ourselves; but a cancel does not reach a BLS, which would go on for nobody.
        builder.values("stop_words", "BYTES", stops)
    for count in ("num_input_tokens", "num_output_tokens"):
        if f"return_{count}" in served.inputs and count in served.outputs:
            builder.value(f"return_{count}", "BOOL", True)
            builder.wants(count)
    if task.measures and {"return_perf_metrics"} <= served.inputs and "kv_cache_reused_blocks" in served.outputs:
        builder.value("return_perf_metrics", "BOOL", True)
        builder.wants("kv_cache_reused_blocks")


def _llmapi(builder: RequestBuilder, task: Task) -> None:
    builder.values("text_input", "BYTES", (str(task.prompt).encode(),))
    builder.value("sampling_param_max_tokens", "INT32", task.max_new)
    builder.value("streaming", "BOOL", True)
    builder.value("sampling_param_exclude_input_from_output", "BOOL", True)
    builder.value("return_finish_reason", "BOOL", True)
    builder.wants("text_output", "finish_reason")
    if task.measures:
        builder.value("sampling_param_return_perf_metrics", "BOOL", True)
        builder.wants("kv_cache_reused_block")


def _sampling(builder: RequestBuilder, served: Served, task: Task) -> None:
    sampling = task.sampling
    values: dict[str, Any] = {name: getattr(sampling, name) for name in _PENALTIES}
    if sampling.temperature == 0 or sampling.top_p == 0 or sampling.top_k == 1:
        values["top_k"] = 1
    else:
        values["temperature"] = sampling.temperature
        values["top_p"] = 1.0 if sampling.top_p is None else sampling.top_p
        values["top_k"] = sampling.top_k or None
        values["seed"] = (task.seed if sampling.seed is None else sampling.seed) % _SEEDS
    for field, tensor in _NAMES[served.family].items():
        if (value := values.get(field)) is not None and tensor in served.inputs:
            builder.value(tensor, _TYPES.get(field, "FP32"), value)


def _guide(builder: RequestBuilder, constraint: Constraint | None) -> None:
    if constraint is None:
        return
    kind, source = "json_schema", constraint.source
    if constraint.kind is ConstraintKind.REGEX:
        kind = "regex"
    elif constraint.kind is ConstraintKind.JSON_OBJECT:
        source = '{"type": "object"}'  # the type "json" would let any value through
    builder.values("guided_decoding_guide_type", "BYTES", (kind.encode(),))
    builder.values("guided_decoding_guide", "BYTES", (source.encode(),))
