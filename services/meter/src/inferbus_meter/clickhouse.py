"""The store: ClickHouse over HTTP through clickhouse-connect, embedded or a real server alike."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from clickhouse_connect import get_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
from clickhouse_connect.driver.exceptions import ClickHouseError
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_meter.config import Config

RETRY_AFTER = timedelta(seconds=2)
# What a call to the store raises when the store is away, restarting, or refuses.
STORE_ERRORS = (ClickHouseError, aiohttp.ClientError, TimeoutError, OSError)
# A retry with the same token is dropped, and fills views that an earlier try did not reach. Both must be said: with 0
# for the views, three retries gave an aggregate of three times the truth.
_INSERT_SETTINGS = {"insert_deduplicate": 1, "deduplicate_blocks_in_dependent_materialized_views": 1, "async_insert": 0}


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Where the store is and who we are; ``timeout`` in seconds for each call."""

    url: str
    user: str
    password: str
    database: str
    timeout: float

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
        result = await client.query(query, parameters=dict(parameters or {}), settings=dict(settings or {}))
        return result.result_rows

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
    return await get_async_client(
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


@asynccontextmanager
async def open_store(config: StoreConfig) -> AsyncIterator[Store]:
    """A store that is closed at the end. The server need not be up yet."""
    store = Store(config)
    try:
        yield store
    finally:
        await store.close()


def store_unavailable(error: Exception) -> InferBusError:
    """For a caller that asked for numbers while the store is away."""
    return unavailable(
        "store_unavailable", "The usage store does not answer; retry.", retry_after=RETRY_AFTER, diagnostic=repr(error)
    )
