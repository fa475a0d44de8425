"""Straight onto the queue: a plain NATS client with an API key, on a whole stack whose batch service is killed."""

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2 as httpx
import nats
import nats.errors
import pytest

from tests.harness.batches import Batches, chat_line
from tests.harness.local import Stack, running
from tests.harness.queue import CHAT, TOKENS, client, subjects

EXAMPLE = Path(__file__).parents[2] / "examples" / "queue.py"


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "20ms", "INFERBUS_WORKER_CAPACITY": "16"}
    async with running(tmp_path_factory.mktemp("queue") / "home", "synthetic", variables=variables) as one:
        yield one


@pytest.mark.timeout(300)
async def test_a_job_is_told_at_its_end(stack: Stack) -> None:
    batches = Batches(stack)
    file_id = await batches.put(b"".join(chat_line(f"line-{n}", "synthetic", TOKENS) for n in range(20)))
    asked = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "metadata": {"team": "x"}}
    async with client(stack) as team:
        for _ in range(2):  # said twice it is one
            await team.publish({"id": "nightly", "job": asked})
        batch = (await team.heard("nightly"))["nightly"]
        assert (batch["object"], batch["status"], batch["metadata"]) == ("batch", "completed", {"team": "x"})
        assert batch["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
        assert len(await batches.read(batch["output_file_id"])) == 20
        assert await team.last("nightly") == batch
        assert len(team.told) == 1
        await team.publish({"id": "nothing", "job": {**asked, "input_file_id": "file-none"}})
        refused = (await team.heard("nothing"))["nothing"]
        assert (refused["id"], refused["error"]["code"]) == ("nothing", "file_not_found")


@pytest.mark.timeout(600)
async def test_single_requests_are_answered_once_whoever_dies(stack: Stack) -> None:
    count = 500
    async with client(stack) as team:
        for number in range(count // 2):
            await team.single(f"one-{number}")
        pid = stack.kill("batch")
        for number in range(count // 2, count):
            await team.single(f"one-{number}")
        await stack.restarted("batch", pid)
        for number in range(0, count, 10):  # its sender is not sure
            await team.single(f"one-{number}")
        await team.heard("one-0")
        await stack.restarted("batch", stack.kill("batch"))
        names = [f"one-{number}" for number in range(count)]
        told = await team.heard(*names, timeout=400)
        for name in names:
            assert told[name]["custom_id"] == name
            assert told[name]["response"]["body"]["usage"]["completion_tokens"] == TOKENS
        await asyncio.sleep(10)  # nothing more comes
        assert [subject for subject, often in Counter(subject for subject, _ in team.told).items() if often > 1] == []
        assert await team.last("one-7") == told["one-7"]
        # Each has run once, in as few batches as it took to gather them.
        batches = Batches(stack)
        async with httpx.AsyncClient() as http:
            headers = {"Authorization": f"Bearer {stack.api_key}"}
            listed = (await http.get(f"{stack.base_url}/batches?limit=100", headers=headers)).json()["data"]
        ran = [one for one in listed if one["output_file_id"] and one["request_counts"]["total"]]
        lines = [line["custom_id"] for one in ran for line in await batches.read(one["output_file_id"])]
        assert sorted(line for line in lines if line.startswith("one-")) == sorted(names)


@pytest.mark.timeout(300)
async def test_a_broken_one_is_told_and_its_neighbours_run(stack: Stack) -> None:
    async with client(stack) as team:
        await team.single("good-1")
        await team.single("wrong-model", body={"model": "none"})
        await team.single("wrong-body", body={"temperature": "hot"})
        # Only when its batch is validated it is seen to be more than the model's context holds.
        await team.single("too-long", body={"messages": [{"role": "user", "content": "word " * 60_000}]})
        await team.publish(b"{not json")
        await team.publish({"id": "wrong-url", "request": {"url": "/v1/models", "body": {}}})
        await team.single("elsewhere", result_subject="job.result.operator.default.x")
        await team.single("named", result_subject=f"{team.prefix}.mine.named")
        await team.single("good-2")
        told = await team.heard(
            "good-1", "good-2", "wrong-model", "wrong-body", "wrong-url", "elsewhere", "mine.named", "too-long"
        )
        assert {told[name]["response"]["status_code"] for name in ("good-1", "good-2", "mine.named")} == {200}
        assert told["wrong-model"]["error"]["code"] == "model_not_found"
        assert told["wrong-body"]["error"]["param"].startswith("request.body.temperature")
        assert told["wrong-url"]["error"]["param"] == "request.url"
        assert told["elsewhere"]["error"]["param"] == "result_subject"
        assert "context_length_exceeded" in json.dumps(told["too-long"])
        async with asyncio.timeout(60):
            while not [said for subject, said in team.told if ".message-" in subject]:
                await asyncio.sleep(0.1)
        await team.single("good-1", body={"max_tokens": 3})
        async with asyncio.timeout(60):
            while not (said := [one for _, one in team.told if one.get("id") == "good-1" and "error" in one]):
                await asyncio.sleep(0.1)
        assert said[0]["error"]["code"] == "idempotency_mismatch"


@pytest.mark.timeout(300)
async def test_without_a_valid_key_nobody_comes_in_and_with_one_nobody_reaches_another_tenant(stack: Stack) -> None:
    url = stack.content["nats_url"]
    for secret in ("sk-wrong", ""):
        with pytest.raises((nats.errors.Error, OSError)):
            await nats.connect(url, user="x", password=secret, allow_reconnect=False, connect_timeout=30)
    other = await subjects(stack, await stack.new_key(tenant_id="other", project_id="default"))
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error).lower())

    mine = await subjects(stack, stack.api_key)
    connection = await nats.connect(
        url, user="x", password=stack.api_key, inbox_prefix=mine["inbox_prefix"], error_cb=on_error, connect_timeout=30
    )
    theirs = other["result_subject"].removesuffix(">") + "x"
    await connection.publish(other["submit_subject"], b"{}")
    await connection.publish(f"$JS.API.DIRECT.GET.RESULTS.{theirs}", b"")
    await connection.subscribe(other["result_subject"])
    await connection.subscribe(f"{other['inbox_prefix']}.>")
    wanted = [other["submit_subject"], f"results.{theirs}", other["result_subject"], f"{other['inbox_prefix']}.>"]
    async with asyncio.timeout(60):
        while any(one.lower() not in "\n".join(refused) for one in wanted):
            await asyncio.sleep(0.05)
    await connection.close()


@pytest.mark.timeout(300)
async def test_the_example_gets_its_answers_and_run_again_the_same_ones(stack: Stack) -> None:
    said = []
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLE), "--http", stack.root_url, "--nats", stack.content["nats_url"],
            "--model", "synthetic", "Name a river.", "Name a mountain.",
            env={**os.environ, "INFERBUS_API_KEY": stack.api_key}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        said.append([json.loads(line) for line in out.decode().splitlines() if line.startswith(" ")])
    assert [one["response"]["status_code"] for one in said[0]] == [200, 200]
    assert said[0] == said[1]
