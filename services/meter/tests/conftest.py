"""Real parts for the meter's tests: its own nats-server, since it counts a whole stream, and an embedded ClickHouse."""

import asyncio
import itertools
import json
import os
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass, Usage
from inferbus.meter.v1.meter_pb2 import AuditRequest, AuditResponse, AuditSummary
from inferbus.meter.v1.meter_pb2_grpc import MeterServiceStub
from inferbus.meter.v1.prices_pb2 import ListPricesRequest
from inferbus.meter.v1.prices_pb2_grpc import PriceServiceStub
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.ids import uuid7
from inferbus_contracts.subjects import message_id, subject_of
from inferbus_meter.clickhouse import Store, StoreConfig, open_store
from inferbus_meter.migrate import migrate, migrations
from inferbus_runtime import clock, rpc
from inferbus_stack.nats import NatsServer, free_port

PASSWORD = "tests-only"
TOKEN = "an-operator-token-of-tests"


class ClickHouseServer:
    """The embedded ClickHouse as its own process; the port stays the same over kills and starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: asyncio.subprocess.Process | None = None
        self._schema: list[str] = []

    async def start(self) -> None:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        users = self.folder / "users.json"
        users.write_text(json.dumps({name: {"password": PASSWORD, "profile": name} for name in PROFILES}))
        with (self.folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "inferbus_stack.clickhouse", "--path", str(self.folder / "data"),
                "--port", str(self.port), "--users", str(users), "--ready-file", str(ready), "--no-query-log",
                "--memory-mib", "2048", stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(60):
            while not ready.exists():
                if self._process.returncode is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:])
                await asyncio.sleep(0.02)

    async def stop(self, how: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, how)
            await self._process.wait()

    async def kill(self) -> None:
        await self.stop(signal.SIGKILL)

    def config(self, user: str, database: str) -> StoreConfig:
        return StoreConfig(self.url, user, PASSWORD, database, 20.0)

    async def put_schema(self, store: Store, database: str) -> None:
        """The whole schema into the empty ``database`` (0.6 s by the migrations): the first time by them, then by what
        came out of them (0.2 s). That the two are one and the same, test_migrate.py holds."""
        if not self._schema:
            await migrate(store, database, migrations())
            self._schema = await _made_by_migrations(store, database)
        else:
            for statement in self._schema:
                await store.command(statement)


async def _made_by_migrations(store: Store, database: str) -> list[str]:
    """Each table and view, and the ledger of migrations, as statements: what a view reads comes before it."""
    made = await store.rows(
        "SELECT create_table_query FROM system.tables WHERE database = {database:String} "
        "ORDER BY engine = 'View', engine = 'MaterializedView', metadata_modification_time, name",
        {"database": database},
    )
    ledger = await store.rows("SELECT version, name, checksum FROM schema_migrations")
    rows = ", ".join(f"({version}, '{name}', '{checksum}')" for version, name, checksum in ledger)
    return [
        *(re.sub(r" UUID '[0-9a-f-]{36}'", "", str(text)).replace(f"{database}.", "") for (text,) in made),
        f"INSERT INTO schema_migrations (version, name, checksum) VALUES {rows}",
    ]


class MeterProcess:
    """``python -m inferbus_meter`` against the given broker and store."""

    def __init__(self, folder: Path, nats_url: str, store_config: Any, name: str = "meter") -> None:
        self._ready = folder / f"{name}.json"
        self._log = folder / f"{name}.log"
        variables = {
            "NAME": name, "NATS_URL": nats_url, "READY_FILE": str(self._ready), "CLICKHOUSE_URL": store_config.url,
            "CLICKHOUSE_USER": "writer", "CLICKHOUSE_PASSWORD": store_config.password, "RPC_TOKEN": TOKEN,
            "CLICKHOUSE_DATABASE": store_config.database, "FLUSH_INTERVAL": "100ms", "LEASE_TTL": "2s",
        }  # fmt: skip
        self._environ = {f"INFERBUS_METER_{key}": value for key, value in variables.items()} | {
            "PATH": os.environ["PATH"]
        }
        self._process: asyncio.subprocess.Process | None = None

    def set(self, **variables: str) -> None:
        """Further settings, for the next start."""
        self._environ |= {f"INFERBUS_METER_{key}": value for key, value in variables.items()}

    async def start(self) -> None:
        self._ready.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "inferbus_meter",
                env=self._environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        async with asyncio.timeout(60):
            while not self._ready.exists():
                assert self._process.returncode is None, self.log()
                await asyncio.sleep(0.02)

    async def stop(self, how: signal.Signals) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            os.kill(self._process.pid, how)
        return await self._process.wait()

    def log(self) -> str:
        return self._log.read_text()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        async with rpc.channel(json.loads(self._ready.read_text())["grpc"], TOKEN) as channel:
            yield channel

    @asynccontextmanager
    async def api(self) -> AsyncIterator[MeterServiceStub]:
        async with self.channel() as channel:
            yield MeterServiceStub(channel)

    async def knows_price(self, version: str) -> None:
        """Returns when what it brings from now on is charged by it."""
        async with asyncio.timeout(30), self.channel() as channel:
            api, known = PriceServiceStub(channel), set[str]()
            while version not in known:
                await asyncio.sleep(0.02)
                found = await api.ListPrices(ListPricesRequest(), wait_for_ready=True)
                known = {one.record.rate_version for one in found.prices}

    async def audit(self, **request: Any) -> tuple[AuditSummary, list[AuditResponse]]:
        events, asked = [], AuditRequest(**{"timeout": timedelta(seconds=120), **request})
        async with self.api() as api:
            async for event in api.Audit(asked, wait_for_ready=True):
                events.append(event)
        assert events[-1].WhichOneof("event") == "summary"
        assert any(event.HasField("progress") for event in events)
        return events[-1].summary, [event.difference for event in events if event.HasField("difference")]


PROFILES = ("admin", "writer", "analyst", "capture_writer", "capture_reader")


@pytest_asyncio.fixture(scope="session")
async def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClickHouseServer]:
    server = ClickHouseServer(tmp_path_factory.mktemp("clickhouse"))
    await server.start()
    try:
        yield server
    finally:
        await server.stop(signal.SIGTERM)


@pytest_asyncio.fixture
async def admin_store(clickhouse: ClickHouseServer) -> AsyncIterator[Store]:
    """The one database that the embedded server's writer and analyst may use, emptied, with the schema."""
    async with open_store(clickhouse.config("admin", "inferbus")) as store:
        tables = await store.rows(
            "SELECT name FROM system.tables WHERE database = 'inferbus' ORDER BY endsWith(engine, 'MergeTree')"
        )
        for (name,) in tables:  # views first
            await store.command(f"DROP TABLE `{name}` SYNC")
        await clickhouse.put_schema(store, "inferbus")
        yield store


@asynccontextmanager
async def fresh_database(server: ClickHouseServer) -> AsyncIterator[Store]:
    """A database of its own with the whole schema, seen as the writer; dropped at the end."""
    name = f"meter_{uuid.uuid4().hex[:12]}"
    async with open_store(server.config("admin", "")) as admin:
        await admin.command(f"CREATE DATABASE {name}", use_database=False)
        try:
            async with open_store(server.config("admin", name)) as store:
                await server.put_schema(store, name)
                yield store
        finally:
            await admin.command(f"DROP DATABASE {name} SYNC", use_database=False)


@pytest_asyncio.fixture
async def store(clickhouse: ClickHouseServer) -> AsyncIterator[Store]:
    async with fresh_database(clickhouse) as fresh:
        yield fresh


@pytest_asyncio.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with NatsServer(tmp_path / "nats") as server:
        async with connect(BusConfig(server.url, "admin")) as admin:
            await ensure_streams(admin)
        yield server


@pytest_asyncio.fixture
async def own_bus(own_nats: NatsServer) -> AsyncIterator[Bus]:
    async with connect(BusConfig(own_nats.url, "meter-test")) as connected:
        yield connected


# --- frames, as a worker makes them ---


def request_id(unix_us: int | None = None) -> bytes:
    """A UUIDv7 of now."""
    return uuid7((unix_us or clock.now_us()) // 1000, os.urandom(10))


def context(tenant: str = "acme", model: str = "synthetic") -> RequestContext:
    return RequestContext(
        tenant_id=tenant, project_id=f"{tenant}-p", key_id=f"{tenant}-k", model=model, revision="r1"
    )  # fmt: skip


def add_tokens(
    frame: Frame,
    request: bytes,
    first: int,
    token_ids: list[int],
    *,
    attempt: int = 1,
    gap_us: int = 20_000,
    of: RequestContext | None = None,
) -> Frame:
    """One delta, every column spelled out."""
    of = of or context()
    if of not in frame.contexts:
        frame.contexts.append(of)
    frame.request_ids += request
    frame.context_index.append(list(frame.contexts).index(of))
    frame.attempt.append(attempt)
    frame.first_index.append(first)
    frame.token_count.append(len(token_ids))
    frame.gap_us.append(gap_us)
    frame.text_size.append(0)
    frame.token_id.extend(token_ids)
    return frame


def add_close(
    frame: Frame, request: bytes, output_tokens: int, *, attempt: int = 1, of: RequestContext | None = None,
    finish: FinishReason.ValueType = FinishReason.FINISH_REASON_STOP, input_tokens: int = 10,
) -> Frame:  # fmt: skip
    of = of or context()
    if of not in frame.contexts:
        frame.contexts.append(of)
    close = frame.closes.add(
        request_id=request, context_index=list(frame.contexts).index(of), attempt=attempt, finish_reason=finish,
        engine="synthetic", priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE,
        usage=Usage(input_tokens=input_tokens, cached_input_tokens=4, output_tokens=output_tokens),
    )  # fmt: skip
    accepted = int.from_bytes(request[:6], "big") * 1000
    for field, delay in (("accepted_time", 0), ("placed_time", 1000), ("started_time", 2000), ("end_time", 900_000)):
        getattr(close, field).FromMicroseconds(accepted + delay)
    if output_tokens:
        close.first_token_time.FromMicroseconds(accepted + 30_000)
        close.last_token_time.FromMicroseconds(accepted + 30_000 + 20_000 * (output_tokens - 1))
    return frame


class Log:
    """Publishes frames onto TOKENS and knows what must come out of it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._sequence = itertools.count(1)
        self.boot = clock.now_us()

    async def publish(self, *frames: Frame) -> int:
        """Stored when it returns; gives the stream sequence of the last one."""
        js = self._bus.nc.jetstream()
        last = 0
        for frame in frames:
            frame.edge, frame.worker = frame.edge or "edge-0", frame.worker or "worker-0"
            frame.boot, frame.sequence = self.boot, next(self._sequence)
            frame.time_us = frame.time_us or clock.now_us()
            ack = await js.publish(
                subject_of(frame), frame.SerializeToString(), headers={"Nats-Msg-Id": message_id(frame)}
            )
            last = ack.seq
        return last

    async def request(self, tokens: int = 5, *, tenant: str = "acme", close: bool = True) -> bytes:
        """A whole request, a frame a token."""
        request = request_id()
        for index in range(tokens):
            await self.publish(add_tokens(Frame(), request, index, [100 + index], of=context(tenant)))
        if close:
            await self.publish(add_close(Frame(), request, tokens, of=context(tenant)))
        return request


@pytest.fixture
def frame_log(own_bus: Bus) -> Log:
    return Log(own_bus)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Builders of frames; a fixture because test modules cannot import each other."""
    return SimpleNamespace(
        request_id=request_id, context=context, tokens=add_tokens, close=add_close, fresh_database=fresh_database,
        Log=Log, ClickHouseServer=ClickHouseServer, MeterProcess=MeterProcess, PASSWORD=PASSWORD,
    )  # fmt: skip
