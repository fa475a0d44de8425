"""(g) Every query of docs/analytics.md, of the Grafana dashboards and of the API's measures on generated tokens, and
their size on disk."""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from inferbus.meter.v1.analytics_pb2 import AnalyticsDimension, AnalyticsMeasure
from inferbus_meter.core.analytics import Question, query_of, steps_of
from inferbus_meter.core.analytics_measures import MEASURES
from inferbus_runtime import clock

from bench.measure import percentile, table
from tests.harness import grafana
from tests.harness.store import ClickHouse, clickhouse
from tests.harness.traffic import TOKENS_A_REQUEST, Traffic, fill

ROOT = Path(__file__).parents[1]
# 100 million tokens are two days.
TOKENS_A_SECOND = 579
_RUNS = 5
_POINTS = 300
_SECOND = 1_000_000
Asked = tuple[str, str, dict[str, str]]
_TABLES = ("token_events", "requests", "latency_counts", "token_minutes", "request_minutes", "latency_minutes")


def page_queries() -> Iterator[Asked]:
    text = (ROOT / "docs" / "analytics.md").read_text()
    for title, sql in re.findall(r"^##+ ([^\n]+)\n(?:(?!^#).)*?^```sql\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield f"analytics.md: {title}", sql, {}


def panel_queries(traffic: Traffic) -> Iterator[Asked]:
    """Every panel over the whole range, with every variable at All."""
    interval = max(60, traffic.seconds // _POINTS // 60 * 60)
    for path in sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")):
        board = json.loads(path.read_text())
        chosen = grafana.at_first(board, tenant="tenant-00", currency="USD")
        view = grafana.View(traffic.start, clock.now_us() // 1_000_000, interval, chosen)
        for title, _, sql in grafana.queries(board):
            yield f"{path.stem}: {title}", grafana.replaced(sql, view), {}
        for name, variable in grafana.variables(board).items():
            if variable["type"] == "query":
                yield f"{path.stem}: ${name}", grafana.replaced(variable["query"], view), {}


def measure_queries(traffic: Traffic) -> Iterator[Asked]:
    """Every measure of the API as the console asks it: the whole range as one figure, in steps, and those by model."""
    now_us = clock.now_us()
    step = timedelta(seconds=max(60, traffic.seconds // _POINTS // 60 * 60))
    model = (AnalyticsDimension.ANALYTICS_DIMENSION_MODEL,)
    for measure in MEASURES:
        name = AnalyticsMeasure.Name(measure).removeprefix("ANALYTICS_MEASURE_").lower()
        for shape, cut, by in (("figure", None, ()), ("over time", step, ()), ("by model", step, model)):
            steps = steps_of(traffic.start * _SECOND, now_us, now_us, cut)
            query = query_of(Question(measure, steps, by, most_groups=8 if by else 0))
            bound = {f"param_{key}": str(value) for key, value in query.parameters.items()}
            yield f"API: {name}, {shape}", query.sql, bound


async def timed(store: ClickHouse, queries: Iterable[Asked]) -> list[tuple[str, float, float, int]]:
    """(title, p50 and p95 in milliseconds as the analyst sees them, rows) of each query, slowest first."""
    rows = []
    for title, sql, bound in queries:
        took = []
        for _ in range(_RUNS):
            start = perf_counter()
            found = await store.rows(sql, **bound)
            took.append((perf_counter() - start) * 1000)
        rows.append((title, percentile(took, 0.5), percentile(took, 0.95), len(found)))
    return sorted(rows, key=lambda row: -row[2])


async def sizes(store: ClickHouse, tokens: int) -> list[list[object]]:
    found = await store.rows(
        "SELECT table, sum(rows) AS rows, sum(bytes_on_disk) AS bytes FROM system.parts "
        "WHERE active AND database = currentDatabase() GROUP BY table",
        "admin",
    )
    by_name = {row["table"]: (row["rows"], row["bytes"]) for row in found}
    return [
        [name, f"{rows:,}", f"{size / 1e6:,.1f}", f"{size / tokens:.2f}"]
        for name, (rows, size) in ((name, by_name[name]) for name in _TABLES)
    ]


async def run(tokens: int = 20_000_000) -> str:
    seconds = tokens // TOKENS_A_SECOND
    with TemporaryDirectory() as folder:
        async with clickhouse(Path(folder), memory_mib=4096) as store:
            traffic = Traffic(tokens // TOKENS_A_REQUEST, clock.now_us() // 1_000_000 - seconds - 60, seconds)
            start = perf_counter()
            await fill(store, traffic)
            filled = perf_counter() - start
            for name in _TABLES:
                await store.command(f"OPTIMIZE TABLE {name} FINAL")
            stored = (await store.rows("SELECT count() AS n FROM token_events"))[0]["n"]
            rows = await timed(store, [*page_queries(), *panel_queries(traffic), *measure_queries(traffic)])
            disk = await sizes(store, stored)
    slow = sum(p95 > 1000 for _, _, p95, _ in rows)
    return (
        table(
            f"(g) Queries on {stored:,} token rows of {seconds / 3600:.1f} hours, {_RUNS} runs each; "
            f"above 1 s at p95: {slow} of {len(rows)}",
            ["query", "p50 ms", "p95 ms", "rows"],
            [[title, f"{p50:,.0f}", f"{p95:,.0f}", f"{count:,}"] for title, p50, p95, count in rows],
        )
        + "\n"
        + table(
            f"(g) On disk after merges; filled at {stored / filled:,.0f} tokens/s with all views, generating included",
            ["table", "rows", "MB", "bytes a token"],
            disk,
        )
    )
