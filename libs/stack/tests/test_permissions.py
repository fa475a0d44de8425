"""Every role on a real nats-server under its own permissions: what it needs works, what it must not do is refused."""

import asyncio
import itertools
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import nats
import nats.errors
import pytest
import pytest_asyncio
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.batch_pb2 import FileRecord, JobCheckpoint, JobRecord, UploadRecord
from inferbus.bus.v1.brand_pb2 import BrandRecord
from inferbus.bus.v1.control_pb2 import CacheEvents, Cancel, Capacity, Heartbeat, Recall
from inferbus.bus.v1.frame_pb2 import Fence, Frame
from inferbus.bus.v1.registry_pb2 import (
    DeploymentRecord,
    ErasureRecord,
    IdempotencyRecord,
    KeyRecord,
    ModelRecord,
    PriceRecord,
    ResponseRecord,
    WorkerRecord,
)
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_bus.connection import Bus, BusConfig, connect, inbox_prefix
from inferbus_bus.frames import FramePublisher, FrameReader
from inferbus_bus.lease import hold
from inferbus_bus.log import FrameLog
from inferbus_bus.objects import CHUNK_BYTES, Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.store import Store
from inferbus_bus.streams import ensure_streams
from inferbus_bus.workqueue import Delivery, WorkQueue
from inferbus_contracts.subjects import (
    ARTIFACTS,
    BATCH_SHARDS,
    SHARDS,
    edge_tokens,
    job_edge,
    model_shard,
    shard_requests,
    subject_token,
    submit_subject,
    token_subject,
    work_subject,
)
from inferbus_stack.nats import NatsServer, free_port
from inferbus_stack.nats_config import BusUser, NatsLimits, render
from inferbus_stack.permissions import Role, permissions
from inferbus_stack.secrets import SecretFolder

USERS = {
    "admin": Role.ADMIN,
    "edge-0": Role.EDGE,
    "edge-1": Role.EDGE,
    "scheduler": Role.SCHEDULER,
    "worker-0": Role.WORKER,
    "worker-1": Role.WORKER,
    "batch": Role.BATCH,
    "meter": Role.METER,
}
_ids = itertools.count(1)
MODEL = "smollm2-135m-instruct"


class Broker:
    """A nats-server that knows the users above, and their seeds."""

    def __init__(self, server: NatsServer, secrets: SecretFolder) -> None:
        self.server = server
        self.secrets = secrets

    def config(self, name: str) -> BusConfig:
        return BusConfig(self.server.url, name, self.secrets.nkey(name).seed)

    @asynccontextmanager
    async def raw(self, name: str) -> AsyncIterator[tuple[nats.NATS, list[str]]]:
        """A plain client of that user, and what the server has refused it so far."""
        refused: list[str] = []

        async def on_error(error: Exception) -> None:
            refused.append(str(error))

        client = await nats.connect(
            self.server.url,
            nkeys_seed_str=self.secrets.nkey(name).seed,
            inbox_prefix=inbox_prefix(name),
            error_cb=on_error,
            allow_reconnect=False,
            connect_timeout=20,
        )
        try:
            yield client, refused
        finally:
            await client.close()


@pytest_asyncio.fixture(scope="session")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    folder = tmp_path_factory.mktemp("guarded")
    secrets = SecretFolder(folder / "secrets")
    users = [BusUser(name, secrets.nkey(name).public, permissions(role, name)) for name, role in USERS.items()]
    port = free_port()
    text = render(
        host="127.0.0.1", port=port, store=folder / "js", users=users, limits=NatsLimits(256 << 30), encrypted=False
    )
    async with NatsServer(folder, port, text) as server:
        made = Broker(server, secrets)
        async with connect(made.config("admin")) as admin:
            await ensure_streams(admin)
        yield made


@pytest.fixture
def nothing_refused(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    caplog.set_level(logging.WARNING)
    yield
    assert [record for record in caplog.records if "bus error" in record.message] == []


def a_request(edge: str = "edge-0") -> GenerateRequest:
    request = GenerateRequest(request_id=next(_ids).to_bytes(16, "big"), edge=edge)
    request.context.model = MODEL
    return request


async def deliveries(bus: Bus, stream: str, durable: str, subject: str) -> tuple[WorkQueue, asyncio.Queue[Delivery]]:
    arrived: asyncio.Queue[Delivery] = asyncio.Queue()
    queue = WorkQueue(bus, stream=stream, durable=durable, subject=subject, on_delivery=arrived.put_nowait, in_flight=4)
    await queue.start()
    return queue, arrived


async def take(arrived: asyncio.Queue[Delivery]) -> Delivery:
    return await asyncio.wait_for(arrived.get(), 30)


@pytest.mark.usefixtures("nothing_refused")
async def test_a_request_goes_all_the_way_with_no_more_rights_than_each_role_has(broker: Broker) -> None:
    async with (
        connect(broker.config("edge-0")) as edge,
        connect(broker.config("scheduler")) as scheduler,
        connect(broker.config("worker-0")) as worker,
        connect(broker.config("meter")) as meter,
    ):
        frames: asyncio.Queue[Frame] = asyncio.Queue()
        reader = FrameReader(edge, edge="edge-0", on_frame=lambda frame, _: frames.put_nowait(frame))
        await reader.start()
        shard = model_shard(MODEL)
        requests, placed = await deliveries(scheduler, "REQUESTS", f"scheduler-{shard}", shard_requests(shard))
        works, work_in = await deliveries(worker, "WORK", "worker-0", work_subject("worker-0", 1))
        edge_publisher, scheduler_publisher = Publisher(edge), Publisher(scheduler)
        await edge_publisher.start()
        await scheduler_publisher.start()

        await edge_publisher.publish(a_request())
        delivery = await take(placed)
        work = Work(request=GenerateRequest.FromString(delivery.data), worker="worker-0", boot=1)
        await scheduler_publisher.publish(work)
        delivery.ack()
        (await take(work_in)).ack()
        outbox = FramePublisher(broker.config("worker-0"), worker="worker-0", boot=next(_ids))
        await outbox.start()
        await outbox.wait_acked(outbox.publish(Frame(edge="edge-0", text=b"hello")))
        closing = FramePublisher(broker.config("scheduler"), worker="scheduler", boot=next(_ids))
        await closing.start()
        await closing.wait_acked(closing.publish(Frame(edge="edge-0")))

        assert [(await asyncio.wait_for(frames.get(), 30)).worker for _ in range(2)] == ["worker-0", "scheduler"]
        log = FrameLog(meter)
        first, last = await log.bounds()
        stored = [frame async for batch in log.read(first, last) for frame in batch]
        assert len(stored) == last - first + 1
        for part in (outbox, closing, reader):
            await part.stop()
        for queue in (requests, works):
            await queue.stop()
            await queue.close()


@pytest.mark.usefixtures("nothing_refused")
async def test_a_scheduler_may_move_what_a_dead_worker_had(broker: Broker) -> None:
    """Seen without being taken, fenced off in the worker's place, read from the log, back in the queue, out of WORK."""
    async with connect(broker.config("scheduler")) as scheduler:
        publisher, subject = Publisher(scheduler), work_subject("worker-9", 1)
        await publisher.start()
        stored = await publisher.publish(Work(request=a_request(), worker="worker-9", boot=1))
        state = (await scheduler.api("STREAM.INFO.WORK", {"subjects_filter": "work.>"}))["state"]
        assert state["subjects"][subject] == 1
        seen = await scheduler.nc.request(
            "$JS.API.DIRECT.GET.WORK", json.dumps({"seq": 1, "next_by_subj": subject}).encode(), timeout=20
        )
        request = Work.FromString(seen.data).request
        waiting = json.dumps({"seq": 1, "next_by_subj": "req.0.>"}).encode()
        oldest = await scheduler.nc.request("$JS.API.DIRECT.GET.REQUESTS", waiting, timeout=20)
        assert oldest.headers is not None
        fences = FramePublisher(broker.config("scheduler"), worker="scheduler", boot=next(_ids))
        await fences.start()
        fence = Fence(request_id=request.request_id, attempt=2)
        await fences.wait_acked(fences.publish(Frame(edge="edge-0", stead="worker-9", fences=[fence])))
        log = FrameLog(scheduler)
        _, last = await log.bounds()
        read = [
            Frame.FromString(data)
            async for batch in log.read(1, last, subject=token_subject("edge-0", "worker-9"))
            for _, _, data in batch
        ]
        assert [list(frame.fences) for frame in read] == [[fence]]
        request.resume.attempt = 2
        assert not (await publisher.publish(request)).duplicate
        assert (await scheduler.api("STREAM.MSG.DELETE.WORK", {"seq": stored.sequence, "no_erase": True}))["success"]
        scheduler.send(Recall(worker="worker-9", boot=1, request_ids=request.request_id, attempts=[1]))
        await fences.stop()


@pytest.mark.usefixtures("nothing_refused")
async def test_registries_are_read_by_all_who_need_them_and_written_by_their_owner(broker: Broker) -> None:
    async def writes(name: str, bucket: str, key: str, record: object, ttl: timedelta | None = None) -> None:
        async with connect(broker.config(name)) as bus:
            registry = Registry(bus, bucket, type(record))  # type: ignore[type-var]
            await registry.start()
            await registry.put(key, record, ttl)  # type: ignore[arg-type]
            await registry.stop()

    await writes("edge-0", "keys", "a" * 64, KeyRecord(key_id="k"))
    await writes("edge-0", "brands", "acme", BrandRecord(tenant_id="acme"))
    await writes("worker-0", "models", "smollm2.135m", ModelRecord(name="smollm2.135m"))
    await writes("worker-0", "fleet", "worker-0", WorkerRecord(worker="worker-0"), timedelta(seconds=60))
    await writes("scheduler", "deployments", "smollm2.135m", DeploymentRecord(model="smollm2.135m"))
    await writes("meter", "prices", "v1", PriceRecord(rate_version="v1"))
    readers = {
        "edge-1": [("keys", KeyRecord), ("models", ModelRecord), ("brands", BrandRecord)],
        "scheduler": [("fleet", WorkerRecord), ("models", ModelRecord), ("deployments", DeploymentRecord)],
        "meter": [("prices", PriceRecord), ("fleet", WorkerRecord)],
        "batch": [("models", ModelRecord)],
    }
    for name, buckets in readers.items():
        async with connect(broker.config(name)) as bus:
            for bucket, record in buckets:
                registry = Registry(bus, bucket, record)
                await registry.start()
                assert registry.items(), f"{name} reads {bucket}"
                await registry.stop()
    for name, lease in (
        ("scheduler", "scheduler-0"),
        ("scheduler", f"scheduler-{SHARDS - 1}"),
        ("scheduler", "scheduler-member-scheduler"),
        ("meter", "meter"),
    ):
        async with connect(broker.config(name)) as bus, hold(bus, lease, "me", timedelta(seconds=5)):
            pass


@pytest.mark.usefixtures("nothing_refused")
async def test_the_meter_takes_out_what_an_edge_keeps_entry_by_entry(broker: Broker) -> None:
    async with connect(broker.config("edge-0")) as edge, connect(broker.config("meter")) as meter:
        publisher = Publisher(edge)
        await publisher.start()
        responses = Store(edge, "responses", ResponseRecord, publisher)
        keys = Store(edge, "idempotency", IdempotencyRecord, publisher)
        for name in ("acme/p/1", "acme/p/2"):
            await responses.create(name, ResponseRecord(input=b"text"), timedelta(hours=1))
            await keys.create(name, IdempotencyRecord(request_id=b"r" * 16), timedelta(hours=1))
        erasures = Registry(meter, "erasures", ErasureRecord)
        await erasures.start()
        await erasures.create("e1", ErasureRecord(erasure_id="e1"))
        await erasures.stop()
        seen = Registry(meter, "idempotency", IdempotencyRecord)
        await seen.start()
        assert {"acme/p/1", "acme/p/2"} <= set(seen.items())
        await seen.stop()
        info = await meter.api("STREAM.INFO.KV_responses", {"subjects_filter": "$KV.responses.>"})
        assert info["state"]["subjects"]
        for bucket in ("responses", "idempotency"):
            subject = f"$KV.{bucket}.{subject_token('acme/p/1')}"
            assert (await meter.api(f"STREAM.PURGE.KV_{bucket}", {"filter": subject}))["purged"] == 1
        assert [await responses.get("acme/p/1"), await keys.get("acme/p/1")] == [None, None]
        assert await responses.get("acme/p/2") is not None
        assert await keys.get("acme/p/2") is not None
        # What is gone leaves nothing in the way of a new one.
        await keys.create("acme/p/1", IdempotencyRecord(request_id=b"n" * 16), timedelta(hours=1))


@pytest.mark.usefixtures("nothing_refused")
async def test_the_batch_service_keeps_files_and_jobs_with_their_content(broker: Broker) -> None:
    async with connect(broker.config("batch")) as batch:
        publisher = Publisher(batch)
        await publisher.start()
        for bucket, record in (("files", FileRecord()), ("uploads", UploadRecord()), ("jobs", JobRecord())):
            registry = Registry(batch, bucket, type(record))
            await registry.start()
            await registry.create("acme/1", record)
            await registry.delete("acme/1")
            await registry.stop()
        checkpoints = Store(batch, "job_checkpoints", JobCheckpoint, publisher)
        ack = await checkpoints.create("acme/1", JobCheckpoint(lines=1))
        await checkpoints.update("acme/1", JobCheckpoint(lines=2), ack.sequence)
        assert await checkpoints.get("acme/1") is not None
        await checkpoints.delete("acme/1")
        objects, content = Objects(batch, publisher), b"content" * 200_000

        async def parts() -> AsyncIterator[bytes]:
            yield content

        for _ in range(2):  # in place of what is there, too
            await objects.put("acme/1", parts())
        assert await objects.names() == ["acme/1"]
        assert b"".join([part async for part in objects.read("acme/1", 5)]) == content[5:]
        assert await objects.delete("acme/1")


@pytest.mark.usefixtures("nothing_refused")
async def test_the_batch_service_runs_the_jobs_of_its_shards(broker: Broker) -> None:
    edge, wanted = job_edge(3), submit_subject("acme", "key", "tag")
    worker = FramePublisher(broker.config("worker-0"), worker="worker-0", boot=7)
    await worker.start()
    async with connect(broker.config("admin")) as admin, connect(broker.config("batch")) as batch:
        for lease in ("batch-0", f"batch-{BATCH_SHARDS - 1}", "batch-member-batch", "intake-0", "intake-member-batch"):
            async with hold(batch, lease, "me", timedelta(seconds=30)):
                pass
        publisher = Publisher(batch)
        await publisher.start()
        for name in ("keys", "tenants", "projects", "deployments", "prices", "budgets", "credits", "budget_ledgers"):
            registry = Registry(batch, name, GenerateRequest)  # of any type: whether it may be read
            await registry.start()
            await registry.stop()

        heard: asyncio.Queue[object] = asyncio.Queue()
        await batch.subscribe(Capacity, heard.put_nowait)
        await batch.nc.flush()
        admin.send(Capacity(model=MODEL))
        async with asyncio.timeout(30):
            await heard.get()

        arrived, jobs = await deliveries(batch, "JOBS", "batch", "job.submit.>")
        await admin.nc.jetstream().publish(wanted, b"{}")
        async with asyncio.timeout(30):
            delivery = await jobs.get()
        delivery.ack()
        await arrived.stop()
        assert (await batch.api("STREAM.INFO.JOBS"))["state"]["first_seq"] >= 1
        await publisher.publish_raw("job.result.acme.search.1", b"{}", {"Nats-Msg-Id": "one"})

        await publisher.publish(a_request(edge))
        batch.send(Cancel(request_id=b"r" * 16))
        await worker.wait_acked(worker.publish(Frame(edge=edge, text=b"of a line")))
        log = FrameLog(batch)
        first, last = await log.bounds()
        reading = log.read(first, last, subject=edge_tokens(edge))
        assert [Frame.FromString(data).text async for part in reading for _, _, data in part] == [b"of a line"]
        await batch.nc.flush()
    await worker.stop()


@pytest.mark.usefixtures("nothing_refused")
@pytest.mark.usefixtures("nothing_refused")
async def test_a_worker_reads_the_artifacts_that_an_operator_stored(broker: Broker, tmp_path: Path) -> None:
    content = os.urandom(CHUNK_BYTES + 7)
    async with connect(broker.config("admin")) as admin, connect(broker.config("worker-0")) as bus:
        operator = await objects_of(admin)
        await operator.put("digest", parts_of(content))
        worker = await objects_of(bus)
        info = await worker.info("digest")
        assert info is not None
        assert info.size == len(content)
        assert b"".join([part async for part in worker.read("digest")]) == content
        assert await operator.delete("digest")


async def objects_of(bus: Bus) -> Objects:
    publisher = Publisher(bus)
    await publisher.start()
    return Objects(bus, publisher, ARTIFACTS)


async def parts_of(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def test_control_messages_reach_whom_they_are_for(broker: Broker) -> None:
    async with (
        connect(broker.config("edge-0")) as edge,
        connect(broker.config("scheduler")) as scheduler,
        connect(broker.config("worker-0")) as worker,
    ):
        heard: asyncio.Queue[object] = asyncio.Queue()
        await scheduler.subscribe(Cancel, heard.put_nowait)
        await worker.subscribe(Cancel, heard.put_nowait)
        await scheduler.subscribe(Heartbeat, heard.put_nowait)
        await scheduler.subscribe(CacheEvents, heard.put_nowait)
        await worker.subscribe(Recall, heard.put_nowait, Recall(worker="worker-0"))
        await scheduler.nc.flush()
        await worker.nc.flush()
        edge.send(Cancel(request_id=b"r" * 16))
        worker.send(Heartbeat(worker="worker-0"))
        worker.send(CacheEvents(worker="worker-0"))
        scheduler.send(Recall(worker="worker-0"))
        kinds = sorted([type(await asyncio.wait_for(heard.get(), 30)).__name__ for _ in range(5)])
        assert kinds == ["CacheEvents", "Cancel", "Cancel", "Heartbeat", "Recall"]
        publisher = Publisher(edge)
        await publisher.start()
        await publisher.publish(AuditEvent(event_id="e1", tenant_id="acme", action="key.created"))


REFUSED_PUBLISHES = {
    "edge-0": (
        "tok.edge-0.worker-0",
        "dlv.edge-1",
        "work.worker-0.1",
        "ctl.heartbeat.worker-0",
        "ctl.recall.worker-0",
        "ctl.cache.worker-0",
        "dec.placement.m",
        "$KV.deployments.m",
        "$KV.prices.default",
        "$KV.budgets.x",
        "$KV.credits.x",
        "$KV.budget_alerts.x",
        "$KV.leases.budget-edge-1",
        "$KV.models.m",
        "$KV.fleet.worker-0",
        "$JS.API.CONSUMER.CREATE.TOKENS.spy.tok.>",
        "$JS.API.CONSUMER.CREATE.TOKENS.spy",
        "$JS.API.CONSUMER.CREATE.TOKENS",
        "$JS.API.CONSUMER.DURABLE.CREATE.TOKENS.spy",
        "$JS.API.CONSUMER.CREATE.REQUESTS.spy.req.>",
        "$JS.API.CONSUMER.CREATE.WORK.worker-0.work.worker-0.1",
        "$JS.API.CONSUMER.CREATE.KV_responses.spy.$KV.responses.>",
        "$JS.API.DIRECT.GET.KV_prices.$KV.prices.default",
        "$JS.API.CONSUMER.NAMES.TOKENS",
        "$JS.API.STREAM.MSG.GET.TOKENS",
        "$JS.API.DIRECT.GET.TOKENS",
        "$JS.API.DIRECT.GET.TOKENS.tok.edge-1.worker-0",
        "$JS.API.STREAM.PURGE.TOKENS",
        "$JS.API.STREAM.DELETE.KV_keys",
        "$JS.API.STREAM.CREATE.OWN",
        "_INBOX_edge-1.ack1.1",
        "$SYS.REQ.USER.AUTH",
        "job.submit.acme.key",
        "job.result.acme.search.1",
    ),
    "scheduler": (
        "$KV.keys.x",
        "$KV.prices.x",
        "$KV.fleet.worker-0",
        "$KV.leases.meter",
        "ctl.cancel",
        "ctl.heartbeat.worker-0",
        "audit.x",
        "audit.acme.key.created",
        "$JS.API.STREAM.MSG.DELETE.TOKENS",
        "$JS.API.STREAM.MSG.DELETE.REQUESTS",
        "$JS.API.STREAM.PURGE.WORK",
        "$JS.API.CONSUMER.CREATE.WORK.spy.work.>",
        "$JS.API.CONSUMER.CREATE.REQUESTS.spy.req.>",
        "$JS.API.CONSUMER.DELETE.REQUESTS.other",
    ),
    "worker-0": (
        "tok.edge-0.worker-1",
        "ctl.heartbeat.worker-1",
        "req.0.interactive.m",
        "work.worker-0.1",
        "work.worker-1.1",
        "ctl.recall.worker-1",
        "ctl.cache.worker-1",
        "dec.placement.m",
        "$KV.keys.x",
        "$KV.brands.x",
        "$KV.prices.x",
        "$KV.leases.scheduler",
        "$KV.fleet.worker-1",
        "$JS.API.CONSUMER.CREATE.WORK.worker-1.work.worker-1.1",
        "$JS.API.CONSUMER.CREATE.WORK.worker-0.work.worker-1.1",
        "$JS.API.CONSUMER.DELETE.WORK.worker-1",
        "$JS.API.STREAM.MSG.DELETE.WORK",
        "$O.artifacts.M.x",
        "$O.artifacts.C.x",
        "$KV.revisions.x",
        "$JS.API.STREAM.PURGE.OBJ_artifacts",
        "$JS.API.STREAM.MSG.DELETE.OBJ_artifacts",
        "$JS.API.STREAM.INFO.OBJ_files",
        "$JS.API.DIRECT.GET.OBJ_files.$O.files.M.x",
        "$JS.API.CONSUMER.CREATE.OBJ_files.spy.$O.files.C.>",
        "$JS.API.DIRECT.GET.WORK",
        "$JS.API.DIRECT.GET.REQUESTS",
        "$JS.API.CONSUMER.MSG.NEXT.WORK.worker-1",
        "$JS.ACK.WORK.worker-1.1.1.1.1.0",
        "$JS.API.CONSUMER.CREATE.KV_keys.spy.$KV.keys.>",
        "$JS.API.CONSUMER.CREATE.TOKENS.spy.tok.edge-0.*",
    ),
    "batch": (
        "tok.edge-0.worker-0",
        "tok.batch-0.worker-0",
        "work.worker-0.1",
        "ctl.capacity.m",
        "audit.acme.key.created",
        *(f"$KV.{bucket}.x" for bucket in ("keys", "tenants", "prices", "budgets", "credits", "models", "responses")),
        "$KV.leases.scheduler-0",
        "$KV.leases.budget-edge-0",
        "$KV.leases.batch-16",
        "$KV.leases.batch-member-batch-1",
        "$KV.leases.intake-1",
        "$KV.leases.intake-member-batch-1",
        "$SYS._INBOX.x",
        "job.submit.acme.key",
        "$JS.API.CONSUMER.CREATE.TOKENS.spy.tok.edge-0.*",
        "$JS.API.CONSUMER.CREATE.TOKENS.spy.tok.>",
        "$JS.API.CONSUMER.CREATE.REQUESTS.spy.req.>",
        "$JS.API.CONSUMER.CREATE.KV_responses.spy.$KV.responses.>",
        "$JS.API.CONSUMER.CREATE.AUDIT.spy.audit.>",
        "$JS.API.STREAM.PURGE.TOKENS",
        "$JS.API.STREAM.PURGE.KV_jobs",
        "$JS.API.STREAM.DELETE.OBJ_files",
        "$O.artifacts.M.x",
        "$JS.API.STREAM.PURGE.OBJ_artifacts",
        "_INBOX_edge-0.ack1.1",
    ),
    "meter": (
        "req.0.interactive.m",
        "tok.edge-0.worker-0",
        "dlv.edge-0",
        "$KV.keys.x",
        "$KV.fleet.worker-0",
        "$KV.brands.x",
        "audit.x",
        "audit.acme.key.created",
        "ctl.cancel",
        "$KV.leases.scheduler",
        "$KV.leases.budget-edge-0",
        "$KV.responses.x",
        "$KV.idempotency.x",
        "$JS.API.CONSUMER.CREATE.KV_responses.spy.$KV.responses.>",
        "$JS.API.DIRECT.GET.KV_responses.$KV.responses.x",
        "$JS.API.STREAM.PURGE.TOKENS",
        "$JS.API.STREAM.PURGE.AUDIT",
        "$JS.API.STREAM.PURGE.KV_keys",
        "$JS.API.STREAM.MSG.DELETE.AUDIT",
    ),
}
REFUSED_SUBSCRIBES = {
    "edge-0": ("_INBOX_edge-1.>", "_INBOX_admin.>", "_INBOX.>", "tok.>", "tok.edge-1.*", "req.>", "$KV.keys.>", ">"),
    "scheduler": ("_INBOX_edge-0.>", "tok.>", "req.>", "$KV.>"),
    "worker-0": (
        "_INBOX_worker-1.>",
        "work.>",
        "work.worker-1.1",
        "ctl.recall.worker-1",
        "ctl.heartbeat.*",
        "tok.>",
        "$JS.API.>",
    ),
    "batch": (
        "_INBOX_edge-0.>",
        "tok.>",
        "tok.batch-0.*",
        "req.>",
        "job.submit.>",
        "$KV.>",
        "$O.>",
        "ctl.heartbeat.*",
        "$SYS.REQ.USER.AUTH",
    ),
    "meter": ("_INBOX_edge-0.>", "tok.>", "req.>", "$JS.API.>"),
}


async def not_refused(refused: list[str], attempts: list[str]) -> list[str]:
    """Those attempts that the server has not refused, once it had the time to."""
    missed = attempts
    for _ in range(3000):
        text = "\n".join(refused).lower()
        missed = [attempt for attempt in attempts if attempt.lower() not in text]
        if not missed:
            break
        await asyncio.sleep(0.01)
    return missed


@pytest.mark.parametrize("name", REFUSED_PUBLISHES)
async def test_a_role_cannot_publish_what_is_not_its_own(broker: Broker, name: str) -> None:
    async with broker.raw(name) as (client, refused):
        for subject in REFUSED_PUBLISHES[name]:
            await client.publish(subject, b"{}")
        assert await not_refused(refused, [f'publish to "{subject}"' for subject in REFUSED_PUBLISHES[name]]) == []


@pytest.mark.parametrize("name", REFUSED_SUBSCRIBES)
async def test_a_role_cannot_listen_to_what_is_not_for_it(broker: Broker, name: str) -> None:
    async with broker.raw(name) as (client, refused):
        for subject in REFUSED_SUBSCRIBES[name]:
            await client.subscribe(subject)
        attempts = [f'subscription to "{subject}"' for subject in REFUSED_SUBSCRIBES[name]]
        assert await not_refused(refused, attempts) == []


@pytest.mark.parametrize(
    "config",
    [
        {"filter_subject": "tok.edge-1.*"},
        {"filter_subjects": ["tok.edge-1.*"]},
        {"filter_subject": "tok.edge-0.*", "filter_subjects": ["tok.edge-1.*"]},
        {"filter_subjects": ["tok.edge-0.*", "tok.edge-1.*"]},
        {},
    ],
)
async def test_the_filter_in_the_subject_binds_the_body_too(broker: Broker, config: dict[str, object]) -> None:
    """An edge may send to this subject; with another filter in the body the server itself refuses."""
    body = {"stream_name": "TOKENS", "config": {"name": "spy", "ack_policy": "none", **config}}
    async with broker.raw("edge-0") as (client, _):
        reply = await client.request(
            "$JS.API.CONSUMER.CREATE.TOKENS.spy.tok.edge-0.*", json.dumps(body).encode(), timeout=20
        )
        assert "error" in json.loads(reply.data), reply.data


async def test_a_stranger_does_not_get_in(broker: Broker, tmp_path: Path) -> None:
    stranger = SecretFolder(tmp_path).nkey("stranger").seed
    for options in ({}, {"nkeys_seed_str": stranger}, {"user": "admin", "password": "admin"}):
        with pytest.raises((nats.errors.Error, OSError)):
            await nats.connect(broker.server.url, allow_reconnect=False, max_reconnect_attempts=0, **options)
