"""The intake of the queue on a real nats-server: what becomes a job, once, whoever died before."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from inferbus.bus.v1.batch_pb2 import FileRecord, JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus.bus.v1.registry_pb2 import KeyRecord, MemberRecord, ModelRecord, ProjectRecord, TenantRecord
from inferbus_batch.core.queue_messages import AskedSingle, read_message
from inferbus_batch.core.seen import Seen
from inferbus_batch.files import Files
from inferbus_batch.intake import Intake
from inferbus_batch.jobs import JobLimits, Jobs
from inferbus_batch.keys import Keys
from inferbus_batch.queue_jobs import Place, QueueJobs, TakenError, Together
from inferbus_batch.taking import Taking
from inferbus_batch.telling_ends import EndTeller
from inferbus_batch.telling_results import Results
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.subjects import submit_subject
from inferbus_objects.store import BusStore
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

CHAT = "/v1/chat/completions"
SUBJECT = submit_subject("acme", "key_a", "tag")
KEY = KeyRecord(key_id="key_a", tenant_id="acme", project_id="search", scopes=["inference"])
RECORDS = {"keys": KeyRecord, "tenants": TenantRecord, "projects": ProjectRecord, "members": MemberRecord}


class Room(NamedTuple):
    bus: Bus
    publisher: Publisher
    jobs: Jobs
    files: Files
    submit: QueueJobs
    intake: Intake

    async def publish(self, message: dict[str, Any], subject: str = SUBJECT) -> int:
        return (await self.publisher.publish_raw(subject, json.dumps(message).encode(), {}, timeout=30)).sequence

    async def placed(self, message: dict[str, Any]) -> Place:
        """While nobody takes it."""
        sequence = await self.publish(message)
        stored = await self.bus.nc.jetstream().get_msg("JOBS", sequence)
        assert stored.time is not None
        return Place(sequence, (stored.time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))

    async def waiting(self) -> int:
        """Messages that nobody has acknowledged."""
        return int((await self.bus.api("STREAM.INFO.JOBS"))["state"]["messages"])

    async def empty(self) -> None:
        async with asyncio.timeout(60):
            while await self.waiting():
                await asyncio.sleep(0.05)

    async def names(self) -> list[str]:
        """Of all lines of all jobs of single requests."""
        lines = [line for record in self.jobs.queued() for line in await self.submit.lines(record)]
        return sorted(json.loads(line)["custom_id"] for line in lines)

    async def told(self, name: str) -> dict[str, Any] | None:
        asked = f"$JS.API.DIRECT.GET.RESULTS.job.result.acme.search.tag.{name}"
        answer = await self.bus.nc.request(asked, b"", timeout=30)
        return None if answer.headers and answer.headers.get("Status") == "404" else json.loads(answer.data)

    async def until_told(self, name: str) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while (said := await self.told(name)) is None:
                await asyncio.sleep(0.05)
        return said


def single(name: str, content: str = "hello", **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return {"id": name, "request": {"url": CHAT, "body": body}, **fields}


def line(name: str) -> bytes:
    message = read_message(json.dumps(single(name)).encode(), "job.result.acme.search.tag", "x")
    assert isinstance(message, AskedSingle)
    return message.line


def together() -> Together:
    return Together("acme", "search", "key_a", CHAT, "m", 86_400, "job.result.acme.search.tag.*", 0)


@asynccontextmanager
async def opened(url: str, limits: JobLimits | None = None, *, patient: bool = False) -> AsyncIterator[Room]:
    """``patient``: single requests wait for others while there is enough to do."""
    started: list[Registry[Any]] = []

    async def registry(bucket: str, record: Any) -> Registry[Any]:
        made = Registry(bus, bucket, record)
        await made.start()
        started.append(made)
        return made

    async with connect(BusConfig(url, "batch")) as bus:
        publisher = Publisher(bus)
        await publisher.start()
        files = Files(await registry("files", FileRecord), BusStore(Objects(bus, publisher)))
        jobs = Jobs(await registry("jobs", JobRecord), files, limits)
        keys = Keys(*[await registry(bucket, record) for bucket, record in RECORDS.items()])
        models = await registry("models", ModelRecord)
        submit = QueueJobs(jobs, files)

        def taking(seen: Seen) -> Taking:
            return Taking(
                seen, submit=submit, results=Results(publisher), keys=keys, models=models.get,
                busy=jobs.is_busy if patient else lambda tenant: False, max_lines=60,
            )  # fmt: skip

        yield Room(bus, publisher, jobs, files, submit, Intake(bus, jobs, submit, taking))
        for one in started:
            await one.stop()


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with NatsServer(tmp_path) as server:
        async with connect(BusConfig(server.url, "admin")) as admin:
            await ensure_streams(admin)
            for bucket, name, record in (("keys", "a", KEY), ("models", "m", ModelRecord(name="m"))):
                registry: Registry[Any] = Registry(admin, bucket, type(record))
                await registry.start()
                await registry.put(name, record)
                await registry.stop()
        async with opened(server.url) as made:
            yield made


@pytest.mark.timeout(120)
async def test_single_requests_of_a_moment_become_one_batch_and_the_same_again_is_none(room: Room) -> None:
    await room.intake.gained(0)
    for _ in range(2):
        for number in range(100):
            await room.publish(single(f"one-{number}"))
    await room.empty()
    assert await room.names() == sorted(f"one-{number}" for number in range(100))
    assert len(room.jobs.queued()) < 20
    for record in room.jobs.queued():
        assert (record.tenant_id, record.project_id, record.key_id) == ("acme", "search", "key_a")
        assert 0 < record.queue_first <= record.queue_last
        assert len(await room.submit.lines(record)) <= 60
    await room.intake.left(0)


@pytest.mark.timeout(120)
async def test_what_the_one_before_has_submitted_and_not_acknowledged_is_not_submitted_again(room: Room) -> None:
    places = [await room.placed(single(f"one-{number}")) for number in range(10)]
    await room.submit.submit_lines(together(), [(places[number], line(f"one-{number}")) for number in (0, 1, 2, 7, 9)])
    await room.intake.gained(0)
    await room.empty()
    assert await room.names() == sorted(f"one-{number}" for number in range(10))
    await room.intake.left(0)


@pytest.mark.timeout(120)
async def test_of_two_that_take_the_same_only_one_makes_a_job_of_it(room: Room) -> None:
    """The first one has lost the lease and does not know it yet."""
    places = [await room.placed(single(f"one-{number}")) for number in range(3)]
    await room.intake.gained(0)
    with suppress(TakenError):  # the other one was faster
        await room.submit.submit_lines(together(), [(places[0], line("one-0"))])
    await room.empty()
    assert await room.names() == ["one-0", "one-1", "one-2"]
    await room.intake.left(0)
    with pytest.raises(TakenError) as caught:
        await room.submit.submit_lines(together(), [(places[0], line("one-0")), (places[1], line("another"))])
    assert line("one-0") in caught.value.lines


@pytest.mark.timeout(120)
async def test_what_is_left_is_taken_by_the_next_one(room: Room) -> None:
    await room.intake.gained(0)
    room.intake.lost(0)
    await room.publish(single("one"))
    await room.intake.gained(0)
    await room.empty()
    await room.intake.left(0)
    await room.publish(single("two"))
    await room.intake.gained(0)
    await room.empty()
    assert await room.names() == ["one", "two"]
    await room.intake.left(0)


@pytest.mark.timeout(180)
async def test_while_a_batch_waits_for_its_validation_those_that_come_wait_for_each_other(room: Room) -> None:
    async with opened(room.bus.config.url, patient=True) as patient:
        await patient.intake.gained(0)
        await patient.publish(single("first"))
        await patient.empty()
        for number in range(20):
            await patient.publish(single(f"then-{number}"))
            await asyncio.sleep(0.1)
        (record,) = patient.jobs.queued()
        await patient.jobs.cancel("acme", "search", record.job_id)
        await patient.empty()
        assert len(patient.jobs.queued()) <= 3  # a minute may have begun meanwhile
        await patient.intake.left(0)


@pytest.mark.timeout(120)
async def test_each_is_told_of_its_own_fault(room: Room) -> None:
    await room.intake.gained(0)
    await room.publish(single("good"))
    await room.publish({"id": "bad", "request": {"url": CHAT, "body": {"model": "m"}}})
    await room.publish({"id": "job", "job": {"input_file_id": "none", "endpoint": CHAT, "completion_window": "1h"}})
    other = single("other")
    other["request"]["body"]["model"] = "none"
    await room.publish(other)
    await room.publish(single("good", "something else"))
    said = {name: (await room.until_told(name))["error"]["code"] for name in ("job", "other", "good")}
    assert said == {"job": "file_not_found", "other": "model_not_found", "good": "idempotency_mismatch"}
    assert (await room.until_told("bad"))["error"]["param"].startswith("request.body")
    await room.empty()
    assert await room.names() == ["good"]
    await room.intake.left(0)


@pytest.mark.timeout(180)
async def test_who_has_as_many_batches_as_he_may_waits_and_nothing_is_lost(room: Room) -> None:
    async with opened(room.bus.config.url, JobLimits(active=1)) as bounded:
        await bounded.intake.gained(0)
        await bounded.publish(single("first"))
        await bounded.empty()
        await bounded.publish(single("second"))
        await asyncio.sleep(1.5)
        assert await bounded.names() == ["first"]
        (record,) = bounded.jobs.queued()
        await bounded.jobs.cancel("acme", "search", record.job_id)
        await bounded.empty()
        assert await bounded.names() == ["first", "second"]
        await bounded.intake.left(0)


@pytest.mark.timeout(120)
async def test_lines_of_a_batch_that_did_not_run_are_told_and_those_without_fault_are_tried_again(room: Room) -> None:
    held: Callable[[int], bool] = lambda shard: True  # noqa: E731
    teller = asyncio.create_task(EndTeller(room.jobs, room.files, room.publisher, held).run())
    places = [Place(number, clock.now_us()) for number in (5, 6, 7)]
    names = ("one", "two", "three")
    await room.submit.submit_lines(together(), [(at, line(name)) for at, name in zip(places, names, strict=True)])
    (record,) = room.jobs.queued()

    def fail(one: JobRecord) -> None:
        one.state, one.fault_count = State.JOB_RECORD_STATE_FAILED, 1
        one.faults.add(line=2, code="context_length_exceeded", message="Too long.", param="body.messages")

    await room.jobs.change(record, fail)
    assert (await room.until_told("two"))["error"] == {
        "code": "context_length_exceeded", "message": "Too long.", "param": "request.body.messages",
    }  # fmt: skip
    async with asyncio.timeout(60):
        while len(room.jobs.queued()) < 2:
            await asyncio.sleep(0.05)
    again = next(one for one in room.jobs.queued() if one.job_id != record.job_id)
    assert [json.loads(one)["custom_id"] for one in await room.submit.lines(again)] == ["one", "three"]
    await room.jobs.cancel("acme", "search", again.job_id)
    for name in ("one", "three"):
        assert (await room.until_told(name))["error"]["code"] == "batch_cancelled"
    async with asyncio.timeout(60):
        while not all(one.HasField("result_told_time") for one in room.jobs.queued()):
            await asyncio.sleep(0.05)
    teller.cancel()


@pytest.mark.timeout(120)
async def test_a_message_of_a_key_that_is_not_known_waits_a_minute_and_one_of_nobody_is_dropped(room: Room) -> None:
    await room.intake.gained(0)
    await room.publish(single("one"), submit_subject("acme", "key_none", "tag"))
    await room.publish(single("two"), "job.submit.acme")
    await room.publish(single("three"))
    async with asyncio.timeout(60):
        while await room.waiting() > 1:  # the first one may be of a key that is about to be known
            await asyncio.sleep(0.05)
    assert await room.names() == ["three"]
    await room.intake.left(0)
