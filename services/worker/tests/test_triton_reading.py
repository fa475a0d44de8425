"""The parts of ``triton`` that need no server: tensors, responses, errors, tokenizer files, the metrics page."""

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient", reason="the extra triton is not installed")

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_worker.core.grammar import grammar_of_constraint
from inferbus_worker.engine import UNKNOWN_TOKEN, Constraint, ConstraintKind, EngineStatistics, Finish, Prompt, Sampling
from inferbus_worker.engines.follower import Follower
from inferbus_worker.engines.triton_errors import Trouble, error_of, trouble_of
from inferbus_worker.engines.triton_health import Health, HealthLimits, ProbeError
from inferbus_worker.engines.triton_metrics import ServerLoad, load_of
from inferbus_worker.engines.triton_model import Family, Served
from inferbus_worker.engines.triton_request import Task, request_of, stop_request
from inferbus_worker.engines.triton_stream import IdsReader, LlmApiReader, TextReader
from inferbus_worker.engines.triton_tokenizer import TextDecoder, load
from inferbus_worker.engines.triton_wire import Outputs, is_final
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tritonclient.grpc import service_pb2 as messages

from services.worker.tests import smollm2_tokenizer


def response(final: bool = False, **tensors: Any) -> Any:
    """Values: bytes (BYTES), numbers in a list (INT32), a float (FP32)."""
    message = messages.ModelInferResponse()
    message.parameters["triton_final_response"].bool_param = final
    for name, value in tensors.items():
        if isinstance(value, bytes):
            datatype, raw = "BYTES", struct.pack("<I", len(value)) + value
        elif isinstance(value, float):
            datatype, raw = "FP32", struct.pack("<f", value)
        else:
            datatype, raw = "INT32", struct.pack(f"<{len(value)}i", *value)
        message.outputs.add(name=name, datatype=datatype)
        message.raw_output_contents.append(raw)
    return message


def deltas(reader: Any, *responses: Any) -> tuple[list[tuple[int, str]], Finish]:
    """(tokens, text) of each, the rest at the end included."""
    read = [reader.feed(one) for one in responses]
    rest, reason = reader.end()
    return [(len(one.token_ids), one.text) for one in (*read, rest) if one is not None], reason


# --- responses --------------------------------------------------------------------------------------------------------


def test_outputs_are_read_leniently() -> None:
    outputs = Outputs(response(a=b"3.5", b=[7, 8], c=b"N/A", d=0.25, e=b""))
    assert [outputs.number(name) for name in "abcdexy"] == [3.5, 7.0, None, 0.25, None, None, None]
    assert outputs.integers("b") == (7, 8)
    assert (outputs.text("a"), outputs.text("e"), outputs.text("nothing")) == (b"3.5", b"", None)
    assert is_final(response(final=True))
    assert not is_final(response())


def test_a_text_that_grows_is_delivered_once_and_in_whole_characters() -> None:
    """Decoders write U+FFFD for half a character, and another text when it is whole."""
    party = "🎉".encode()
    said = [b"so", b"so \xef\xbf\xbd", b"so \xef\xbf\xbd\xef\xbf\xbd", b"so " + party, b"so " + party + b"!"]
    reader = LlmApiReader()
    read, reason = deltas(reader, *(response(text_output=text, finish_reason=b"None") for text in said))
    assert "".join(text for _, text in read) == "so 🎉!"
    assert sum(count for count, _ in read) == 5
    assert reason is Finish.STOP


def test_half_a_character_at_the_very_end_is_text() -> None:
    last = response(text_output=b"so \xef\xbf\xbd", finish_reason=b"length")
    read, reason = deltas(LlmApiReader(), response(text_output=b"so", finish_reason=b"None"), last)
    assert ("".join(text for _, text in read), sum(count for count, _ in read)) == ("so \ufffd", 2)
    assert reason is Finish.LENGTH


@pytest.mark.parametrize(("reason", "tokens"), [(b"stop", 1), (b"length", 2)])
def test_the_last_token_without_text_is_the_end_token_if_it_stopped(reason: bytes, tokens: int) -> None:
    last = response(text_output=b"so", finish_reason=reason)
    read, _ = deltas(LlmApiReader(), response(text_output=b"so", finish_reason=b"None"), last)
    assert sum(count for count, _ in read) == tokens


def test_deltas_count_as_the_server_says() -> None:
    reader = TextReader(cumulative=False, max_new=9)
    read, reason = deltas(
        reader,
        response(text_output=b"a", num_output_tokens=[1], num_input_tokens=[30]),
        response(text_output=b"", num_output_tokens=[1]),  # inside a character
        response(text_output=b"bc", num_output_tokens=[3]),
        response(text_output=b"", num_output_tokens=[1]),  # the end token
        response(final=True),
    )
    assert (read, reason) == ([(1, "a"), (4, "bc")], Finish.STOP)
    assert (reader.input_tokens, reader.counted) == (30, True)


def test_a_text_of_all_the_tokens_that_it_may_have_ended_by_its_length() -> None:
    read, reason = deltas(
        TextReader(cumulative=False, max_new=2), response(text_output=b"a"), response(text_output=b"b")
    )
    assert (read, reason) == ([(1, "a"), (1, "b")], Finish.LENGTH)
    assert deltas(TextReader(cumulative=True, max_new=3), response(text_output=b"a"))[1] is Finish.STOP


def test_bytes_of_a_character_in_two_deltas_come_together() -> None:
    half = [response(text_output=part) for part in (b"\xc3", b"\xa4!")]
    read, _ = deltas(TextReader(cumulative=False, max_new=9), *half)
    assert read == [(2, "ä!")]


def test_ids_end_at_an_end_token_and_padding_is_none(tmp_path: Path) -> None:
    tokenizer = load(smollm2_tokenizer.write(tmp_path)).tokenizer
    assert tokenizer is not None
    a, b = tokenizer.encode("Hello there")
    reader = IdsReader(tokenizer, [])
    read, reason = deltas(
        reader,
        response(output_ids=[a, -1, -1], sequence_length=[1]),
        response(output_ids=[b, -1]),
        response(output_ids=[tokenizer.end_ids[1], a], sequence_length=[2]),
    )
    assert (read, reason, reader.done) == ([(1, "Hello"), (1, " there")], Finish.STOP, True)
    assert deltas(IdsReader(tokenizer, []), response(output_ids=[a], sequence_length=[1]))[1] is Finish.LENGTH


# --- requests ---------------------------------------------------------------------------------------------------------


def served(family: Family, *inputs: str, batched: bool = True) -> Served:
    return Served("m", family, frozenset(inputs), frozenset(), batched, False, "", True, "", frozenset())


def tensors(message: Any) -> dict[str, tuple[list[int], bytes]]:
    return {
        one.name: (list(one.shape), raw) for one, raw in zip(message.inputs, message.raw_input_contents, strict=True)
    }


def test_nothing_is_left_to_the_servers_defaults() -> None:
    names = ("runtime_top_k", "runtime_top_p", "temperature", "seed")
    core = served(Family.CORE, *names)
    sent = tensors(request_of(core, Task((5, 6, 7), 9, Sampling(), seed=2**64 + 3, end_ids=(2, 0, 11)), "17"))
    assert sent["input_ids"] == ([1, 3], struct.pack("<3i", 5, 6, 7))
    assert sent["runtime_top_p"] == ([1, 1], struct.pack("<f", 1.0))
    assert sent["seed"] == ([1, 1], struct.pack("<Q", 3))
    assert sent["end_id"][1] == struct.pack("<i", 2)
    assert sent["stop_words_list"] == ([1, 2, 2], struct.pack("<4i", 0, 11, 1, 2))
    assert "runtime_top_k" not in sent
    for greedy in (Sampling(temperature=0.0), Sampling(top_p=0.0), Sampling(top_k=1)):
        sent = tensors(request_of(core, Task((5,), 9, greedy, 1, end_ids=(2,)), "17"))
        assert sent["runtime_top_k"][1] == struct.pack("<i", 1)
        assert not {"temperature", "seed", "runtime_top_p"} & set(sent)
    sent = tensors(request_of(served(Family.LLMAPI, batched=False), Task("hü", 9, Sampling(), 1), "17"))
    assert sent["text_input"] == ([1], struct.pack("<I", 3) + "hü".encode())
    assert sent["sampling_param_exclude_input_from_output"] == ([1], b"\x01")


def test_a_stop_has_the_id_of_what_it_stops() -> None:
    message = stop_request("tensorrt_llm", "17", batched=True)
    assert (message.id, message.model_name) == ("17", "tensorrt_llm")
    assert tensors(message)["stop"] == ([1, 1], b"\x01")


def test_forms_with_white_space_are_followed() -> None:
    """The backend's own grammar allows any."""
    form = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    constraint = Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(form | {"additionalProperties": False}))
    follower = Follower(grammar_of_constraint(constraint, any_space=True))
    assert follower.takes('{\n  "name" :\t"x"\n}')
    assert follower.complete()
    assert not Follower(grammar_of_constraint(constraint)).takes('{\n  "name"')


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("Stub process 'tensorrt_llm_0_0' is not healthy.", Trouble.GONE),
        ("Request for unknown model: 'x' is not found", Trouble.GONE),
        ("Request for unknown model: 'x' has no available versions", Trouble.GONE),
        ("[request id: 6] expected number of inputs between 2 and 31 but got 1 inputs for model 'm'. Got input(s) "
         "['input_ids'], but missing required input(s) ['input_lengths']. Please provide all required input(s).",
         Trouble.MISFIT),
        ("[request id: 6] unexpected inference input 'x' for model 'm'", Trouble.MISFIT),
        ("Exceeds maximum queue size", Trouble.FULL),
        ("Executor failed process requestId 3 due to the following error: Prompt length (9001) exceeds maximum input "
         "length (8192). Set log level to info and check TRTLLM logs", Trouble.TOO_LONG),
        ("Error generating request: The prompt length (9001) should not exceed max_num_tokens (8192)",
         Trouble.TOO_LONG),
        ("Request cancelled by client", Trouble.OTHER),
        ("Error generating request: CUDA out of memory", Trouble.OTHER),
    ],
)  # fmt: skip
def test_errors_are_told_by_their_words(text: str, trouble: Trouble) -> None:
    assert trouble_of(text) is trouble
    error = error_of(trouble, text, Prompt("x"), 5)
    assert error.diagnostic == text
    assert not {"stub", "input_lengths", "cuda", "executor"} & set(error.message.lower().split())
    if trouble is Trouble.TOO_LONG:
        assert (error.reason, error.param) == ("context_length_exceeded", "prompt")
        assert "9001" in error.message
    retryable = error.error_class in (ErrorClass.ERROR_CLASS_UNAVAILABLE, ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED)
    assert retryable is (error.retry_after is not None) is (trouble in (Trouble.GONE, Trouble.FULL, Trouble.OTHER))


# --- health -----------------------------------------------------------------------------------------------------------


async def test_single_streams_are_looked_at_only_while_others_move() -> None:
    """That all stand still is the worker's to find."""
    probes, stalled, owed = [], [], True

    async def probe() -> None:
        probes.append(1)

    health = Health(probe, lambda: owed, stalled.append, HealthLimits(interval=60, timeout=1, stall=0.6))
    watch = asyncio.create_task(health.run())
    async with asyncio.timeout(60):
        while not stalled:
            await asyncio.sleep(0.05)
            health.moved()
    await asyncio.sleep(0.4)
    stalled.clear()
    await asyncio.sleep(0.8)
    assert not stalled
    assert not health.death
    assert not probes
    watch.cancel()


async def test_a_slow_probe_is_no_death_while_others_are_served() -> None:
    owed = True

    async def probe() -> None:
        await asyncio.sleep(5)

    health = Health(probe, lambda: owed, lambda _: None, HealthLimits(interval=60, timeout=0.05, stall=60))
    assert await health.check()
    owed = False
    assert not await health.check()
    assert "within 0.05 s" in health.death


async def test_whoever_asks_at_the_same_time_shares_a_probe() -> None:
    probes = []

    async def probe() -> None:
        probes.append(1)
        await asyncio.sleep(0.05)
        raise ProbeError("Stub process is not healthy")

    health = Health(probe, lambda: True, lambda _: None, HealthLimits(interval=60, timeout=1, stall=60))
    assert await asyncio.gather(*(health.check() for _ in range(5))) == [False] * 5
    assert len(probes) == 1
    assert health.death.endswith("not healthy")


# --- tokenizer files --------------------------------------------------------------------------------------------------


def test_special_tokens_are_no_text_and_characters_come_whole(tmp_path: Path) -> None:
    tokenizer = load(smollm2_tokenizer.write(tmp_path)).tokenizer
    assert tokenizer is not None
    text = "<|im_start|>hi 🎉 ä<|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids).decode() == text
    decoder = TextDecoder(tokenizer)
    parts = [decoder.feed([token]) for token in ids]
    assert "".join(parts) == "hi 🎉 ä"
    assert parts[0] == parts[-1] == ""
    assert len(tokenizer.encode(text, parse_special=False)) > len(ids)
    assert UNKNOWN_TOKEN not in ids


def test_a_tokenizer_with_blanks_in_its_words(tmp_path: Path) -> None:
    """As Llama 2 and Gemma have it: an answer does not begin with the blank of its first word."""
    words = ["<s>", "</s>", "<0xC3>", "<0xA4>", "▁big", "▁sea", "s"]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend("▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:2]])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    files = load(tmp_path / "tokenizer.json")
    assert files.template is None
    assert files.context_length is None
    assert files.tokenizer is not None
    assert files.tokenizer.end_ids == (1,)
    assert files.tokenizer.decode([4, 5, 6, 2, 3]) == b"big seas\xc3\xa4"
    decoder = TextDecoder(files.tokenizer)
    assert [decoder.feed([token]) for token in (0, 4, 5, 2, 3, 1)] == ["", "big", " sea", "", "ä", ""]


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_the_metrics_of_the_model_are_found_on_the_page() -> None:
    page = """# HELP nv_trt_llm_request_metrics TRT LLM request metrics
nv_trt_llm_request_metrics{model="m",request_type="active",version="1"} 3.000000
nv_trt_llm_request_metrics{model="other",request_type="active",version="1"} 9
nv_trt_llm_request_metrics{model="m",request_type="waiting",version="1"} 1
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="m",version="1"} 4096
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="m",version="1"} 1.2e+02
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="m",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="reused",model="m",version="1"} 33
nv_inference_pending_request_count{model="m",version="1"} 2
nv_cpu_utilization 0.3
"""
    load = load_of(page, frozenset({"m"}))
    assert load == ServerLoad(3, 1, 2, 4096, 120, 64, 33)
    assert load.statistics(1, 0) == EngineStatistics(1, 0, 2, 3, 4096, 120, 64, 33)
    assert load_of("", frozenset({"m"})) == ServerLoad()


def test_what_the_page_does_not_say_is_not_known() -> None:
    assert ServerLoad().statistics(1, 5) == EngineStatistics(1, 5)
    assert ServerLoad(pending=2).statistics(1, 5) == EngineStatistics(1, 5, None, 2)
