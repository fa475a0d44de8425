"""The end of a job is told to its URL: signed for its project, tried again, and never into a private network."""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from inferbus.batch.v1.batch_pb2 import SubmitJobRequest
from inferbus.batch.v1.files_pb2 import FileHead
from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus_batch.jobs import JobLimits, Jobs
from inferbus_batch.webhooks import Webhooks
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_webhooks.sender import WAITS as WAITS_OF_ALL
from inferbus_webhooks.signing import key_for, written
from openai import OpenAI

MASTER = b"m" * 32
WAITS = [timedelta(seconds=0.1)] * 3


@pytest_asyncio.fixture
async def jobs(file_bus, room) -> AsyncIterator[Jobs]:
    async with connect(BusConfig(file_bus.url, "webhooks")) as bus:
        records = Registry(bus, "jobs", JobRecord)
        await records.start()
        yield Jobs(records, room.files, JobLimits(webhooks=True, webhooks_anywhere=True))
        await records.stop()


async def submitted(jobs: Jobs, room: Any, url: str) -> JobRecord:
    head = FileHead(tenant_id="hook", project_id="one", filename="in.jsonl", purpose="batch")
    file = await room.put(b"{}", head)
    asked = SubmitJobRequest(
        tenant_id="hook", project_id="one", key_id="key", endpoint="/v1/completions", input_file_id=file.file_id,
        webhook_url=url,
    )  # fmt: skip
    return await jobs.submit(asked)


def ended(record: JobRecord) -> None:
    record.state = State.JOB_RECORD_STATE_EXPIRED
    record.end_time.CopyFrom(clock.timestamp(clock.now_us()))


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Answers with these statuses in turn, then with 200."""
    came: list[tuple[dict[str, str], bytes]] = []

    async def handle(request: web.Request) -> web.Response:
        came.append((dict(request.headers), await request.read()))
        return web.Response(status=statuses[len(came) - 1] if len(came) <= len(statuses) else 200)

    app = web.Application()
    app.router.add_post("/hook", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook", came
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sending(jobs: Jobs, *, holds: bool = True, anywhere: bool = True) -> AsyncIterator[None]:
    hooks = Webhooks(jobs, MASTER, lambda shard: holds, anywhere=anywhere, waits=WAITS)
    task = asyncio.create_task(hooks.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until_told(jobs: Jobs, record: JobRecord) -> JobRecord:
    async with asyncio.timeout(60):
        while True:
            now = jobs.find(record.tenant_id, "", record.job_id)
            if now.HasField("webhook_end_time"):
                return now
            await asyncio.sleep(0.02)


async def test_openais_library_takes_it_and_what_failed_is_tried_again_as_the_same(jobs, room):
    async with receiver(500, 302) as (url, came), sending(jobs):
        record = await submitted(jobs, room, url)
        await jobs.change(record, ended)
        told = await until_told(jobs, record)
    assert (told.webhook_attempts, len(came)) == (3, 3)
    assert len({headers["webhook-id"] for headers, _ in came}) == len({body for _, body in came}) == 1
    client = OpenAI(api_key="none", webhook_secret=written(key_for(MASTER, "hook", "one")))
    headers, body = came[-1]
    event = client.webhooks.unwrap(body.decode(), headers)
    assert (event.type, event.data.id) == ("batch.expired", record.job_id)
    assert event.id == headers["webhook-id"]
    other = OpenAI(api_key="none", webhook_secret=written(key_for(MASTER, "hook", "two")))
    with pytest.raises(Exception, match="signature"):
        other.webhooks.unwrap(body.decode(), headers)


async def test_one_that_ended_while_nobody_was_there_is_told_by_the_next(jobs, room):
    async with receiver() as (url, came):
        record = await submitted(jobs, room, url)
        await jobs.change(record, ended)
        async with sending(jobs):
            await until_told(jobs, record)
        assert json.loads(came[0][1])["data"] == {"id": record.job_id}


async def test_a_record_lives_until_its_end_is_told_and_then_for_its_retention(file_bus, room):
    async with connect(BusConfig(file_bus.url, "webhooks")) as bus:
        records = Registry(bus, "jobs", JobRecord)
        await records.start()
        limits = JobLimits(webhooks=True, webhooks_anywhere=True, retention=timedelta(hours=1))
        jobs = Jobs(records, room.files, limits)

        async def seconds_left() -> int:
            """Of the newest record in the bucket."""
            sequence = max(records.revision(name) for name in records.items())
            stored = (await bus.api("STREAM.MSG.GET.KV_jobs", {"seq": sequence}))["message"]
            (line,) = [one for one in b64decode(stored["hdrs"]).decode().splitlines() if one.startswith("Nats-TTL:")]
            return int(line.removeprefix("Nats-TTL:").strip().removesuffix("s"))

        async with receiver() as (url, _):
            record = await submitted(jobs, room, url)
            await jobs.change(record, ended)
            assert await seconds_left() > sum(WAITS_OF_ALL, timedelta()).total_seconds()
            async with sending(jobs):
                await until_told(jobs, record)
            assert await seconds_left() == 3600
        await records.stop()


@pytest.mark.parametrize(("statuses", "attempts"), [([500] * 9, 4), ([410], 1)])
async def test_what_nobody_takes_is_given_up(jobs, room, statuses, attempts):
    async with receiver(*statuses) as (url, came), sending(jobs):
        record = await submitted(jobs, room, url)
        await jobs.change(record, ended)
        told = await until_told(jobs, record)
    assert told.webhook_attempts == len(came) == attempts


async def test_a_private_address_is_never_asked(jobs, room):
    async with receiver() as (url, came), sending(jobs, anywhere=False):
        records = [await submitted(jobs, room, one) for one in (url, url.replace("127.0.0.1", "localhost"))]
        for record in records:
            await jobs.change(record, ended)
            assert (await until_told(jobs, record)).webhook_attempts == 4
    assert not came


async def test_a_url_that_cannot_be_told_is_refused_at_once(file_bus, room):
    async with connect(BusConfig(file_bus.url, "webhooks")) as bus:
        records = Registry(bus, "jobs", JobRecord)
        await records.start()
        for limits, url in (
            (JobLimits(webhooks=True), "http://127.0.0.1/x"),
            (JobLimits(webhooks=True), "http://[::1]:80/x"),
            (JobLimits(webhooks=True), "http://１２７.0.0.1/x"),
            (JobLimits(webhooks=True), "http://[::1/x"),
            (JobLimits(webhooks=True), "ftp://example.com/x"),
            (JobLimits(), "https://example.com/x"),
        ):
            with pytest.raises(InferBusError) as refused:
                await submitted(Jobs(records, room.files, limits), room, url)
            assert refused.value.param == "webhook_url"
        await submitted(Jobs(records, room.files, JobLimits(webhooks=True)), room, "https://example.com/x")
        await records.stop()
