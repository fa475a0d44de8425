"""The tensors of TensorRT-LLM's models for Triton: names, types and dims as their config.pbtxt say them.

A line: name, type, dims; ``?`` after a name: optional. What only multimodal, encoder and speculative models use is left
out. Scalars of the core model have the dims [1] and are reshaped to none.
"""

_COMMON = """
end_id? INT32 1
pad_id? INT32 1
beam_width? INT32 1
num_return_sequences? INT32 1
temperature? FP32 1
repetition_penalty? FP32 1
presence_penalty? FP32 1
frequency_penalty? FP32 1
min_tokens? INT32 1
seed? UINT64 1
return_log_probs? BOOL 1
return_context_logits? BOOL 1
return_generation_logits? BOOL 1
return_perf_metrics? BOOL 1
return_num_input_tokens? BOOL 1
return_num_output_tokens? BOOL 1
exclude_input_in_output? BOOL 1
lora_task_id? UINT64 1
guided_decoding_guide_type? STRING 1
guided_decoding_guide? STRING 1
"""
_MEASURED = """
cum_log_probs FP32 -1
output_log_probs FP32 -1,-1
batch_index INT32 1
sequence_index INT32 1
kv_cache_alloc_new_blocks INT32 1
kv_cache_reused_blocks INT32 1
kv_cache_alloc_total_blocks INT32 1
arrival_time_ns INT64 1
first_scheduled_time_ns INT64 1
first_token_time_ns INT64 1
last_token_time_ns INT64 1
acceptance_rate FP32 1
total_accepted_draft_tokens INT32 1
total_draft_tokens INT32 1
num_input_tokens INT32 1
num_output_tokens INT32 1
"""
CORE_INPUTS = f"""
input_ids? INT32 -1
input_lengths INT32 1
request_output_len INT32 1
runtime_top_k? INT32 1
runtime_top_p? FP32 1
len_penalty? FP32 1
stop_words_list? INT32 2,-1
bad_words_list? INT32 2,-1
embedding_bias? FP32 -1
streaming? BOOL 1
stop? BOOL 1
{_COMMON}"""
CORE_OUTPUTS = f"""
output_ids INT32 -1,-1
sequence_length INT32 -1
{_MEASURED}"""
TEXT_INPUTS = f"""
text_input STRING 1
max_tokens INT32 1
bad_words? STRING -1
stop_words? STRING -1
top_k? INT32 1
top_p? FP32 1
length_penalty? FP32 1
stream? BOOL 1
embedding_bias_words? STRING -1
embedding_bias_weights? FP32 -1
{_COMMON}"""
TEXT_OUTPUTS = f"""
text_output STRING -1
{_MEASURED}"""
LLMAPI_INPUTS = """
text_input STRING -1
streaming? BOOL 1
stop? BOOL 1
sampling_param_best_of? INT32 1
sampling_param_temperature? FP32 1
sampling_param_top_k? INT32 1
sampling_param_top_p? FP32 1
sampling_param_frequency_penalty? FP32 1
sampling_param_presence_penalty? FP32 1
sampling_param_max_tokens? INT32 1
sampling_param_stop? STRING -1
sampling_param_seed? UINT64 1
sampling_param_exclude_input_from_output? BOOL 1
sampling_param_return_perf_metrics? BOOL 1
return_finish_reason? BOOL 1
return_stop_reason? BOOL 1
return_cumulative_logprob? BOOL 1
"""
LLMAPI_OUTPUTS = """
text_output STRING -1
finish_reason STRING -1
stop_reason STRING -1
cumulative_logprob FP32 -1
kv_cache_reused_block INT32 -1
kv_cache_missed_block INT32 -1
kv_cache_alloc_new_blocks INT32 -1
kv_cache_alloc_total_blocks INT32 -1
kv_cache_hit_rate FP32 -1
arrival_time_ns INT64 1
first_scheduled_time_ns INT64 1
first_token_time_ns INT64 1
last_token_time_ns INT64 1
acceptance_rate FP32 1
total_accepted_draft_tokens INT32 1
total_draft_tokens INT32 1
"""
PREPROCESSING_INPUTS = """
QUERY STRING 1
REQUEST_OUTPUT_LEN INT32 1
"""
PREPROCESSING_OUTPUTS = """
INPUT_ID INT32 -1
REQUEST_INPUT_LEN INT32 1
REQUEST_OUTPUT_LEN INT32 -1
OUT_END_ID INT32 1
"""
POSTPROCESSING_INPUTS = """
TOKENS_BATCH INT32 -1,-1
SEQUENCE_LENGTH INT32 -1
"""
POSTPROCESSING_OUTPUTS = """
OUTPUT STRING -1
"""
# The ensemble's names of the core model's inputs; the other ones are equal.
_CORE_OF_ENSEMBLE = {"runtime_top_k": "top_k", "runtime_top_p": "top_p", "len_penalty": "length_penalty"}
_STEPS = (
    (
        "preprocessing",
        {"QUERY": "text_input", "REQUEST_OUTPUT_LEN": "max_tokens"},
        {
            "INPUT_ID": "_INPUT_ID",
            "REQUEST_INPUT_LEN": "_REQUEST_INPUT_LEN",
            "REQUEST_OUTPUT_LEN": "_REQUEST_OUTPUT_LEN",
            "OUT_END_ID": "_END_ID",
        },
    ),
    (
        "tensorrt_llm",
        {
            "input_ids": "_INPUT_ID",
            "input_lengths": "_REQUEST_INPUT_LEN",
            "request_output_len": "_REQUEST_OUTPUT_LEN",
            "end_id": "_END_ID",
            "streaming": "stream",
            **{
                _name: _CORE_OF_ENSEMBLE.get(_name, _name)
                for _name in (
                    "runtime_top_k", "runtime_top_p", "len_penalty", "temperature", "repetition_penalty",
                    "presence_penalty", "frequency_penalty", "seed", "return_num_input_tokens",
                    "return_num_output_tokens", "return_perf_metrics", "exclude_input_in_output",
                )
            },
        },
        {
            "output_ids": "_TOKENS_BATCH",
            "sequence_length": "_SEQUENCE_LENGTH",
            "num_input_tokens": "num_input_tokens",
            "num_output_tokens": "num_output_tokens",
        },
    ),
    (
        "postprocessing",
        {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"},
        {"OUTPUT": "text_output"},
    ),
)  # fmt: skip


def tensors(kind: str, table: str, *, scalars: bool = False) -> str:
    """``kind``: input or output. ``scalars``: dims of [1] mean none."""
    entries = []
    for line in table.split("\n"):
        if not line:
            continue
        name, dtype, dims = line.split()
        more = " optional: true" if name.endswith("?") else ""
        if scalars and kind == "input" and dims == "1" and dtype != "STRING":
            more += " reshape: { shape: [] }"
        entries.append(f'  {{ name: "{name.rstrip("?")}" data_type: TYPE_{dtype} dims: [{dims}]{more} }}')
    return f"{kind} [\n" + ",\n".join(entries) + "\n]\n"


def steps() -> str:
    """What the ensemble does."""
    written = []
    for model, inputs, outputs in _STEPS:
        lines = [f'model_name: "{model}"', "model_version: -1"]
        for kind, names in (("input_map", inputs), ("output_map", outputs)):
            lines += [f'{kind} {{ key: "{inner}" value: "{outer}" }}' for inner, outer in names.items()]
        written.append("  {\n    " + "\n    ".join(lines) + "\n  }")
    return "ensemble_scheduling {\n step [\n" + ",\n".join(written) + "\n ]\n}\n"
