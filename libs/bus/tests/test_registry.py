import asyncio
import os
import signal
from datetime import timedelta

import pytest
from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.lease import hold
from inferbus_bus.publish import PubAck, Publisher
from inferbus_bus.registry import Registry
from inferbus_bus.streams import bucket_config, ensure_streams
from inferbus_contracts.subjects import BUCKETS, subject_token
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer
from nats.aio.msg import Msg


async def until(condition, timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.01)


async def registry(bus: Bus, bucket: str = "models", record: type = ModelRecord) -> Registry:
    made = Registry(bus, bucket, record)
    await made.start()
    return made


async def delete_briefly(bus: Bus, name: str, bucket: str = "models") -> PubAck:
    """As Registry.delete, but what marks it goes after a second."""
    publisher = Publisher(bus)
    await publisher.start()
    headers = {"KV-Operation": "DEL", "Nats-TTL": "1s"}
    return await publisher.publish_raw(f"$KV.{bucket}.{subject_token(name)}", b"", headers)


async def last_stored(bus: Bus, bucket: str, name: str) -> Msg:
    subject = f"$JS.API.DIRECT.GET.KV_{bucket}.$KV.{bucket}.{subject_token(name)}"
    return await bus.nc.request(subject, b"", timeout=30)


async def nothing_left(bus: Bus, name: str, bucket: str = "models") -> None:
    """Returns when the broker knows nothing of the entry any more."""
    async with asyncio.timeout(30):
        while True:
            last = await last_stored(bus, bucket, name)
            if last.headers and last.headers.get("Status") == "404":
                return
            await asyncio.sleep(0.05)


async def test_what_was_put_is_there_at_start_and_seen_by_others(bus: Bus) -> None:
    first = await registry(bus)
    await first.put("a.b/c model", ModelRecord(name="a.b/c model", revision="r1"))
    second = await registry(bus)
    assert second.get("a.b/c model").revision == "r1"
    await first.put("a.b/c model", ModelRecord(name="a.b/c model", revision="r2"))
    await until(lambda: second.get("a.b/c model").revision == "r2")
    await first.delete("a.b/c model")
    await until(lambda: second.get("a.b/c model") is None)


async def test_create_refuses_what_is_there_and_works_after_a_delete(bus: Bus) -> None:
    models = await registry(bus)
    await models.create("once", ModelRecord(name="once"))
    with pytest.raises(InferBusError) as refused:
        await models.create("once", ModelRecord(name="once"))
    assert refused.value.reason == "changed_meanwhile"
    await until(lambda: models.get("once") is not None)
    await models.delete("once")
    await until(lambda: models.get("once") is None)
    await models.create("once", ModelRecord(name="once"))


async def test_who_deletes_what_he_knows_does_not_delete_what_came_after_it(bus: Bus) -> None:
    models = await registry(bus)
    mine = await models.put("given", ModelRecord(name="given"))
    theirs = await models.put("given", ModelRecord(name="given", revision="r2"))
    with pytest.raises(InferBusError) as refused:
        await models.delete("given", mine.sequence)
    assert refused.value.reason == "changed_meanwhile"
    await models.delete("given", theirs.sequence)
    await until(lambda: models.revision("given") > theirs.sequence and models.get("given") is None)


async def test_a_leased_entry_ends_by_itself_and_watchers_see_it(bus: Bus) -> None:
    fleet = await registry(bus, "fleet", WorkerRecord)
    told: list[WorkerRecord | None] = []
    fleet.on_change(lambda name, record: told.append(record) if name == "w-ttl" else None)
    await fleet.put("w-ttl", WorkerRecord(worker="w-ttl"), ttl=timedelta(seconds=1))
    await until(lambda: len(told) == 2)
    assert told == [WorkerRecord(worker="w-ttl"), None]
    assert fleet.get("w-ttl") is None


async def test_a_registry_goes_on_after_the_broker_was_killed(tmp_path) -> None:
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "one")) as bus:
        await ensure_streams(bus)
        watching = await registry(bus)
        await watching.put("m", ModelRecord(name="m", revision="1"))
        await until(lambda: watching.get("m") is not None)
        await server.restart()
        async with connect(BusConfig(server.url, "two")) as other:
            writer = await registry(other)
            assert writer.get("m").revision == "1"
            await writer.put("m", ModelRecord(name="m", revision="2"))
            await until(lambda: watching.get("m").revision == "2")


async def test_a_lease_is_held_by_one_and_handed_on(bus: Bus) -> None:
    order: list[str] = []

    async def holder(name: str) -> None:
        async with hold(bus, "test-lease", name, timedelta(seconds=6)) as lease:
            order.append(f"{name} in")
            if len(order) == 1:
                await asyncio.sleep(7.5)  # longer than the ttl: it is renewed
            assert not lease.lost.is_set()
            order.append(f"{name} out")

    await asyncio.gather(holder("a"), holder("b"))
    assert order in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


@pytest.mark.parametrize("bucket", ["keys", "models", "fleet"])
async def test_a_deletion_leaves_no_trace_for_ever(bus: Bus, bucket: str) -> None:
    """Who makes and deletes without end, as by rotating one key, does not fill a bucket."""
    entries = await registry(bus, bucket)
    await entries.create("gone/", ModelRecord(name="x"))
    await entries.delete("gone/")
    last = await last_stored(bus, bucket, "gone/")
    assert last.headers is not None
    assert last.headers["KV-Operation"] == "DEL"
    assert last.headers["Nats-TTL"] == "120s"


async def test_the_buckets_of_an_older_stack_are_brought_up_to_date(tmp_path) -> None:
    async with NatsServer(tmp_path) as server, connect(BusConfig(server.url, "one")) as bus:
        config = bucket_config(next(spec for spec in BUCKETS if spec.name == "keys"), 1)
        del config["allow_msg_ttl"]
        await bus.api("STREAM.CREATE.KV_keys", config)
        keys = await registry(bus, "keys")
        with pytest.raises(InferBusError):
            await keys.delete("x")
        await ensure_streams(bus)
        await keys.delete("x")


async def test_what_was_deleted_can_be_stored_when_the_broker_has_forgotten_it(bus: Bus) -> None:
    models = await registry(bus)
    for name in ("by-create", "by-update"):
        await models.put(name, ModelRecord(name=name))
        deleted = await delete_briefly(bus, name)
        await until(lambda name=name, deleted=deleted: models.revision(name) == deleted.sequence)
        await nothing_left(bus, name)
        assert models.revision(name) == deleted.sequence  # not forgotten here
    await models.create("by-create", ModelRecord(name="again"))
    await models.update("by-update", ModelRecord(name="again"), models.revision("by-update"))
    await until(lambda: models.get("by-update") is not None)
    assert models.get("by-create") == models.get("by-update") == ModelRecord(name="again")


async def test_only_one_stores_what_the_broker_has_forgotten(bus: Bus) -> None:
    one, two = await registry(bus), await registry(bus)
    await one.put("raced", ModelRecord(name="raced"))
    deleted = await delete_briefly(bus, "raced")
    await until(lambda: one.revision("raced") == two.revision("raced") == deleted.sequence)
    await nothing_left(bus, "raced")
    made = await asyncio.gather(
        *(each.create("raced", ModelRecord(name=name)) for each, name in ((one, "a"), (two, "b"))),
        return_exceptions=True,
    )
    refused = [each for each in made if isinstance(each, InferBusError)]
    assert [each.reason for each in refused] == ["changed_meanwhile"]


async def test_deletions_do_not_add_up_in_memory(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferbus_bus.registry._FORGET_SECONDS", 0.2)
    models = await registry(bus)
    for number in range(50):
        await models.put(f"grown-{number}", ModelRecord())
        await delete_briefly(bus, f"grown-{number}")
    again = await models.put("grown-0", ModelRecord())  # it is there again: not to be forgotten
    await until(lambda: models.revision("grown-0") == again.sequence)  # the deletions came before it
    await asyncio.sleep(1.5)
    last = await delete_briefly(bus, "grown-last")
    await until(lambda: models.revision("grown-last") == last.sequence)
    assert [name for name in models._revisions if name.startswith("grown")] == ["grown-0", "grown-last"]
    assert models.get("grown-0") is not None


async def test_a_watcher_that_was_away_longer_than_a_deletion_is_told_hears_of_it(tmp_path) -> None:
    server = NatsServer(tmp_path)
    await server.start()
    try:
        async with connect(BusConfig(server.url, "away")) as bus:
            await ensure_streams(bus)
            models = await registry(bus)
            for name in ("kept", "changed", "deleted", "deleted and made"):
                await models.put(name, ModelRecord(name=name))
            deleted_before = await delete_briefly(bus, "deleted before")
            await until(lambda: models.revision("deleted before") == deleted_before.sequence)
            told: list[tuple[str, ModelRecord | None]] = []
            models.on_change(lambda name, record: told.append((name, record)))

            await server.stop()
            async with NatsServer(tmp_path) as elsewhere, connect(BusConfig(elsewhere.url, "writer")) as other:
                writer = await registry(other)
                await writer.put("changed", ModelRecord(name="changed", revision="2"))
                await writer.put("new", ModelRecord(name="new"))
                await delete_briefly(other, "deleted")
                await delete_briefly(other, "deleted and made")
                await nothing_left(other, "deleted")
                await nothing_left(other, "deleted and made")
                await writer.create("deleted and made", ModelRecord(name="deleted and made"))
            assert models.get("deleted") is not None  # nobody could say it
            await server.start()

            await until(lambda: models.get("deleted") is None)
            assert set(models.items()) == {"kept", "changed", "new", "deleted and made"}
            assert models.get("changed").revision == "2"
            assert sorted(name for name, _ in told) == ["changed", "deleted", "deleted and made", "new"]
            assert ("deleted", None) in told
            assert (models.revision("deleted"), models.revision("deleted before")) == (0, 0)
            await models.create("deleted", ModelRecord(name="deleted"))
    finally:
        await server.stop()


async def test_an_emptied_bucket_is_seen_to_be_empty(tmp_path) -> None:
    server = NatsServer(tmp_path)
    await server.start()
    try:
        async with connect(BusConfig(server.url, "away")) as bus:
            await ensure_streams(bus)
            models = await registry(bus)
            await models.put("only", ModelRecord())
            await until(lambda: models.get("only") is not None)
            assert models.following
            await server.stop()
            await until(lambda: not models.following)
            async with NatsServer(tmp_path) as elsewhere, connect(BusConfig(elsewhere.url, "writer")) as other:
                await delete_briefly(other, "only")
                await nothing_left(other, "only")
            await server.start()
            await until(lambda: not models.items())
            await until(lambda: models.following)
    finally:
        await server.stop()


async def test_reading_everything_again_under_load_makes_up_no_deletion(bus: Bus) -> None:
    models = await registry(bus)
    names = [f"busy-{number}" for number in range(500)]
    await asyncio.gather(*(models.put(name, ModelRecord(revision="0")) for name in names))
    await until(lambda: all(name in models.items() for name in names))
    told: list[str] = []
    models.on_change(lambda name, record: told.append(name) if record is None else None)
    busy = True

    async def write(mine: list[str]) -> int:
        turn = 0
        while busy:
            turn += 1
            await asyncio.gather(*(models.put(name, ModelRecord(revision=str(turn))) for name in mine))
        return turn

    writing = [asyncio.create_task(write(names[at::5])) for at in range(5)]
    for _ in range(10):
        await asyncio.sleep(0.1)
        begun = models._reader._name
        models._reader._broken.set()
        await until(lambda begun=begun: models._reader._name != begun and not models._missing)
    busy = False
    turns = [await one for one in writing]
    await until(lambda: all(models.get(name).revision == str(turns[at % 5]) for at, name in enumerate(names)))
    assert told == []


async def test_a_broker_that_stands_still_makes_up_no_deletion(tmp_path) -> None:
    """It had said that all has come while an entry was being overwritten."""
    async with (
        NatsServer(tmp_path) as server,
        connect(BusConfig(server.url, "reader")) as bus,
        connect(BusConfig(server.url, "writer")) as other,
    ):
        await ensure_streams(bus)
        models, writer = await registry(bus), await registry(other)
        await writer.put("only", ModelRecord(revision="1"))
        await until(lambda: models.get("only") is not None)
        told: list[str] = []
        models.on_change(lambda name, record: told.append(name) if record is None else None)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            models._begun()
            models._idle()
            writing = asyncio.create_task(writer.put("only", ModelRecord(revision="2")))
            await asyncio.sleep(1.5)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await writing
        await until(lambda: models.get("only") == ModelRecord(revision="2"))
        await until(lambda: not models._missing and models._sweeper is None)
        assert told == []
