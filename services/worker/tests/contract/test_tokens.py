"""Tokens as numbers, raw prompts, vectors."""

import struct
from dataclasses import replace

import pytest
from inferbus_runtime.errors import InferBusError
from inferbus_worker.engine import Embed, Finish, Prompt

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, Answer, Driver, said


@shows("ids", "ids")
async def test_ids_are_those_of_the_text(engine: Driver, sea: Answer) -> None:
    assert await engine.engine.detokenize(sea.ids) == sea.text
    emoji = await engine.ask("Say hi with emoji 🎉", replace(GREEDY, max_tokens=12))
    assert (await engine.engine.detokenize(emoji.ids)).startswith(emoji.text), "half a character at its end is held"


@shows("tokenize", "tokenize")
async def test_tokenize_counts_what_a_generation_reads(engine: Driver) -> None:
    tokens = await engine.engine.tokenize(said("Say hi"), parse_special=False)
    assert len(tokens.ids) == len(tokens.pieces)
    answer = await engine.ask("Say hi", replace(GREEDY, max_tokens=1))
    assert len(tokens.ids) == answer.end.input_tokens


@shows("tokenize", "tokenize", "model")
async def test_detokenize_is_its_inverse(engine: Driver) -> None:
    text = "Say hi with emoji 🎉"
    tokens = await engine.engine.tokenize(Prompt(text), open_turn=False)
    assert await engine.engine.detokenize(tokens.ids) == text.encode() == b"".join(tokens.pieces)


@shows("tokenize", "tokenize")
async def test_a_token_that_does_not_exist_has_no_text(engine: Driver) -> None:
    with pytest.raises(InferBusError) as refused:
        await engine.engine.detokenize([10**9])
    assert refused.value.param == "tokens"


@shows("prompts", "completions")
async def test_raw_prompts(engine: Driver) -> None:
    text = await engine.ask(Prompt("Once upon a time"))
    assert text.end.input_tokens <= 8, "no template around it"
    assert text.text
    assert text.reason in (Finish.LENGTH, Finish.STOP)


@shows("prompts", "completions", "tokenize")
async def test_a_prompt_of_token_ids_is_that_of_its_text(engine: Driver) -> None:
    text = await engine.ask(Prompt("Once upon a time"))
    tokens = await engine.engine.tokenize(Prompt("Once upon a time"), open_turn=False)
    again = await engine.ask(Prompt(tuple(tokens.ids)))
    assert text.end.input_tokens == again.end.input_tokens
    assert engine.same(text, again)


@shows("vectors", "embeddings")
async def test_vectors_have_length_one(engine: Driver) -> None:
    answer = await engine.ask(Embed((Prompt("one"), Prompt("two"), Prompt("one"))))
    assert answer.reason is Finish.STOP
    assert answer.end.input_tokens >= 3
    vectors = [struct.unpack(f"<{engine.info.embedding_dimensions}f", values) for values in answer.vectors]
    assert [sum(value * value for value in vector) for vector in vectors] == pytest.approx([1.0] * 3, abs=1e-3)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
