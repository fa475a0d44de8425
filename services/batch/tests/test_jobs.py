"""Jobs' records: submitted once, seen by their tenant alone, cancelled and watched; whoever writes them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from inferbus.batch.v1.batch_pb2 import SubmitJobRequest
from inferbus.batch.v1.files_pb2 import FileHead
from inferbus.bus.v1.batch_pb2 import FileRecord, JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus_batch.files import Files
from inferbus_batch.jobs import JobLimits, Jobs
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from services.batch.tests.batch_process import until

ACTIVE, FINALIZING = State.JOB_RECORD_STATE_ACTIVE, State.JOB_RECORD_STATE_FINALIZING
COMPLETED, CANCELLED = State.JOB_RECORD_STATE_COMPLETED, State.JOB_RECORD_STATE_CANCELLED


@asynccontextmanager
async def some_jobs(file_bus, room, name: str, limits: JobLimits | None = None) -> AsyncIterator[Jobs]:
    async with connect(BusConfig(file_bus.url, name)) as bus:
        records = Registry(bus, "jobs", JobRecord)
        await records.start()
        yield Jobs(records, room.files, limits)
        await records.stop()


@pytest_asyncio.fixture
async def jobs(file_bus, room) -> AsyncIterator[Jobs]:
    async with some_jobs(file_bus, room, "jobs") as made:
        yield made


async def asked(room, tenant: str, project: str = "one", **fields) -> SubmitJobRequest:
    head = FileHead(tenant_id=tenant, project_id=project, filename="in.jsonl", purpose=fields.pop("purpose", "batch"))
    file = await room.put(b"{}", head)
    said = {"endpoint": "/v1/completions", "key_id": "key", "input_file_id": file.file_id, **fields}
    return SubmitJobRequest(tenant_id=tenant, project_id=project, **said)


async def refused(call) -> InferBusError:
    with pytest.raises(InferBusError) as caught:
        await call
    return caught.value


def to(state: State.ValueType):
    def edit(record: JobRecord) -> None:
        record.state = state
        if state in (COMPLETED, CANCELLED):
            record.end_time.CopyFrom(clock.timestamp(clock.now_us()))

    return edit


async def test_under_one_id_there_is_one_job_whoever_asks(file_bus, room, jobs):
    request = await asked(room, "once", request_id="r-1", metadata={"a": "b"})
    async with some_jobs(file_bus, room, "others") as others:
        made = await asyncio.gather(*(each.submit(request) for each in (jobs, others) * 5))
    assert len({one.job_id for one in made}) == 1
    assert made[0].state == State.JOB_RECORD_STATE_VALIDATING
    request.metadata["a"] = "c"
    assert (await refused(jobs.submit(request))).reason == "idempotency_mismatch"
    request.request_id = ""
    assert (await jobs.submit(request)).job_id != (await jobs.submit(request)).job_id


async def test_what_is_asked_wrongly_is_refused_and_says_where(room, jobs):
    for field, value in (
        ("tenant_id", ""), ("key_id", ""), ("endpoint", "/v1/audio"),
        ("metadata", {str(number): "x" for number in range(17)}), ("metadata", {"x" * 65: ""}),
        ("metadata", {"x": "y" * 513}), ("webhook_url", "https://example.com/"),
    ):  # fmt: skip
        request = await asked(room, "wrong")
        if field == "metadata":
            request.metadata.update(value)
        else:
            setattr(request, field, value)
        assert (await refused(jobs.submit(request))).param == field
    request = await asked(room, "wrong")
    for seconds in (-1, 15 * 86_400):
        request.expire_time.CopyFrom(clock.timestamp(clock.now_us() + seconds * 1_000_000))
        assert (await refused(jobs.submit(request))).param == "completion_window"
    request.ClearField("expire_time")
    for seconds in (3599, 31 * 86_400):
        request.output_expire_after.CopyFrom(Duration(seconds=seconds))
        assert (await refused(jobs.submit(request))).param == "output_expires_after"
    assert (await refused(jobs.submit(await asked(room, "wrong", purpose="assistants")))).param == "input_file_id"


async def test_another_tenants_or_projects_job_is_not_there_nor_is_its_file(room, jobs):
    request = await asked(room, "mine")
    job = await jobs.submit(request)
    assert jobs.find("mine", "one", job.job_id) == jobs.find("mine", "", job.job_id) == job
    for tenant, project in (("other", ""), ("mine", "two"), ("", "")):
        with pytest.raises(InferBusError, match="batch_not_found"):
            jobs.find(tenant, project, job.job_id)
        assert (await refused(jobs.cancel(tenant, project, job.job_id))).reason == "batch_not_found"
    request.project_id = "two"
    assert (await refused(jobs.submit(request))).reason == "file_not_found"
    assert jobs.page("other", "", 20, "") == ([], "")


async def test_pages_give_each_once_the_newest_first(room, jobs):
    made = [(await jobs.submit(await asked(room, "pages", "one" if n % 3 else "two"))).job_id for n in range(7)]
    found, after = [], ""
    while True:
        page, after = jobs.page("pages", "", 3, after)
        found += [one.job_id for one in page]
        if not after:
            break
    assert sorted(found) == sorted(made)
    times = [clock.unix_us(jobs.find("pages", "", one).create_time) for one in found]
    assert times == sorted(times, reverse=True)
    assert {one.project_id for one in jobs.page("pages", "two", 100, "")[0]} == {"two"}
    for size, after in ((101, ""), (-1, ""), (1, "batch_unknown")):
        with pytest.raises(InferBusError):
            jobs.page("pages", "", size, after)


async def test_of_running_ones_there_is_a_bound(file_bus, room):
    async with some_jobs(file_bus, room, "bounded", JobLimits(active=2)) as jobs:
        first, _ = [await jobs.submit(await asked(room, "many")) for _ in range(2)]
        assert (await refused(jobs.submit(await asked(room, "many")))).reason == "batch_limit_exceeded"
        await jobs.submit(await asked(room, "few"))
        await jobs.cancel("many", "", first.job_id)
        await jobs.submit(await asked(room, "many"))


async def test_cancelled_as_far_as_it_is(room, jobs):
    early = await jobs.submit(await asked(room, "cancel"))
    assert (await jobs.cancel("cancel", "", early.job_id)).state == CANCELLED
    running = await jobs.submit(await asked(room, "cancel"))
    await jobs.change(running, to(ACTIVE))
    once = await jobs.cancel("cancel", "", running.job_id)
    assert once.state == State.JOB_RECORD_STATE_CANCELLING
    assert await jobs.cancel("cancel", "", running.job_id) == once
    late = await jobs.submit(await asked(room, "cancel"))
    await jobs.change(late, to(ACTIVE))
    await jobs.change(late, to(FINALIZING))
    assert (await refused(jobs.cancel("cancel", "", late.job_id))).reason == "batch_has_ended"


async def test_changes_of_many_are_all_there_and_no_state_is_skipped(file_bus, room, jobs):
    job = await jobs.submit(await asked(room, "change"))

    def more(record: JobRecord) -> None:
        record.completed_lines += 1

    async with some_jobs(file_bus, room, "others") as others:
        await asyncio.gather(*(each.change(job, more) for each in (jobs, others) * 4))
    assert (await jobs.change(job, lambda record: None)).completed_lines == 8
    assert (await refused(jobs.change(job, to(COMPLETED)))).reason == "job_moved"
    assert jobs.find("change", "", job.job_id).state == State.JOB_RECORD_STATE_VALIDATING


async def test_a_watcher_sees_it_to_its_end(room, jobs):
    job = await jobs.submit(await asked(room, "watch"))
    seen: list[State.ValueType] = []

    async def watch() -> None:
        async for record in jobs.watch("watch", "one", job.job_id):
            seen.append(record.state)

    watching = asyncio.create_task(watch())
    for state in (ACTIVE, FINALIZING, COMPLETED):
        await jobs.change(job, to(state))
    await asyncio.wait_for(watching, 60)
    assert seen[-1] == COMPLETED
    assert seen == sorted(seen)
    with pytest.raises(InferBusError, match="batch_not_found"):
        await anext(jobs.watch("other", "", job.job_id))


async def test_one_that_has_ended_runs_out(file_bus, room):
    async with some_jobs(file_bus, room, "short", JobLimits(retention=timedelta(seconds=1))) as jobs:
        job = await jobs.submit(await asked(room, "short"))
        await jobs.cancel("short", "", job.job_id)
        async with asyncio.timeout(60):
            while jobs.page("short", "", 20, "")[0]:
                await asyncio.sleep(0.1)


async def test_what_another_one_has_stored_is_waited_for(file_bus, room):
    """A service whose registries lag behind: here they begin after they were asked."""
    async with some_jobs(file_bus, room, "ahead") as ahead:
        made = await ahead.submit(await asked(room, "lag"))
    async with connect(BusConfig(file_bus.url, "behind")) as bus:
        records, heads = Registry(bus, "jobs", JobRecord), Registry(bus, "files", FileRecord)
        files = Files(heads, room.files.store)
        jobs = Jobs(records, files)
        asking = [
            asyncio.create_task(jobs.look_up("lag", "one", made.job_id)),
            asyncio.create_task(files.look_up("lag", "one", made.input_file_id)),
        ]
        await asyncio.sleep(0.3)
        assert not any(one.done() for one in asking)
        for registry in (records, heads):
            await registry.start()
        job, file = await asyncio.gather(*asking)
        assert (job, file.file_id) == (made, made.input_file_id)
        for unknown in ("batch_none", "x" * 10_000):
            assert (await refused(jobs.look_up("lag", "one", unknown))).reason == "batch_not_found"
        assert (await refused(jobs.look_up("others", "", made.job_id))).reason == "batch_not_found"
        for registry in (records, heads):
            await registry.stop()


async def test_how_many_run_of_a_model_is_known_wherever_they_run(file_bus, room, jobs):
    async with some_jobs(file_bus, room, "elsewhere") as others:
        made = [await others.submit(await asked(room, "counted")) for _ in range(3)]
        assert jobs.running("counted-model") == 0
        for record, model in zip(made, ("counted-model", "counted-model", ""), strict=True):

            def begin(one: JobRecord, model: str = model) -> None:
                one.state, one.model = ACTIVE, model

            await others.change(record, begin)
        await until(lambda: jobs.running("counted-model") == 3)
        assert jobs.running("another-model") == 1
        await others.change(others.find("counted", "", made[0].job_id), to(FINALIZING))
        await others.change(others.find("counted", "", made[0].job_id), to(COMPLETED))
        await until(lambda: jobs.running("counted-model") == 2)
        for record in made[1:]:
            await others.cancel("counted", "", record.job_id)
        await until(lambda: jobs.running("counted-model") == 0)
