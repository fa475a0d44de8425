"""A question about a day reads what may be of that day, however much is kept, and leaves out nothing."""

from datetime import UTC, datetime
from typing import Any

import pytest_asyncio
from inferbus.meter.v1.usage_pb2 import BucketWidth, UsageFilter
from inferbus_meter import queries
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.usage import Query, Question, cost_query, export_query, margin_query, usage_query

DAYS, A_DAY, TENANTS = 360, 200, 4
DAY_US = 86_400_000_000
BEGAN_US = round(datetime(2025, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
START_US = BEGAN_US + 200 * DAY_US
ASKED = Question(START_US, START_US + DAY_US, BucketWidth.BUCKET_WIDTH_UNSPECIFIED, (), UsageFilter())
SPAN = {"start": ASKED.start_us, "end": ASKED.end_us}
QUERIES = {
    "GetUsage": Query(queries._USAGE, SPAN | {"tenant": ""}),
    "QueryUsage": usage_query(ASKED),
    "QueryCosts": cost_query(ASKED),
    "ExportUsage": export_query(ASKED),
    "QueryMargin": margin_query(ASKED.start_us, ASKED.end_us),
}


@pytest_asyncio.fixture
async def year(store: Store) -> Store:
    """As the table is with a hundred times the rows, by marks that are as much closer."""
    ((made,),) = await store.rows(
        "SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = 'requests'"
    )
    assert "index_granularity = 8192" in made
    await store.command("DROP TABLE requests SYNC")
    await store.command(made.replace("index_granularity = 8192", "index_granularity = 64"))
    await store.rows(
        "INSERT INTO requests (request_id, tenant_id, model, attempt, accepted_time, end_time, output_tokens, cost, "
        "currency, stream_seq) SELECT generateUUIDv4(number), "
        f"toString(number % {TENANTS}), 'm', 1, "
        f"fromUnixTimestamp64Micro(toInt64({BEGAN_US} + number * {DAY_US // A_DAY})) AS accepted, "
        f"accepted + toIntervalMillisecond(500), 1, 1, 'USD', number FROM numbers({DAYS * A_DAY}) "
        "SETTINGS max_partitions_per_insert_block = 0"
    )
    return store


async def test_a_day_of_a_year_is_read_in_a_small_part(year: Store) -> None:
    for name, query in QUERIES.items():
        rows = await year.rows(f"SELECT table, rows FROM (EXPLAIN ESTIMATE {query.sql})", query.parameters)
        read = {str(table): int(count) for table, count in rows}
        assert 0 < read["requests"] < DAYS * A_DAY / 6, name


async def test_who_ended_again_in_another_month_counts_there_only(year: Store) -> None:
    """Accepted in the same hour, so a row of the same request; also one that took most of a year."""
    ids = [row[0] for row in await year.rows(
        "SELECT request_id FROM requests WHERE end_time >= fromUnixTimestamp64Micro({start:Int64}) ORDER BY end_time "
        "LIMIT 3", SPAN,
    )]  # fmt: skip
    again = (
        "INSERT INTO requests SELECT * REPLACE (toUInt16(2) AS attempt, "
        "fromUnixTimestamp64Micro({at:Int64}) AS end_time) FROM requests WHERE request_id = {id:UUID}"
    )
    await year.rows(again, {"at": START_US + 60 * DAY_US, "id": ids[0]})
    await year.rows(again, {"at": START_US - 60 * DAY_US, "id": ids[1]})
    ((slow,),) = await year.rows("SELECT request_id FROM requests WHERE stream_seq = 7")
    await year.rows(again, {"at": START_US + 9, "id": slow})

    async def counted(query: Query, column: int) -> Any:
        return sum(row[column] for row in await year.rows(query.sql, query.parameters))

    for query, column in ((QUERIES["GetUsage"], 3), (QUERIES["QueryUsage"], 3), (QUERIES["QueryCosts"], 3)):
        assert int(await counted(query, column)) == A_DAY - 2 + 1
