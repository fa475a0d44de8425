"""An edge is killed in the middle of its streams, and the clients go on at the other one: docs/resume.py does it."""

import asyncio
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2 as httpx
import pytest

from tests.conformance.clients import MODEL, SECONDS, openai_client
from tests.harness.local import Stack, until

Event = tuple[str, str]
RESUME = Path(__file__).parents[2] / "docs" / "resume.py"


@pytest.fixture(scope="module")
def resume() -> ModuleType:
    spec = importlib.util.spec_from_file_location("resume", RESUME)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Reader:
    """One client in a thread of its own. ``times``: when each chunk came, in monotonic seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ids: set[str] = set()
        self.text = ""

    def read(self, chunks: Iterator[dict[str, Any]]) -> "Reader":
        for chunk in chunks:
            self.times.append(time.monotonic())
            self.ids.add(chunk["id"])
            self.text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        return self

    def gap(self, killed: float) -> float | None:
        """The longest silence that ended after the kill; None for one that had not begun by then."""
        pairs = [(one, two) for one, two in zip(self.times, self.times[1:], strict=False) if two > killed]
        return max(two - one for one, two in pairs) if pairs and self.times[0] < killed else None


def body(model: str, number: int, tokens: int) -> dict[str, Any]:
    prompt = f"Count up from {number} in words."
    return {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "temperature": 0}


async def killed_in_mid_stream(stack: Stack, resume: ModuleType, model: str, streams: int, tokens: int) -> None:
    bodies = [body(model, number, tokens) for number in range(streams)]
    async with openai_client(stack, 1) as client:
        answers = await asyncio.gather(*(client.chat.completions.create(**one) for one in bodies))
    expected = [answer.choices[0].message.content for answer in answers]
    readers = [Reader() for _ in bodies]
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(streams) as threads:
        reading = [
            loop.run_in_executor(threads, reader.read, resume.stream(stack.edge_urls, stack.api_key, one))
            for reader, one in zip(readers, bodies, strict=True)
        ]
        await until(lambda: sum(len(reader.times) for reader in readers) > streams * tokens // 4, SECONDS)
        assert not all(one.done() for one in reading)
        old, killed = stack.kill("edge"), time.monotonic()
        await asyncio.gather(*reading)
    assert [reader.text for reader in readers] == expected
    assert all(len(reader.ids) == 1 for reader in readers)
    assert len(set().union(*(reader.ids for reader in readers))) == streams
    await stack.restarted("edge", old)
    code, out = await stack.cli("audit", "--json")
    assert code == 0, out
    gaps = sorted(gap for reader in readers if (gap := reader.gap(killed)) is not None)
    assert gaps, "no stream was under way"
    percentiles = statistics.quantiles(gaps, n=100, method="inclusive")
    print(f"\n{model}: {len(gaps)} streams resumed, gap p50 {percentiles[49]:.3f} s, p99 {percentiles[98]:.3f} s")


@pytest.mark.parametrize("streams", [16, pytest.param(64, marks=pytest.mark.soak)])
@pytest.mark.timeout(300)
async def test_streams_outlive_their_edge(fast_stack: Stack, resume: ModuleType, streams: int) -> None:
    await killed_in_mid_stream(fast_stack, resume, "synthetic", streams, 300)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_streams_of_the_real_model_outlive_their_edge(stack: Stack, resume: ModuleType) -> None:
    await killed_in_mid_stream(stack, resume, MODEL, 64, 48)


async def test_the_program_of_the_docs_prints_the_answer(fast_stack: Stack) -> None:
    """Of the timing model: it says no limit, and what a real model draws may then be as long as its context."""
    stack, model = fast_stack, "synthetic"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(RESUME), stack.api_key, model, "Say hello.", "http://127.0.0.1:9/v1", *stack.edge_urls,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, out.decode()
    assert out.decode().strip()
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(RESUME), "ib-wrong", model, "Say hello.", *stack.edge_urls,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode != 0
    assert "401" in out.decode()


async def events_of(http: httpx.AsyncClient, method: str, url: str, **request: Any) -> tuple[list[Event], str]:
    """((id, the rest) of each event, the handle that the header gave)."""
    async with http.stream(method, url, **request) as answer:
        text = (await answer.aread()).decode()
        assert answer.status_code == 200, text
        handle = answer.headers["x-inferbus-stream"]
    events = []
    for event in text.split("\n\n")[:-1]:
        lines = [line for line in event.split("\n") if not line.startswith(":")]
        if lines:
            assert lines[0].startswith("id: "), event
            events.append((lines[0].removeprefix("id: "), "\n".join(lines[1:])))
    return events, handle


async def left(http: httpx.AsyncClient, url: str, request: dict[str, Any], headers: dict[str, str]) -> str:
    """Begins a stream, reads a little of it and hangs up; returns its handle."""
    async with http.stream("POST", f"{url}/chat/completions", json=request, headers=headers) as answer:
        lines = answer.aiter_lines()
        for _ in range(9):
            await anext(lines)
        handle: str = answer.headers["x-inferbus-stream"]
    return handle


def said(events: list[Event]) -> str:
    chunks = [json.loads(data.removeprefix("data: ")) for _, data in events if not data.endswith("[DONE]")]
    return "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk.get("choices", ()))


async def test_a_vanished_clients_answer_is_cancelled_or_held_as_the_request_says(fast_stack: Stack) -> None:
    one, other = fast_stack.edge_urls
    request = {**body("synthetic", 1, 300), "stream": True}
    key = {"Authorization": f"Bearer {fast_stack.api_key}"}
    async with httpx.AsyncClient(headers=key, timeout=SECONDS) as http:
        asked = asyncio.create_task(events_of(http, "POST", f"{one}/chat/completions", json=request))
        held = await left(http, one, request, {"x-inferbus-hold": "60"})
        gone = await left(http, one, request, {})
        await asyncio.sleep(1)
        rest, _ = await events_of(http, "GET", f"{other}/streams/{held}")
        whole, _ = await asked
        assert said(rest) == said(whole)
        cancelled = await http.get(f"{other}/streams/{gone}")
        assert "[DONE]" not in cancelled.text
        assert len(cancelled.content) < len("".join(data for _, data in whole))


CHAT = [{"role": "user", "content": "Count from one to ten in words."}]
FAMILIES = {
    "chat/completions": {"messages": CHAT, "max_tokens": 12, "stream_options": {"include_usage": True}},
    "chat/completions, two choices": {"messages": CHAT, "max_tokens": 12, "n": 2},
    "completions": {"prompt": "One, two,", "max_tokens": 12},
    "responses": {"input": "Count.", "max_output_tokens": 12},
    "messages": {"messages": CHAT, "max_tokens": 12},
}


@pytest.mark.parametrize("family", FAMILIES)
async def test_every_api_goes_on_after_any_of_its_events_at_the_other_edge(
    stack: Stack, http: httpx.AsyncClient, family: str
) -> None:
    path = family.partition(",")[0]
    request = {"json": {"model": MODEL, "stream": True, "temperature": 0, **FAMILIES[family]}}
    whole, handle = await events_of(http, "POST", f"{stack.edge_urls[0]}/{path}", **request)
    assert len({name for name, _ in whole}) == len(whole) > 10
    assert {name.rpartition(":")[0] for name, _ in whole} == {handle}
    other = stack.edge_urls[1]
    for after in (0, len(whole) // 2, len(whole) - 2):
        headers = {"Last-Event-ID": whole[after][0]}
        for method, url, more in (("POST", f"{other}/{path}", request), ("GET", f"{other}/streams/{handle}", {})):
            rest, again = await events_of(http, method, url, headers=headers, **more)
            assert rest == whole[after + 1 :]
            assert again == handle
    stranger = {"Authorization": f"Bearer {await stack.new_key(tenant_id='stranger')}"}
    for name in (handle, "01a1fe2d-0000-7684-88df-274e4b2083f7"):
        answer = await http.get(f"{other}/streams/{name}", headers=stranger)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"
