"""What may be asked of analytics: steps, bounds, users, and what is refused."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1 import analytics_pb2 as pb
from inferbus_meter import analytics
from inferbus_meter.analytics_servicer import AnalyticsServicer, question_of
from inferbus_meter.clickhouse import Store, StoreConfig, open_store
from inferbus_meter.config import Config
from inferbus_meter.core.analytics import MOST_STEPS, Question, steps_of
from inferbus_meter.core.analytics_measures import MEASURES
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from services.meter.tests.analytics.rows import BEGIN, NOW_US, OF_TOKENS, SECOND, SPAN, Measure, made, put, request_line


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.one_of(st.none(), st.integers(1, 600)), st.integers(0, 999_999))
def test_steps_cover_the_range_in_whole_minutes_and_end_by_now(
    start: int, length: int, minutes: int | None, us: int
) -> None:
    begin, now = BEGIN + start, BEGIN + start + length
    step = None if minutes is None else timedelta(minutes=minutes)
    asked = (begin * SECOND + us, (now + 86_400) * SECOND, now * SECOND, step)
    if minutes is not None and now - begin // 60 * 60 > MOST_STEPS * minutes * 60:
        with pytest.raises(InferBusError, match="too_many_steps"):
            steps_of(*asked)
        return
    steps = steps_of(*asked)
    assert (steps.start, steps.end) == (begin // 60 * 60, now)
    first = steps.origin + (steps.start - steps.origin) // steps.seconds * steps.seconds
    assert sum(steps.covered(one) for one in range(first, now, steps.seconds)) == now - steps.start


def request(**fields: Any) -> pb.QueryAnalyticsRequest:
    asked = pb.QueryAnalyticsRequest(**{"measure": Measure.ANALYTICS_MEASURE_TTFT, **fields})
    if not asked.HasField("start_time"):
        asked.start_time.seconds = BEGIN
    return asked


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        (pb.QueryAnalyticsRequest(measure=Measure.ANALYTICS_MEASURE_TTFT), "start_time"),
        (request(measure=Measure.ANALYTICS_MEASURE_UNSPECIFIED), "measure"),
        (request(group_by=[0]), "group_by"),
        (request(end_time={"seconds": BEGIN - 60}), "end_time"),
        (request(start_time={"seconds": BEGIN + 10**7}), "end_time"),
        (request(step={"seconds": 90}), "step"),
        (request(step={"seconds": -60}), "step"),
        (request(targets={"e2e": {"seconds": 0}}), "targets.e2e"),
    ],
)  # fmt: skip
def test_a_question_that_makes_no_sense_is_refused_by_name(asked: pb.QueryAnalyticsRequest, param: str) -> None:
    with pytest.raises(InferBusError) as refused:
        question_of(asked, NOW_US)
    assert refused.value.param == param
    assert refused.value.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT


def test_a_step_that_is_too_fine_is_told_one_that_fits() -> None:
    with pytest.raises(InferBusError, match="step of 2m or more") as refused:
        steps_of(BEGIN * SECOND, (BEGIN + 2880 * 60) * SECOND, NOW_US * 2, timedelta(minutes=1))
    assert refused.value.reason == "too_many_steps"


async def test_what_no_table_knows_is_refused(filled: Store) -> None:
    steps = steps_of(BEGIN * SECOND, (BEGIN + SPAN) * SECOND, NOW_US, None)
    by_class = pb.AnalyticsFilter(priority_classes=[PriorityClass.PRIORITY_CLASS_BATCH])
    for measure in OF_TOKENS:
        for asked in (Question(measure, steps, (6,)), Question(measure, steps, filter=by_class)):
            with pytest.raises(InferBusError) as refused:
                await analytics.query(filled, asked)
            assert (refused.value.reason, refused.value.param) == ("not_known", "priority_class")
    long = steps_of(BEGIN * SECOND, (BEGIN + 90_000) * SECOND, NOW_US * 2, None)
    with pytest.raises(InferBusError) as refused:
        await analytics.query(filled, Question(Measure.ANALYTICS_MEASURE_ITL, long, (2,)))
    assert refused.value.reason == "range_too_wide"


async def test_more_than_an_answer_holds_and_more_than_may_be_read_are_refused(filled: Store, monkeypatch) -> None:
    steps = steps_of(BEGIN * SECOND, (BEGIN + SPAN) * SECOND, NOW_US, timedelta(minutes=1))
    asked = Question(Measure.ANALYTICS_MEASURE_REQUESTS, steps, (1, 2))
    monkeypatch.setattr(analytics, "MOST_ROWS", 20)
    with pytest.raises(InferBusError, match="more than 20 rows") as refused:
        await analytics.query(filled, asked)
    assert refused.value.reason == "too_many_rows"
    monkeypatch.setattr(analytics, "_LIMITS", {"max_rows_to_read": 1})
    with pytest.raises(InferBusError) as refused:
        await analytics.query(filled, asked)
    assert (refused.value.reason, refused.value.error_class) == (
        "range_too_wide", ErrorClass.ERROR_CLASS_INVALID_ARGUMENT,
    )  # fmt: skip


async def test_a_store_that_is_away_is_unavailable() -> None:
    async with open_store(StoreConfig("http://127.0.0.1:9", "analyst", "x", "inferbus", 1.0)) as store:
        with pytest.raises(InferBusError) as refused:
            await analytics.values(store, steps_of(BEGIN * SECOND, NOW_US, NOW_US, None), "")
    assert refused.value.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE


def test_it_reads_as_the_user_for_that_and_else_as_the_meters() -> None:
    given = {"nats_url": "nats://127.0.0.1:1", "clickhouse_user": "writer", "clickhouse_password": "w"}
    assert StoreConfig.for_reading(Config(**given)).user == "writer"
    own = StoreConfig.for_reading(Config(**given, clickhouse_read_user="analyst", clickhouse_read_password="a"))
    assert (own.user, own.password) == ("analyst", "a")


async def test_the_analyst_may_ask_all_of_it_and_so_may_the_writer(admin_store, clickhouse) -> None:
    """Every measure with every dimension, in the one database that they may read."""
    now_us = clock.now_us()
    row = made(9, 1)[0]
    row.end_us, row.accepted_us = now_us - 60 * SECOND, now_us - 70 * SECOND
    await put(admin_store, "requests", [request_line(row)])
    for user in ("analyst", "writer"):
        async with open_store(clickhouse.config(user, "inferbus")) as store:
            api = AnalyticsServicer(store)
            for measure in MEASURES:
                asked = pb.QueryAnalyticsRequest(measure=measure, most_groups=3)
                asked.group_by.extend(range(1, 6 if measure in OF_TOKENS else 7))
                asked.start_time.FromMicroseconds(now_us - 3600 * SECOND)
                asked.step.seconds = 60
                answer = await api.QueryAnalytics(asked, None)
                assert answer.end_time.seconds >= now_us // SECOND - 1
            values = await api.ListAnalyticsValues(pb.ListAnalyticsValuesRequest(start_time=answer.start_time), None)
            assert list(values.tenant_ids) == [row.tenant_id]
