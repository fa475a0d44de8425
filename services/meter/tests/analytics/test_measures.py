"""Analytics, asked of the real engine, against plain sums and sorted lists over the same requests and tokens."""

from collections import defaultdict
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1 import analytics_pb2 as pb
from inferbus_meter import analytics
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.analytics import Question, steps_of
from inferbus_meter.core.analytics_measures import MEASURES

from services.meter.tests.analytics.model import Model, near, percentile
from services.meter.tests.analytics.rows import (
    BEGIN,
    DIMENSIONS,
    NOW_US,
    OF_TOKENS,
    ROWS,
    SECOND,
    SPAN,
    Measure,
    made,
    put,
    request_line,
    stamp,
)


def shown(asked: Question, answer: pb.QueryAnalyticsResponse) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = {}
    for row in answer.rows:
        values = [getattr(row.group, DIMENSIONS[one - 1]) for one in asked.dimensions]
        values = [
            PriorityClass.Name(value).removeprefix("PRIORITY_CLASS_").lower() if isinstance(value, int) else value
            for value in values
        ]
        for key in MEASURES[asked.measure].keys:
            own = key in ("estimated", "currency")
            values.append(getattr(row if own else row.group, key))
        numbers = dict(row.numbers) | {name: Decimal(value) for name, value in row.amounts.items()}
        found[row.time.seconds, *values] = numbers
    assert len(found) == len(answer.rows)
    assert list(found) == sorted(found, key=lambda key: key[0])
    return found


def names_of(dimension: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from([*sorted({getattr(row, dimension) for row in ROWS}), "no'body"]), max_size=2)


filters = st.builds(
    pb.AnalyticsFilter,
    tenant_ids=names_of("tenant_id"), project_ids=names_of("project_id"), models=names_of("model"),
    revisions=names_of("revision"), workers=names_of("worker"),
    priority_classes=st.lists(st.sampled_from(PriorityClass.values()[1:]), max_size=2),
)  # fmt: skip
moments = st.integers((BEGIN - 600) * SECOND, (BEGIN + SPAN + 600) * SECOND)
targets = st.fixed_dictionaries(
    {}, optional={"ttft": st.integers(1, 900_000), "tpot": st.integers(1, 900_000), "e2e": st.integers(1, 9_000_000)}
)
asking = settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@st.composite
def questions(draw: st.DrawFn, measure: int) -> Question:
    start, end = sorted((draw(moments), draw(moments)))
    step = draw(st.sampled_from([None, timedelta(minutes=1), timedelta(minutes=7), timedelta(hours=1)]))
    dimensions = draw(st.lists(st.integers(1, 6), unique=True, max_size=3))
    only = draw(st.one_of(st.just(pb.AnalyticsFilter()), filters))
    if measure in OF_TOKENS:
        dimensions = [one for one in dimensions if one != pb.AnalyticsDimension.ANALYTICS_DIMENSION_PRIORITY_CLASS]
        only.ClearField("priority_classes")
    goodput = measure == Measure.ANALYTICS_MEASURE_GOODPUT
    return Question(
        measure, steps_of(start, end + 1, NOW_US, step), tuple(dimensions), only, draw(targets) if goodput else {},
        exact=draw(st.booleans()),
    )  # fmt: skip


@pytest.mark.parametrize("measure", [one for one in MEASURES if one != Measure.ANALYTICS_MEASURE_BILLING_LAG])
@asking
@given(data=st.data())
async def test_every_measure_is_what_the_rows_say(filled: Store, measure: int, data: st.DataObject) -> None:
    asked = data.draw(questions(measure))
    source = {DIMENSIONS[one - 1] for one in asked.dimensions} | {
        "project_id" for _ in asked.filter.project_ids[:1]
    }  # fmt: skip
    exact = "project_id" in source or (asked.exact and asked.measure not in OF_TOKENS)
    wanted = Model(asked, exact=exact).answer()
    found = shown(asked, await analytics.query(filled, asked))
    assert found.keys() == wanted.keys()
    for key, numbers in wanted.items():
        # Without a price there are no amounts.
        priced = {name: value for name, value in numbers.items() if not isinstance(value, Decimal) or key[-1] != ""}
        assert found[key].keys() == priced.keys()
        for name, value in priced.items():
            exactly = isinstance(value, Decimal)
            assert found[key][name] == (value if exactly else pytest.approx(value, rel=1e-9)), (key, name)


@pytest.mark.parametrize("measure", MEASURES)
async def test_an_answer_names_its_columns_and_what_it_covers(filled: Store, measure: int) -> None:
    asked = Question(measure, steps_of(BEGIN * SECOND + 1, (BEGIN + SPAN) * SECOND, NOW_US, timedelta(minutes=5)))
    answer = await analytics.query(filled, asked)
    assert (answer.start_time.seconds, answer.end_time.seconds, answer.step.seconds) == (BEGIN, BEGIN + SPAN, 300)
    names = [column.name for column in answer.columns]
    assert len(set(names)) == len(names)
    assert all(column.description and column.unit for column in answer.columns)
    for row in answer.rows:
        assert {*row.numbers, *row.amounts} <= set(names)


async def test_percentiles_of_a_group_are_those_of_its_values_and_no_mean_of_percentiles(filled: Store) -> None:
    steps = steps_of(BEGIN * SECOND, (BEGIN + SPAN) * SECOND, NOW_US, None)
    itl = Measure.ANALYTICS_MEASURE_ITL
    (whole,) = (await analytics.query(filled, Question(itl, steps))).rows
    parts = (await analytics.query(filled, Question(itl, steps, (1, 5)))).rows
    gaps = [
        near(token.gap_us) for row in ROWS for token in row.tokens if token.index > 0 and token.us < steps.end * SECOND
    ]
    assert whole.numbers["p95"] == percentile(gaps, 0.95)
    assert whole.numbers["measured"] == sum(row.numbers["measured"] for row in parts) == len(gaps)


async def test_the_largest_groups(filled: Store) -> None:
    steps = steps_of(BEGIN * SECOND, (BEGIN + SPAN) * SECOND, NOW_US, timedelta(hours=1))
    requests = Measure.ANALYTICS_MEASURE_REQUESTS
    every = await analytics.query(filled, Question(requests, steps, (1, 3)))
    few = await analytics.query(filled, Question(requests, steps, (1, 3), most_groups=2))
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for row in every.rows:
        sums[row.group.tenant_id, row.group.model] += row.numbers["requests"]
    largest = set(sorted(sums, key=lambda group: (-sums[group], group))[:2])
    assert len(sums) > 2
    assert list(few.rows) == [row for row in every.rows if (row.group.tenant_id, row.group.model) in largest]


async def test_a_second_end_counts_twice_in_rollups_and_once_exactly(clickhouse, make) -> None:
    row = made(3, 1)[0]
    async with make.fresh_database(clickhouse) as store:
        await put(store, "requests", [request_line(row, attempt=one) for one in (1, 2)])
        steps = steps_of(BEGIN * SECOND, NOW_US, NOW_US, None)
        for exact, count in ((False, 2), (True, 1)):
            asked = Question(Measure.ANALYTICS_MEASURE_REQUESTS, steps, exact=exact)
            (found,) = (await analytics.query(store, asked)).rows
            assert found.numbers["requests"] == count


async def test_billing_lag_is_until_the_rows_range_was_stored_whole(clickhouse, make) -> None:
    rows = made(5, 3)
    end_us = (BEGIN + 100) * SECOND
    async with make.fresh_database(clickhouse) as store:
        # Of the stream before this one; its sequences begin at 1, too.
        old = request_line(rows[0], end_time=stamp(end_us - 50 * SECOND), stream_seq=3)
        late = request_line(rows[1], end_time=stamp(end_us), stream_seq=10)
        # Its range is claimed and not done.
        open_ = request_line(rows[2], end_time=stamp(end_us), stream_seq=21)
        await put(store, "requests", [old, late, open_])
        claim = {"stream": "TOKENS", "tokens": 0, "requests": 0, "holder": "m", "attempt": 1, "block_tokens": 1}
        new = {**claim, "epoch": 2, "stream_time": stamp(end_us - 10 * SECOND)}
        await put(store, "ingest_batches", [
            {**claim, "epoch": 1, "stream_time": stamp(1), "first_seq": 1, "last_seq": 9, "done": True,
             "intent_time": stamp(end_us - 49 * SECOND)},
            {**new, "first_seq": 1, "last_seq": 9, "done": True, "intent_time": stamp(end_us)},
            {**new, "first_seq": 10, "last_seq": 20, "done": False, "intent_time": stamp(end_us + SECOND)},
            {**new, "first_seq": 10, "last_seq": 20, "done": True, "intent_time": stamp(end_us + 2_500_000)},
            {**new, "first_seq": 21, "last_seq": 30, "done": False, "intent_time": stamp(end_us + 3 * SECOND)},
        ])  # fmt: skip
        steps = steps_of(BEGIN * SECOND, NOW_US, NOW_US, None)
        (found,) = (await analytics.query(store, Question(Measure.ANALYTICS_MEASURE_BILLING_LAG, steps))).rows
    assert found.numbers == {"p50": 2.5, "p95": 2.5, "p99": 2.5, "measured": 1}


async def test_values_are_those_of_the_range_and_the_tenant(filled: Store) -> None:
    steps = steps_of(BEGIN * SECOND, (BEGIN + SPAN + 600) * SECOND, NOW_US, None)
    for tenant in ("", "acme"):
        found = await analytics.values(filled, steps, tenant)
        rows = [row for row in ROWS if tenant in ("", row.tenant_id)]
        assert list(found.tenant_ids) == sorted({row.tenant_id for row in rows})
        assert list(found.project_ids) == sorted({row.project_id for row in rows})
        assert list(found.models) == ["large", "small"]
        assert list(found.workers) == ["worker-0", "worker-1"]
        assert {PriorityClass.Name(one) for one in found.priority_classes} == {
            f"PRIORITY_CLASS_{row.priority_class.upper()}" for row in rows
        }
    before = steps_of((BEGIN - 900) * SECOND, (BEGIN - 600) * SECOND, NOW_US, None)
    assert await analytics.values(filled, before, "") == pb.ListAnalyticsValuesResponse()
