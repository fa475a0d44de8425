"""Usage and costs as SQL: buckets of time, groups and filters become a query whose every value is a parameter. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus.meter.v1.usage_pb2 import BucketWidth, Dimension, ExportFormat, UsageFilter, UsageGroup

from inferbus_meter.core.months import ENDED_IN, begin_us, end_us
from inferbus_meter.core.spans import accepted_of

# More than this is not one answer: fewer buckets at a time, or fewer groups.
MOST_ROWS = 20_000

# Unix seconds at which a row's bucket begins. The whole range is one bucket, which begins at its start.
_BUCKETS: dict[int, str] = {
    BucketWidth.BUCKET_WIDTH_UNSPECIFIED: "intDiv({start:Int64}, 1000000)",
    BucketWidth.BUCKET_WIDTH_MINUTE: "toInt64(toUnixTimestamp(toStartOfMinute(end_time)))",
    BucketWidth.BUCKET_WIDTH_HOUR: "toInt64(toUnixTimestamp(toStartOfHour(end_time)))",
    BucketWidth.BUCKET_WIDTH_DAY: "toInt64(toUnixTimestamp(toStartOfDay(end_time)))",
    BucketWidth.BUCKET_WIDTH_MONTH: "toInt64(toUnixTimestamp(toDateTime(toStartOfMonth(end_time), 'UTC')))",
}
_COLUMNS: dict[Dimension.ValueType, str] = {
    Dimension.DIMENSION_TENANT: "tenant_id",
    Dimension.DIMENSION_PROJECT: "project_id",
    Dimension.DIMENSION_KEY: "key_id",
    Dimension.DIMENSION_MODEL: "model",
    Dimension.DIMENSION_REVISION: "revision",
    Dimension.DIMENSION_OPERATION: "operation",
    Dimension.DIMENSION_PRIORITY_CLASS: "priority_class",
    Dimension.DIMENSION_END_USER: "end_user",
    Dimension.DIMENSION_TAGS: "tags",
}
ALL_DIMENSIONS = tuple(_COLUMNS)
# A call with several choices counts where its first one ended: choice 0, the last byte of its id but for the top bit
# (see inferbus_contracts.ids). So a sum over buckets has it once.
_FIRST = "bitAnd(reinterpretAsUInt8(substring(UUIDToNum(request_id), 16, 1)), 127) = 0"
# Cached input is a part of the input, reasoning of the output: as they are charged.
_CACHED, _REASONING = "least(cached_input_tokens, input_tokens)", "least(reasoning_tokens, output_tokens)"
# What a row is before it is summed. Under names of their own: an alias that is a column's name would take its place in
# every other expression.
_ROW = f"""{_FIRST} AS is_first, finish_reason = 'error' AS is_error, toUInt64(input_tokens) AS its_input,
       toUInt64({_CACHED}) AS its_cached, toUInt64(output_tokens) AS its_output,
       toUInt64({_REASONING}) AS its_reasoning"""
_COUNTS = {
    "requests": "countIf(is_first)",
    "choices": "count()",
    "errors": "countIf(is_error)",
    "input_tokens": "sum(its_input)",
    "cached_input_tokens": "sum(its_cached)",
    "output_tokens": "sum(its_output)",
    "reasoning_tokens": "sum(its_reasoning)",
}
_OF_VERSIONS = " AND charge_rate_version IN {versions:Array(String)}"
_CHARGE = ", cost AS its_cost, adjusted AS its_adjusted, charge AS its_charge"
RATES = (
    "input_per_million", "cached_input_per_million", "output_per_million", "reasoning_per_million", "factor",
)  # fmt: skip

_ENDED = "end_time >= fromUnixTimestamp64Micro({start:Int64}) AND end_time < fromUnixTimestamp64Micro({end:Int64})"
_FORMULA = r"^[-=+@\t\r]"
CSV = "CSVWithNames"
EXPORT_FORMATS: dict[int, str] = {
    ExportFormat.EXPORT_FORMAT_CSV: CSV,
    ExportFormat.EXPORT_FORMAT_PARQUET: "Parquet",
    ExportFormat.EXPORT_FORMAT_JSON_LINES: "JSONEachRow",
}


@dataclass(frozen=True, slots=True)
class Question:
    """[start_us, end_us) in Unix microseconds; ``dimensions`` in the order in which rows are told apart."""

    start_us: int
    end_us: int
    width: BucketWidth.ValueType
    dimensions: tuple[Dimension.ValueType, ...]
    filter: UsageFilter


@dataclass(frozen=True, slots=True)
class Query:
    sql: str
    parameters: Mapping[str, Any]


def usage_query(asked: Question) -> Query:
    """Rows: bucket, the dimensions, estimated, and the counts of UsageBucket in its order."""
    return _query(asked, "bills", ("estimated",), _ROW, _COUNTS)


def cost_query(asked: Question) -> Query:
    """Rows: bucket, the dimensions, estimated, currency, the charge. What had no price has no row."""
    return _query(asked, "charges", ("estimated", "currency"), "charge AS its_charge", {"charge": "sum(its_charge)"})


def line_item_query(asked: Question) -> Query:
    """Rows: bucket, the dimensions, estimated, currency, the model, RATES, and what :class:`line_items.Charged` has."""
    sums = {
        "fresh": "sum(its_input - its_cached)", "cached": "sum(its_cached)",
        "spoken": "sum(its_output - its_reasoning)", "reasoning": "sum(its_reasoning)",
        "charge": "sum(its_charge)", "adjusted": "sum(its_adjusted)",
    }  # fmt: skip
    return _query(asked, "charges", ("estimated", "currency", "model AS item_model", *RATES), _ROW + _CHARGE, sums)


def tiered_query(asked: Question, rate_versions: Sequence[str]) -> Query:
    """What was charged under those prices. Rows: bucket, the dimensions, estimated, currency, and what
    :class:`discounts.Tiered` has."""
    fixed = (
        "estimated", "currency", "model AS item_model", "tenant_id AS item_tenant", "project_id AS item_project",
        f"{ENDED_IN} AS item_month", "charge_rate_version AS item_version",
    )  # fmt: skip
    query = _query(asked, "charges", fixed, "charge AS its_charge", {"charge": "sum(its_charge)"}, also=_OF_VERSIONS)
    return Query(query.sql, {**query.parameters, "versions": list(rate_versions)})


def month_tokens_query(tenants: Sequence[str], models: Sequence[str], months: tuple[str, str]) -> Query:
    """Rows: tenant, currency, model, month, and its input and output tokens; of whole months, the first to the last."""
    sql = f"""
SELECT tenant_id, currency, model, {ENDED_IN} AS month, sum(toUInt64(input_tokens) + output_tokens)
FROM charges
WHERE tenant_id IN {{tenants:Array(String)}} AND model IN {{models:Array(String)}} AND currency != ''
  AND {_ENDED} AND {accepted_of(_ENDED)}
GROUP BY tenant_id, currency, model, month
ORDER BY tenant_id, currency, model, month"""  # noqa: S608
    span = {"start": begin_us(months[0]), "end": end_us(months[1])}
    return Query(sql, {"tenants": list(tenants), "models": list(models), **span})


def export_query(asked: Question) -> Query:
    """Everything told apart by all dimensions, in their order: the same rows give the same bytes."""
    whole = replace(asked, dimensions=ALL_DIMENSIONS)
    sums = {**_COUNTS, "cost": "sum(its_cost)", "adjusted": "sum(its_adjusted)", "charge": "sum(its_charge)"}
    keys = ("estimated", "currency", "rate_version", "charge_rate_version")
    # A day as 2026-11-01T00:00:00Z.
    bucket = "formatDateTime(toDateTime(bucket, 'UTC'), '%Y-%m-%dT%H:%i:%SZ') AS bucket_time"
    return _query(whole, "charges", keys, _ROW + _CHARGE, sums, bucket=bucket, priced=False)


def spreadsheet_query(asked: Question) -> Query:
    """:func:`export_query` for a spreadsheet, which would run a name that begins like a formula (OWASP: CSV injection):
    clients choose some of them."""
    query = export_query(asked)
    names = [name for name in _COLUMNS.values() if name != "tags"] + ["rate_version", "charge_rate_version"]
    shown = ", ".join(f"if(match({name}, '{_FORMULA}'), concat('\\'', {name}), {name}) AS {name}" for name in names)
    keys = ("bucket_time", *_COLUMNS.values(), "estimated", "currency", "rate_version", "charge_rate_version")
    return Query(f"SELECT * REPLACE ({shown})\nFROM ({query.sql})\nORDER BY {', '.join(keys)}", query.parameters)


def margin_query(start_us: int, end_us: int) -> Query:
    """Rows: model, revision, worker, engine, choices, counted input and output tokens, estimated ones, charges by
    currency, busy microseconds, joules, and how many choices they are of.

    Busy is the union of [handed to the engine, last token] of the worker's requests that ended in the range: those that
    ran together count once. What never ran on a worker (attempt 0) is in no row.
    """
    sql = f"""
SELECT model, revision, worker, engine, count(),
       sumIf(input_tokens, NOT estimated), sumIf(output_tokens, NOT estimated),
       sumIf(input_tokens, estimated), sumIf(output_tokens, estimated),
       sumMapIf([currency], [charge], currency != ''), intervalLengthSumIf(began, ended, ended > began),
       sum(toFloat64(energy_j)), countIf(isNotNull(energy_j))
FROM (
    SELECT *, toUnixTimestamp64Micro(accepted_time) AS accepted_us,
           accepted_us + toInt64(ifNull(started_us, 0)) AS began, accepted_us + toInt64(ifNull(e2e_us, 0)) AS ended
    FROM charges
    WHERE {_ENDED} AND {accepted_of(_ENDED)} AND attempt > 0
)
GROUP BY model, revision, worker, engine
ORDER BY model, revision, worker, engine"""  # noqa: S608
    return Query(sql, {"start": start_us, "end": end_us})


def group_of(dimensions: Sequence[Dimension.ValueType], values: Sequence[Any]) -> UsageGroup:
    """The values of a row's dimensions, in their order."""
    group = UsageGroup()
    for dimension, value in zip(dimensions, values, strict=True):
        if dimension == Dimension.DIMENSION_OPERATION:
            group.operation = Operation.Value(f"OPERATION_{value.upper() or 'UNSPECIFIED'}")
        elif dimension == Dimension.DIMENSION_PRIORITY_CLASS:
            group.priority_class = PriorityClass.Value(f"PRIORITY_CLASS_{value.upper() or 'UNSPECIFIED'}")
        elif dimension == Dimension.DIMENSION_TAGS:
            group.tags.update(value)
        else:
            setattr(group, _COLUMNS[dimension], value)
    return group


def _keys(asked: Question, fixed: Sequence[str]) -> list[str]:
    return [*(_COLUMNS[one] for one in asked.dimensions), *(name.rpartition(" ")[2] for name in fixed)]


def _query(
    asked: Question,
    table: str,
    fixed: Sequence[str],
    row: str,
    sums: Mapping[str, str],
    *,
    bucket: str = "bucket",
    priced: bool = True,
    also: str = "",
) -> Query:
    """Sums of ``table`` by bucket, dimensions and ``fixed``, in that order. ``bucket``: how the bucket is shown.
    ``priced``: of charges those that had a price only. ``also``: a further condition."""
    keys = ["bucket", *_keys(asked, fixed)]
    columns = dict.fromkeys([*(_COLUMNS[one] for one in asked.dimensions), *fixed])
    where, parameters = _where(asked)
    if table == "charges" and priced:
        where += " AND currency != ''"
    where += also
    # Whatever a caller gave is a parameter; the text is made of names that stand in this file.
    sql = f"""
SELECT {", ".join([bucket, *keys[1:]])}, {", ".join(f"{how} AS {name}" for name, how in sums.items())}
FROM (
    SELECT {_BUCKETS[asked.width]} AS bucket, {"".join(f"{name}, " for name in columns)}{row}
    FROM {table}
    WHERE {where}
)
GROUP BY {", ".join(keys)}
ORDER BY {", ".join(keys)}"""  # noqa: S608
    return Query(sql, parameters)


def _where(asked: Question) -> tuple[str, dict[str, Any]]:
    only = asked.filter
    terms = [_ENDED, accepted_of(_ENDED)]
    parameters: dict[str, Any] = {"start": asked.start_us, "end": asked.end_us}
    if only.tenant_id:
        terms.append("tenant_id = {tenant:String}")
        parameters["tenant"] = only.tenant_id
    operations = [_text(Operation.Name(one), "OPERATION_") for one in only.operations]
    for column, values in (
        ("project_id", only.project_ids), ("key_id", only.key_ids), ("model", only.models),
        ("end_user", only.end_users), ("operation", operations),
    ):  # fmt: skip
        if values:
            terms.append(f"{column} IN {{{column}s:Array(String)}}")
            parameters[f"{column}s"] = list(values)
    if only.HasField("batch"):
        terms.append("priority_class = 'batch'" if only.batch else "priority_class != 'batch'")
    for at, (name, value) in enumerate(sorted(only.tags.items())):
        # A map says "" of what is not in it.
        terms.append(f"mapContains(tags, {{tag{at}:String}}) AND tags[{{tag{at}:String}}] = {{value{at}:String}}")
        parameters |= {f"tag{at}": name, f"value{at}": value}
    return " AND ".join(terms), parameters


def _text(name: str, prefix: str) -> str:
    text = name.removeprefix(prefix).lower()
    return "" if text == "unspecified" else text
