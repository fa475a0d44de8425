"""What is the engine transformers' own; its contract is in contract/. Where PyTorch and transformers are, a tiny real
model runs, on the GPU if there is one; where they are not, those tests are skipped by name."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from inferbus_runtime.errors import InferBusError
from inferbus_worker.config import Config, TransformersConfig
from inferbus_worker.engine import (
    Chat,
    EngineDiedError,
    Finish,
    Generation,
    Message,
    Prompt,
    Sampling,
    Tool,
    ToolMode,
)
from inferbus_worker.engines import engine_class
from inferbus_worker.engines.transformers_files import read
from inferbus_worker.engines.transformers_run import Rules, run_of

from services.worker.tests import engine_transformers as here
from services.worker.tests import gpu_model

# A start imports PyTorch, 12 seconds of a quiet core.
pytestmark = pytest.mark.timeout(300)
installed = pytest.mark.skipif(bool(here.missing()), reason=f"transformers: {here.missing()}")
KEY = bytes(16)
HELLO = Chat((Message("user", "Hello"),))
GREEDY = Sampling(temperature=0.0, max_tokens=16)
SHAPE = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2048, "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 1024, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real tokenizer and a model's shape, and no weights."""
    folder = tmp_path_factory.mktemp("shape")
    gpu_model.write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return folder


def rules(folder: Path, *, samples: bool = True) -> Rules:
    files = read(TransformersConfig(model_path=folder, random_weights=True))
    return Rules(files, ("chat", "completions"), 1024, samples)


def refusal(wanted: TransformersConfig) -> str:
    """What an operator reads."""
    with pytest.raises(InferBusError) as refused:
        read(wanted)
    return refused.value.diagnostic


def test_a_folder_that_cannot_be_served_is_named_with_its_setting(shape: Path, tmp_path: Path) -> None:
    assert refusal(TransformersConfig()).startswith("INFERBUS_WORKER_TRANSFORMERS__MODEL_PATH: set it")
    assert "no config.json" in refusal(TransformersConfig(model_path=tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": 1000}))
    assert refusal(TransformersConfig(model_path=tmp_path)).startswith("INFERBUS_WORKER_TRANSFORMERS__TOKENIZER_PATH")
    too_many = refusal(TransformersConfig(model_path=tmp_path, tokenizer_path=shape))
    assert "it has 2048 tokens, and the model 1000" in too_many


def test_what_decides_the_text_is_in_the_revision(shape: Path) -> None:
    settings = TransformersConfig(model_path=shape, random_weights=True)
    revisions = {
        read(one).digest
        for one in (
            settings,
            settings.model_copy(update={"random_seed": 1}),
            settings.model_copy(update={"random_weights": False}),
            settings.model_copy(update={"dtype": "float32"}),
        )
    }
    assert len(revisions) == 4
    assert read(settings.model_copy(update={"batch_tokens": 64})).digest in revisions


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("seed", Sampling(temperature=1.0, seed=7)),
        ("min_p", Sampling(temperature=1.0, min_p=0.1)),
        ("repetition_penalty", Sampling(temperature=0.0, repetition_penalty=1.1)),
        ("logprobs", Sampling(temperature=0.0, logprobs=0)),
        ("logit_bias", Sampling(temperature=0.0, logit_bias=((5, 1.0),))),
    ],
)
def test_what_the_library_has_for_no_single_request_is_refused_by_name(
    shape: Path, name: str, sampling: Sampling
) -> None:
    with pytest.raises(InferBusError) as refused:
        run_of(Generation(KEY, HELLO, sampling), rules(shape))
    assert (refused.value.reason, refused.value.param) == ("unsupported_parameter", name)


def test_values_that_change_nothing_are_taken(shape: Path) -> None:
    neutral = Sampling(temperature=0.0, seed=7, min_p=0.1, frequency_penalty=0.0, repetition_penalty=1.0)
    assert run_of(Generation(KEY, HELLO, neutral), rules(shape)).key == KEY
    quiet = replace(HELLO, tools=(Tool("f"),), tool_mode=ToolMode.NONE)
    assert run_of(Generation(KEY, quiet), rules(shape)).key == KEY


def test_calls_that_may_be_are_refused_since_nothing_holds_them_to_their_form(shape: Path) -> None:
    with pytest.raises(InferBusError) as refused:
        run_of(Generation(KEY, replace(HELLO, tools=(Tool("f"),))), rules(shape))
    assert refused.value.param == "tools"


def test_an_engine_that_draws_nothing_says_so(shape: Path) -> None:
    greedy = rules(shape, samples=False)
    for sampling in (Sampling(), GREEDY, Sampling(temperature=1.0, top_k=1)):
        assert run_of(Generation(KEY, HELLO, sampling), greedy).key == KEY
    with pytest.raises(InferBusError) as refused:
        run_of(Generation(KEY, HELLO, Sampling(temperature=0.5)), greedy)
    assert refused.value.param == "temperature"


@pytest.mark.skipif(not here.missing(), reason="torch and transformers are installed")
async def test_without_its_packages_it_does_not_start_and_says_why(shape: Path) -> None:
    settings = TransformersConfig(model_path=shape, random_weights=True)
    engine = engine_class("transformers").from_config(Config(name="w", engine="transformers", transformers=settings))
    with pytest.raises(InferBusError) as refused:
        await engine.start()
    assert refused.value.diagnostic.startswith("INFERBUS_WORKER_ENGINE: its packages are not installed")
    await engine.stop()


async def test_the_child_leaves_ctrl_c_to_its_worker(tmp_path: Path) -> None:
    """A terminal sends it to the whole group, and what runs is to be drained first."""
    wanted = TransformersConfig(model_path=tmp_path, device="cpu").model_dump(mode="json")
    settings = wanted | {"parent": os.getpid(), "threads": 1, "capacity": 1, "end_ids": []}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inferbus_worker.engines.transformers_child",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    status = Path(f"/proc/{child.pid}/status")
    try:
        async with asyncio.timeout(60):
            while not int(status.read_text().partition("SigIgn:")[2].split()[0], 16) & 1 << signal.SIGINT - 1:
                await asyncio.sleep(0.02)
        child.send_signal(signal.SIGINT)
        answer, _ = await child.communicate(json.dumps(settings).encode() + b"\n")
        assert "refused" in json.loads(answer)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


# --- the real packages ----------------------------------------------------------------------------------------------


class Reading:
    """An engine, and what its generations have yielded. Reads only when it is told to."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.ids: dict[bytes, list[int]] = {}
        self.ends: dict[bytes, Any] = {}

    def submit(self, number: int, source: Any = HELLO, sampling: Sampling = GREEDY, **more: Any) -> bytes:
        key = number.to_bytes(16, "big")
        self.ids[key] = []
        self.engine.submit(Generation(key, source, sampling, **more))
        return key

    async def read(self) -> None:
        """Until all have ended."""
        async for step in self.engine.steps():
            at = 0
            for key, count in zip(step.keys, step.counts, strict=True):
                self.ids[key] += step.token_ids[at : at + count]
                at += count
            self.ends |= {one.key: one for one in step.finished}
            if len(self.ends) == len(self.ids):
                return


async def started(cache: Path, **changes: Any) -> AsyncIterator[Any]:
    async with here.made(cache, **changes) as engine:
        engine.info = await engine.start()
        yield engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
async def small(folder: Path) -> AsyncIterator[Any]:
    """Its KV cache holds some of what it is given at once, and just one of the longest."""
    async for engine in started(folder, transformers={"kv_tokens": 1024, "kv_block_tokens": 16, "batch_tokens": 64}):
        yield engine


@installed
async def test_a_cache_that_is_too_small_costs_time_and_no_token(small: Any) -> None:
    """Those for which it has no room any more are read again with what they have, and go on."""
    assert small.info.context_length == 1024
    reading = Reading(small)
    alone = reading.submit(0, sampling=replace(GREEDY, max_tokens=200))
    await reading.read()
    keys = [reading.submit(number, sampling=replace(GREEDY, max_tokens=200)) for number in range(1, 13)]
    await asyncio.wait_for(reading.read(), 120)
    assert {tuple(reading.ids[key]) for key in keys} == {tuple(reading.ids[alone])}
    assert len(reading.ids[alone]) == 200
    assert {reading.ends[key].reason for key in keys} == {Finish.LENGTH}
    assert small.statistics().kv_blocks_total == 64
    longest = reading.submit(20, sampling=Sampling(temperature=0.0))
    await asyncio.wait_for(reading.read(), 120)
    assert reading.ends[longest].input_tokens + len(reading.ids[longest]) == 1024
    assert reading.ends[longest].reason is Finish.LENGTH


@installed
async def test_a_long_prompt_alone_is_no_silence(folder: Path) -> None:
    """A worker would take an engine without steps for one that stands still."""
    async for engine in started(folder):
        engine.submit(Generation(KEY, Prompt((5,) * 2000), replace(GREEDY, max_tokens=2)))
        silent = 0
        async for step in engine.steps():
            if step.keys or step.finished:
                break
            silent += 1
        assert silent, "its 2000 tokens are read in 8 steps, and only the last of them makes a token"


@installed
async def test_while_nobody_reads_generation_stands_still(folder: Path) -> None:
    """And goes on, without a token lost, when somebody does. 32,400 tokens are more than all buffers hold."""
    async for engine in started(folder, capacity=24):
        reading = Reading(engine)
        keys = [reading.submit(number, sampling=replace(GREEDY, max_tokens=1350)) for number in range(24)]
        before, used = -1.0, 0.0
        while used - before > 0.3:
            await asyncio.sleep(4)
            before, used = used, sum(psutil.Process(engine._child.pid).cpu_times()[:2])
        for key in keys[1:]:
            engine.close(key)
        await asyncio.wait_for(reading.read(), 120)
        whole = reading.ids[keys[0]]
        assert (len(whole), reading.ends[keys[0]].reason) == (1350, Finish.LENGTH)
        for key in keys[1:]:
            assert reading.ends[key].reason is Finish.CANCELLED, "it had not ended before anybody read"
            assert reading.ids[key] == whole[: len(reading.ids[key])]


@installed
async def test_a_fault_in_the_librarys_loop_is_a_death(folder: Path) -> None:
    """It catches what ends its thread and says so to nobody."""
    async for engine in started(folder):
        reading = Reading(engine)
        reading.submit(1, sampling=replace(GREEDY, max_tokens=1000))
        while not engine.statistics().kv_blocks_used:
            await asyncio.sleep(0.01)
        sampling = {"temperature": 1.0, "top_k": 1, "top_p": 1.0, "greedy": 1}
        engine._child.send({"add": [10**6, 5, [10**7], sampling]})  # a token for which there is no embedding
        with pytest.raises(EngineDiedError, match=r"index out of range"):
            await asyncio.wait_for(reading.read(), 60)
        assert not reading.ends, "it goes on in the next start"


@installed
def test_weights_are_drawn_by_their_seed(shape: Path) -> None:
    from inferbus_worker.engines.transformers_weights import weights_of

    told = TransformersConfig(model_path=shape, random_weights=True, device="cpu").model_dump(mode="json")
    one, same, other = (
        weights_of(told | {"threads": 1, "random_seed": seed}).model.lm_head.weight.flatten()[:50].tolist()
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


@installed
def test_a_greedy_row_keeps_one_of_equal_logits_and_no_other_row_is_touched() -> None:
    import torch
    from inferbus_worker.engines.transformers_batching import GreedyRows

    scores = torch.tensor([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0]])
    chosen = GreedyRows(torch)(scores, torch.tensor([1, 0, 0], dtype=torch.int32))
    assert torch.softmax(chosen, -1)[0].tolist() == [0.0, 1.0, 0.0]
    assert chosen[1].tolist() == scores[1].tolist()


@installed
async def test_an_engine_without_draws_on_weights_that_were_drawn(shape: Path) -> None:
    """A model that has nothing but a shape, asked with raw ids: the tokens that the library's plain generate makes."""
    import torch
    from inferbus_worker.engines.transformers_weights import weights_of

    settings = {"model_path": shape, "random_weights": True, "kv_tokens": 1024, "samples": False, "device": "cpu"}
    told = TransformersConfig(**settings).model_dump(mode="json") | {"threads": 1}
    plain = weights_of(told).model.generate(torch.tensor([[5, 6, 7]]), do_sample=False, max_new_tokens=16)
    async for engine in started(shape, transformers=settings):
        reading = Reading(engine)
        key = reading.submit(1, Prompt((5, 6, 7)))
        await reading.read()
        assert reading.ids[key] == plain[0, 3:].tolist()


@pytest.mark.gpu
@installed
async def test_on_a_gpu_it_computes_there(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    async for engine in started(folder, transformers={"device": "cuda"}):
        assert engine._child.about["device"] == "cuda"
        reading = Reading(engine)
        key = reading.submit(1)
        await reading.read()
        assert len(reading.ids[key]) == 16
