"""What is special to llama.cpp: its template, its token ids, its memory, its process."""

import asyncio
import logging
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from inferbus_runtime.errors import InferBusError
from inferbus_worker.config import Config, LlamaCppConfig
from inferbus_worker.engine import (
    Chat,
    Constraint,
    ConstraintKind,
    EngineInfo,
    Finish,
    Generation,
    Message,
    Prompt,
    Sampling,
)
from inferbus_worker.engines.llama_cpp import LlamaCpp
from inferbus_worker.engines.llama_cpp_model import prepare

CONVERSATION = (
    Message("system", "You answer in one word."),
    Message("user", "What is 2 + 2? <b>{{ 7 }}</b> 🎉"),
    Message("assistant", "Four"),
    Message("user", "And\nthen?"),
)


@pytest.fixture(scope="module")
async def engine() -> AsyncIterator[LlamaCpp]:
    """With little KV cache, so that generations have to make room for each other."""
    settings = LlamaCppConfig(kv_tokens=512, prompt_cache_tokens=128)
    made = LlamaCpp.from_config(Config(name="test", llama_cpp=settings))
    await made.start()
    yield made
    await made.stop()


async def ask(engine: LlamaCpp, *generations: Generation) -> dict[bytes, tuple[list[int], str, Any]]:
    """Ids, text and end of each."""
    ids: dict[bytes, list[int]] = {generation.key: [] for generation in generations}
    texts = dict.fromkeys(ids, "")
    ends: dict[bytes, Any] = {}
    for generation in generations:
        engine.submit(generation)
    async with asyncio.timeout(120):
        async for step in engine.steps():
            position = 0
            for key, count, text in zip(step.keys, step.counts, step.texts, strict=True):
                ids[key] += step.token_ids[position : position + count]
                texts[key] += text.decode()
                position += count
            ends |= {finished.key: finished for finished in step.finished}
            if len(ends) == len(ids):
                break
    return {key: (ids[key], texts[key], ends[key]) for key in ids}


def generation(number: int, content: str, **sampling: Any) -> Generation:
    return Generation(
        number.to_bytes(16, "big"), Chat((Message("user", content),)), Sampling(temperature=0.0, **sampling)
    )


@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[1:2]], ids=["system", "user only"])
async def test_the_template_gives_what_the_server_gives(engine: LlamaCpp, messages: tuple[Message, ...]) -> None:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    async with engine._http.session.post("/apply-template", json={"messages": turns}) as response:
        assert engine._template.render(Chat(messages)) == (await response.json())["prompt"]


async def test_input_tokens_are_those_of_the_rendered_template(engine: LlamaCpp) -> None:
    prompt = engine._template.render(Chat(CONVERSATION))
    async with engine._http.session.post("/tokenize", json={"content": prompt, "parse_special": True}) as response:
        expected = len((await response.json())["tokens"])
    answers = await ask(engine, Generation(b"k" * 16, Chat(CONVERSATION), Sampling(max_tokens=1)))
    assert answers[b"k" * 16][2].input_tokens == expected


@pytest.mark.parametrize("add", [True, False])
async def test_special_tokens_in_a_text_are_read_as_such(engine: LlamaCpp, add: bool) -> None:
    """This model adds none; whoever leaves out what is added still has those of the text."""
    text = "<|im_start|>user\nhi<|im_end|>"
    tokens = await engine.tokenize(Prompt(text), add_special=add)
    assert tokens.pieces == [b"<|im_start|>", b"user", b"\n", b"hi", b"<|im_end|>"]
    assert len((await engine.tokenize(Prompt(text), parse_special=False, add_special=add)).ids) > 10


async def test_ids_of_split_characters_are_the_generated_ones(engine: LlamaCpp) -> None:
    """The stream hides them; the unary answer of the server has them all."""
    question = generation(1, "Say hi with 5 emoji like 🎉🚀 please", max_tokens=30)
    prompt = engine._template.render(question.input)
    body = {"prompt": prompt, "n_predict": 30, "temperature": 0, "return_tokens": True, "stream": False}
    async with engine._http.session.post("/completion", json=body) as response:
        expected = (await response.json())["tokens"]
    ids, text, _ = (await ask(engine, question))[question.key]
    assert ids == expected
    assert "🚀" in text


async def test_who_does_not_fit_waits_and_goes_on(engine: LlamaCpp, caplog: pytest.LogCaptureFixture) -> None:
    """Six times 130 tokens in a cache of 512: nothing is lost or repeated where one stepped back and came again."""
    caplog.set_level(logging.INFO)
    questions = [generation(n, f"Write a story about number {n}.", max_tokens=90) for n in range(6)]
    together = await ask(engine, *questions)
    assert "generation waits for KV cache" in caplog.text
    assert len({end.input_tokens for _, _, end in together.values()}) == 1
    for ids, text, end in together.values():
        assert (len(ids), end.reason) == (90, Finish.LENGTH)
        async with engine._http.session.post("/detokenize", json={"tokens": ids}) as response:
            assert (await response.json())["content"] == text


async def test_under_a_grammar_too(engine: LlamaCpp, caplog: pytest.LogCaptureFixture) -> None:
    """Who steps back is made again from its first token, since a grammar has no middle to begin in."""
    caplog.set_level(logging.INFO)
    form = Constraint(ConstraintKind.REGEX, "[a-z ,.]{600}")
    questions = [replace(generation(n, f"Write about number {n}.", max_tokens=90), constraint=form) for n in range(6)]
    together = await ask(engine, *questions)
    assert "generation waits for KV cache" in caplog.text
    for ids, text, end in together.values():
        assert (len(ids), end.reason) == (90, Finish.LENGTH)
        assert re.fullmatch("[a-z ,.]+", text)
        assert (await engine.detokenize(ids)).decode() == text, "nothing lost, nothing twice"


async def test_idle_prompts_leave_the_kv_cache(engine: LlamaCpp, caplog: pytest.LogCaptureFixture) -> None:
    """But for the newest: they would slow every step."""
    caplog.set_level(logging.WARNING)
    short = {"max_tokens": 1}
    for number in range(2):
        await ask(engine, generation(number, f"{number} " * 60, **short))
    cached = []
    for number in (1, 0):
        key = number.to_bytes(16, "big")
        cached.append((await ask(engine, generation(number, f"{number} " * 60, **short)))[key][2].cached_input_tokens)
    assert cached[0] > 60
    assert cached[1] < 60, "no more than the template's beginning"
    await engine._http.erase(0)
    assert "not emptied" not in caplog.text


async def test_an_idle_prompt_gives_way_to_what_runs_and_is_told_as_gone(engine: LlamaCpp) -> None:
    """The child would empty its slot by itself, and say nothing of it."""
    idle = replace(generation(1, "lighthouse " * 30, max_tokens=1), prefix=(4711,))
    await ask(engine, idle)
    assert 4711 in engine.prefixes.all()
    await ask(engine, *(generation(n, f"Write a story about number {n}.", max_tokens=100) for n in range(2, 7)))
    assert 4711 not in engine.prefixes.all()


async def test_statistics_are_those_of_its_kv_cache(engine: LlamaCpp) -> None:
    before = engine.statistics()
    assert (before.running, before.waiting, before.kv_blocks_used) == (0, 0, 0), "what is kept for later is free"
    assert (before.kv_blocks_total, before.kv_block_tokens) == (512, 1)
    engine.submit(one := generation(1, "Count to a hundred.", max_tokens=24))
    ends: list[Any] = []
    async for step in engine.steps():
        now = engine.statistics()
        ends += step.finished
        if ends:
            break
        assert (now.running, now.waiting) == (1, 0)
        assert 24 < (now.kv_blocks_used or 0) < 100
    assert engine.statistics().kv_blocks_used == 0
    [(_, _, again)] = (await ask(engine, replace(one, key=b"again" + bytes(11)))).values()
    assert again.cached_input_tokens > 0
    reused = engine.statistics().kv_blocks_reused_total or 0
    assert reused - (before.kv_blocks_reused_total or 0) >= again.cached_input_tokens


async def test_generation_that_reaches_the_end_of_the_context(engine: LlamaCpp) -> None:
    """Input and output together are as long as the context."""
    ids, _, end = (await ask(engine, generation(1, "word " * 430)))[(1).to_bytes(16, "big")]
    if end.reason is Finish.LENGTH:  # a model may also end by itself before
        assert 512 - 2 <= len(ids) + end.input_tokens <= 512


async def test_a_resumed_one_that_no_longer_fits_ends_as_length(engine: LlamaCpp) -> None:
    full = Generation(b"f" * 16, Chat((Message("user", "x"),)), Sampling(), resume_ids=(28,) * 490)
    ids, _, end = (await ask(engine, full))[full.key]
    assert (ids, end.reason) == ([], Finish.LENGTH)


async def test_slow_consumer_loses_nothing(engine: LlamaCpp) -> None:
    question = generation(3, "Write a story about number 3.", max_tokens=30)
    (expected, _, _) = (await ask(engine, question))[question.key]
    engine.submit(question)
    await asyncio.sleep(1.0)
    ids: list[int] = []
    async for step in engine.steps():
        ids += step.token_ids
        if step.finished:
            break
    assert ids == expected


def test_weights_are_made_once(tmp_path: Any) -> None:
    first = prepare(tmp_path)
    again = prepare(tmp_path)
    assert first.path == again.path
    assert first.seconds > 0
    assert again.seconds == 0
    assert [file.name for file in tmp_path.iterdir()] == [first.path.name], "nothing half-made is left"


async def test_worker_with_the_real_engine(edge: Any, new_worker: Callable[..., Any]) -> None:
    """Its engine killed in mid-stream: same text, same attempt. Itself killed: the engine goes with it."""
    worker = new_worker(ENGINE="llama_cpp")
    await worker.start()

    def engine_process() -> psutil.Process:
        children = psutil.Process(worker.process.pid).children()
        return next(child for child in children if "inferbus_worker.engines.llama_cpp_server" in child.cmdline())

    def story() -> Any:
        request = edge.request("Write a story about the sea.", max_tokens=150)
        request.sampling.temperature = 0.0
        return request

    undisturbed = await edge.place(worker.name, story())
    await edge.closed(undisturbed)
    disturbed = [await edge.place(worker.name, story()) for _ in range(3)]
    await edge.until(lambda: all(len(one.ids) > 5 for one in disturbed))
    killed = engine_process()
    os.kill(killed.pid, signal.SIGKILL)
    await edge.closed(*disturbed)
    for one in disturbed:
        assert one.ids == undisturbed.ids
        assert one.attempts == [1]
    child = engine_process()
    assert child != killed
    await worker.kill()
    await asyncio.to_thread(child.wait, 60)


async def test_weights_and_template_by_path_are_taken_as_they_are(tmp_path: Path) -> None:
    weights = prepare(None, "f32").path
    template = tmp_path / "plain.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    own = await started(LlamaCppConfig(kv_tokens=512))
    given = await started(LlamaCppConfig(weights=weights, kv_tokens=512))
    templated = await started(LlamaCppConfig(weights=weights, chat_template=template, kv_tokens=512))
    assert (own[0].model, given[0].model) == ("smollm2-135m-instruct", weights.stem)
    assert len({own[0].revision, given[0].revision, templated[0].revision}) == 3
    assert own[0].context_length == given[0].context_length, "it comes with the weights"
    assert own[1] == given[1], "and so does the template"
    assert templated[1].endswith(b"[user] And\nthen?\n")
    assert b"<|im_start|>" not in templated[1]


async def started(settings: LlamaCppConfig) -> tuple[EngineInfo, bytes]:
    """What it says of itself, and how it writes the conversation."""
    engine = LlamaCpp.from_config(Config(name="test", llama_cpp=settings))
    try:
        info = await engine.start()
        tokens = await engine.tokenize(Chat(CONVERSATION))
        return info, b"".join(tokens.pieces)
    finally:
        await engine.stop()


@pytest.mark.parametrize("setting", ["weights", "chat_template"])
async def test_a_file_that_is_not_there_is_named(tmp_path: Path, setting: str) -> None:
    with pytest.raises(InferBusError) as raised:
        await started(LlamaCppConfig.model_validate({setting: tmp_path / "none"}))
    assert f"INFERBUS_WORKER_LLAMA_CPP__{setting.upper()}" in raised.value.diagnostic


async def test_weights_that_are_none_and_a_template_that_is_none_do_not_start(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("GGUF? {% if %}")
    with pytest.raises(InferBusError) as raised:
        await started(LlamaCppConfig(weights=broken))
    assert raised.value.reason == "engine_start_failed"
    with pytest.raises(InferBusError) as raised:
        await started(LlamaCppConfig(chat_template=broken, kv_tokens=512))
    assert "INFERBUS_WORKER_LLAMA_CPP__CHAT_TEMPLATE: the chat template cannot be read" in raised.value.diagnostic
