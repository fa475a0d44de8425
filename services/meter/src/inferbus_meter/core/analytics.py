"""A question of analytics as SQL whose every value is a parameter, and its rows as the answer's. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1.analytics_pb2 import (
    AnalyticsColumn,
    AnalyticsDimension,
    AnalyticsFilter,
    AnalyticsGroup,
    AnalyticsMeasure,
    AnalyticsRow,
    AnalyticsUnit,
)
from inferbus_runtime.durations import format_duration
from inferbus_runtime.errors import invalid

from inferbus_meter.core.analytics_measures import MEASURES, Measure
from inferbus_meter.core.analytics_sources import Source
from inferbus_meter.core.decimals import decimal_text

MOST_STEPS = 1_500
MOST_ROWS = 10_000
MOST_VALUES = 1_000
_MINUTE = 60
_DIMENSIONS: dict[AnalyticsDimension.ValueType, str] = {
    AnalyticsDimension.ANALYTICS_DIMENSION_TENANT: "tenant_id",
    AnalyticsDimension.ANALYTICS_DIMENSION_PROJECT: "project_id",
    AnalyticsDimension.ANALYTICS_DIMENSION_MODEL: "model",
    AnalyticsDimension.ANALYTICS_DIMENSION_REVISION: "revision",
    AnalyticsDimension.ANALYTICS_DIMENSION_WORKER: "worker",
    AnalyticsDimension.ANALYTICS_DIMENSION_PRIORITY_CLASS: "priority_class",
}
# Whoever asks for no target holds nobody to it.
_NEVER_US = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Steps:
    """[start, end) in Unix seconds, cut at multiples of ``seconds`` from ``origin``."""

    start: int
    end: int
    seconds: int
    origin: int

    def covered(self, begin: int) -> int:
        """How many seconds of the step that begins at ``begin`` are in the range."""
        return min(begin + self.seconds, self.end) - max(begin, self.start)


def steps_of(start_us: int, end_us: int, now_us: int, step: timedelta | None) -> Steps:
    """Unix microseconds; the range is widened to whole minutes, but not beyond now. ``step`` None: one step, the range.

    Raises InferBusError INVALID_ARGUMENT.
    """
    now = now_us // 1_000_000
    start = max(0, start_us // 1_000_000 // _MINUTE * _MINUTE)
    end = min(-(-end_us // (_MINUTE * 1_000_000)) * _MINUTE, now)
    if start >= end:
        raise invalid("end_time must be after start_time, and start_time must have passed.", param="end_time")
    if step is None:
        return Steps(start, end, end - start, start)
    if step < timedelta(seconds=_MINUTE) or step % timedelta(seconds=_MINUTE):
        raise invalid("step must be whole minutes.", param="step")
    seconds = int(step.total_seconds())
    count = -(-(end - start) // seconds)
    if count > MOST_STEPS:
        least = -(-(end - start) // (MOST_STEPS * _MINUTE)) * _MINUTE
        raise invalid(
            f"That are {count:,} steps; {MOST_STEPS:,} are shown at most. Ask for a step of "
            f"{format_duration(timedelta(seconds=least))} or more, or for a shorter range.",
            param="step",
            reason="too_many_steps",
        )
    return Steps(start, end, seconds, 0)


@dataclass(frozen=True, slots=True)
class Question:
    """``targets_us``: of goodput, by name (ttft, tpot, e2e), microseconds. ``most_groups`` 0: all. ``exact``: each
    request once, where requests are counted."""

    measure: AnalyticsMeasure.ValueType
    steps: Steps
    dimensions: tuple[AnalyticsDimension.ValueType, ...] = ()
    filter: AnalyticsFilter = field(default_factory=AnalyticsFilter)
    targets_us: Mapping[str, int] = field(default_factory=dict)
    most_groups: int = 0
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    sql: str
    parameters: Mapping[str, Any]


def query_of(asked: Question) -> Query:
    """Rows: the step, the dimensions, the measure's keys and sums. Raises InferBusError INVALID_ARGUMENT for what no
    table can tell apart."""
    measure = MEASURES[asked.measure]
    terms, parameters = _filters(asked.filter)
    dimensions = [_DIMENSIONS[one] for one in asked.dimensions]
    source = _source(asked, measure, {*dimensions, *terms})
    keys = list(dict.fromkeys([*dimensions, *measure.keys]))
    where = " AND ".join([source.within, *terms.values()])
    text = source.text.replace("$BUCKET", source.bucket).replace("$WHERE", where)
    text = text.replace("$KEYS", "".join(f"{key}, " for key in keys))
    steps = asked.steps
    parameters |= {"start": steps.start, "end": steps.end, "step": steps.seconds, "origin": steps.origin}
    if asked.measure == AnalyticsMeasure.ANALYTICS_MEASURE_GOODPUT:
        parameters |= {name: asked.targets_us.get(name, _NEVER_US) for name in ("ttft", "tpot", "e2e")}
    most = ""
    if asked.most_groups and dimensions:
        group = ", ".join(dimensions)
        # Equal ones by name, so that the same rows give the same groups.
        most = (
            f"WHERE ({group}) IN (SELECT {group} FROM asked GROUP BY {group} "  # noqa: S608
            f"ORDER BY {measure.weight} DESC, {group} LIMIT {{groups:UInt32}})"
        )
        parameters["groups"] = asked.most_groups
    shown = ", ".join(["bucket", *keys])
    # Whatever a caller gave is a parameter; the text is made of names that stand in these files.
    sql = f"""
WITH asked AS ({text})
SELECT {shown}, {", ".join(measure.sums.values())}
FROM asked {most}
GROUP BY {shown}
ORDER BY {shown}
LIMIT {MOST_ROWS + 1}"""  # noqa: S608
    return Query(sql, parameters)


def values_query(steps: Steps, tenant_id: str) -> Query:
    """One row: arrays of all values of each dimension, in the order of the enum."""
    shown = ", ".join(f"arraySort(groupUniqArrayIf({MOST_VALUES})({one}, {one} != ''))" for one in _DIMENSIONS.values())
    sql = f"""
SELECT {shown}
FROM requests
WHERE end_time >= toDateTime64({{start:Int64}}, 6, 'UTC') AND end_time < toDateTime64({{end:Int64}}, 6, 'UTC')
  AND ({{tenant:String}} = '' OR tenant_id = {{tenant:String}})"""  # noqa: S608
    return Query(sql, {"start": steps.start, "end": steps.end, "tenant": tenant_id})


def columns_of(measure: AnalyticsMeasure.ValueType) -> list[AnalyticsColumn]:
    return [
        AnalyticsColumn(name=one.name, unit=one.unit, description=one.description) for one in MEASURES[measure].columns
    ]


def row_of(asked: Question, values: Sequence[Any]) -> AnalyticsRow:
    """``values``: a row of :func:`query_of`."""
    measure = MEASURES[asked.measure]
    names = list(dict.fromkeys(["bucket", *(_DIMENSIONS[one] for one in asked.dimensions), *measure.keys]))
    keys = dict(zip(names, values, strict=False))
    sums = dict(zip(measure.sums, values[len(names) :], strict=True))
    begin = int(keys.pop("bucket"))
    estimated, currency = bool(keys.pop("estimated", False)), str(keys.pop("currency", ""))
    row = AnalyticsRow(time=Timestamp(seconds=begin), estimated=estimated, currency=currency, group=_group(keys))
    for column in measure.columns:
        value = column.of(sums, asked.steps.covered(begin))
        if value is None:
            continue
        if column.unit != AnalyticsUnit.ANALYTICS_UNIT_AMOUNT:
            row.numbers[column.name] = float(value)
        elif currency:
            row.amounts[column.name] = decimal_text(Decimal(value))
    return row


def class_of(name: str) -> PriorityClass.ValueType:
    """As it stands in the tables; what is not known is UNSPECIFIED."""
    known = f"PRIORITY_CLASS_{name.upper()}"
    return PriorityClass.Value(known) if known in PriorityClass.keys() else PriorityClass.PRIORITY_CLASS_UNSPECIFIED  # noqa: SIM118


def _group(keys: Mapping[str, Any]) -> AnalyticsGroup:
    group = AnalyticsGroup()
    for name, value in keys.items():
        if name != "priority_class":
            setattr(group, name, str(value))
    if "priority_class" in keys:
        group.priority_class = class_of(str(keys["priority_class"]))
    return group


def _source(asked: Question, measure: Measure, needed: set[str]) -> Source:
    fits = [one for one in measure.rows if not one.lacks & needed]
    if not fits:
        raise invalid(
            "A token does not know its class: leave the class out of this measure, or ask for tpot.",
            param="priority_class",
            reason="not_known",
        )
    source = next((one for one in fits if one.exact), fits[0]) if asked.exact else fits[0]
    length = timedelta(seconds=asked.steps.end - asked.steps.start)
    if source.longest is not None and length > source.longest:
        raise invalid(
            "By project this is read token by token, a day at most: ask for a shorter range, or by tenant.",
            param="start_time",
            reason="range_too_wide",
        )
    return source


def _filters(only: AnalyticsFilter) -> tuple[dict[str, str], dict[str, Any]]:
    """(conditions by their column, parameters)."""
    classes = [PriorityClass.Name(one).removeprefix("PRIORITY_CLASS_").lower() for one in only.priority_classes]
    chosen: dict[str, list[str]] = {
        "tenant_id": list(only.tenant_ids), "project_id": list(only.project_ids), "model": list(only.models),
        "revision": list(only.revisions), "worker": list(only.workers),
        "priority_class": ["" if one == "unspecified" else one for one in classes],
    }  # fmt: skip
    given = {column: values for column, values in chosen.items() if values}
    terms = {column: f"{column} IN {{{column}s:Array(String)}}" for column in given}
    return terms, {f"{column}s": values for column, values in given.items()}
