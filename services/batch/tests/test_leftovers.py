"""Checkpoints of jobs that have ended do not stay, and no other goes."""

import asyncio
from datetime import timedelta

from inferbus.batch.v1.batch_pb2 import SubmitJobRequest
from inferbus.batch.v1.files_pb2 import FileHead
from inferbus.bus.v1.batch_pb2 import JobCheckpoint, JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus_batch.jobs import Jobs
from inferbus_batch.leftovers import Leftovers
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.store import Store
from inferbus_runtime import clock


async def test_of_jobs_that_have_ended_or_are_no_more_and_of_no_other(file_bus, room):
    file = await room.put(b"{}", FileHead(tenant_id="left", project_id="one", filename="in.jsonl", purpose="batch"))
    asked = SubmitJobRequest(
        tenant_id="left", project_id="one", key_id="key", endpoint="/v1/completions", input_file_id=file.file_id
    )
    async with connect(BusConfig(file_bus.url, "leftovers")) as bus:
        publisher = Publisher(bus)
        await publisher.start()
        records, kept = Registry(bus, "jobs", JobRecord), Registry(bus, "job_checkpoints", JobCheckpoint)
        await records.start()
        await kept.start()
        jobs, store = Jobs(records, room.files), Store(bus, "job_checkpoints", JobCheckpoint, publisher)
        running, ended = await jobs.submit(asked), await jobs.submit(asked)
        names = [f"left/{job_id}" for job_id in (running.job_id, ended.job_id, "batch_gone")]
        for name in names:
            await store.create(name, JobCheckpoint(job_id=name))
        async with asyncio.timeout(30):
            while len(kept.items()) < 3:
                await asyncio.sleep(0.02)

        def end(record: JobRecord) -> None:
            record.state = State.JOB_RECORD_STATE_EXPIRED
            record.end_time.CopyFrom(clock.timestamp(clock.now_us()))

        await jobs.change(ended, end)
        patient = Leftovers(jobs, kept, store)
        await patient.sweep()
        await patient.sweep()
        assert all([await store.get(name) is not None for name in names])
        await Leftovers(jobs, kept, store, after=timedelta(0)).sweep()
        assert [await store.get(name) is not None for name in names] == [True, False, False]
        await kept.stop()
        await records.stop()
