"""A batch runs to its end whoever dies: each line once in its files, none generated a second time."""

import asyncio
import random
from pathlib import Path

import pytest
from inferbus.batch.v1.batch_pb2 import JobState

from tests.harness.asking import audited
from tests.harness.batches import Batches, bills_of, chat_line
from tests.harness.local import running

REAL_MODEL = "smollm2-135m-instruct"


@pytest.mark.parametrize(
    ("engine", "lines", "tokens", "kills", "pause"),
    [
        pytest.param("synthetic", 2000, 20, 7, 2.0, id="synthetic"),
        pytest.param("llama_cpp", 60, 100, 4, 1.0, id="llama_cpp"),
        pytest.param("synthetic", 20_000, 20, 60, 4.0, id="synthetic-soak", marks=pytest.mark.soak),
        pytest.param("llama_cpp", 200, 200, 12, 4.0, id="llama_cpp-soak", marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(1200)
async def test_whoever_dies_each_line_is_there_once_and_generated_once(
    tmp_path: Path, engine: str, lines: int, tokens: int, kills: int, pause: float
) -> None:
    # As fast as leaves time for the kills.
    step, slots = ("100ms", "32") if lines < 5000 else ("50ms", "64")
    synthetic = {"INFERBUS_WORKER_SYNTHETIC__ITL": step, "INFERBUS_WORKER_CAPACITY": slots}
    model = "synthetic" if engine == "synthetic" else REAL_MODEL
    variables = synthetic if engine == "synthetic" else {}
    async with running(tmp_path / "home", engine, "--workers", "2", "--batches", "2", variables=variables) as stack:
        batches, source = Batches(stack), random.Random(7)
        job = await batches.submit(chat_line(f"line-{number}", model, tokens) for number in range(lines))
        await batches.until(job.job_id, lambda one: one.completed_line_count > 0)
        victims = ["batch", "scheduler", "worker-0", "nats", "batch-1", "meter", "worker-1"]
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
        bills = await bills_of(stack, job.job_id, lines)
        assert len(bills) == lines, "a line was generated again"
        assert {line["response"]["request_id"] for line in output} == {
            bill["request_id"].replace("-", "") for bill in bills
        }
        told = [line["response"]["body"]["usage"] for line in output]
        for billed, said, used in (
            ("output_tokens", "completion_tokens", ended.usage.output_tokens),
            ("input_tokens", "prompt_tokens", ended.usage.input_tokens),
        ):
            assert sum(bill[billed] for bill in bills) == sum(usage[said] for usage in told) == used > 0
        await audited(stack)
