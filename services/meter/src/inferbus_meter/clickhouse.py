"""The store: ClickHouse over HTTP through clickhouse-connect, embedded or a real server alike."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from clickhouse_connect import get_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import ClickHouseError, Error
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_meter.config import Config

RETRY_AFTER = timedelta(seconds=2)
_FILE_SECONDS = 600.0
# Whoever asks over HTTP waits no longer.
_QUESTION_SECONDS = 30
_REPAIR_SECONDS = 600.0
# ClickHouse's: too many rows, too long, too slow, too much memory, too many bytes, rows or bytes.
_TOO_MUCH = frozenset((158, 159, 160, 241, 307, 396))
# What a call to the store raises when the store is away, restarting, or refuses.
STORE_ERRORS = (ClickHouseError, aiohttp.ClientError, TimeoutError, OSError)
# A retry with the same token is dropped, and fills views that an earlier try did not reach. Both must be said: with 0
# for the views, three retries gave an aggregate of three times the truth.
_INSERT_SETTINGS = {"insert_deduplicate": 1, "deduplicate_blocks_in_dependent_materialized_views": 1, "async_insert": 0}


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where the store is and who we are; ``timeout`` in seconds for each call. ``limits``: of each question."""

    url: str
    user: str
    password: str
    database: str
    timeout: float
    limits: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def for_repair(cls, config: Config) -> "StoreConfig | None":
        """The same store as the user who may also delete; None if the operator named none."""
        if not config.clickhouse_repair_user:
            return None
        password = config.clickhouse_repair_password.get_secret_value()
        # Deleting waits until it is done.
        return replace(cls.of(config), user=config.clickhouse_repair_user, password=password, timeout=_REPAIR_SECONDS)

    @classmethod
    def for_captures(cls, config: Config, *, writes: bool) -> "StoreConfig | None":
        """The same store as the user for captured text who writes, or who reads; None if the operator named none."""
        user = config.clickhouse_capture_writer if writes else config.clickhouse_capture_reader
        secret = config.clickhouse_capture_writer_password if writes else config.clickhouse_capture_reader_password
        return replace(cls.of(config), user=user, password=secret.get_secret_value()) if user else None

    @classmethod
    def for_reading(cls, config: Config) -> "StoreConfig":
        """The same store as the user who may only read, if the operator named one. A question ends with the patience of
        who asked: the store would go on with it for nobody."""
        own = cls.of(config)
        own = replace(own, limits={"max_execution_time": max(1, min(_QUESTION_SECONDS, int(own.timeout)))})
        if not config.clickhouse_read_user:
            return own
        return replace(
            own, user=config.clickhouse_read_user, password=config.clickhouse_read_password.get_secret_value()
        )

    @classmethod
    def of(cls, config: Config) -> "StoreConfig":
        return cls(
            config.clickhouse_url,
            config.clickhouse_user,
            config.clickhouse_password.get_secret_value(),
            config.clickhouse_database,
            config.clickhouse_timeout.total_seconds(),
        )


class Store:
    """One client that connects at its first use, and again after a failure. Calls raise one of STORE_ERRORS."""

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._client: AsyncClient | None = None
        self._connecting = asyncio.Lock()

    async def insert(self, table: str, data: bytes, token: str) -> None:
        """Insert one Native block, at most once for ``token``."""
        client = await self._connected()
        settings = {**_INSERT_SETTINGS, "insert_deduplication_token": token}
        await client.raw_insert(table, insert_block=data, settings=settings, fmt="Native")

    async def rows(
        self, query: str, parameters: Mapping[str, Any] | None = None, settings: Mapping[str, Any] | None = None
    ) -> Sequence[Sequence[Any]]:
        """The result of a SELECT. ``parameters`` are bound by the server ({name:Type} in the query)."""
        client = await self._connected()
        limits = {**self._config.limits, **(settings or {})}
        result = await client.query(query, parameters=dict(parameters or {}), settings=limits)
        return result.result_rows

    async def stream(self, query: str, parameters: Mapping[str, Any], fmt: str) -> AsyncIterator[bytes]:
        """The result of a SELECT as a file in ``fmt``, part by part. A failure in its middle breaks the transfer, so it
        raises as one at its beginning does: what came is never taken for whole."""
        # A client of its own, which waits longer: a file is sorted as a whole before its first byte.
        client = await _open(replace(self._config, timeout=_FILE_SECONDS))
        # One writer: several would cut a file into groups of rows as they happen to be ready.
        settings = {"output_format_parquet_parallel_encoding": 0, "output_format_parallel_formatting": 0}
        try:
            parts = await client.raw_stream(query, parameters=dict(parameters), settings=settings, fmt=fmt)
            async with parts:
                async for part in parts:
                    yield part
        finally:
            await client.close()

    async def command(self, statement: str, *, use_database: bool = True) -> None:
        client = await self._connected()
        await client.command(statement, use_database=use_database)

    async def close(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    async def _connected(self) -> AsyncClient:
        async with self._connecting:
            if self._client is None:
                self._client = await _open(self._config)
            return self._client


async def _open(config: StoreConfig) -> AsyncClient:
    parts = urlsplit(config.url)
    client = await get_async_client(
        interface=parts.scheme,
        host=parts.hostname or "127.0.0.1",
        port=parts.port or (8443 if parts.scheme == "https" else 8123),
        username=config.user,
        password=config.password,
        database=config.database,
        connect_timeout=min(5.0, config.timeout),
        send_receive_timeout=config.timeout,
        # A session would make concurrent queries wait for each other, or fail on a real server.
        autogenerate_session_id=False,
        # On one machine compressing costs more than it saves; a proxy can do it elsewhere.
        compress=False,
        query_retries=0,
    )
    # A user who may only read is told that all settings are read-only, those too that he may lower: the server decides.
    client.server_settings.pop("max_execution_time", None)
    return client


@asynccontextmanager
async def open_store(config: StoreConfig) -> AsyncIterator[Store]:
    """A store that is closed at the end. The server need not be up yet."""
    store = Store(config)
    try:
        yield store
    finally:
        await store.close()


def refusal(error: Exception) -> InferBusError:
    """For a caller whose question the store did not answer: it reads too much, or the store is away."""
    if isinstance(error, Error) and error.code in _TOO_MUCH:
        return invalid(
            "That reads more than one question may: ask for a shorter range, or filter by tenant or model.",
            param="start_time",
            reason="range_too_wide",
        )
    return store_unavailable(error)


def store_unavailable(error: Exception) -> InferBusError:
    """For a caller that asked for numbers while the store is away."""
    return unavailable(
        "store_unavailable", "The usage store does not answer; retry.", retry_after=RETRY_AFTER, diagnostic=repr(error)
    )
