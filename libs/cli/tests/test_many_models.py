"""Several models in the memory of one: loaded when they are asked for, and unloaded for each other."""

import asyncio
import threading
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import openai
import pytest
from inferbus.bus.v1.decision_pb2 import ScalingDecision
from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_runtime import clock

from libs.cli.tests.conftest import Launch, RunningStack, until
from services.worker.tests.llama_cpp_lora import write_adapter

_SECONDS = 120
MIB = 1 << 20


def register(stack: RunningStack, model: str, revision: str, memory: int, settings: Mapping[str, str] | None = None,
             engine: str = "synthetic") -> None:  # fmt: skip
    async def put() -> None:
        content = stack.content
        async with connect(BusConfig(content["nats_url"], "admin", content["nats_seed"])) as bus:
            records = Registry(bus, "revisions", RevisionRecord)
            await records.start()
            record = RevisionRecord(
                model=model, revision=revision, stage=RevisionStage.REVISION_STAGE_STABLE, engine=engine,
                settings={"SYNTHETIC__ITL": "2ms", "CAPACITY": "8"} if settings is None else settings,
                memory_bytes=memory,
            )  # fmt: skip
            await records.put(f"{model}/{revision}", record)
            await records.stop()

    asyncio.run(put())


def client(stack: RunningStack) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=stack.content["base_url"], api_key=stack.content["api_key"], max_retries=0, timeout=_SECONDS
    )


def ask(stack: RunningStack, model: str, tokens: int = 5) -> Any:
    return client(stack).chat.completions.with_raw_response.create(
        model=model, max_tokens=tokens, messages=[{"role": "user", "content": "Go."}]
    )


def loaded(stack: RunningStack) -> set[str]:
    return {one["record"]["model"] for one in stack.json("fleet", "--once")["workers"]}


def ended(stack: RunningStack, request_id: str) -> Any:
    """Its summary, once its end is stored."""

    def shown() -> Any:
        return stack.json("request", request_id)["request"]

    until(lambda: "end_time" in shown(), _SECONDS)
    return shown()


@pytest.fixture
def small(launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunningStack:
    """Its own model has memory of its own, which nobody takes; beside it there is room for one of the two."""
    monkeypatch.setenv("INFERBUS_SCHEDULER_MEMORY_RESIDENCE", "3s")
    monkeypatch.setenv("INFERBUS_SCHEDULER_MEMORY_MAX_WAIT", "4s")
    stack = launch(tmp_path / "stack", "--memory", "700MiB", "--slots", "3")
    for model, memory in (("red", 400), ("blue", 400), ("huge", 2000)):
        register(stack, model, "r1", memory * MIB)
        stack.run("deployments", "set", model, "--min", "0", "--max", "1")
    until(lambda: {"red", "blue", "huge"} <= {one.id for one in client(stack).models.list()}, _SECONDS)
    return stack


def test_two_models_in_the_memory_of_one_are_both_served_and_a_third_is_refused(small: RunningStack) -> None:
    waits = {}
    for model in ("red", "blue", "red"):
        began = time.monotonic()
        answer = ask(small, model)
        waits[model] = time.monotonic() - began
        assert answer.parse().usage.completion_tokens == 5
        assert loaded(small) & {"red", "blue"} == {model}
        shown = small.json("request", answer.headers["x-request-id"])
        cold = float(shown["placement"]["cold_start"].removesuffix("s"))
        assert 0 < cold <= waits[model], "it waited for a worker, and its timeline says so"
        stored = ended(small, answer.headers["x-request-id"])
        assert float(stored["cold_start"].removesuffix("s")) == pytest.approx(cold, abs=0.01), "and the log does"
        assert cold <= float(stored["queue"].removesuffix("s"))
        deployment = small.json("deployments", "show", model)
        assert deployment["cold_start"]["worker"].startswith("worker-")
        assert deployment["cold_start"]["start"]["engine_duration"]
        print(model, f"{waits[model]:.2f} s", deployment["cold_start"])
    assert small.json("deployments", "show", "blue")["scaling"]["reason"] == "lru"
    assert "synthetic" in loaded(small), "what has no deployment keeps its memory"

    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as refused:
        ask(small, "huge")
    assert time.monotonic() - began < 3
    assert refused.value.status_code == 503
    assert "memory" in refused.value.message
    assert refused.value.code == "model_too_large"
    assert "GiB" not in refused.value.message
    shown = small.run("deployments", "show", "huge").output
    assert "too_large" in shown
    assert "2.0 GiB" in shown


def test_two_that_are_always_busy_take_turns_and_nothing_fails(small: RunningStack) -> None:
    ends: dict[str, list[float]] = {"red": [], "blue": []}
    faults: list[Exception] = []
    stop = time.monotonic() + 40

    def load(model: str) -> None:
        while time.monotonic() < stop:
            try:
                ask(small, model, 200)
            except openai.OpenAIError as error:
                faults.append(error)
            ends[model].append(time.monotonic())

    threads = [threading.Thread(target=load, args=(model,)) for model in ends for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(_SECONDS)
    assert faults == []
    longest = {model: max(b - a for a, b in pairwise(times)) for model, times in ends.items()}
    print({model: len(times) for model, times in ends.items()}, longest)
    # Each has waited for the other, and was served after that: how long depends on the machine.
    assert all(len(times) > 4 for times in ends.values())
    assert max(longest.values()) < 60, "none of them waits without end"


def test_a_real_model_sleeps_and_is_woken_by_a_request_for_an_adapter_of_it(launch: Launch, tmp_path: Path) -> None:
    stack = launch(tmp_path / "stack", "--slots", "1")
    adapter = write_adapter(tmp_path / "red.gguf", seed=1)
    settings = {"LLAMA_CPP__LORA": f"red={adapter}", "LLAMA_CPP__KV_TOKENS": "2048", "CAPACITY": "4"}
    register(stack, "tiny", "r1", 0, settings, engine="llama_cpp")
    stack.run("deployments", "set", "tiny", "--min", "0", "--max", "1", "--idle-time", "3s")
    until(lambda: "tiny" in {one.id for one in client(stack).models.list()}, _SECONDS)

    def text(model: str) -> str:
        answer = client(stack).chat.completions.create(
            model=model, max_tokens=16, temperature=0, messages=[{"role": "user", "content": "Tell me of a fox."}]
        )
        return str(answer.choices[0].message.content)

    plain = text("tiny")
    assert {"tiny", "tiny:red"} <= {one.id for one in client(stack).models.list()}
    until(lambda: "tiny" not in loaded(stack), _SECONDS)
    red = text("tiny:red")
    assert red != plain, "it is made with the adapter"
    assert text("tiny") == plain
    cold = stack.json("deployments", "show", "tiny")["cold_start"]
    print("llama_cpp", cold)
    assert float(cold["total_duration"].removesuffix("s")) >= float(cold["start"]["engine_duration"].removesuffix("s"))


def decide(stack: RunningStack, *decisions: ScalingDecision) -> None:
    """As the scheduler that divides a model among revisions says it."""

    async def publish() -> None:
        content = stack.content
        async with connect(BusConfig(content["nats_url"], "admin", content["nats_seed"])) as bus:
            publisher = Publisher(bus)
            await publisher.start()
            for one in decisions:
                one.decision_time.CopyFrom(clock.timestamp(clock.now_us()))
                await publisher.publish(one)

    asyncio.run(publish())


def revisions(stack: RunningStack) -> dict[str, str]:
    workers = stack.json("fleet", "--once")["workers"]
    return {one["record"]["worker"]: one["record"]["revision"] for one in workers}


def test_another_revision_is_started_beside_the_old_one_which_is_drained_when_it_is_said(
    launch: Launch, tmp_path: Path
) -> None:
    stack = launch(tmp_path / "stack", "--slots", "2")
    own = revisions(stack)["worker-0"]
    register(stack, "synthetic", "r2", 0)
    register(stack, "synthetic", "broken", 0, {"CAPACITY": "none at all"})
    whole = ScalingDecision(model="synthetic", replicas=2, reason="revisions")
    decide(
        stack,
        ScalingDecision(model="synthetic", revision=own, replicas=1, reason="revisions"),
        ScalingDecision(model="synthetic", revision="r2", replicas=1, reason="revisions"),
        whole,
    )
    until(lambda: revisions(stack) == {"worker-0": own, "worker-1": "r2"}, _SECONDS)
    running = threading.Thread(target=ask, args=(stack, "synthetic", 2000))
    running.start()
    decide(stack, ScalingDecision(model="synthetic", revision=own, replicas=0, reason="revisions"))
    until(lambda: revisions(stack) == {"worker-1": "r2"}, _SECONDS)
    assert ask(stack, "synthetic").parse().usage.completion_tokens == 5
    running.join(_SECONDS)

    decide(stack, ScalingDecision(model="synthetic", revision="broken", replicas=1, reason="revisions"))
    until(lambda: "synthetic broken did not start for the 2. time" in stack.output, _SECONDS)
    assert stack.output.count("CAPACITY") == stack.output.partition("is tried again in 5 s")[0].count("CAPACITY") > 0
    assert "is tried again in 10 s" in stack.output
    # The stack's own model can be had again, as it is now started.
    decide(
        stack,
        ScalingDecision(model="synthetic", revision="broken", replicas=0, reason="revisions"),
        ScalingDecision(model="synthetic", revision=own, replicas=1, reason="revisions"),
    )
    until(lambda: own in revisions(stack).values(), _SECONDS)
