"""The engine ``openai`` against real servers of two code bases, one behind a server that misbehaves on command."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError
from inferbus_worker.engine import (
    UNKNOWN_TOKEN,
    Chat,
    Constraint,
    ConstraintKind,
    Embed,
    EngineDiedError,
    EngineInfo,
    Finish,
    Finished,
    Generation,
    Message,
    Prompt,
    Sampling,
    Source,
    TokenLogprob,
    Tool,
    ToolMode,
)
from inferbus_worker.engines import openai_health
from inferbus_worker.engines.llama_cpp_model import default_cache
from inferbus_worker.engines.openai import OpenAi

from services.worker.tests import smollm2_tokenizer
from services.worker.tests.engine_openai import config_of
from services.worker.tests.openai_upstreams import servers
from services.worker.tests.openai_upstreams.faults import Fault, Faults, faults
from services.worker.tests.turns import at_once

GREEDY = Sampling(temperature=0.0, max_tokens=20)
SEA = Chat((Message("user", "Tell me about the sea."),))
EMOJI = Chat((Message("user", "Repeat this: 🎉🚀🎉🚀🎉🚀"),))
WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    '{"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}',
)
PERSON = """{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
 "age": {"type": "integer", "minimum": 0, "maximum": 150}}, "required": ["name", "age"],
 "additionalProperties": false}"""
# What is told needs no requests at the start.
CHAT_ONLY: dict[str, Any] = {"capabilities": ("chat", "completions")}
INTERNALS = ("http", "127.0.0.1", "upstream", "status ", "10.1.2.3", "llama", "sk-")


@dataclass
class Answer:
    """What one generation yielded. ``texts``: of each delta."""

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    vectors: list[bytes] = field(default_factory=list)
    end: Finished | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def reason(self) -> Finish:
        assert self.end is not None
        return self.end.reason

    @property
    def error(self) -> InferBusError:
        assert self.end is not None
        assert self.end.error is not None
        return self.end.error


class Asked:
    """An engine with its reader."""

    def __init__(self, engine: OpenAi) -> None:
        self.engine = engine
        self.answers: dict[bytes, Answer] = {}
        self.info: EngineInfo
        self._changed = asyncio.Condition()
        self.reader: asyncio.Task[None]

    async def start(self) -> None:
        self.info = await self.engine.start()
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for step in self.engine.steps():
            at = 0
            for number, (key, count, text) in enumerate(zip(step.keys, step.counts, step.texts, strict=True)):
                answer = self.answers[key]
                assert answer.end is None
                answer.ids += step.token_ids[at : at + count]
                answer.texts.append(text.decode())
                said = step.logprobs.get(number, [])
                assert not said or len(said) == count
                answer.logprobs += said
                at += count
            for vector in step.embeddings:
                assert vector.index == len(self.answers[vector.key].vectors)
                self.answers[vector.key].vectors.append(vector.values)
            for finished in step.finished:
                assert self.answers[finished.key].end is None
                self.answers[finished.key].end = finished
            async with self._changed:
                self._changed.notify_all()

    def submit(self, source: Source, sampling: Sampling = GREEDY, **more: Any) -> Answer:
        answer = Answer()
        key = (len(self.answers) + 1).to_bytes(16, "big")
        self.answers[key] = answer
        self.engine.submit(Generation(key, source, sampling, **more))
        return answer

    def close(self, answer: Answer) -> None:
        self.engine.close(next(key for key, one in self.answers.items() if one is answer))

    async def until(self, condition: Any, seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds), self._changed:
            while not condition():
                await self._changed.wait()

    async def ask(self, source: Source, sampling: Sampling = GREEDY, **more: Any) -> Answer:
        answer = self.submit(source, sampling, **more)
        await self.until(lambda: answer.end is not None)
        return answer


@asynccontextmanager
async def asking(url: str, context_length: int | None = None, **settings: Any) -> AsyncIterator[Asked]:
    times = {key: timedelta(seconds=value) for key, value in settings.items() if isinstance(value, int | float)
             and key.endswith(("timeout", "open", "window"))}  # fmt: skip
    made = Asked(OpenAi.from_config(config_of(url, context_length=context_length, openai=settings | times)))
    try:
        await made.start()
        yield made
    finally:
        await made.engine.stop()
        if hasattr(made, "reader"):
            await asyncio.wait([made.reader], timeout=5)


def unlimited(source: Chat | Prompt) -> tuple[Chat | Prompt, Sampling]:
    return source, Sampling(temperature=0.0, max_tokens=3000)


@pytest.fixture(scope="module")
async def llama() -> AsyncIterator[servers.Server]:
    if missing := servers.llama_missing():
        pytest.skip(missing)
    async with servers.llama(default_cache()) as server:
        yield server


@pytest.fixture
async def das() -> AsyncIterator[servers.Server]:
    """One for each test: who comes right after a connection that was dropped may hear nothing more from it, or what was
    meant for the one before, most of all on a busy machine."""
    if missing := servers.das_missing():
        pytest.skip(missing)
    async with servers.das(default_cache()) as server:
        yield server


@pytest.fixture(scope="module")
async def engine(llama: servers.Server) -> AsyncIterator[Asked]:
    """On llama.cpp, with all found out by itself."""
    async with asking(llama.url) as made:
        yield made


@pytest.fixture(scope="module")
async def sea(engine: Asked) -> str:
    """What the model says about it, undisturbed."""
    return (await engine.ask(SEA)).text


@pytest.fixture(scope="module")
async def emoji(engine: Asked) -> Answer:
    return await engine.ask(EMOJI)


@pytest.fixture
async def proxy(llama: servers.Server) -> AsyncIterator[Faults]:
    async with faults(llama.url) as made:
        yield made


# --- what it finds out ------------------------------------------------------------------------------------------------


async def test_llama_cpp_is_found_out(engine: Asked) -> None:
    assert engine.info.engine == "openai"
    assert engine.info.context_length == 8192
    # Its own tool_choice does nothing with this model's template: calls are held by our grammar.
    assert set(engine.info.capabilities) == {
        "chat", "completions", "tools", "structured_output", "logprobs", "logit_bias"
    }  # fmt: skip
    assert engine.info.resumes_by_text
    assert "/" not in engine.info.model


async def test_dasllama_is_found_out(das: servers.Server) -> None:
    """It takes logprobs and logit_bias without a word and does nothing with them."""
    async with asking(das.url, context_length=8192) as engine:
        assert set(engine.info.capabilities) == {"chat", "completions", "tools", "structured_output", "embeddings"}
        assert engine.info.embedding_dimensions == 576
        for refused, param in (
            (Sampling(logprobs=1), "logprobs"), (Sampling(logit_bias=((1, 1.0),)), "logit_bias"),
            (Sampling(top_k=5), "top_k"), (Sampling(min_p=0.1), "min_p"),
            (Sampling(repetition_penalty=1.1), "repetition_penalty"),
        ):  # fmt: skip
            error = (await engine.ask(SEA, refused)).error
            assert (error.reason, error.param) == ("unsupported_parameter", param)
        code = await engine.ask(SEA, constraint=Constraint(ConstraintKind.REGEX, "[a-z]"))
        assert (code.error.reason, code.error.param) == ("unsupported_parameter", "response_format")


async def test_dasllama_serves(das: servers.Server, sea: str) -> None:
    """The same weights behind another code base: the same greedy text, its own events, calls taken apart, vectors."""
    async with asking(das.url, context_length=8192) as engine:
        plain = await engine.ask(SEA)
        assert (plain.text, len(plain.ids), plain.reason) == (sea, 20, Finish.LENGTH)
        assert plain.end is not None
        assert (plain.end.input_tokens, plain.end.estimated) == (36, False)
        assert len(plain.texts) > 10, "streamed"
        person = await engine.ask(
            Chat((Message("user", "Describe a person."),)), replace(GREEDY, max_tokens=60),
            constraint=Constraint(ConstraintKind.JSON_SCHEMA, PERSON),
        )  # fmt: skip
        assert set(json.loads(person.text)) == {"name", "age"}
        source = Chat((Message("user", "Weather in Rome?"),), (WEATHER,), ToolMode.REQUIRED)
        call = await engine.ask(source, replace(GREEDY, max_tokens=80))
        assert call.text == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
        assert call.reason is Finish.STOP
        vectors = await engine.ask(Embed((Prompt("one"), Prompt("two"))))
        assert [len(values) for values in vectors.vectors] == [576 * 4] * 2
        assert vectors.end is not None
        assert vectors.end.input_tokens == 2
        long = await engine.ask(Chat((Message("user", "word " * 20_000),)))
        assert (long.error.reason, long.error.param) == ("context_length_exceeded", "messages")


async def test_dasllama_goes_on_by_making_it_again(das: servers.Server, sea: str) -> None:
    """It refuses a chat that ends with the assistant's words."""
    async with asking(das.url, **CHAT_ONLY) as engine:
        half = sea[: len(sea) // 2]
        rest = await engine.ask(SEA, resume_ids=(UNKNOWN_TOKEN,) * 10, resume_text=half)
        assert half + rest.text == sea
        assert rest.end is not None
        assert (len(rest.ids), rest.end.input_tokens) == (10, 36)
        other = await engine.ask(SEA, resume_ids=(UNKNOWN_TOKEN,) * 2, resume_text="My sea")
        assert (other.error.reason, other.ids) == ("engine_failed", [])


async def test_dasllama_stop_strings_are_ours(das: servers.Server, sea: str) -> None:
    """It drops a stop string and does not say that it met one: so it is not told of any."""
    async with asking(das.url, capabilities=("chat", "completions")) as engine:
        stop = sea[9:16]
        answer = await engine.ask(SEA, replace(GREEDY, stop=("never", stop)))
        assert (answer.text, answer.reason) == (sea[: sea.index(stop)], Finish.STOP)
        assert answer.end is not None
        assert answer.end.stop_index == 1
        assert answer.end.estimated, "its usage never came: the connection was dropped"


async def test_no_own_probes_where_it_is_told(proxy: Faults) -> None:
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        assert [path for path, _ in proxy.asked] == ["/v1/models"]
        refused = await engine.ask(SEA, replace(GREEDY, logprobs=1))
        assert refused.error.param == "logprobs"


async def test_several_models_need_a_name(proxy: Faults, caplog: pytest.LogCaptureFixture) -> None:
    async with asking(proxy.url, upstream_model="unheard-of", dialect="llama_cpp", **CHAT_ONLY) as engine:
        assert engine.info.model == "unheard-of"
    with pytest.raises(InferBusError) as failed:
        async with asking("http://127.0.0.1:9/v1", start_timeout=0, connect_timeout=1):
            pass
    assert failed.value.reason == "engine_start_failed"
    assert "127.0.0.1" not in failed.value.message


# --- counting ---------------------------------------------------------------------------------------------------------


async def test_counts_are_the_upstreams(engine: Asked) -> None:
    """Also of tokens inside a character, for which there is no event."""
    answer = await engine.ask(EMOJI, replace(GREEDY, max_tokens=12))
    assert (len(answer.ids), answer.end.input_tokens, answer.end.estimated) == (12, 51, False)
    assert answer.ids == [UNKNOWN_TOKEN] * 12
    assert len(answer.texts) < 12


async def test_without_running_counts_the_usage_is_the_truth(proxy: Faults, sea: str) -> None:
    """A plain upstream: one token an event, and what its usage says more comes at the end, with no text."""
    proxy.always = {"no_counts", "plain_owner"}
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        answer = await engine.ask(EMOJI, replace(GREEDY, max_tokens=12))
        assert (len(answer.ids), answer.end.input_tokens, answer.end.estimated) == (12, 51, False)
        assert answer.texts[-1] == "" or len(answer.texts) == 4
        again = await engine.ask(SEA)
        assert (again.text, len(again.ids)) == (sea, 20)


async def test_without_any_usage_it_is_an_estimate(proxy: Faults, sea: str) -> None:
    proxy.always = {"no_usage", "plain_owner", "no_done"}
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        answer = await engine.ask(SEA)
        assert (answer.text, len(answer.ids), answer.reason) == (sea, 20, Finish.LENGTH)
        assert answer.end is not None
        assert answer.end.estimated
        assert 0 < answer.end.input_tokens < 36, "without the template's own"


async def test_a_tokenizer_counts_better(proxy: Faults, tmp_path: Path) -> None:
    proxy.always = {"no_usage", "plain_owner"}
    tokenizer = smollm2_tokenizer.write(tmp_path) / "tokenizer.json"
    async with asking(proxy.url, tokenizer=tokenizer, **CHAT_ONLY) as engine:
        answer = await engine.ask(EMOJI, replace(GREEDY, max_tokens=12))
        assert len(answer.ids) == 12
        assert answer.end is not None
        assert answer.end.estimated
        tokens = await engine.engine.tokenize(Prompt("Say hi 🎉"))
        assert tokens.ids == [36218, 15876, 15107, 232, 227]
        assert b"".join(tokens.pieces) == "Say hi 🎉".encode()
        assert await engine.engine.detokenize(tokens.ids) == "Say hi 🎉".encode()
        with pytest.raises(InferBusError) as untold:
            await engine.engine.tokenize(SEA)
        assert (untold.value.reason, untold.value.param) == ("unsupported_parameter", "messages")


async def test_whole_answers(proxy: Faults, sea: str) -> None:
    """An upstream that cannot stream."""
    async with asking(proxy.url, unary=True, **CHAT_ONLY) as engine:
        answer = await engine.ask(SEA)
        assert (answer.text, len(answer.ids), answer.end.input_tokens) == (sea, 20, 36)
        assert "stream" not in proxy.generations()[-1]
        stopped = await engine.ask(SEA, replace(GREEDY, stop=(sea[9:16],)))
        assert (stopped.text, stopped.reason, stopped.end.stop_index) == (sea[: sea.index(sea[9:16])], Finish.STOP, 0)
        proxy.next.append(Fault(status=500))
        assert (await engine.ask(SEA)).text == sea


async def test_cached_tokens_are_shown_only_where_tenants_are_kept_apart(proxy: Faults) -> None:
    long = Chat((Message("user", "The secret of tenant A is long. " * 6),))
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        for salt in (b"a", b"b"):
            answer = await engine.ask(long, replace(GREEDY, max_tokens=2), cache_salt=salt)
            assert answer.end.cached_input_tokens == 0
        assert all(body["cache_prompt"] is False for body in proxy.generations())
    async with asking(proxy.url, shared_prefixes=True, **CHAT_ONLY) as engine:
        for _ in range(2):
            answer = await engine.ask(long, replace(GREEDY, max_tokens=2))
        assert answer.end.cached_input_tokens > 60


# --- what breaks off --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "half", "garbage", "error", "end", "stall"])
async def test_what_breaks_off_is_gone_on_with(proxy: Faults, sea: str, how: str) -> None:
    """Ten tokens, then trouble: nothing lost, nothing twice, and nobody sees it."""
    proxy.next.append(Fault(events=11, then=how))
    # Longer than the upstream may stand still by itself, which would be one more trouble.
    async with asking(proxy.url, stall_timeout=6, **CHAT_ONLY) as engine:
        answer = await engine.ask(SEA)
    assert (answer.text, len(answer.ids), answer.reason) == (sea, 20, Finish.LENGTH)
    first, second = proxy.generations()
    assert first["messages"] == second["messages"][:-1]
    delivered = second["messages"][-1]
    assert delivered["role"] == "assistant"
    assert sea.startswith(delivered["content"])
    assert (first["max_tokens"], second["max_tokens"]) == (20, 10)
    assert answer.end is not None
    assert (answer.end.input_tokens, answer.end.estimated) == (36, False)


async def test_half_a_character_is_not_delivered(proxy: Faults, emoji: Answer) -> None:
    proxy.next.append(Fault(events=3, then="half"))
    async with asking(proxy.url, **CHAT_ONLY) as broken:
        answer = await broken.ask(EMOJI)
    assert (answer.text, len(answer.ids)) == (emoji.text, len(emoji.ids))


@pytest.mark.parametrize("habit", ["crlf", "comments", "pieces", "halves", "no_done"])
async def test_forms_of_streams(proxy: Faults, emoji: Answer, habit: str) -> None:
    proxy.always = {habit}
    async with asking(proxy.url, **CHAT_ONLY) as other:
        answer = await other.ask(EMOJI)
    assert (answer.text, len(answer.ids)) == (emoji.text, len(emoji.ids))


async def test_twice_in_one_answer_and_before_its_first_token(proxy: Faults, sea: str) -> None:
    proxy.next += [Fault(status=503), Fault(events=6, then="close"), Fault(events=4, then="garbage")]
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        answer = await engine.ask(SEA)
    assert (answer.text, len(answer.ids)) == (sea, 20)
    assert len(proxy.generations()) == 4


async def test_an_event_of_another_answer_is_nobodys(proxy: Faults, sea: str) -> None:
    """Seen of a real server: it wrote what was meant for a client that had left to the next one."""
    async with asking(proxy.url) as engine:
        proxy.next.append(Fault(events=5, then="other"))
        answer = await engine.ask(SEA)
        assert (answer.text, len(answer.ids)) == (sea, 20)


async def test_a_prompt_goes_on_too(proxy: Faults, engine: Asked) -> None:
    whole = await engine.ask(Prompt("Once upon a time"))
    proxy.next.append(Fault(events=8, then="close"))
    async with asking(proxy.url, **CHAT_ONLY) as broken:
        answer = await broken.ask(Prompt("Once upon a time"))
        assert (answer.text, len(answer.ids), answer.end.input_tokens) == (whole.text, 20, 4)
        assert (
            proxy.generations()[1]["prompt"]
            == "Once upon a time" + whole.text[: len(proxy.generations()[1]["prompt"]) - 16]
        )


async def test_ids_and_forms_are_made_again(proxy: Faults, engine: Asked) -> None:
    """Where an upstream cannot be given a beginning: the same seed, compared with what was delivered."""
    form = {"constraint": Constraint(ConstraintKind.JSON_SCHEMA, PERSON)}
    warm = Sampling(temperature=0.8, max_tokens=60)
    async with asking(proxy.url, capabilities=("chat", "completions", "structured_output")) as broken:
        proxy.next.append(Fault(events=4, then="close"))
        ids = await broken.ask(Prompt((9690, 2, 198)))
        proxy.next.append(Fault(events=7, then="close"))
        person = await broken.ask(Chat((Message("user", "Describe a person."),)), warm, **form)
    assert ids.text == (await engine.ask(Prompt((9690, 2, 198)))).text
    assert set(json.loads(person.text)) == {"name", "age"}
    first, second = proxy.generations()[-2:]
    assert first == second
    assert "seed" in first


async def test_the_limit_of_retries_and_their_budget(proxy: Faults) -> None:
    """A generation is asked for four times; then the budget of all of them is used up."""
    proxy.next += [Fault(status=500)] * 30
    settings = {"retry_floor": 4, "retry_budget": 0.0, "breaker_failures": 100, "breaker_rate": 1.0, **CHAT_ONLY}
    async with asking(proxy.url, **settings) as engine:
        first = await engine.ask(SEA)
        assert len(proxy.generations()) == 4
        await engine.ask(SEA)
        assert len(proxy.generations()) == 6, "one retry was left"
        third = await engine.ask(SEA)
        assert len(proxy.generations()) == 7
    for answer in (first, third):
        assert (answer.error.reason, answer.error.error_class) == ("engine_failed", ErrorClass.ERROR_CLASS_UNAVAILABLE)


async def test_the_breaker_leaves_it_alone_and_tries_again(
    proxy: Faults, sea: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = 0.0  # than it really is, for the breaker
    monkeypatch.setattr(openai_health, "clock", SimpleNamespace(monotonic=lambda: time.monotonic() + later))
    proxy.next += [Fault(status=500)] * 3
    settings = {"max_retries": 0, "breaker_failures": 3, "breaker_open": 60.0, **CHAT_ONLY}
    async with asking(proxy.url, **settings) as engine:
        for _ in range(3):
            await engine.ask(SEA)
        refused = await engine.ask(SEA)
        assert (refused.error.reason, refused.error.error_class) == (
            "model_unavailable", ErrorClass.ERROR_CLASS_UNAVAILABLE
        )  # fmt: skip
        assert refused.error.retry_after is not None
        assert len(proxy.generations()) == 3, "it was not asked"
        proxy.next.append(Fault(status=500))
        later += 61
        await engine.ask(SEA)
        assert (await engine.ask(SEA)).error.reason == "model_unavailable", "the one that tried failed"
        later += 61
        both = [engine.submit(SEA), engine.submit(SEA)]
        await engine.until(lambda: all(answer.end for answer in both))
        assert [answer.text for answer in both].count(sea) == 1, "one tries it for all"
        assert (await engine.ask(SEA)).text == sea


async def test_no_room_is_waited_for(proxy: Faults, sea: str) -> None:
    proxy.next.append(Fault(status=429, headers={"Retry-After": "1"}))
    async with asking(proxy.url, busy_timeout=5, **CHAT_ONLY) as engine:
        started = time.monotonic()
        assert (await engine.ask(SEA)).text == sea
        assert 1.0 <= time.monotonic() - started < 10
        proxy.next.append(
            Fault(status=429, headers={"Retry-After": "60"}, body={"error": {"message": "quota of sk-1"}})
        )
        refused = await engine.ask(SEA)
        assert (refused.error.reason, refused.error.error_class) == (
            "model_busy", ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
        )  # fmt: skip
        assert refused.error.retry_after == timedelta(seconds=60)
        count = len(proxy.generations())
        others = await engine.ask(SEA)
        assert others.error.reason == "model_busy"
        assert len(proxy.generations()) == count, "it asked to be left alone"


@pytest.mark.parametrize(
    ("fault", "reason", "class_"),
    [
        (Fault(401, body={"error": {"message": "bad key sk-1"}}), "model_unavailable", "UNAVAILABLE"),
        (Fault(403), "model_unavailable", "UNAVAILABLE"),
        (Fault(404, body={"error": {"message": "no model llama at http://here"}}), "model_unavailable", "UNAVAILABLE"),
        (Fault(302, headers={"Location": "http://127.0.0.1:9/"}), "engine_failed", "UNAVAILABLE"),
        (Fault(500, body={"error": {"message": "worker at 10.1.2.3"}}), "engine_failed", "UNAVAILABLE"),
        (Fault(400, body={"error": {"message": "upstream says no"}}), "invalid_value", "INVALID_ARGUMENT"),
        (Fault(400, body={"error": {"message": "x", "param": "top_p"}}), "invalid_value", "INVALID_ARGUMENT"),
        (Fault(422, body={"detail": [{"loc": "body"}]}), "invalid_value", "INVALID_ARGUMENT"),
        (
            Fault(400, body={"error": {"code": "context_length_exceeded", "message": "see http://docs"}}),
            "context_length_exceeded", "INVALID_ARGUMENT",
        ),
        (Fault(400, body={"error": {"code": "content_filter"}}), "content_filter", "INVALID_ARGUMENT"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Fault) else "",
)  # fmt: skip
async def test_what_a_tenant_is_told(proxy: Faults, fault: Fault, reason: str, class_: str) -> None:
    proxy.next += [fault] * 2
    async with asking(proxy.url, max_retries=0, **CHAT_ONLY) as engine:
        answer = await engine.ask(SEA, replace(GREEDY, max_tokens=None))
    assert (answer.error.reason, ErrorClass.Name(answer.error.error_class)) == (reason, f"ERROR_CLASS_{class_}")
    assert not any(word in answer.error.message.lower() for word in INTERNALS)
    assert answer.error.diagnostic
    if reason == "context_length_exceeded":
        assert answer.error.param == "messages"


async def test_the_key_is_sent_and_never_shown(proxy: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "key"
    file.write_text("sk-secret\n")
    async with asking(proxy.url, api_key_file=file, **CHAT_ONLY) as engine:
        proxy.next.append(Fault(status=401))
        await engine.ask(SEA)
        assert proxy.headers["Authorization"] == "Bearer sk-secret"
        assert "sk-secret" not in repr(engine.engine._settings)
    assert "sk-secret" not in caplog.text


# --- limits, stops, calls, forms --------------------------------------------------------------------------------------


async def test_a_limit_that_is_too_much_is_the_upstreams_to_choose(proxy: Faults, sea: str) -> None:
    """vLLM refuses input and output together that are longer than its context."""
    said = {"error": {"message": "max_tokens=9000 cannot be greater than max_model_len=8192.", "param": "max_tokens"}}
    proxy.next.append(Fault(400, body=said))
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        answer = engine.submit(SEA, replace(GREEDY, max_tokens=9000))
        await engine.until(lambda: len(answer.ids) > 20)
        engine.close(answer)
        assert answer.text.startswith(sea)
        assert "max_tokens" not in proxy.generations()[-1]
        proxy.next.append(Fault(400, body=said))
        prompt = await engine.ask(Prompt("Once upon a time"), replace(GREEDY, max_tokens=2))
        assert len(prompt.ids) == 2


async def test_a_completion_has_no_limit_of_its_own(proxy: Faults) -> None:
    """By OpenAI's API it would have sixteen tokens."""
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        answer = engine.submit(Prompt("Once upon a time"), Sampling(temperature=0.0))
        await engine.until(lambda: len(answer.ids) > 17 or answer.end is not None)
        engine.close(answer)
    assert 8100 < proxy.generations()[0]["max_tokens"] < 8192


async def test_stop_strings_that_the_upstream_keeps_or_drops(proxy: Faults, sea: str) -> None:
    """Told of them (as vLLM is): whatever it does with them, they are not delivered, and which one it was is right."""
    stop = sea[9:16]
    async with asking(proxy.url, dialect="vllm", **CHAT_ONLY) as engine:
        dropped = await engine.ask(SEA, replace(GREEDY, stop=("never", stop)))
        assert proxy.generations()[-1]["stop"] == ["never", stop]
        assert (dropped.text, dropped.reason) == (sea[: sea.index(stop)], Finish.STOP)
        kept = await engine.ask(SEA, replace(GREEDY, stop=("never", "x", "y", "z", stop)))
        assert "stop" not in proxy.generations()[-1], "more than four"
        assert (kept.text, kept.reason, kept.end.stop_index) == (sea[: sea.index(stop)], Finish.STOP, 4)
        tools = await engine.ask(replace(SEA, tools=(WEATHER,)), replace(GREEDY, stop=(stop,)))
        assert "stop" not in proxy.generations()[-1], "it would find them in calls"
        assert tools.reason in (Finish.STOP, Finish.LENGTH)


async def test_text_held_for_a_stop_string_comes_with_its_tokens(proxy: Faults, sea: str) -> None:
    """A successor goes on from what was delivered: its tokens are those of its text."""
    stop = sea[9:24] + " but not so"
    proxy.next.append(Fault(events=7, then="stall"))
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        answer = engine.submit(SEA, replace(GREEDY, stop=(stop,)))
        await engine.until(lambda: len(answer.text) >= len("The sea"))
        await asyncio.sleep(0.3)
        ids, text = len(answer.ids), answer.text
        assert (ids, text) == (2, "The sea"), "not the half of a token before the stop string"
        engine.close(answer)
        rest = await engine.ask(SEA, replace(GREEDY, stop=(stop,)), resume_ids=(UNKNOWN_TOKEN,) * ids, resume_text=text)
        assert (text + rest.text, ids + len(rest.ids)) == (sea, 20)


async def test_closing_drops_the_connection(proxy: Faults) -> None:
    async with asking(proxy.url, **CHAT_ONLY) as engine:
        answer = engine.submit(*unlimited(SEA))
        await engine.until(lambda: len(answer.ids) >= 3)
        engine.close(answer)
        await at_once(lambda: answer.end is not None)
        assert (answer.reason, answer.end.input_tokens, answer.end.estimated) == (Finish.CANCELLED, 36, False)
        async with asyncio.timeout(30):
            while not proxy.dropped:
                await asyncio.sleep(0.02)


async def test_forms_that_the_upstream_holds(llama: servers.Server) -> None:
    """By OpenAI's response_format alone, in whatever spacing; what it lets slip is never delivered."""
    async with asking(llama.url, dialect="plain", capabilities=("chat", "structured_output")) as engine:
        describe = Chat((Message("user", "Describe a person."),))
        person = await engine.ask(
            describe, replace(GREEDY, max_tokens=80), constraint=Constraint(ConstraintKind.JSON_SCHEMA, PERSON)
        )
        assert set(json.loads(person.text)) == {"name", "age"}
        assert person.reason is Finish.STOP
        anything = await engine.ask(
            describe, replace(GREEDY, max_tokens=30), constraint=Constraint(ConstraintKind.JSON_OBJECT)
        )
        assert anything.text.startswith("{")
        # Its grammars know no bounds of numbers that are not whole.
        bounded = {"type": "object", "properties": {"x": {"type": "number", "minimum": 5000.5, "maximum": 5000.6}}}
        slipped = await engine.ask(
            describe, replace(GREEDY, max_tokens=40),
            constraint=Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(bounded | {"required": ["x"]})),
        )  # fmt: skip
        assert slipped.error.reason == "invalid_schema"
        assert not any(character.isdigit() and character != "5" for character in slipped.text)
        bad = await engine.ask(describe, constraint=Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "frog"}'))
        assert (bad.error.reason, bad.error.param) == ("invalid_schema", "response_format")


async def test_calls_by_our_grammar(engine: Asked) -> None:
    source = Chat((Message("user", "Weather in Rome?"),), (WEATHER,), ToolMode.REQUIRED, parallel_tool_calls=False)
    call = await engine.ask(source, replace(GREEDY, max_tokens=100))
    assert call.text.startswith('<tool_call>\n{"name": "get_weather", "arguments": {')
    assert call.text.endswith("\n</tool_call>")
    code = await engine.ask(SEA, constraint=Constraint(ConstraintKind.REGEX, "[A-Z]{2}/[0-9]{3}"))
    assert len(code.text) == 6


async def test_an_upstream_that_makes_no_call_where_one_must_be(proxy: Faults) -> None:
    """llama.cpp's own tool_choice does nothing with this model: told that it does, we see that it does not."""
    async with asking(proxy.url, capabilities=("chat", "tools"), dialect="plain") as engine:
        source = Chat((Message("user", "Say hi"),), (WEATHER,), ToolMode.REQUIRED)
        answer = await engine.ask(source, replace(GREEDY, max_tokens=200))
    assert proxy.generations()[0]["tool_choice"] == "required"
    assert answer.reason is Finish.LENGTH or answer.error.reason == "engine_failed"


async def test_thoughts_are_written_for_who_asked(proxy: Faults, sea: str) -> None:
    """In the log's form; for anybody else they are counted, and left out."""
    proxy.always = {"thinks"}
    async with asking(proxy.url, capabilities=("chat", "reasoning")) as engine:
        quiet = await engine.ask(SEA)
        aloud = await engine.ask(replace(SEA, reasoning_effort="low"))
    thought = sea[: len(sea) - len(quiet.text)]
    assert thought
    assert quiet.text
    assert aloud.text == f"<think>{thought}</think>{quiet.text}"
    assert len(quiet.ids) == len(aloud.ids) == 20
    assert proxy.generations()[-1]["reasoning_effort"] == "low"


async def test_logprobs(engine: Asked) -> None:
    chat = await engine.ask(SEA, replace(GREEDY, max_tokens=4, logprobs=2))
    prompt = await engine.ask(Prompt("Once upon a time"), replace(GREEDY, max_tokens=4, logprobs=2))
    for answer in (chat, prompt):
        assert len(answer.logprobs) == len(answer.ids) == 4
        assert "".join(one.text.decode() for one in answer.logprobs) == answer.text
        for one, token in zip(answer.logprobs, answer.ids, strict=True):
            assert one.token_id == token == one.top[0].token_id
            assert one.top[0].logprob == one.logprob > one.top[1].logprob
    assert chat.ids == [504, 3426, 314, 253]


async def test_many_at_once_and_a_slow_reader(llama: servers.Server) -> None:
    """What is not read waits, and none of it is lost."""
    async with asking(llama.url, **CHAT_ONLY) as engine:
        questions = [Chat((Message("user", f"Count to {number}."),)) for number in range(18)]
        short = replace(GREEDY, max_tokens=3)
        alone = [(await engine.ask(question, short)).text for question in questions[:2]]
        together = [engine.submit(question, short) for question in questions]
        await engine.until(lambda: all(answer.end for answer in together))
        assert [answer.text for answer in together[:2]] == alone
        assert all(len(answer.ids) <= 3 for answer in together)
        assert engine.info.capacity == 16


# --- its death --------------------------------------------------------------------------------------------------------


async def test_who_is_gone_is_dead_and_comes_back() -> None:
    """Its process killed in mid-stream: steps() says so; what ran goes on from its text once it is there again."""
    if missing := servers.llama_missing():
        pytest.skip(missing)
    async with servers.llama(default_cache()) as server, asking(server.url, **CHAT_ONLY) as engine:
        _, sampling = unlimited(SEA)
        answer = engine.submit(SEA, sampling)
        await engine.until(lambda: len(answer.ids) >= 5)
        await server.kill()
        with pytest.raises(EngineDiedError):
            await asyncio.wait_for(engine.reader, 60)
        assert answer.end is None
        await engine.engine.stop()
        back = asyncio.create_task(server.start())
        await engine.start()
        await back
        given = (UNKNOWN_TOKEN,) * len(answer.ids)
        rest = await engine.ask(
            SEA, replace(sampling, max_tokens=len(given) + 3), resume_ids=given, resume_text=answer.text
        )
        assert len(rest.ids) == 3
        assert rest.text


async def test_one_that_hangs_is_dead_too(proxy: Faults) -> None:
    """It takes connections and says nothing, also about its models."""
    settings = {"stall_timeout": 6, "connect_timeout": 0.5, "breaker_failures": 1, **CHAT_ONLY}
    async with asking(proxy.url, **settings) as engine:
        proxy.next.append(Fault(events=5, then="stall"))
        answer = engine.submit(SEA)
        await engine.until(lambda: len(answer.ids) >= 3)
        proxy.hangs = True
        with pytest.raises(EngineDiedError):
            await asyncio.wait_for(engine.reader, 60)
        assert answer.end is None, "it goes on when the engine is started again"


async def test_a_worker_that_dies_goes_on_from_its_text(
    edge: Any, new_worker: Callable[..., Any], proxy: Faults, sea: str
) -> None:
    """kill -9 of the worker in mid-stream; whoever goes on has no ids to go on from, only the text on the log."""
    worker = new_worker(
        ENGINE="openai", OPENAI__BASE_URL=proxy.url, OPENAI__CAPABILITIES="chat,completions", MODEL="sea"
    )
    await worker.start()

    def story() -> Any:
        request = edge.request("Tell me about the sea.", max_tokens=40)
        request.sampling.temperature = 0.0
        return request

    undisturbed = await edge.place(worker.name, story())
    await edge.closed(undisturbed)
    request = story()
    proxy.next.append(Fault(events=11, then="stall"))  # so that it has not ended before
    disturbed = await edge.place(worker.name, request)
    await edge.until(lambda: len(disturbed.ids) > 5)
    await worker.kill()
    await worker.start()
    await edge.place(worker.name, edge.moved(request))
    await edge.until(lambda: disturbed.close is not None)
    assert disturbed.text == undisturbed.text
    assert disturbed.text.decode().startswith(sea)
    assert disturbed.attempts == [1, 2]
    assert len(disturbed.ids) == len(undisturbed.ids) == 40
    assert disturbed.close.usage.input_tokens == undisturbed.close.usage.input_tokens == 36
    assert not disturbed.close.usage.estimated
