"""A batch runs to its end whoever dies: each line once in its files, none generated a second time."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from inferbus.batch.v1.batch_pb2 import JobState

from tests.harness.asking import audited
from tests.harness.batches import Batches, chat_line
from tests.harness.local import Stack, running

TOKENS = 20


async def asked_of(stack: Stack, job_id: str, at_least: int) -> list[dict[str, Any]]:
    """What was billed of the job's requests, once that is at least so many."""
    store = stack.content["clickhouse"]
    query = (
        f"SELECT * FROM {store['database']}.bills WHERE tags['batch_id'] = '{job_id}' "
        "SETTINGS output_format_json_quote_64bit_integers = 0 FORMAT JSONEachRow"
    )
    headers = {"X-ClickHouse-User": store["user"], "X-ClickHouse-Key": store["password"]}
    async with httpx.AsyncClient(timeout=60) as http, asyncio.timeout(120):
        while True:
            answer = await http.post(store["url"], content=query, headers=headers)
            answer.raise_for_status()
            lines = answer.text.splitlines()
            if len(lines) >= at_least:
                return [httpx.Response(200, content=line).json() for line in lines]
            await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("lines", "kills", "pause"),
    [
        pytest.param(2000, 6, 2.0, id="short"),
        pytest.param(20_000, 60, 4.0, id="soak", marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(1200)
async def test_whoever_dies_each_line_is_there_once_and_generated_once(
    tmp_path: Path, lines: int, kills: int, pause: float
) -> None:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "100ms", "INFERBUS_WORKER_CAPACITY": "32"}
    async with running(tmp_path / "home", "synthetic", "--workers", "2", variables=variables) as stack:
        batches, source = Batches(stack), random.Random(7)
        job = await batches.submit(chat_line(f"line-{number}", "synthetic", TOKENS) for number in range(lines))
        await batches.until(job.job_id, lambda one: one.completed_line_count > 0)
        victims = ["batch", "scheduler", "worker-0", "nats", "meter", "worker-1"]
        for number in range(kills):
            name = source.choice(victims) if number >= len(victims) else victims[number]
            await stack.restarted(name, stack.kill(name))
            if (await batches.get(job.job_id)).state != JobState.JOB_STATE_ACTIVE:
                break
            await asyncio.sleep(pause)
        assert number >= 3, "it ended too soon to be a proof"
        ended = await batches.ended(job.job_id, 600)
        assert ended.state == JobState.JOB_STATE_COMPLETED
        output, errors = await batches.read(ended.output_file_id), await batches.read(ended.error_file_id)
        names = [line["custom_id"] for line in (*output, *errors)]
        assert sorted(names) == sorted(f"line-{number}" for number in range(lines))
        assert errors == []
        assert (ended.line_count, ended.completed_line_count, ended.failed_line_count) == (lines, lines, 0)
        bills = await asked_of(stack, job.job_id, lines)
        assert len(bills) == lines, "a line was generated again"
        assert {line["response"]["request_id"] for line in output} == {
            bill["request_id"].replace("-", "") for bill in bills
        }
        assert sum(bill["output_tokens"] for bill in bills) == ended.usage.output_tokens == lines * TOKENS
        assert sum(bill["input_tokens"] for bill in bills) == ended.usage.input_tokens
        await audited(stack)
