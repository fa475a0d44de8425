"""The embedded ClickHouse as a process of its own, with the platform's schema, asked over HTTP as any of its users."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
from inferbus_meter.clickhouse import StoreConfig, open_store
from inferbus_meter.migrate import migrate, migrations
from inferbus_stack.clickhouse.catalog import DATABASE
from inferbus_stack.nats import free_port

PASSWORD = "tests-only"
USERS = ("admin", "writer", "analyst")


class AskedError(Exception):
    """What ClickHouse said instead of an answer."""


class ClickHouse:
    """A running server; ``folder`` holds its data."""

    def __init__(self, url: str, folder: Path, http: httpx.AsyncClient) -> None:
        self.url = url
        self.folder = folder
        self._http = http

    async def command(self, statement: str, user: str = "admin", **options: str) -> str:
        """The raw answer. ``options``: settings, and parameters of the query as ``param_NAME``."""
        answer = await self._http.post(
            self.url,
            params={"database": DATABASE, **options},
            content=statement.encode(),
            headers={"X-ClickHouse-User": user, "X-ClickHouse-Key": PASSWORD},
        )
        if answer.status_code != 200:
            raise AskedError(f"{answer.text[:1000]}\n{statement}")
        return answer.text

    async def rows(self, query: str, user: str = "analyst", **options: str) -> list[dict[str, Any]]:
        """The rows of a SELECT, numbers as numbers."""
        shaped = {"default_format": "JSON", "output_format_json_quote_64bit_integers": "0", **options}
        found: list[dict[str, Any]] = json.loads(await self.command(query, user, **shaped))["data"]
        return found

    async def columns(self, query: str, **options: str) -> list[str]:
        """The names of a SELECT's columns, whether it has rows or not."""
        answer = await self.command(query, "analyst", default_format="JSONCompact", **options)
        return [column["name"] for column in json.loads(answer)["meta"]]


@asynccontextmanager
async def clickhouse(folder: Path, memory_mib: int = 2048) -> AsyncIterator[ClickHouse]:
    """A server on ``folder`` with the schema of all migrations, stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url, ready, users = f"http://127.0.0.1:{port}", folder / "ready.json", folder / "users.json"
    ready.unlink(missing_ok=True)
    users.write_text(json.dumps({name: {"password": PASSWORD, "profile": name} for name in USERS}))
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferbus_stack.clickhouse", "--path", str(folder / "data"), "--port", str(port),
            "--users", str(users), "--ready-file", str(ready), "--no-query-log", "--memory-mib", str(memory_mib),
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            while not ready.exists():
                if process.returncode is not None:
                    raise RuntimeError((folder / "log").read_text()[-2000:])
                await asyncio.sleep(0.02)
        async with open_store(StoreConfig(url, "admin", PASSWORD, "", 60.0)) as admin:
            await admin.command(f"CREATE DATABASE IF NOT EXISTS {DATABASE}", use_database=False)
        async with open_store(StoreConfig(url, "admin", PASSWORD, DATABASE, 60.0)) as admin:
            await migrate(admin, DATABASE, migrations())
        async with httpx.AsyncClient(timeout=600) as http:
            yield ClickHouse(url, folder, http)
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGTERM)
        await process.wait()
