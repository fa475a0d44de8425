"""What only TensorRT-LLM has, on the real package and a real GPU. Skipped by name where one of them is missing; nobody
has run it yet. The mapping to it is in test_tensorrt_llm_mapping.py, its contract in contract/."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from inferbus_worker.engine import (
    Chat,
    Constraint,
    ConstraintKind,
    Finish,
    Finished,
    Generation,
    Message,
    Prompt,
    Sampling,
)
from tokenizers import Tokenizer


def beside(name: str) -> ModuleType:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


here = beside("engine_tensorrt_llm")
on_gpu = pytest.mark.skipif(bool(here.missing()), reason=f"tensorrt_llm: {here.missing()}")
GREEDY = Sampling(temperature=0.0, max_tokens=24)
LONG = Chat((Message("user", "The secret of tenant A is this very long text. " * 40),))


def test_the_tiny_model_has_a_real_tokenizer(tmp_path: Path) -> None:
    """Its weights need a GPU machine's packages, its tokenizer does not."""
    model = beside("gpu_model")
    made = model.write_tokenizer(tmp_path)
    again = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "Once upon a time, in [A-Z]{2}/42:\n{} 🎉"
    assert again.decode(again.encode(text).ids) == text
    assert len(again.encode("word " * 20_000).ids) >= 20_000
    assert again.encode("<|im_start|>user\nhi<|im_end|>").ids[0] == model.START
    assert len(again.encode("\n").ids) == 1
    assert again.get_vocab_size() == made.get_vocab_size()
    plain = model.plain(again)
    assert len(plain) > model.CHAIN
    for token in plain:
        assert again.decode([token]).isascii(), "whole characters, each of them"


@pytest.fixture(scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
    settings = {"kv_events": 4096, "statistics": True}
    async with here.made(tmp_path_factory.mktemp("gpu"), tensorrt_llm=settings) as made:
        await made.start()
        yield made


async def ask(engine: Any, source: Any, sampling: Sampling = GREEDY, **more: Any) -> tuple[list[int], str, Finished]:
    engine.submit(Generation(b"k" * 16, source, sampling, **more))
    ids: list[int] = []
    text = b""
    async with asyncio.timeout(60):
        async for step in engine.steps():
            ids += step.token_ids
            text += b"".join(step.texts)
            if step.finished:
                return ids, text.decode(), step.finished[0]
    raise AssertionError("it was stopped")


@pytest.mark.gpu
@on_gpu
async def test_its_detokenizer_and_ours_agree(engine: Any) -> None:
    ids, text, _ = await ask(engine, Prompt("Once"))
    assert engine._served.llm.tokenizer.decode(ids) == text


@pytest.mark.gpu
@on_gpu
async def test_prefixes_are_found_again_by_their_own_salt(engine: Any) -> None:
    cached = [(await ask(engine, LONG, cache_salt=salt))[2].cached_input_tokens for salt in (b"a", b"b", b"a")]
    assert cached[:2] == [0, 0]
    assert cached[2] >= 10 * engine._served.block_tokens


@pytest.mark.gpu
@on_gpu
async def test_it_tells_of_itself(engine: Any) -> None:
    told: list[Any] = []
    engine.on_kv_events.append(told.extend)
    await ask(engine, LONG, cache_salt=b"new")
    async with asyncio.timeout(10):
        while not told or not engine.statistics().kv_blocks_total:
            await asyncio.sleep(0.05)


@pytest.mark.gpu
@on_gpu
async def test_a_form_holds_against_a_model_that_knows_none(engine: Any) -> None:
    form = Constraint(ConstraintKind.REGEX, "[A-Z]{2}/[0-9]{3}")
    _, text, end = await ask(engine, Prompt("x"), replace(GREEDY, temperature=1.0), constraint=form)
    assert end.reason is Finish.STOP
    assert len(text) == 6


@pytest.mark.gpu
@on_gpu
async def test_every_parameter_works_or_is_refused_by_name(engine: Any) -> None:
    for name, value in (("seed", 7), ("min_p", 0.9), ("repetition_penalty", 5.0), ("presence_penalty", 2.0)):
        sampling = replace(GREEDY, temperature=1.0, **{name: value})
        first, second = [await ask(engine, Prompt("x"), sampling) for _ in range(2)]
        if first[2].error is not None:
            assert first[2].error.param == name
        elif name == "seed":
            assert first[0] == second[0]
