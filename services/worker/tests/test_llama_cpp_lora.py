"""LoRA adapters of the CPU engine: each request is made with the one that it names, and with no other."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from inferbus_runtime.errors import InferBusError
from inferbus_worker.config import Config, LlamaCppConfig
from inferbus_worker.core.records import model_records, worker_record
from inferbus_worker.engine import EngineInfo, Finish
from inferbus_worker.engines.llama_cpp import LlamaCpp

from services.worker.tests.llama_cpp_lora import write_adapter
from services.worker.tests.test_llama_cpp import ask, generation

ASKED = "Tell me a story about a fox."


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[LlamaCpp, EngineInfo]]:
    folder = tmp_path_factory.mktemp("adapters")
    lora = tuple(
        f"{name}={write_adapter(folder / f'{name}.gguf', seed, strength)}"
        for name, seed, strength in (("red", 1, 4.0), ("blue", 2, 4.0), ("nothing", 3, 0.0))
    )
    engine = LlamaCpp.from_config(Config(name="test", llama_cpp=LlamaCppConfig(kv_tokens=2048, lora=lora)))
    yield engine, await engine.start()
    await engine.stop()


@pytest.fixture(scope="module")
async def plain() -> list[int]:
    """What the model writes where no adapter is loaded at all."""
    engine = LlamaCpp.from_config(Config(name="test", llama_cpp=LlamaCppConfig(kv_tokens=2048)))
    await engine.start()
    try:
        return (await ask(engine, generation(1, ASKED, max_tokens=24)))[(1).to_bytes(16, "big")][0]
    finally:
        await engine.stop()


async def test_each_is_a_model_of_its_own(served: tuple[LlamaCpp, EngineInfo]) -> None:
    _, info = served
    record = worker_record("w", 1, info, (), node="", zone="", cost_per_hour=0.0)
    assert list(record.adapters) == [f"{info.model}:{name}" for name in ("red", "blue", "nothing")]
    assert [one.name for one in model_records(info)] == [info.model, *record.adapters]


async def test_at_once_each_gets_its_own_and_the_model_none(
    served: tuple[LlamaCpp, EngineInfo], plain: list[int]
) -> None:
    engine, _ = served
    names = ("", "red", "blue", "nothing", "red", "")
    asked = [
        replace(generation(n, ASKED, max_tokens=24), adapter=name, cache_salt=b"one tenant")
        for n, name in enumerate(names)
    ]
    together = await ask(engine, *asked)
    texts = [together[one.key][0] for one in asked]
    assert texts[0] == texts[5] == texts[3] == plain, "without one, and with one that changes nothing"
    assert texts[1] == texts[4] != plain
    assert texts[2] not in (plain, texts[1])
    # One after the other, each finds what an earlier one has left in the cache: its own, or nothing.
    for one, text in zip(asked[:3], texts, strict=False):
        again = await ask(engine, replace(one, key=b"again".ljust(16, one.key[-1:])))
        assert again.popitem()[1][0] == text


async def test_one_that_it_does_not_have_is_refused(served: tuple[LlamaCpp, EngineInfo]) -> None:
    engine, _ = served
    one = replace(generation(9, ASKED), adapter="green")
    end = (await ask(engine, one))[one.key][2]
    assert end.reason is Finish.ERROR
    assert "adapter" in end.error.message


def test_a_file_that_is_not_there_is_a_fault_of_the_settings(tmp_path: Path) -> None:
    with pytest.raises(InferBusError) as refused:
        LlamaCpp.from_config(Config(name="test", llama_cpp=LlamaCppConfig(lora=(f"a={tmp_path / 'none.gguf'}",))))
    assert "LLAMA_CPP__LORA" in (refused.value.diagnostic or "")
