"""Answers of AnalyticsService, from the tables: one measure over time and by group, and what there is to filter by."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.meter.v1.analytics_pb2 import ListAnalyticsValuesResponse, QueryAnalyticsResponse
from inferbus_runtime.errors import invalid

from inferbus_meter.clickhouse import STORE_ERRORS, Store, refusal
from inferbus_meter.core.analytics import (
    MOST_ROWS,
    Query,
    Question,
    Steps,
    class_of,
    columns_of,
    query_of,
    row_of,
    values_query,
)
from inferbus_meter.core.answers import fitting

# Nobody waits longer for a plot, and the store has other work.
_LIMITS: Mapping[str, Any] = {"max_execution_time": 10}


async def query(store: Store, asked: Question) -> QueryAnalyticsResponse:
    """Raises InferBusError: INVALID_ARGUMENT for more than a question may read or an answer can hold, UNAVAILABLE."""
    rows = await _rows(store, query_of(asked))
    if len(rows) > MOST_ROWS:
        raise invalid(
            f"That are more than {MOST_ROWS:,} rows; ask for longer steps, or for the largest groups only.",
            reason="too_many_rows",
        )
    steps = asked.steps
    answer = QueryAnalyticsResponse(
        start_time=Timestamp(seconds=steps.start),
        end_time=Timestamp(seconds=steps.end),
        columns=columns_of(asked.measure),
        rows=[row_of(asked, row) for row in rows],
    )
    answer.step.seconds = steps.seconds
    return fitting(answer)


async def values(store: Store, steps: Steps, tenant_id: str) -> ListAnalyticsValuesResponse:
    """``tenant_id`` empty: of all. Raises InferBusError as :func:`query`."""
    ((tenants, projects, models, revisions, workers, classes),) = await _rows(store, values_query(steps, tenant_id))
    return ListAnalyticsValuesResponse(
        tenant_ids=tenants, project_ids=projects, models=models, revisions=revisions, workers=workers,
        priority_classes=[class_of(one) for one in classes],
    )  # fmt: skip


async def _rows(store: Store, question: Query) -> Sequence[Sequence[Any]]:
    try:
        return await store.rows(question.sql, question.parameters, _LIMITS)
    except STORE_ERRORS as error:
        raise refusal(error) from error
