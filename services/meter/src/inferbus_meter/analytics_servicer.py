"""The meter's gRPC API for analytics. Who may ask what is the edge's business."""

from datetime import timedelta

import grpc
from google.protobuf.duration_pb2 import Duration
from inferbus.meter.v1 import analytics_pb2_grpc
from inferbus.meter.v1.analytics_pb2 import (
    AnalyticsDimension,
    AnalyticsTargets,
    ListAnalyticsValuesRequest,
    ListAnalyticsValuesResponse,
    QueryAnalyticsRequest,
    QueryAnalyticsResponse,
)
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_meter import analytics
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.analytics import Question, Steps, steps_of
from inferbus_meter.core.analytics_measures import MEASURES

SERVICE_NAME = "inferbus.meter.v1.AnalyticsService"


class AnalyticsServicer(analytics_pb2_grpc.AnalyticsServiceServicer):
    """``store``: as a user who may read, and needs no more."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def QueryAnalytics(  # noqa: N802 - gRPC's name
        self,
        request: QueryAnalyticsRequest,
        context: "grpc.aio.ServicerContext[QueryAnalyticsRequest, QueryAnalyticsResponse]",
    ) -> QueryAnalyticsResponse:
        return await analytics.query(self._store, question_of(request, clock.now_us()))

    async def ListAnalyticsValues(  # noqa: N802
        self,
        request: ListAnalyticsValuesRequest,
        context: "grpc.aio.ServicerContext[ListAnalyticsValuesRequest, ListAnalyticsValuesResponse]",
    ) -> ListAnalyticsValuesResponse:
        return await analytics.values(self._store, _steps(request, clock.now_us(), None), request.tenant_id)


def question_of(request: QueryAnalyticsRequest, now_us: int) -> Question:
    """Raises InferBusError INVALID_ARGUMENT."""
    if request.measure not in MEASURES:
        raise invalid("measure must be set.", param="measure")
    dimensions = tuple(dict.fromkeys(request.group_by))
    if AnalyticsDimension.ANALYTICS_DIMENSION_UNSPECIFIED in dimensions:
        raise invalid("group_by names no dimension.", param="group_by")
    step = _positive(request.step, "step") if request.HasField("step") else None
    return Question(
        request.measure,
        _steps(request, now_us, step),
        dimensions,
        request.filter,
        _targets_us(request.targets),
        request.most_groups,
        request.exact,
    )


def _steps(request: QueryAnalyticsRequest | ListAnalyticsValuesRequest, now_us: int, step: timedelta | None) -> Steps:
    if not request.HasField("start_time"):
        raise invalid("start_time must be set.", param="start_time", reason="missing_required_parameter")
    end_us = clock.unix_us(request.end_time) if request.HasField("end_time") else now_us
    return steps_of(clock.unix_us(request.start_time), end_us, now_us, step)


def _targets_us(targets: AnalyticsTargets) -> dict[str, int]:
    return {
        field.name: round(_positive(value, f"targets.{field.name}").total_seconds() * 1_000_000)
        for field, value in targets.ListFields()
    }


def _positive(value: Duration, name: str) -> timedelta:
    try:
        given = value.ToTimedelta()
    except (OverflowError, ValueError):
        given = timedelta()
    if not timedelta() < given <= timedelta(days=366):
        raise invalid(f"{name} must be above 0 and at most a year.", param=name)
    return given
