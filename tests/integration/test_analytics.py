"""docs/analytics.md and the rollups that it asks: every query as the analyst, every number against the raw rows."""

import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from inferbus_runtime import clock

from tests.harness.store import ClickHouse, clickhouse
from tests.harness.traffic import VOID_TOKENS, Traffic, fill

TEXT = (Path(__file__).parents[2] / "docs" / "analytics.md").read_text()
QUERIES = dict(re.findall(r"^##+ ([^\n]+)\n(?:(?!^#).)*?^```sql\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE))
DIFFER = QUERIES["By how much do the rollups differ?"]
REQUESTS = 2400
# What a row of token_events needs, to put in one token by hand.
TOKEN = (
    "INSERT INTO token_events (tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, "
    "`index`, token_id, time, gap_us, stream_seq) "
)


@pytest_asyncio.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClickHouse]:
    """The last 50 minutes of 20 tenants: 300,000 tokens."""
    async with clickhouse(tmp_path_factory.mktemp("analytics")) as made:
        await fill(made, Traffic(REQUESTS, clock.now_us() // 1_000_000 - 3000, 2900))
        yield made


# --- the page ---


def test_the_page_has_its_queries() -> None:
    assert len(QUERIES) == TEXT.count("```sql") >= 20


@pytest.mark.parametrize("title", QUERIES)
async def test_a_query_of_the_page_gives_rows_as_the_analyst(store: ClickHouse, title: str) -> None:
    found = await store.rows(QUERIES[title])
    assert found
    for row in found:
        assert all(value is not None for value in row.values()), row


async def test_the_page_names_what_there_is_to_ask(store: ClickHouse) -> None:
    asked = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    there = {row["name"] for row in await store.rows("SHOW TABLES")}
    assert len(asked) >= 7
    assert set(asked) <= there


async def test_interrupted_requests_are_told_by_their_void_tokens_and_their_pause(store: ClickHouse) -> None:
    found = await store.rows(QUERIES["What did interrupted requests cost?"])
    again = (await store.rows("SELECT count() AS n FROM bills WHERE attempt > 1"))[0]["n"]
    assert again > 0
    assert sum(row["requests"] for row in found) == again
    assert sum(row["void_tokens"] for row in found) == VOID_TOKENS * again
    # Three seconds each, and the step itself.
    assert 3 * again <= sum(row["seconds_waited"] for row in found) <= 3.1 * again


# --- buckets of latencies ---


def bucket(value: int) -> int:
    """The middle of the bucket of ``value``: buckets are 1/32 of a power of two wide, and 1 below 32."""
    width = max(1, (1 << (value.bit_length() - 1)) // 32) if value else 1
    return value // width * width + width // 2


@given(st.integers(0, 1 << 40))
def test_a_bucket_is_within_what_the_page_promises(value: int) -> None:
    assert abs(bucket(value) - value) <= value * 0.016
    assert bucket(bucket(value)) == bucket(value)


async def test_gaps_are_counted_in_their_buckets_one_by_one(store: ClickHouse) -> None:
    edges = [0, 1, 31, 32, 33, 63, 64, 65, 1023, 1024, 999_999, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1]
    listed = ", ".join(map(str, edges))
    await store.command(
        f"{TOKEN} SELECT 'edges', 'p', 'k', 'm', 'r', 'w', 'e', generateUUIDv4(), 1, 1, 0, now64(6, 'UTC'), "
        f"arrayJoin(CAST([{listed}], 'Array(UInt32)')), 1"
    )
    found = await store.rows(
        "SELECT value_us, toUInt64(sum(n)) AS n FROM latency_counts WHERE tenant_id = 'edges' GROUP BY value_us"
    )
    assert Counter({row["value_us"]: row["n"] for row in found}) == Counter(map(bucket, edges))


@pytest.mark.parametrize("measure", ["itl", "ttft", "tpot", "e2e", "queue"])
async def test_the_counts_are_those_of_the_raw_values(store: ClickHouse, measure: str) -> None:
    keys = "minute, tenant_id, model, revision, worker"
    rolled = await store.rows(
        f"SELECT {keys}, priority_class, value_us, toUInt64(sum(n)) AS n FROM latency_counts "
        f"WHERE measure = '{measure}' AND tenant_id = 'tenant-00' GROUP BY ALL"
    )
    raw = await store.rows(
        f"SELECT toStartOfMinute(time) AS minute, {keys[8:]}, '' AS priority_class, gap_us AS us, count() AS n "
        "FROM token_events WHERE index > 0 AND tenant_id = 'tenant-00' GROUP BY ALL"
        if measure == "itl"
        else f"SELECT toStartOfMinute(end_time) AS minute, {keys[8:]}, priority_class, {measure}_us AS us, "
        f"count() AS n FROM requests WHERE isNotNull({measure}_us) AND tenant_id = 'tenant-00' GROUP BY ALL"
    )
    expected: Counter[tuple[Any, ...]] = Counter()
    for row in raw:
        *key, us, n = row.values()
        expected[*key, bucket(us)] += n
    assert Counter({tuple(row.values())[:-1]: row["n"] for row in rolled}) == expected


@pytest.mark.parametrize("by", ["model", "worker", "tenant_id", "revision"])
async def test_percentiles_are_near_the_exact_ones(store: ClickHouse, by: str) -> None:
    levels = "0.5, 0.95, 0.99"
    rolled = await store.rows(
        f"SELECT {by}, quantilesExactWeighted({levels})(value_us, n) AS us FROM latency_counts "
        f"WHERE measure = 'itl' AND tenant_id != 'edges' GROUP BY {by} ORDER BY {by}"
    )
    exact = await store.rows(
        f"SELECT {by}, quantilesExactLow({levels})(gap_us) AS us FROM token_events "
        f"WHERE index > 0 AND tenant_id != 'edges' GROUP BY {by} ORDER BY {by}"
    )
    assert [row[by] for row in rolled] == [row[by] for row in exact]
    for near, true in zip(rolled, exact, strict=True):
        assert near["us"] == pytest.approx(true["us"], rel=0.02)


# --- sums ---


async def test_tokens_of_the_rollup_are_those_that_were_made(store: ClickHouse) -> None:
    keys = "tenant_id, model, revision, worker"
    rolled = await store.rows(
        f"SELECT {keys}, sum(tokens) AS tokens, sum(resumed_tokens) AS resumed, sum(stalls) AS stalls, "
        f"sum(stalled_us) AS stalled_us, max(longest_gap_us) AS longest FROM token_minutes GROUP BY ALL ORDER BY ALL"
    )
    raw = await store.rows(
        f"SELECT {keys}, count() AS tokens, countIf(attempt > 1) AS resumed, countIf(index > 0 AND gap_us > 1000000) "
        "AS stalls, sumIf(gap_us, index > 0 AND gap_us > 1000000) AS stalled_us, maxIf(gap_us, index > 0) AS longest "
        "FROM token_events GROUP BY ALL ORDER BY ALL"
    )
    assert rolled == raw
    assert any(row["stalls"] for row in raw)


async def test_requests_of_the_rollup_are_the_bills(store: ClickHouse) -> None:
    keys = "tenant_id, model, revision, worker, priority_class, operation, finish_reason, error_reason, estimated"
    names = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
    sums = ", ".join(f"sum({name})" for name in names)
    rolled = await store.rows(
        f"SELECT {keys}, sum(requests) AS n, sum(resumed) AS again, {sums}, sum(energy_tokens) AS measured, "
        "round(sum(energy_j), 1) AS joules FROM request_minutes GROUP BY ALL ORDER BY ALL"
    )
    bills = await store.rows(
        f"SELECT {keys}, count() AS n, countIf(attempt > 1) AS again, {sums}, "
        "sumIf(input_tokens + output_tokens, isNotNull(energy_j)) AS measured, "
        "round(sum(toFloat64(ifNull(energy_j, 0))), 1) AS joules FROM bills GROUP BY ALL ORDER BY ALL"
    )
    assert [list(row.values()) for row in rolled] == [pytest.approx(list(row.values()), abs=0.11) for row in bills]
    assert sum(row["n"] for row in bills) == REQUESTS


async def test_what_rollups_say_more_than_bills_is_void_tokens_and_second_closes(store: ClickHouse) -> None:
    before = {row["model"]: row for row in await store.rows(DIFFER)}
    again = await store.rows("SELECT model, count() AS n FROM bills WHERE attempt > 1 GROUP BY model")
    for row in again:
        assert before[row["model"]]["void_or_running"] == VOID_TOKENS * row["n"]
    assert all(row["closed_twice"] == 0 for row in before.values() if row["model"] != "m")
    # The scheduler gave up on a request that a worker has after all: a second end of the same request.
    await store.command(
        "INSERT INTO requests SELECT * REPLACE (attempt + 1 AS attempt) FROM requests WHERE attempt = 1 LIMIT 1"
    )
    after = {row["model"]: row for row in await store.rows(DIFFER)}
    assert sum(row["closed_twice"] for row in after.values()) == 1
    assert (await store.rows("SELECT count() AS n FROM bills"))[0]["n"] == REQUESTS


async def test_a_batch_that_is_inserted_again_counts_once_in_every_rollup(store: ClickHouse) -> None:
    """As the meter does it after a kill: the same rows under the same token."""
    settings = {
        "insert_deduplicate": "1", "deduplicate_blocks_in_dependent_materialized_views": "1",
        "insert_deduplication_token": "TOKENS-token_events-again",
    }  # fmt: skip
    for _ in range(3):
        await store.command(
            f"{TOKEN} SELECT 'twice', 'p', 'k', 'm', 'r', 'w', 'e', toUUID('01a1fe2d-da39-7684-88df-274e4b2083f7'), 1, "
            "1, 0, toDateTime64('2026-01-01 00:00:00', 6, 'UTC'), 20000, 1",
            **settings,
        )
    for table, count in (("latency_counts", "sum(n)"), ("token_minutes", "sum(tokens)"), ("token_events", "count()")):
        assert (await store.rows(f"SELECT {count} AS n FROM {table} WHERE tenant_id = 'twice'"))[0]["n"] == 1, table
