"""What every engine promises, run on each engine that this machine can run."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError
from inferbus_worker.config import Config, SyntheticConfig
from inferbus_worker.engine import (
    Chat,
    Constraint,
    ConstraintKind,
    Embed,
    EngineDiedError,
    Finish,
    Finished,
    Generation,
    Message,
    Prompt,
    Sampling,
    Source,
    Step,
    TokenLogprob,
    Tool,
    ToolMode,
)
from inferbus_worker.engines import engine_class
from inferbus_worker.engines.llama_cpp_model import default_cache

# Those that write text; the contract of the embedding engine is in test_minilm.py.
ENGINES = ("llama_cpp", "synthetic")
GREEDY = Sampling(temperature=0.0, max_tokens=24)


def said(content: str) -> Chat:
    return Chat((Message("user", content),))


@dataclass
class Answer:
    """What one generation yielded. ``times``: when each of its deltas came."""

    ids: list[int] = field(default_factory=list)
    text: bytes = b""
    end: Finished | None = None
    times: list[float] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def reason(self) -> Finish | None:
        return self.end.reason if self.end else None

    @property
    def error(self) -> Any:
        return self.end.error if self.end else None


class Driver:
    """Reads an engine's steps in the background, and checks what holds for every step."""

    def __init__(self, engine: Any, model_cache: Path) -> None:
        self.engine = engine
        self.answers: dict[bytes, Answer] = {}
        self._moved = asyncio.Condition()
        self._count = 0
        self.reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.info = await self.engine.start()
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for step in self.engine.steps():
            self._take(step)
            async with self._moved:
                self._moved.notify_all()

    def _take(self, step: Step) -> None:
        assert abs(step.time_us / 1e6 - time.time()) < 5
        assert len(step.keys) == len(set(step.keys)) == len(step.counts) == len(step.texts)
        assert sum(step.counts) == len(step.token_ids)
        position = 0
        for number, (key, count, text) in enumerate(zip(step.keys, step.counts, step.texts, strict=True)):
            answer = self.answers[key]
            assert answer.end is None, "nothing may follow the end"
            text.decode()  # valid by itself
            answer.ids += step.token_ids[position : position + count]
            answer.text += text
            answer.times.append(time.monotonic())
            position += count
            if number in step.logprobs:
                assert len(step.logprobs[number]) == count
                answer.logprobs += step.logprobs[number]
        for finished in step.finished:
            assert self.answers[finished.key].end is None, "one end"
            assert (finished.error is not None) == (finished.reason is Finish.ERROR)
            self.answers[finished.key].end = finished

    def submit(self, content: str, sampling: Sampling = GREEDY, resume: Sequence[int] = ()) -> Answer:
        return self.submit_input(said(content), sampling, tuple(resume))

    def submit_input(
        self, source: Source, sampling: Sampling = GREEDY, resume: tuple[int, ...] = (), **more: Any
    ) -> Answer:
        self._count += 1
        key = self._count.to_bytes(16, "big")
        answer = self.answers[key] = Answer()
        self.engine.submit(Generation(key, source, sampling, resume, **more))
        return answer

    async def ask_input(self, source: Source, sampling: Sampling = GREEDY, **more: Any) -> Answer:
        answer = self.submit_input(source, sampling, **more)
        await self.ended(answer)
        return answer

    def key_of(self, answer: Answer) -> bytes:
        return next(key for key, value in self.answers.items() if value is answer)

    async def until(self, condition: Callable[[], bool], timeout: float = 150.0) -> None:
        async with asyncio.timeout(timeout), self._moved:
            while not condition():
                await self._moved.wait()

    async def ended(self, *answers: Answer) -> None:
        await self.until(lambda: all(answer.end is not None for answer in answers))

    async def ask(self, content: str, sampling: Sampling = GREEDY, resume: Sequence[int] = ()) -> Answer:
        answer = self.submit(content, sampling, resume)
        await self.ended(answer)
        return answer

    async def stop(self) -> None:
        await self.engine.stop()
        if self.reader is not None:
            await asyncio.wait([self.reader], timeout=5)


@pytest.fixture(scope="module")
def model_cache() -> Path:
    """The user's cache, which the install step has filled; made here (5 s) if not."""
    return default_cache()


def config_of(name: str, cache: Path, **changes: Any) -> Config:
    synthetic = SyntheticConfig(itl=timedelta(milliseconds=2), **changes.pop("synthetic", {}))
    return Config(name="contract", engine=name, model_cache=cache, synthetic=synthetic, **changes)


@pytest.fixture(scope="module", params=sorted(ENGINES))
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
async def engine(engine_name: str, model_cache: Path) -> AsyncIterator[Driver]:
    driver = Driver(engine_class(engine_name).from_config(config_of(engine_name, model_cache)), model_cache)
    await driver.start()
    yield driver
    await driver.stop()


async def test_info_says_what_runs(engine: Driver, engine_name: str) -> None:
    assert engine.info.engine == engine_name
    assert engine.info.model == {"llama_cpp": "smollm2-135m-instruct", "synthetic": "synthetic"}[engine_name]
    assert engine.info.revision
    assert engine.info.capacity >= 16
    assert engine.info.context_length >= 8192


async def test_tokens_come_one_after_the_other(engine: Driver) -> None:
    answer = await engine.ask("Tell me about the sea.", replace(GREEDY, max_tokens=8))
    assert len(answer.times) >= 7, "streamed, not delivered at the end"
    assert len(answer.ids) == 8
    assert answer.text.decode().strip()
    assert answer.reason is Finish.LENGTH
    assert answer.end.input_tokens > 0


async def test_ends_by_itself(engine: Driver) -> None:
    answer = await engine.ask("Say hi", Sampling(temperature=0.0))
    assert answer.reason is Finish.STOP
    assert answer.ids
    assert b"<|im_end|>" not in answer.text


async def test_max_tokens_of_one(engine: Driver) -> None:
    answer = await engine.ask("Hello", replace(GREEDY, max_tokens=1))
    assert len(answer.ids) == 1
    assert answer.reason is Finish.LENGTH


async def test_stop_string_is_never_delivered(engine: Driver) -> None:
    whole = (await engine.ask("Tell me about the sea.")).text.decode()
    stop = whole[9:16]  # lies across tokens
    answer = await engine.ask("Tell me about the sea.", replace(GREEDY, stop=("never there", stop)))
    assert answer.text.decode() == whole[: whole.index(stop)]
    assert answer.end is not None
    assert answer.end.stop_index == 1
    assert answer.reason is Finish.STOP


async def test_text_held_for_a_stop_string_is_not_lost(engine: Driver) -> None:
    whole = (await engine.ask("Tell me about the sea.")).text.decode()
    answer = await engine.ask("Tell me about the sea.", replace(GREEDY, stop=(whole[-3:] + " but not this", "")))
    assert answer.text.decode() == whole
    assert answer.reason is Finish.LENGTH


async def test_a_seed_repeats(engine: Driver) -> None:
    sampling = Sampling(temperature=1.0, seed=7, max_tokens=16)
    first, again = await engine.ask("Write a poem.", sampling), await engine.ask("Write a poem.", sampling)
    other = await engine.ask("Write a poem.", replace(sampling, seed=8))
    assert first.ids == again.ids
    assert first.ids != other.ids


async def test_penalties_and_sampling_are_accepted(engine: Driver) -> None:
    sampling = Sampling(
        temperature=0.7, top_p=0.9, top_k=20, seed=2**64 - 1, max_tokens=8,
        frequency_penalty=0.5, presence_penalty=-0.5, repetition_penalty=1.1, min_p=0.05,
    )  # fmt: skip
    answer = await engine.ask("Write a poem.", sampling)
    assert answer.reason in (Finish.LENGTH, Finish.STOP)


async def test_greedy_is_the_same_alone_and_in_a_batch(engine: Driver) -> None:
    questions = [f"Write a story about number {number}." for number in range(16)]
    alone = [await engine.ask(question) for question in questions]
    together = [engine.submit(question) for question in questions]
    await engine.ended(*together)
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    assert [answer.text for answer in together] == [answer.text for answer in alone]


async def test_characters_come_whole(engine: Driver) -> None:
    """Emoji are several tokens each: every delta is valid (checked for all), and every token has its id."""
    answer = await engine.ask("Repeat this: 🎉🚀🎉🚀🎉🚀", replace(GREEDY, max_tokens=30))
    assert len(answer.ids) == 30 or answer.reason is Finish.STOP


async def test_cancel_in_mid_stream(engine: Driver) -> None:
    answer = engine.submit("Write a long story.", Sampling(temperature=0.0, max_tokens=5000))
    await engine.until(lambda: len(answer.ids) >= 3)
    await cancel(engine, answer)


async def test_cancel_in_prefill(engine: Driver, engine_name: str) -> None:
    words = {"llama_cpp": 3000, "synthetic": 20_000}[engine_name]
    answer = engine.submit("word " * words, GREEDY)
    await asyncio.sleep(0.05)
    assert not answer.ids
    await cancel(engine, answer)
    started = time.monotonic()
    await engine.ask("Say hi", replace(GREEDY, max_tokens=1))
    assert time.monotonic() - started < 10, "the cancelled prefill does not go on"


async def cancel(engine: Driver, answer: Answer) -> None:
    started = time.monotonic()
    engine.engine.close(engine.key_of(answer))
    engine.engine.close(engine.key_of(answer))
    await engine.ended(answer)
    assert time.monotonic() - started < 0.1
    assert answer.reason is Finish.CANCELLED
    engine.engine.close(engine.key_of(answer))


async def test_resume_is_exact_for_greedy(engine: Driver) -> None:
    whole = await engine.ask("Tell me about the sea.")
    for given in (1, 5, 17):
        rest = await engine.ask("Tell me about the sea.", resume=whole.ids[:given])
        assert rest.ids == whole.ids[given:]
        assert whole.text.endswith(rest.text)
        assert rest.end.input_tokens == whole.end.input_tokens


async def test_resume_when_all_was_delivered(engine: Driver) -> None:
    whole = await engine.ask("Tell me about the sea.")
    rest = await engine.ask("Tell me about the sea.", resume=whole.ids)
    assert not rest.ids
    assert rest.reason is Finish.LENGTH


async def test_resume_finds_a_stop_string_that_began_before(engine: Driver) -> None:
    whole = await engine.ask("Tell me about the sea.")
    first = await engine.ask("Tell me about the sea.", replace(GREEDY, max_tokens=6))
    text = whole.text.decode()
    at = len(first.text.decode())
    sampling = replace(GREEDY, stop=(text[at - 3 : at + 3],))
    rest = await engine.ask("Tell me about the sea.", sampling, resume=whole.ids[:6])
    assert rest.reason is Finish.STOP
    assert not rest.text


async def test_a_hundred_at_once(engine: Driver) -> None:
    questions = [f"Write a story about number {number}." for number in range(100)]
    answers = [engine.submit(question, replace(GREEDY, max_tokens=2)) for question in questions]
    await engine.ended(*answers)
    assert [(len(answer.ids), answer.reason) for answer in answers] == [(2, Finish.LENGTH)] * 100


async def test_bad_input_is_refused_and_hurts_nobody(engine: Driver, engine_name: str) -> None:
    neighbour = engine.submit("Tell me about the sea.")
    bad = [
        engine.submit_input(Chat(())),
        engine.submit_input(Prompt("")),
        engine.submit_input(Prompt((10**9,))) if engine_name == "llama_cpp" else engine.submit_input(Prompt(())),
        engine.submit("hi", replace(GREEDY, temperature=float("nan"))),
        engine.submit("hi", replace(GREEDY, top_p=3.0)),
        engine.submit("hi", replace(GREEDY, repetition_penalty=0.0)),
        engine.submit("hi", resume=[10**9]),
    ]
    long = engine.submit("word " * 40_000)
    await engine.ended(neighbour, long, *bad)
    for answer in (*bad, long):
        assert answer.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    assert long.error.reason == "context_length_exceeded"
    assert long.error.param == "messages"
    assert neighbour.reason is Finish.LENGTH


# --- what not every engine can: where it cannot, it says so by the name of the parameter ------------------------------

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    json.dumps({"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}),
)


def schema(value: Any) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def with_tools(content: str = "What is the weather in Rome?", **more: Any) -> Chat:
    return Chat((Message("user", content),), (WEATHER,), **more)


def unable(engine: Driver, capability: str, answer: Answer, param: str) -> bool:
    """True, with the refusal checked, if the engine does not have the capability."""
    if capability in engine.info.capabilities:
        return False
    assert (answer.error.param, answer.error.reason) == (param, "unsupported_parameter")
    assert not answer.ids
    return True


async def test_raw_prompts(engine: Driver) -> None:
    text = await engine.ask_input(Prompt("Once upon a time"))
    again = await engine.ask_input(Prompt(tuple((await tokens_of(engine, "Once upon a time")).ids)))
    assert text.end.input_tokens == again.end.input_tokens == 4
    assert text.ids == again.ids
    assert text.text
    long = await engine.ask_input(Prompt("word " * 40_000))
    assert (long.error.reason, long.error.param) == ("context_length_exceeded", "prompt")


async def tokens_of(engine: Driver, text: str) -> Any:
    return await engine.engine.tokenize(Prompt(text), open_turn=False)


async def test_tokenize_counts_what_a_generation_reads(engine: Driver) -> None:
    tokens = await engine.engine.tokenize(said("Say hi"), parse_special=False)
    assert len(tokens.ids) == len(tokens.pieces)
    answer = await engine.ask("Say hi", replace(GREEDY, max_tokens=1))
    assert len(tokens.ids) == answer.end.input_tokens


async def test_detokenize_gives_the_text_of_a_generation(engine: Driver) -> None:
    answer = await engine.ask("Say hi with emoji 🎉", replace(GREEDY, max_tokens=12))
    assert await engine.engine.detokenize(answer.ids) == answer.text
    with pytest.raises(InferBusError) as refused:
        await engine.engine.detokenize([10**9])
    assert refused.value.param == "tokens"


async def test_vectors(engine: Driver) -> None:
    answer = await engine.ask_input(Embed((Prompt("x"),)))
    assert unable(engine, "embeddings", answer, "input")


async def test_logprobs(engine: Driver) -> None:
    answer = await engine.ask("Tell me about the sea.", replace(GREEDY, max_tokens=8, logprobs=3))
    if unable(engine, "logprobs", answer, "logprobs"):
        return
    assert [one.token_id for one in answer.logprobs] == answer.ids
    assert b"".join(one.text for one in answer.logprobs) == answer.text
    for one in answer.logprobs:
        values = [other.logprob for other in one.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert one.top[0].token_id == one.token_id, "greedy takes the most probable"
        assert one.logprob == values[0] <= 0
    plain = await engine.ask("Tell me about the sea.", replace(GREEDY, max_tokens=8, logprobs=0))
    assert plain.ids == answer.ids
    assert [one.logprob for one in plain.logprobs] == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-3)
    assert not any(one.top for one in plain.logprobs)


async def test_every_token_has_its_logprob_also_inside_a_character(engine: Driver) -> None:
    answer = await engine.ask("Repeat this: 🎉🚀🎉🚀🎉🚀", replace(GREEDY, max_tokens=30, logprobs=1))
    if unable(engine, "logprobs", answer, "logprobs"):
        return
    assert [one.token_id for one in answer.logprobs] == answer.ids
    assert b"".join(one.text for one in answer.logprobs) == answer.text


async def test_logit_bias(engine: Driver) -> None:
    answer = await engine.ask("Say hi", replace(GREEDY, max_tokens=3, logit_bias=((28, 100.0),)))
    if unable(engine, "logit_bias", answer, "logit_bias"):
        return
    assert answer.ids == [28] * 3
    unknown = await engine.ask("Say hi", replace(GREEDY, logit_bias=((10**6, 1.0),)))
    assert unknown.error.param == "logit_bias"


async def test_a_schema_holds_at_any_temperature(engine: Driver) -> None:
    hot = Sampling(temperature=1.0, max_tokens=80)
    answers = [engine.submit_input(said("Describe a person."), hot, constraint=schema(PERSON)) for _ in range(6)]
    await engine.ended(*answers)
    if unable(engine, "structured_output", answers[0], "response_format"):
        return
    for answer in answers:
        assert answer.reason is Finish.STOP
        person = json.loads(answer.text)
        assert set(person) == {"name", "age"}
        assert 0 <= person["age"] <= 150
    assert len({answer.text for answer in answers}) > 1, "drawn, each with a seed of its own"


async def test_any_object_and_an_expression(engine: Driver) -> None:
    if "structured_output" not in engine.info.capabilities:
        return
    thing = await engine.ask_input(
        said("A very short JSON object"), Sampling(max_tokens=60), constraint=Constraint(ConstraintKind.JSON_OBJECT)
    )
    assert thing.reason is Finish.LENGTH or isinstance(json.loads(thing.text), dict)
    assert thing.text.startswith(b"{")
    code = await engine.ask_input(said("A code"), constraint=Constraint(ConstraintKind.REGEX, "[A-Z]{2}/[0-9]{3}"))
    assert re.fullmatch(rb"[A-Z]{2}/[0-9]{3}", code.text)
    assert code.reason is Finish.STOP


async def test_a_resumed_constraint_goes_on_inside_its_form(engine: Driver) -> None:
    if "structured_output" not in engine.info.capabilities:
        return
    source, form = said("Describe a person."), {"constraint": schema(PERSON)}
    whole = await engine.ask_input(source, **form)
    for given in (1, 4, len(whole.ids)):
        rest = await engine.ask_input(source, resume=tuple(whole.ids[:given]), **form)
        assert rest.ids == whole.ids[given:]
        assert whole.text.endswith(rest.text)
        assert rest.reason is Finish.STOP
        assert rest.end.input_tokens == whole.end.input_tokens
    other = await engine.ask_input(source, resume=(5, 6, 7), **form)
    assert other.error.reason == "engine_failed"
    assert other.error.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE, "it may be tried again"
    assert not other.ids


BAD_SCHEMAS: list[Any] = [
    "{", "", "[]", "null", "42", '"string"', "{'type': 'object'}", '{"type": "object",}', '{"a": NaN}', "[" * 5000,
    *(json.dumps(value) for value in (
        {"type": "frog"}, {"type": 5}, {"type": ["string", "frog"]}, {"type": {}}, {"$ref": "#/$defs/none"},
        {"$ref": "http://example.com/schema"}, {"$ref": 7}, {"not": {"type": "string"}}, {"if": {"type": "string"}},
        {"type": "array", "uniqueItems": True}, {"type": "string", "pattern": "["},
        {"type": "string", "pattern": "(?=x)"},
        {"type": "string", "pattern": "(?!x)y"}, {"type": "string", "pattern": "(a)\\1"},
        {"type": "string", "pattern": 5},
        {"type": "string", "format": "no-such-format"}, {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "integer", "minimum": "low"}, {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "string", "minLength": -1}, {"type": "string", "minLength": "long"}, {"type": "array", "items": 5},
        {"type": "array", "minItems": 3, "maxItems": 1}, {"type": "array", "minItems": "x"},
        {"type": "array", "contains": {}},
        {"type": "object", "properties": []}, {"type": "object", "properties": {"a": 5}},
        {"type": "object", "required": "a"},
        {"type": "object", "required": [5]}, {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"type": "object", "propertyNames": {"maxLength": 3}}, {"type": "object", "dependentSchemas": {"a": {}}},
        {"type": "object", "unevaluatedProperties": False}, {"anyOf": []}, {"anyOf": {}}, {"anyOf": [{"type": "frog"}]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"enum": []}, {"enum": "a"},
        {"enum": [5], "type": "string"},
        {"const": 5, "type": "string"}, {"type": "integer", "minimum": -(10**30), "maximum": 10**30},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "number", "multipleOf": 0}, {"type": "array", "prefixItems": 5},
        {"type": "object", "patternProperties": {"[": {"type": "string"}}},
    )),
]  # fmt: skip


async def test_bad_schemas_are_refused_and_the_engine_serves_on(engine: Driver) -> None:
    if "structured_output" not in engine.info.capabilities:
        return
    neighbour = engine.submit("Tell me about the sea.")
    assert len(BAD_SCHEMAS) >= 50
    answers = [
        engine.submit_input(said("x"), constraint=Constraint(ConstraintKind.JSON_SCHEMA, source))
        for source in BAD_SCHEMAS
    ]
    answers.append(engine.submit_input(said("x"), constraint=Constraint(ConstraintKind.REGEX, "[a")))
    answers.append(engine.submit_input(Chat((Message("user", "x"),), (Tool("f", "", '{"type": "frog"}'),))))
    await engine.ended(neighbour, *answers)
    for source, answer in zip([*BAD_SCHEMAS, "[a", "tool"], answers, strict=True):
        assert answer.reason is Finish.ERROR, source
        assert answer.error.reason == "invalid_schema", source
        assert answer.error.param == ("tools" if source == "tool" else "response_format")
        assert answer.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
        assert not answer.ids
    assert neighbour.reason is Finish.LENGTH
    assert json.loads((await engine.ask_input(said("A person."), constraint=schema(PERSON))).text)


async def test_an_output_that_leaves_its_form_ends_there(engine: Driver) -> None:
    """Nobody sees the trouble in this schema before its last object begins; then the engine's library gives it up."""
    if "structured_output" not in engine.info.capabilities:
        return
    wide = [{"properties": {f"{kind}{at}": {"type": "integer"} for at in range(330)}} for kind in "abc"]
    inner = {"anyOf": [{"type": "object", "additionalProperties": False, **one} for one in wide]}
    first = {"type": "string", "pattern": "^[a-z ]{30}$"}
    form = {"type": "object", "properties": {"a": first, "b": inner}, "required": ["a", "b"]}
    neighbour = engine.submit("Tell me about the sea.")
    answer = await engine.ask_input(said("x"), Sampling(temperature=1.0, max_tokens=60), constraint=schema(form))
    assert (answer.error.reason, answer.error.param) == ("invalid_schema", "response_format")
    assert answer.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, "it would come to the same again"
    begun = re.fullmatch(r'\{"a": "[a-z ]{30}", "b": ?\{?"?', answer.text.decode())
    assert begun, "all that fits was delivered, and nothing else"
    await engine.ended(neighbour)
    assert neighbour.reason is Finish.LENGTH


async def test_a_call_that_must_be_takes_no_notice_of_a_form(engine: Driver) -> None:
    if "tools" not in engine.info.capabilities:
        return
    required = with_tools(tool_mode=ToolMode.REQUIRED, parallel_tool_calls=False)
    answer = await engine.ask_input(required, Sampling(temperature=0.0, max_tokens=120), constraint=schema(PERSON))
    assert answer.text.startswith(b'<tool_call>\n{"name": "get_weather"')


async def test_calls_that_must_be(engine: Driver) -> None:
    hot = Sampling(temperature=1.0, max_tokens=120)
    required = with_tools(tool_mode=ToolMode.REQUIRED, parallel_tool_calls=False, tool_name="get_weather")
    answers = [engine.submit_input(required, hot) for _ in range(3)]
    await engine.ended(*answers)
    if unable(engine, "tools", answers[0], "tool_choice"):
        return
    for answer in answers:
        before, call, after = re.split(r"<tool_call>\n|\n</tool_call>", answer.text.decode())
        assert (before, after) == ("", "")
        assert json.loads(call)["name"] == "get_weather"
        assert set(json.loads(call)["arguments"]) >= {"city"}
        assert call.startswith('{"name": "get_weather", "arguments": {'), "in the order in which an edge streams it"
    nobody = await engine.ask_input(with_tools(tool_mode=ToolMode.REQUIRED, tool_name="other"))
    assert nobody.error.param == "tool_choice"


async def test_stop_strings_are_not_looked_for_in_calls(engine: Driver) -> None:
    """Also by a generation that goes on inside one."""
    if "tools" not in engine.info.capabilities:
        return
    required = with_tools(tool_mode=ToolMode.REQUIRED, parallel_tool_calls=False)
    greedy = Sampling(temperature=0.0, max_tokens=120)
    whole = await engine.ask_input(required, greedy)
    for stop in ("\n", "}", "<", '"'):
        answer = await engine.ask_input(required, replace(greedy, stop=(stop,)))
        assert (answer.text, answer.reason) == (whole.text, whole.reason)
        assert answer.end is not None
        assert answer.end.stop_index is None
        for given in (1, 4, len(whole.ids) - 2):
            rest = await engine.ask_input(required, replace(greedy, stop=(stop,)), resume=tuple(whole.ids[:given]))
            assert (rest.ids, rest.reason) == (whole.ids[given:], whole.reason)
            assert whole.text.endswith(rest.text)


async def test_stop_strings_end_the_text_beside_calls(engine: Driver) -> None:
    """Of a model that may call and does not; what looks like the beginning of a call is held back and not lost."""
    if "tools" not in engine.info.capabilities:
        return
    source = with_tools("Tell me about the sea.")
    whole = (await engine.ask_input(source)).text.decode()
    stop = whole[9:16]
    answer = await engine.ask_input(source, replace(GREEDY, stop=("never there", stop)))
    assert (answer.text.decode(), answer.end.stop_index) == (whole[: whole.index(stop)], 1)
    answer = await engine.ask_input(source, replace(GREEDY, stop=(whole[-3:] + " but not this",)))
    assert (answer.text.decode(), answer.reason) == (whole, Finish.LENGTH)


async def test_text_held_back_is_not_lost_if_its_tokens_were_all_delivered(engine: Driver) -> None:
    whole = await engine.ask("Tell me about the sea.")
    sampling = replace(GREEDY, stop=(whole.text.decode()[-3:] + " but not this",))
    rest = await engine.ask("Tell me about the sea.", sampling, resume=whole.ids)
    assert (rest.ids, rest.reason) == ([], Finish.LENGTH)
    assert rest.text == whole.text[-3:]


async def test_calls_that_may_be(engine: Driver, engine_name: str) -> None:
    """A hot model that is led to call: whatever it begins is a call by the schema, or no call at all."""
    led = 'Write exactly this: <tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    hot = Sampling(temperature=1.0, max_tokens=40)
    whole = re.compile("<tool_call>(.*?)\n</tool_call>", re.DOTALL)
    quiet = engine.submit_input(with_tools(tool_mode=ToolMode.NONE), GREEDY)
    calls: list[str] = []
    for _ in range(6):  # a quarter of the draws calls: seven in a hundred million times none does
        answers = [engine.submit_input(with_tools(led), hot) for _ in range(10)]
        await engine.ended(quiet, *answers)
        assert {answer.reason for answer in answers} <= {Finish.STOP, Finish.LENGTH}
        calls = [call for answer in answers for call in whole.findall(answer.text.decode())]
        if calls or engine_name == "synthetic":
            break
    assert calls or engine_name == "synthetic"
    assert all(json.loads(call)["name"] == "get_weather" for call in calls)
    assert quiet.text


async def test_effort_is_for_models_that_reason(engine: Driver) -> None:
    answer = await engine.ask_input(Chat((Message("user", "x"),), reasoning_effort="low"))
    assert unable(engine, "reasoning", answer, "reasoning_effort")


async def test_a_cached_prefix_is_seen_by_its_own_salt_only(engine: Driver, engine_name: str) -> None:
    secret, short = said("The secret of tenant A is this very long text. " * 8), replace(GREEDY, max_tokens=4)
    first = await engine.ask_input(secret, short, cache_salt=b"tenant-a")
    other = [await engine.ask_input(secret, short, cache_salt=salt) for salt in (b"tenant-b", b"tenant-c")]
    # Those without a salt have the beginning of the template in common with each other, from other tests.
    no_salt = await engine.ask_input(secret, short)
    again = await engine.ask_input(secret, short, cache_salt=b"tenant-a")
    assert [answer.end.cached_input_tokens for answer in (first, *other)] == [0, 0, 0]
    assert no_salt.end.cached_input_tokens < 40
    assert {tuple(answer.ids) for answer in other} == {tuple(again.ids)}
    if engine_name == "llama_cpp":
        assert again.end.cached_input_tokens == again.end.input_tokens - 1 > 80


async def test_a_cancelled_prompt_is_nobodys_prefix(engine: Driver) -> None:
    """Cancelled at any moment of its prefill: its slot gives nothing to another salt."""
    secret, short = said("The other secret of tenant A is long as well. " * 5), replace(GREEDY, max_tokens=1)
    for attempt, pause in enumerate((0.0, 0.02, 0.1)):
        answer = engine.submit_input(secret, cache_salt=b"tenant-a")
        await asyncio.sleep(pause)
        engine.engine.close(engine.key_of(answer))
        spies = [engine.submit_input(secret, short, cache_salt=b"spy-%d-%d" % (attempt, n)) for n in range(2)]
        await engine.ended(answer, *spies)
        assert [spy.end.cached_input_tokens for spy in spies] == [0] * 2


async def test_stop_twice_and_before_start(engine_name: str, model_cache: Path) -> None:
    idle = engine_class(engine_name).from_config(config_of(engine_name, model_cache))
    await idle.stop()
    driver = Driver(idle, model_cache)
    await driver.start()
    driver.submit("Tell me about the sea.", Sampling(max_tokens=1000))
    await driver.stop()
    await driver.stop()
    assert driver.reader.done()
    assert driver.reader.exception() is None


async def kill_child(engine: Any) -> None:
    os.kill(engine._server.pid, signal.SIGKILL)


async def wait_for_death(_: Any) -> None:
    await asyncio.sleep(0)


DEATHS: dict[str, Callable[[Any], Awaitable[None]]] = {"llama_cpp": kill_child, "synthetic": wait_for_death}


async def test_death_is_said_and_a_new_start_works(engine_name: str, model_cache: Path) -> None:
    config = config_of(engine_name, model_cache, synthetic={"dies_after": timedelta(seconds=0.3)})
    driver = Driver(engine_class(engine_name).from_config(config), model_cache)
    await driver.start()
    answer = driver.submit("Write a long story.", Sampling(temperature=0.0, max_tokens=5000))
    await driver.until(lambda: len(answer.ids) >= 3)
    await DEATHS[engine_name](driver.engine)
    with pytest.raises(EngineDiedError):
        await asyncio.wait_for(driver.reader, 5)
    assert answer.end is None
    await driver.engine.stop()
    await driver.start()
    rest = driver.submit("Write a long story.", Sampling(temperature=0.0, max_tokens=len(answer.ids) + 3), answer.ids)
    await driver.ended(rest)
    assert len(rest.ids) == 3
    await driver.stop()
