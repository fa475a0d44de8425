"""Who dies, and what the customer sees: real kills, then the audit."""

import asyncio
import os
import random
import signal
from collections import Counter
from pathlib import Path

import httpx2 as httpx
import openai
import pytest

from tests.harness.asking import audited
from tests.harness.local import Stack, running
from tests.harness.paying import World

BODY = {"model": "synthetic", "messages": [{"role": "user", "content": "go"}]}
ITL = {"INFERBUS_WORKER_SYNTHETIC__ITL": "10ms"}


async def expected_text(client: openai.AsyncOpenAI, tokens: int) -> str:
    answer = await client.chat.completions.create(**BODY, max_tokens=tokens)
    return answer.choices[0].message.content


async def stream_text(
    client: openai.AsyncOpenAI, tokens: int, leave_after: int | None = None, begun: asyncio.Event | None = None
) -> str | None:
    """The whole streamed text; None if the client left half-way. ``begun`` is set with its first token."""
    text = ""
    count = 0
    stream = await client.chat.completions.create(**BODY, max_tokens=tokens, stream=True)
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            text += chunk.choices[0].delta.content
            count += 1
            if begun is not None:
                begun.set()
            if leave_after is not None and count >= leave_after:
                await stream.close()
                return None
    return text


async def mixed_load(
    client: openai.AsyncOpenAI, requests: int, concurrency: int, refused: tuple[type[Exception], ...] = ()
) -> Counter[str]:
    """Unary and streamed requests, every fifth one left half-way. Every answer must be whole and right."""
    source = random.Random(11)
    lengths = (8, 33, 60)
    expected = {tokens: await expected_text(client, tokens) for tokens in lengths}
    outcome: Counter[str] = Counter()
    gate = asyncio.Semaphore(concurrency)

    async def one(number: int) -> None:
        tokens = lengths[number % 3]
        async with gate:
            try:
                if number % 5 == 0:
                    await stream_text(client, tokens, leave_after=source.randint(1, tokens - 1))
                    outcome["left"] += 1
                elif number % 5 == 1:
                    assert await expected_text(client, tokens) == expected[tokens]
                    outcome["unary"] += 1
                else:
                    assert await stream_text(client, tokens) == expected[tokens]
                    outcome["streamed"] += 1
            except refused as error:
                outcome[type(error).__name__] += 1
                await asyncio.sleep(0.05)

    await asyncio.gather(*(one(number) for number in range(requests)))
    return outcome


def open_client(stack: Stack) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0, timeout=90)


async def clickhouse_away(stack: Stack, seconds: float) -> None:
    """Stopped, not killed, so that nobody starts it again: it takes connections and answers nothing."""
    pid = stack.pids["clickhouse"]
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize(
    ("requests", "away"),
    [pytest.param(500, 4, id="short"), pytest.param(4000, 30, id="soak", marks=pytest.mark.soak)],
)
@pytest.mark.timeout(600)
async def test_meter_and_clickhouse_die_and_every_token_is_billed_once(
    tmp_path: Path, requests: int, away: float
) -> None:
    async with running(tmp_path / "home", "synthetic", variables=ITL) as stack, open_client(stack) as client:
        loading = asyncio.create_task(mixed_load(client, requests, 16))

        async def chaos() -> None:
            for round_number in range(3):
                await asyncio.sleep(0.5)
                await stack.restarted("meter", stack.kill("meter"))
                if round_number < 2:
                    await stack.restarted("clickhouse", stack.kill("clickhouse"))
            await clickhouse_away(stack, away)

        await asyncio.gather(loading, chaos())
        assert sum(loading.result().values()) == requests
        summary = await audited(stack)
        assert int(summary["requests"]) >= requests


@pytest.mark.timeout(300)
async def test_the_broker_dies_under_load_and_no_stream_loses_or_repeats_a_token(tmp_path: Path) -> None:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "20ms"}
    async with running(tmp_path / "home", "synthetic", variables=variables) as stack, open_client(stack) as client:
        tokens = 300
        expected = await expected_text(client, tokens)
        begun = [asyncio.Event() for _ in range(16)]
        streams = [asyncio.create_task(stream_text(client, tokens, begun=one)) for one in begun]
        for one in begun:
            await one.wait()
        await asyncio.sleep(1)
        with stack.nothing_restarts():
            old = stack.kill("nats")
            async with httpx.AsyncClient() as http:
                refused = await http.post(
                    stack.chat_url, json={**BODY, "max_tokens": 1},
                    headers={"Authorization": f"Bearer {stack.api_key}"}, timeout=30,
                )  # fmt: skip
        await stack.restarted("nats", old)
        assert refused.status_code == 503
        assert refused.headers["Retry-After"]
        assert refused.json()["error"]["code"] == "bus_unavailable"
        assert [await stream for stream in streams] == [expected] * 16
        await until_serving(stack)
        await audited(stack)
        # No row, or, if it was the acknowledgement that was lost, one that was cancelled at once.
        async with httpx.AsyncClient(timeout=30) as http:
            request_id = refused.headers["x-request-id"]
            rows = await World(stack, http).sql(f"SELECT * FROM charges WHERE request_id = '{request_id}'")
        assert [(one["finish_reason"], int(one["output_tokens"]) <= 1) for one in rows] in ([], [("cancelled", True)])


async def until_serving(stack: Stack) -> None:
    async with httpx.AsyncClient() as http:
        for _ in range(600):
            answer = await http.post(
                stack.chat_url, json={**BODY, "max_tokens": 1},
                headers={"Authorization": f"Bearer {stack.api_key}"}, timeout=30,
            )  # fmt: skip
            if answer.status_code == 200:
                return
            await asyncio.sleep(0.1)
    raise AssertionError(answer.text)


@pytest.mark.timeout(300)
async def test_scheduler_and_worker_die_and_streams_go_on_where_they_were(tmp_path: Path) -> None:
    async with running(tmp_path / "home", "synthetic", variables=ITL) as stack, open_client(stack) as client:
        tokens = 2500  # 25 s: tokens have been delivered before each kill, and are still to come after it
        expected = await expected_text(client, tokens)
        begun = [asyncio.Event() for _ in range(8)]
        streams = [asyncio.create_task(stream_text(client, tokens, begun=one)) for one in begun]
        for one in begun:
            await one.wait()
        await stack.restarted("scheduler", stack.kill("scheduler"))
        await asyncio.sleep(0.5)
        await stack.restarted("worker-0", stack.kill("worker-0"))
        assert not any(stream.done() for stream in streams)
        assert [await stream for stream in streams] == [expected] * 8
        await until_serving(stack)
        await audited(stack)
        # What the worker that died had run is no waiting in a queue.
        async with httpx.AsyncClient(timeout=30) as http:
            query = "SELECT queue_us, ttft_us, started_us FROM bills WHERE attempt > 1"
            rows = await World(stack, http).sql(query)
        assert len(rows) == 8
        assert all(int(one["queue_us"]) <= int(one["ttft_us"]) < int(one["started_us"]) for one in rows)


@pytest.mark.timeout(120)
async def test_a_second_start_on_the_same_folder_goes_on_with_keys_and_data(tmp_path: Path) -> None:
    async with running(tmp_path / "home", "synthetic", variables=ITL) as stack, open_client(stack) as client:
        key = stack.api_key
        await client.chat.completions.create(**BODY, max_tokens=5)
        before = int((await audited(stack))["stream_tokens"])
    async with running(tmp_path / "home", "synthetic", variables=ITL) as stack, open_client(stack) as client:
        assert stack.api_key == key
        await client.chat.completions.create(**BODY, max_tokens=7)
        assert int((await audited(stack))["stream_tokens"]) == before + 7
