"""Erasing an end user and a tenant: names and text go, wherever they rest; counts and charges stay, to the cent."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import ErasureRecord, IdempotencyRecord, PriceRecord, ResponseRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.meter.v1.privacy_pb2 import EraseRequest, Erasure, ListErasuresRequest
from inferbus_bus.connection import Bus
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_bus.store import Store as Bucket
from inferbus_contracts.erasure import ERASED, end_user_hash, hash_expression
from inferbus_meter.audit import Audit, AuditRange
from inferbus_meter.bringing import Privacy
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.erasing import ErasedScopes, ErasureScope, literal, scope_of
from inferbus_meter.eraser import Eraser, keep_erased
from inferbus_meter.erasures import Erasures, follow_erasures
from inferbus_meter.ingest import FlushLimits, Ingest
from inferbus_meter.kept_answers import KeptAnswers
from inferbus_meter.privacy_servicer import PrivacyServicer
from inferbus_meter.replay import Replay, ReplayRange
from inferbus_meter.replay_tables import ReplayTables
from inferbus_meter.usage_hours import UsageHours
from inferbus_rating import PriceBook
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

LIMITS = FlushLimits(100_000, timedelta(milliseconds=50), timedelta(seconds=2))
BOOK = PriceBook.of(
    [PriceRecord(rate_version="v1", currency="USD", input_per_million="0.15", output_per_million="0.6")]
)
TTL = timedelta(seconds=10)
MONEY = "SELECT * EXCEPT (end_user, tags) FROM charges ORDER BY ALL"
ADA, BOB, CARL = "ada@example.com", "bob's \\ phone", "carl@example.com"
TEXT = "canary-of-a-prompt"
# An hour that is over, so that it is summed.
HOUR_AGO_US = 3_600_000_000


@asynccontextmanager
async def ingesting(bus: Bus, store: Store, erasures: Erasures) -> AsyncIterator[Ingest]:
    privacy = Privacy(erasures.is_erased, store)
    ingest = Ingest(FrameLog(bus), store, lambda: BOOK, LIMITS, f"m-{clock.now_us()}", privacy)
    task = asyncio.create_task(ingest.run())
    try:
        yield ingest
    finally:
        ingest.stop()
        await task


@asynccontextmanager
async def erasing(bus: Bus, eraser: Eraser, erasures: Erasures, holder: str = "m") -> AsyncIterator[PrivacyServicer]:
    task = asyncio.create_task(keep_erased(bus, holder, TTL, erasures, eraser))
    try:
        yield PrivacyServicer(erasures, eraser)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Traffic:
    """Requests of two tenants and two end users each, with text that is captured, and what edges keep of them."""

    def __init__(self, log: Any, make: Any, bus: Bus) -> None:
        self._log, self._make = log, make
        publisher = Publisher(bus)
        self.responses = Bucket(bus, "responses", ResponseRecord, publisher)
        self.keys = Bucket(bus, "idempotency", IdempotencyRecord, publisher)
        self.publisher = publisher
        self.last = 0

    async def request(self, tenant: str, end_user: str, accepted_us: int, *, kept: bool = True) -> bytes:
        request = self._make.request_id(accepted_us)
        if kept:
            await self.keep(tenant, request)
        await self.open(tenant, request, accepted_us)
        await self.close(tenant, end_user, request, accepted_us)
        return request

    async def keep(self, tenant: str, request: bytes) -> None:
        record = ResponseRecord(request_id=request, input=TEXT.encode())
        await self.responses.create(f"{tenant}/{tenant}-p/{request.hex()}", record, timedelta(hours=1))
        await self.keys.create(request.hex(), IdempotencyRecord(request_id=request), timedelta(hours=1))

    async def open(self, tenant: str, request: bytes, accepted_us: int) -> None:
        of = self._of(tenant)
        frame = Frame(time_us=accepted_us + 1000)
        for index in range(3):
            self._make.tokens(frame, request, index, [100 + index], of=of)
            frame.text_size[-1] = len(TEXT)
            frame.text += TEXT.encode()
        frame.opens.add(request_id=request, captured_input=f'{{"messages": "{TEXT}"}}')
        self.last = await self._log.publish(frame)

    async def close(self, tenant: str, end_user: str, request: bytes, accepted_us: int) -> None:
        frame = self._make.close(Frame(time_us=accepted_us + 5000), request, 3, of=self._of(tenant))
        frame.closes[-1].labels.end_user = end_user
        frame.closes[-1].labels.tags["phone"] = f"of {end_user}"
        self.last = await self._log.publish(frame)

    def _of(self, tenant: str) -> RequestContext:
        context: RequestContext = self._make.context(tenant)
        context.captured = True
        return context


@pytest.fixture
async def traffic(own_bus: Bus, frame_log: Any, make: Any) -> Traffic:
    made = Traffic(frame_log, make, own_bus)
    await made.publisher.start()
    return made


async def labels(store: Store) -> dict[bytes, tuple[str, dict[str, str]]]:
    rows = await store.rows("SELECT request_id, end_user, tags FROM bills")
    return {UUID(str(request)).bytes: (str(user), dict(tags)) for request, user, tags in rows}


async def captured(store: Store) -> set[bytes]:
    return {UUID(str(request)).bytes for (request,) in await store.rows("SELECT DISTINCT request_id FROM captures")}


async def rows_with(store: Store, word: str) -> list[str]:
    """Tables and views that have ``word`` anywhere, as text or as bytes."""
    names = await store.rows(
        "SELECT name FROM system.tables WHERE database = currentDatabase() AND engine NOT IN ('MaterializedView')"
    )
    found = []
    for (name,) in names:
        query = f"SELECT count() FROM `{name}` WHERE position(toString(tuple(*)), {literal(word)}) > 0"
        if name not in ("latency_minutes",) and (await store.rows(query))[0][0]:
            found.append(str(name))
    return found


async def audit(bus: Bus, store: Store, ingest: Ingest, erasures: Erasures) -> list[Any]:
    found = []
    wanted = AuditRange(None, None, 20.0)
    async for event in Audit(wanted, FrameLog(bus), store, ingest, BOOK, erasures.is_erased).run():
        if event.HasField("difference"):
            found.append(event.difference)
    return found


async def replay(bus: Bus, store: Store, ingest: Ingest, erasures: Erasures) -> None:
    wanted = ReplayRange(None, None, False, 20.0)
    async for _ in Replay(wanted, FrameLog(bus), store, ingest, BOOK, erasures.is_erased).run():
        pass


async def kept(traffic: Traffic, tenant: str, request: bytes) -> tuple[bool, bool]:
    """Whether its stored answer and its idempotency key are there."""
    response = await traffic.responses.get(f"{tenant}/{tenant}-p/{request.hex()}")
    return response is not None, await traffic.keys.get(request.hex()) is not None


async def test_an_end_user_goes_and_his_charges_stay(own_bus: Bus, store: Store, traffic: Traffic) -> None:
    at = clock.now_us() - HOUR_AGO_US
    mine = [await traffic.request("acme", ADA, at + number) for number in range(3)]
    others = [await traffic.request("acme", BOB, at), await traffic.request("umbrella", ADA, at)]
    async with follow_erasures(own_bus) as erasures, ingesting(own_bus, store, erasures) as ingest:
        assert await ingest.reached(traffic.last, 20)
        money, before = await store.rows(MONEY), await labels(store)
        assert await captured(store) == {*mine, *others}
        eraser = Eraser(store, KeptAnswers(own_bus))
        async with erasing(own_bus, eraser, erasures) as servicer:
            wanted = EraseRequest(tenant_id="acme", end_user=ADA, actor_key_id="key-1")
            dry = await servicer.Erase(EraseRequest(tenant_id="acme", end_user=ADA, dry_run=True), None)
            assert (await labels(store), len(erasures.records)) == (before, 0)
            done = (await servicer.Erase(wanted, None)).erasure
            gone = {"requests": 3, "captures": 3, "responses": 3, "idempotency_keys": 3}
            assert dict(dry.erasure.erased) == gone == dict(done.erased)
            assert done.HasField("done_time")
            assert (done.actor_key_id, done.end_user_hash) == ("key-1", end_user_hash("acme", ADA).hex())
            assert done.left

            now = await labels(store)
            assert all(now[request] == (ERASED, {}) for request in mine)
            assert all(now[request] == before[request] for request in others)
            assert await captured(store) == set(others)
            for request in mine:
                assert await kept(traffic, "acme", request) == (False, False)
            assert await kept(traffic, "acme", others[0]) == (True, True)
            assert await kept(traffic, "umbrella", others[1]) == (True, True)

            again = (await servicer.Erase(wanted, None)).erasure
            assert sum(again.erased.values()) == 0
            listed = (await servicer.ListErasures(ListErasuresRequest(tenant_id="acme"), None)).erasures
            assert [one.erasure_id for one in listed] == [again.erasure_id, done.erasure_id]
            assert not (await servicer.ListErasures(ListErasuresRequest(tenant_id="umbrella"), None)).erasures
        assert await store.rows(MONEY) == money
        assert await audit(own_bus, store, ingest, erasures) == []
        assert ADA not in str(list(erasures.records.values()))


async def test_a_replay_and_what_arrives_late_bring_nobody_back(
    own_bus: Bus, store: Store, traffic: Traffic, make: Any
) -> None:
    at = clock.now_us() - HOUR_AGO_US
    first = await traffic.request("acme", ADA, at)
    running = make.request_id(at + 1_000_000)
    await traffic.keep("acme", running)
    await traffic.open("acme", running, at + 1_000_000)
    async with follow_erasures(own_bus) as erasures, ingesting(own_bus, store, erasures) as ingest:
        assert await ingest.reached(traffic.last, 20)
        eraser = Eraser(store, KeptAnswers(own_bus))
        async with erasing(own_bus, eraser, erasures) as servicer:
            done = (await servicer.Erase(EraseRequest(tenant_id="acme", end_user=ADA), None)).erasure
        assert done.erased["requests"] == 1
        assert await captured(store) == {running}  # nobody knows yet whose it is

        await traffic.close("acme", ADA, running, at + 1_000_000)
        later = await traffic.request("acme", ADA, clock.now_us() + 1000)
        assert await ingest.reached(traffic.last, 20)
        now = await labels(store)
        assert now[running] == (ERASED, {})
        assert now[later][0] == ADA  # he has come back of his own will
        # Another meter finds what was left to do.
        async with erasing(own_bus, eraser, erasures, "another"):
            async with asyncio.timeout(20):
                while await captured(store) != {later}:
                    await asyncio.sleep(0.05)
        assert await kept(traffic, "acme", running) == (False, False)

        money = await store.rows(MONEY)
        for table in ("requests", "token_events"):
            await store.command(f"TRUNCATE TABLE {table} SYNC")
        await replay(own_bus, store, ingest, erasures)
        again = await labels(store)
        assert (again[first], again[running]) == ((ERASED, {}), (ERASED, {}))
        assert again[later][0] == ADA
        assert await store.rows(MONEY) == money
        assert await audit(own_bus, store, ingest, erasures) == []


async def test_a_whole_tenant_is_in_no_table_any_more(own_bus: Bus, store: Store, traffic: Traffic) -> None:
    at = clock.now_us() - HOUR_AGO_US
    mine = [await traffic.request("acme", user, at) for user in (ADA, BOB, "")]
    theirs = await traffic.request("umbrella", "somebody else", at)
    async with follow_erasures(own_bus) as erasures, ingesting(own_bus, store, erasures) as ingest:
        assert await ingest.reached(traffic.last, 20)
        await UsageHours(store).roll(at - HOUR_AGO_US, clock.now_us())
        money = await store.rows(MONEY)
        assert {"requests", "bills", "charges"} <= set(await rows_with(store, ADA))
        assert "captures" in await rows_with(store, TEXT)
        async with erasing(own_bus, Eraser(store, KeptAnswers(own_bus)), erasures) as servicer:
            done = (await servicer.Erase(EraseRequest(tenant_id="acme", whole_tenant=True), None)).erasure
        assert dict(done.erased) == {"requests": 3, "captures": 3, "responses": 3, "idempotency_keys": 3}
        assert done.end_user_hash == ""
        assert await captured(store) == {theirs}
        now = await labels(store)
        assert all(now[request] == (ERASED, {}) for request in mine)
        assert await rows_with(store, ADA) == []
        assert await kept(traffic, "umbrella", theirs) == (True, True)
        assert await store.rows(MONEY) == money
        assert await audit(own_bus, store, ingest, erasures) == []


async def test_a_backup_that_is_put_back_is_erased_again(own_bus: Bus, store: Store, traffic: Traffic) -> None:
    at = clock.now_us() - 30 * HOUR_AGO_US
    request = await traffic.request("acme", ADA, at)
    async with follow_erasures(own_bus) as erasures, ingesting(own_bus, store, erasures) as ingest:
        assert await ingest.reached(traffic.last, 20)
        await store.command("CREATE TABLE backup AS requests")
        await store.rows("INSERT INTO backup SELECT * FROM requests")
        old = _record("acme", ADA, clock.now_us() - 28 * HOUR_AGO_US)
        old.erasure_id = "erasure-of-long-ago"
        old.done_time.FromMicroseconds(1)
        eraser = Eraser(store, KeptAnswers(own_bus))
        await eraser.erase(scope_of(old))
        await store.command("TRUNCATE TABLE requests SYNC")
        await store.rows("INSERT INTO requests SELECT * FROM backup")
        assert (await labels(store))[request][0] == ADA
        await erasures.create(old)
        async with erasing(own_bus, eraser, erasures), asyncio.timeout(20):
            while (await labels(store))[request] != (ERASED, {}):
                await asyncio.sleep(0.05)


class Dying(Store):
    """Killed when it is about to say ``at``, once."""

    def __init__(self, store: Store, at: str) -> None:
        super().__init__(store._config)
        self._at = at

    async def command(self, statement: str, *, use_database: bool = True) -> None:
        if self._at and self._at in statement:
            self._at = ""
            raise asyncio.CancelledError
        await super().command(statement, use_database=use_database)


async def _not_reached(tables: ReplayTables) -> None:
    """What a replay does last, and not if it is killed."""


async def test_what_a_killed_replay_left_says_nobodys_name(
    own_bus: Bus, store: Store, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tables stay until the next replay. An erasure of before, too: they may come back with a backup."""
    at = clock.now_us() - 30 * HOUR_AGO_US
    await traffic.request("acme", ADA, at)
    theirs = await traffic.request("acme", CARL, at)
    async with follow_erasures(own_bus) as erasures, ingesting(own_bus, store, erasures) as ingest:
        assert await ingest.reached(traffic.last, 20)
        await store.command("ALTER TABLE requests UPDATE edge = 'x' WHERE 1 SETTINGS mutations_sync = 1")
        with monkeypatch.context() as patched:
            patched.setattr(ReplayTables, "drop", _not_reached)
            async for _ in Replay(ReplayRange(None, None, False, 20.0), FrameLog(own_bus), store, ingest, BOOK).run():
                pass
        left = ["replay_fix_requests", "replay_staged_requests"]
        assert await rows_with(store, ADA) == ["bills", "charges", *left, "requests"]
        old = _record("acme", ADA, clock.now_us() - 28 * HOUR_AGO_US)
        old.erasure_id = "erasure-of-long-ago"
        old.done_time.FromMicroseconds(1)
        await store.command(f"ALTER TABLE requests DELETE WHERE end_user = '{ADA}' SETTINGS mutations_sync = 1")
        await erasures.create(old)
        eraser = Eraser(store, KeptAnswers(own_bus))
        async with erasing(own_bus, eraser, erasures) as servicer, asyncio.timeout(20):
            while await rows_with(store, ADA):
                await asyncio.sleep(0.05)
            assert {*left} < {*await rows_with(store, CARL)}
            done = (await servicer.Erase(EraseRequest(tenant_id="acme", end_user=CARL), None)).erasure
        assert await rows_with(store, CARL) == []
        assert done.erased["requests"] == 1  # counted once, wherever else it lay
        assert (await labels(store))[theirs] == (ERASED, {})


@pytest.mark.parametrize("step", ["ALTER TABLE captures", "ALTER TABLE requests"])
async def test_killed_in_the_middle_another_meter_goes_on(
    own_bus: Bus, store: Store, traffic: Traffic, step: str
) -> None:
    at = clock.now_us() - HOUR_AGO_US
    mine = [await traffic.request("acme", ADA, at + number) for number in range(2)]
    async with follow_erasures(own_bus) as erasures, ingesting(own_bus, store, erasures) as ingest:
        assert await ingest.reached(traffic.last, 20)
        dying = Dying(store, step)
        async with erasing(own_bus, Eraser(dying, KeptAnswers(own_bus)), erasures) as servicer:
            wanted = EraseRequest(tenant_id="acme", end_user=ADA)
            wanted.timeout.FromSeconds(1)
            begun = (await servicer.Erase(wanted, None)).erasure
        await dying.close()
        assert not begun.HasField("done_time")
        async with erasing(own_bus, Eraser(store, KeptAnswers(own_bus)), erasures, "another") as servicer:
            ended = await _ended(servicer, begun.erasure_id)
        assert ended.erased["requests"] == 2
        assert (await captured(store), {one[0] for one in (await labels(store)).values()}) == (set(), {ERASED})
        for request in mine:
            assert await kept(traffic, "acme", request) == (False, False)


async def _ended(servicer: PrivacyServicer, erasure_id: str) -> Erasure:
    async with asyncio.timeout(20):
        while True:
            listed = (await servicer.ListErasures(ListErasuresRequest(), None)).erasures
            (found,) = [one for one in listed if one.erasure_id == erasure_id]
            if found.HasField("done_time"):
                return found
            await asyncio.sleep(0.05)


async def test_token_ids_of_erased_requests_go_when_the_log_does_not_hold_them(store: Store) -> None:
    values = ("c" * 32, "d" * 32)
    for number, (name, user) in enumerate(zip(values, (ERASED, ADA), strict=True)):
        request = UUID(name)
        await store.rows(
            "INSERT INTO requests (request_id, tenant_id, end_user, accepted_time, end_time) "
            f"SELECT '{request}', 'acme', '{user}', now() - 500000, now() - 500000"
        )
        for old in (500_000, 1):
            await store.rows(
                "INSERT INTO token_events (tenant_id, model, request_id, attempt, `index`, token_id, time) "
                f"SELECT 'acme', 'm', '{request}', 1, {number}, 7, now() - {old}"
            )
    eraser = Eraser(store, KeptAnswers.__new__(KeptAnswers))
    assert await eraser.blank_token_ids("acme") == 1
    rows = await store.rows("SELECT request_id, token_id, time < now() - 400000 FROM token_events ORDER BY ALL")
    assert sorted((str(request)[0], token, bool(old)) for request, token, old in rows) == [
        ("c", 0, True), ("c", 7, False), ("d", 7, False), ("d", 7, True)
    ]  # fmt: skip
    assert await eraser.blank_token_ids("acme") == 0


async def test_the_hash_is_the_same_in_the_store_and_names_are_escaped(store: Store) -> None:
    for tenant, user in (("acme", ADA), ("t.1-_", BOB), ("acme", "名前 \x7f\n")):
        expression = hash_expression("{tenant:String}", "{user:String}")
        rows = await store.rows(f"SELECT hex({expression})", {"tenant": tenant, "user": user})
        assert rows[0][0] == end_user_hash(tenant, user).hex().upper()
        assert (await store.rows(f"SELECT {literal(user)}"))[0][0] == user


@pytest.mark.parametrize(
    "fields",
    [{}, {"tenant_id": "acme"}, {"tenant_id": "acme", "end_user": "a", "whole_tenant": True}, {"end_user": "a"}],
)
async def test_what_is_to_go_must_be_said(own_bus: Bus, store: Store, fields: dict[str, Any]) -> None:
    async with follow_erasures(own_bus) as erasures:
        with pytest.raises(InferBusError):
            await PrivacyServicer(erasures, Eraser(store, KeptAnswers(own_bus))).Erase(EraseRequest(**fields), None)
        with pytest.raises(InferBusError, match="REPAIR_USER"):
            await PrivacyServicer(erasures, None).Erase(EraseRequest(tenant_id="acme", end_user="a"), None)
        assert not erasures.records


def test_scopes() -> None:
    scopes = ErasedScopes()
    scopes.put(_record("acme", ADA, 100))
    scopes.put(_record("acme", ADA, 50))
    scopes.put(_record("umbrella", "", 70))
    cases: Sequence[tuple[tuple[str, str, int], bool]] = (
        (("acme", ADA, 100), True), (("acme", ADA, 101), False), (("acme", BOB, 1), False), (("acme", "", 1), False),
        (("umbrella", ADA, 70), True), (("umbrella", "", 70), True), (("umbrella", ADA, 71), False),
        (("other", ADA, 1), False),
    )  # fmt: skip
    for asked, answer in cases:
        assert scopes.is_erased(*asked) is answer, asked
    assert "1=1" not in ErasureScope("a' OR 1=1 --", b"", 1).accepted.replace("'a\\' OR 1=1 --'", "")


def _record(tenant: str, user: str, until_us: int) -> ErasureRecord:
    record = ErasureRecord(tenant_id=tenant, end_user_hash=end_user_hash(tenant, user) if user else b"")
    record.until_time.FromMicroseconds(until_us)
    return record
