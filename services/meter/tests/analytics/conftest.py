"""A store with the generated rows."""

import pytest

from services.meter.tests.analytics.rows import ROWS, put, request_line, token_lines


@pytest.fixture(scope="module")
async def filled(clickhouse, make):
    async with make.fresh_database(clickhouse) as store:
        await put(store, "token_events", [line for row in ROWS for line in token_lines(row)])
        await put(store, "requests", [request_line(row) for row in ROWS])
        yield store
