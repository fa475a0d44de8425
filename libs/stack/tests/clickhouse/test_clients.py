"""Unmodified clickhouse-connect, sync and async."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError, DatabaseError, StreamFailureError

from .conftest import PASSWORDS, Server

COLUMNS = (
    "id UInt64, key UUID, at DateTime64(6, 'UTC'), model LowCardinality(String), price Decimal(18, 9), "
    "tags Array(String)"
)


def connect(server: Server, user: str = "admin", **options: Any) -> Any:
    return clickhouse_connect.get_client(
        host="127.0.0.1", port=server.port, username=user, password=PASSWORDS[user], database="inferbus", **options
    )


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    made = connect(server)
    made.command(f"CREATE TABLE IF NOT EXISTS kinds ({COLUMNS}) ENGINE = MergeTree ORDER BY id")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _empty(client: Any) -> None:
    client.command("TRUNCATE TABLE kinds")


def row(number: int) -> list[Any]:
    return [number, uuid.UUID(int=number), dt.datetime(2026, 1, 1, 0, 0, 0, number, tzinfo=dt.UTC), "m",
            Decimal("0.000000001") * number, ["a", str(number)]]  # fmt: skip


@pytest.mark.parametrize("compress", [False, True, "lz4", "zstd", "gzip"])
def test_rows_go_in_and_come_out(server: Server, client: Any, compress: Any) -> None:
    with connect(server, "inferbus_writer", compress=compress) as writer:
        summary = writer.insert("kinds", [row(n) for n in range(1000)])
        assert summary.written_rows == 1000
        read = writer.query("SELECT * FROM kinds ORDER BY id")
        # The client gives times in UTC without saying so.
        sent = [
            [cell.replace(tzinfo=None) if isinstance(cell, dt.datetime) else cell for cell in row(n)]
            for n in range(1000)
        ]
        assert [list(each) for each in read.result_rows] == sent
        assert read.summary["read_rows"] == "1000"


def test_columns_arrow_and_raw_inserts(server: Server, client: Any) -> None:
    with connect(server, "inferbus_writer") as writer:
        names = ["id", "model"]
        writer.insert("kinds", [[1, 2], ["a", "b"]], column_names=names, column_oriented=True)
        writer.insert_arrow("kinds", pa.table({"id": [3, 4], "model": ["c", "d"]}))
        writer.raw_insert("kinds", names, b"5,e\n", fmt="CSV")
        writer.raw_insert("kinds", names, (part for part in (b'{"id": 6}', b'{"id": 7}')), fmt="JSONEachRow")
        assert writer.query("SELECT groupArray(id) FROM (SELECT id FROM kinds ORDER BY id)").result_rows == [
            ([1, 2, 3, 4, 5, 6, 7],)
        ]


def test_commands_parameters_and_settings(client: Any) -> None:
    assert client.command("SELECT count() FROM kinds") == 0
    odd = 'it\'s \\ a\t"q"\n{x}'
    asked = client.query("SELECT {s:String}, {n:Int32}, {l:Array(String)}", parameters={"s": odd, "n": 3, "l": [odd]})
    assert asked.result_rows == [(odd, 3, [odd])]
    assert client.query("SELECT %(s)s", parameters={"s": odd}).result_rows == [(odd,)]
    assert client.query("SELECT getSetting('max_threads')", settings={"max_threads": 3}).result_rows == [(3,)]
    assert client.query("SELECT 1 AS a, 'x' AS b LIMIT 0").column_names == ("a", "b")
    assert client.ping()
    assert client.command("INSERT INTO kinds (id, model) VALUES", data="(1, 'x')").written_rows == 1


def test_results_as_arrow_and_streams(server: Server, client: Any) -> None:
    with connect(server, "analyst") as analyst:
        table = analyst.query_arrow("SELECT number, toString(number) AS s FROM numbers(200000)")
        assert table.num_rows == 200_000
        with analyst.query_arrow_stream("SELECT number FROM numbers(200000)") as stream:
            assert sum(batch.num_rows for batch in stream) == 200_000
        with analyst.query_row_block_stream("SELECT number FROM numbers(1000000)") as stream:
            assert sum(len(block) for block in stream) == 1_000_000


def test_errors_carry_their_code(client: Any) -> None:
    for query, code in (("SELECT * FROM nope", 60), ("SELEC", 62), ("SELECT throwIf(1)", 395)):
        with pytest.raises(DatabaseError, match=rf"code: {code}\b"):
            client.query(query)
        assert client.query("SELECT 'fresh'").result_rows == [("fresh",)]
    with pytest.raises(StreamFailureError, match="late-boo"):
        _drain(client, "SELECT throwIf(number = 2500000, 'late-boo'), number FROM numbers(3000000)")


def _drain(client: Any, query: str) -> None:
    with client.query_row_block_stream(query) as stream:
        for _ in stream:
            pass


def test_a_wrong_password_is_told(server: Server) -> None:
    with pytest.raises(DatabaseError, match="516"):
        clickhouse_connect.get_client(host="127.0.0.1", port=server.port, username="admin", password="wrong")


def test_an_analyst_connects_and_is_refused_elsewhere(server: Server, client: Any) -> None:
    with connect(server, "analyst") as analyst:
        assert analyst.query("SELECT count() FROM kinds").result_rows == [(0,)]
        with pytest.raises(ClickHouseError, match=r"code: 497\b"):
            analyst.query("SELECT * FROM file('/etc/passwd', 'LineAsString')")
        with pytest.raises(ClickHouseError, match=r"code: 164\b"):
            analyst.insert("kinds", [row(1)])


@pytest.mark.asyncio
async def test_the_async_client_runs_statements_side_by_side(server: Server, client: Any) -> None:
    made = await clickhouse_connect.get_async_client(
        host="127.0.0.1", port=server.port, username="admin", password=PASSWORDS["admin"], database="inferbus",
        autogenerate_session_id=False,
    )  # fmt: skip
    try:
        slow = [asyncio.create_task(made.query("SELECT /*beside*/ sleep(3)")) for _ in range(3)]
        beside = "SELECT count() FROM system.processes WHERE query LIKE '%/*beside*/%' AND query NOT LIKE '%processes%'"
        async with asyncio.timeout(30):
            while await asyncio.to_thread(server.value, beside) != "3":
                await asyncio.sleep(0.05)
        await asyncio.gather(*slow)
        await made.insert("kinds", [row(n) for n in range(100)])
        assert (await made.query("SELECT count() FROM kinds")).result_rows == [(100,)]
        async with await made.query_row_block_stream("SELECT number FROM numbers(300000)") as stream:
            assert sum([len(block) async for block in stream]) == 300_000
        with pytest.raises(DatabaseError, match=r"code: 60\b"):
            await made.query("SELECT * FROM nope")
        with pytest.raises(StreamFailureError):
            await _drain_async(made, "SELECT throwIf(number = 900000), number FROM numbers(1000000)")
    finally:
        await made.close()


async def _drain_async(client: Any, query: str) -> None:
    async with await client.query_row_block_stream(query) as stream:
        async for _ in stream:
            pass
