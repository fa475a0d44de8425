"""Workers die, stop, are cut off and drained, and schedulers with them: no stream notices more than a pause."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.asking import audited
from tests.harness.disturbed import gaps, loaded, report, undisturbed
from tests.harness.local import Stack, running
from tests.harness.standing import standing_still
from tests.harness.streams import Form, chat, open_http, responses, told

SYNTHETIC = {"INFERBUS_WORKER_SYNTHETIC__ITL": "50ms"}
MODEL = "smollm2-135m-instruct"
Deed = Callable[[Stack], Awaitable[None]]


async def kill_worker(stack: Stack, name: str) -> None:
    await stack.restarted(name, stack.kill(name))


@pytest.mark.parametrize(
    ("kills", "pause"),
    [pytest.param(4, 2.0, id="short"), pytest.param(30, 4.0, id="soak", marks=pytest.mark.soak)],
)
@pytest.mark.timeout(600)
async def test_workers_are_killed_under_load_and_every_stream_is_whole(
    tmp_path: Path, kills: int, pause: float
) -> None:
    forms = [chat("synthetic", "go", tokens) for tokens in (40, 120, 300)]
    async with running(tmp_path / "home", "synthetic", "--workers", "4", variables=SYNTHETIC) as stack:
        deeds: list[tuple[str, float]] = []
        async with loaded(stack, forms, 64) as load:
            for number in range(kills):
                name = f"worker-{number % 4}"
                deeds.append(("kill", time.monotonic()))
                pid = stack.kill(name)
                await asyncio.sleep(pause)
                await stack.restarted(name, pid)
        report(gaps(load, deeds))
        assert len(load.answers) >= 64


@pytest.mark.timeout(300)
async def test_the_only_worker_is_killed_and_its_streams_go_on_when_it_is_back(tmp_path: Path) -> None:
    forms = [chat("synthetic", "go", 200)]
    async with running(tmp_path / "home", "synthetic", variables=SYNTHETIC) as stack, loaded(stack, forms, 8):
        await kill_worker(stack, "worker-0")


@pytest.mark.timeout(300)
async def test_a_worker_that_stands_still_beyond_its_lease_is_replaced_and_wakes_as_a_new_one(tmp_path: Path) -> None:
    forms = [chat("synthetic", "go", 300)]
    variables = {**SYNTHETIC, "INFERBUS_WORKER_LEASE_TTL": "3s"}
    async with running(tmp_path / "home", "synthetic", "--workers", "2", variables=variables) as stack:
        async with loaded(stack, forms, 16) as load:
            moment = time.monotonic()
            with standing_still(stack.pids["worker-0"]):
                await asyncio.sleep(8)
                stood = time.monotonic() - moment
            await asyncio.sleep(2)
        report(gaps(load, [("stalled", moment)]))
        found = gaps(load, [("stalled", moment)])
        assert found, "nobody ran on the worker that stood still"
        # All went on before it woke.
        assert max(silence for silence, _ in found["stalled"]) < stood


@pytest.mark.timeout(300)
async def test_the_scheduler_that_leads_is_killed_under_load(tmp_path: Path) -> None:
    forms = [chat("synthetic", "go", tokens) for tokens in (5, 60)]
    options = ("--workers", "2", "--schedulers", "2")
    async with (
        running(tmp_path / "home", "synthetic", *options, variables=SYNTHETIC) as stack,
        loaded(stack, forms, 16),
    ):
        for name in ("scheduler", "scheduler-1"):
            pid = stack.kill(name)
            await asyncio.sleep(1)
            await stack.restarted(name, pid)
            await asyncio.sleep(3)


@pytest.mark.timeout(300)
async def test_all_workers_are_drained_in_turn_and_no_request_fails(tmp_path: Path) -> None:
    forms = [chat("synthetic", "go", tokens) for tokens in (20, 400)]
    async with (
        running(tmp_path / "home", "synthetic", "--workers", "3", variables=SYNTHETIC) as stack,
        loaded(stack, forms, 24),
    ):
        for number in range(3):
            name, pid = f"worker-{number}", stack.pids[f"worker-{number}"]
            code, out = await stack.cli("drain", name, "--grace", "1s", "--wait")
            assert code == 0, out
            os.kill(pid, signal.SIGTERM)
            await stack.restarted(name, pid)
            await asyncio.sleep(1)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    }
]
TAGS = {"type": "array", "items": {"type": "string"}, "minItems": 3, "maxItems": 5}
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string"}, "pages": {"type": "integer"}, "tags": TAGS},
    "required": ["title", "pages", "tags"],
    "additionalProperties": False,
}


def all_forms() -> dict[str, Form]:
    story = "Write a long story about the sea."
    schema: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "book", "schema": SCHEMA, "strict": True}}
    return {
        "chat": chat(MODEL, story, 64),
        "responses": responses(MODEL, "Tell me of the mountains.", 64),
        "tools": chat(MODEL, "What is the weather in Paris?", 96, tools=TOOLS, tool_choice="required"),
        "json_schema": chat(MODEL, "Describe a book about whales.", 160, response_format=schema),
        "n=2": chat(MODEL, "Tell me a tale of a fox.", 48, n=2),
    }


async def kill_and_wait(stack: Stack, name: str) -> None:
    await stack.restarted(name, stack.kill(name), timeout=90)


@pytest.mark.timeout(900)
async def test_whatever_dies_every_form_of_answer_is_whole_and_as_undisturbed(tmp_path: Path) -> None:
    """{client, edge, worker, scheduler, nats-server} × {chat, responses, tools, json_schema, n = 2}, a real model."""
    forms = all_forms()
    options = ("--workers", "2", "--edges", "2", "--schedulers", "2", "--no-embeddings")
    async with running(tmp_path / "home", "llama_cpp", *options, timeout=180) as stack, open_http() as http:
        expected = await undisturbed(stack, http, list(forms.values()))
        source = random.Random(5)
        for what in ("client", "edge", "worker-0", "worker-1", "scheduler", "nats"):
            begun = [asyncio.Event() for _ in forms]
            leave = [asyncio.Event() for _ in forms]
            asked = [
                asyncio.create_task(told(
                    http, stack.edge_urls, stack.api_key, form, begun=started, leave=left, after=source.randint(2, 8)
                ))
                for form, started, left in zip(forms.values(), begun, leave, strict=True)
            ]  # fmt: skip
            for started in begun:
                await started.wait()
            if what == "client":
                for left in leave:
                    left.set()
            else:
                await kill_and_wait(stack, what)
            answers = await asyncio.gather(*asked)
            for (name, form), answer, text in zip(forms.items(), answers, expected, strict=True):
                assert form.read(answer.data) == text, (what, name)
                # Who comes back may find the broker away, and nothing else.
                assert what == "nats" or answer.refusals == [], (what, name)
        await audited(stack)


@pytest.mark.parametrize(
    ("kills", "pause"), [pytest.param(2, 4.0, id="short"), pytest.param(15, 8.0, id="soak", marks=pytest.mark.soak)]
)
@pytest.mark.timeout(900)
async def test_a_real_models_text_is_the_same_however_often_its_workers_are_killed(
    tmp_path: Path, kills: int, pause: float
) -> None:
    forms = [chat(MODEL, f"Write a story about {thing}.", 96) for thing in ("the sea", "a fox", "the moon", "bread")]
    options = ("--workers", "2", "--no-embeddings")
    async with running(tmp_path / "home", "llama_cpp", *options, timeout=180) as stack:
        deeds: list[tuple[str, float]] = []
        async with loaded(stack, forms, 8) as load:
            for number in range(kills):
                name = f"worker-{number % 2}"
                deeds.append(("kill", time.monotonic()))
                pid = stack.kill(name)
                await asyncio.sleep(pause)
                await stack.restarted(name, pid, timeout=90)
        report(gaps(load, deeds))
