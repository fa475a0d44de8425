"""``inferbus batch`` as a process, on a whole stack."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.harness.batches import chat_line
from tests.harness.local import INFERBUS, Stack, running


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "50ms", "INFERBUS_WORKER_CAPACITY": "16"}
    async with running(tmp_path_factory.mktemp("cli") / "home", "synthetic", variables=variables) as started:
        yield started


def written(path: Path, count: int, *more: bytes, tokens: int = 5) -> Path:
    path.write_bytes(b"".join([*(chat_line(f"line-{n}", "synthetic", tokens) for n in range(count)), *more]))
    return path


def names(path: Path) -> list[str]:
    return sorted(json.loads(line)["custom_id"] for line in path.read_text().splitlines())


@pytest.mark.timeout(180)
async def test_a_file_is_sent_waited_for_and_its_answers_are_written(stack: Stack, tmp_path: Path) -> None:
    file, output = written(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    code, said = await stack.cli(
        "batch", "submit", str(file), "--wait", "--output", str(output), "--metadata", "team=search"
    )
    assert code == 0, said
    assert names(output) == names_of(40)
    assert "completed 40 of 40 lines" in said
    assert not list(tmp_path.glob("*.part"))
    code, said = await stack.cli("batch", "list", "--json")
    assert code == 0
    (newest, *_) = json.loads(said)
    assert (newest["status"], newest["metadata"]) == ("completed", {"team": "search"})
    code, said = await stack.cli("batch", "list")
    assert newest["id"] in said
    code, said = await stack.cli("batch", "status", newest["id"])
    assert (code, "40 lines, 40 done, 0 failed" in said) == (0, True)
    code, said = await stack.cli("batch", "fetch", newest["id"], "--output", "-")
    assert code == 0
    assert sorted(json.loads(line)["custom_id"] for line in said.splitlines()) == names_of(40)


@pytest.mark.timeout(180)
async def test_faults_are_told_with_file_and_line(stack: Stack, tmp_path: Path) -> None:
    file = written(tmp_path / "bad.jsonl", 2, b"{no json\n", chat_line("line-1", "synthetic", 5))
    code, said = await stack.cli("batch", "validate", str(file))
    assert code == 1
    assert f"{file}:3: invalid_json_line" in said
    assert f"{file}:4: duplicate_custom_id" in said
    assert "4 lines, 2 faults" in said
    code, said = await stack.cli("batch", "submit", str(file), "--wait")
    assert code == 1
    assert f"{file}:3: invalid_json_line" in said
    good = written(tmp_path / "good.jsonl", 3)
    code, said = await stack.cli("batch", "validate", str(good))
    assert code == 0
    assert "3 lines, 0 faults, at most 0." in said
    code, said = await stack.cli("batch", "validate", str(written(tmp_path / "x", 0, b"x\n")))
    assert (code, "--endpoint" in said) == (2, True)


@pytest.mark.timeout(180)
async def test_who_stops_waiting_leaves_it_running_and_may_cancel_it(stack: Stack, tmp_path: Path) -> None:
    file = written(tmp_path / "long.jsonl", 3000, tokens=20)
    process = await asyncio.create_subprocess_exec(
        INFERBUS, "batch", "submit", str(file), "--wait", env={**os.environ, "INFERBUS_HOME": str(stack.home)},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(90):
        while "in_progress" not in said:
            said += (await process.stdout.readline()).decode()
    process.send_signal(signal.SIGINT)
    rest, _ = await process.communicate()
    assert process.returncode == 130, rest
    batch_id = said.partition(" is running")[0].split()[-1]
    assert f"inferbus batch status {batch_id} --wait" in rest.decode()
    code, said = await stack.cli("batch", "fetch", batch_id)
    assert (code, "--wait" in said) == (1, True), said
    code, said = await stack.cli("batch", "cancel", batch_id)
    assert (code, "cancelling" in said) == (0, True)
    errors = tmp_path / "errors.jsonl"
    code, said = await stack.cli("batch", "status", batch_id, "--wait", "--errors", str(errors))
    assert code == 1, said
    assert {json.loads(line)["error"]["code"] for line in errors.read_text().splitlines()} == {"batch_cancelled"}


@pytest.mark.timeout(180)
async def test_an_edge_that_is_killed_meanwhile_is_waited_for(stack: Stack, tmp_path: Path) -> None:
    file, output = written(tmp_path / "in.jsonl", 400, tokens=20), tmp_path / "out.jsonl"
    waiting = asyncio.create_task(stack.cli("batch", "submit", str(file), "--wait", "--output", str(output)))
    while True:
        code, said = await stack.cli("batch", "list", "--json", "--limit", "1")
        if code == 0 and (found := json.loads(said)) and found[0]["request_counts"]["total"] == 400:
            break
        await asyncio.sleep(0.2)
    await stack.restarted("edge", stack.kill("edge"))
    code, said = await waiting
    assert code == 0, said
    assert names(output) == names_of(400)


@pytest.mark.timeout(180)
async def test_results_go_on_where_the_connection_broke(stack: Stack, tmp_path: Path) -> None:
    file, whole, cut = written(tmp_path / "in.jsonl", 600, tokens=2), tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    code, said = await stack.cli("batch", "submit", str(file), "--wait", "--output", str(whole))
    assert code == 0, said
    batch_id = said.partition(" is running")[0].split()[-1]
    async with breaking(stack.root_url, whole.stat().st_size // 3) as (url, broken):
        code, said = await stack.cli(
            "batch", "fetch", batch_id, "--output", str(cut), "--url", url, "--key", stack.api_key
        )  # fmt: skip
    assert (code, len(broken)) == (0, 2), said
    assert cut.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part"))


@asynccontextmanager
async def breaking(url: str, after: int) -> AsyncIterator[tuple[str, list[int]]]:
    """Passes connections on to ``url``; the first two that bring more than ``after`` bytes back break there."""
    target, broken = urlsplit(url), list[int]()

    async def both(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(
            one_way(reader, there_writer, None), one_way(there_reader, writer, after), return_exceptions=True
        )

    async def one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
        passed = 0
        try:
            while data := await reader.read(1 << 14):
                passed += len(data)
                if most is not None and passed > most and len(broken) < 2:
                    broken.append(passed)
                    return
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_server(both, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", broken
    finally:
        server.close()


def names_of(count: int) -> list[str]:
    return sorted(f"line-{number}" for number in range(count))
