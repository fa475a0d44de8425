"""Usage and costs, asked of the real engine, against a plain sum over the same requests."""

import csv
import io
import json
import random
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from inferbus.bus.v1.registry_pb2 import PriceRecord, PriceTier
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus.meter.v1.usage_pb2 import BucketWidth, Dimension, UsageFilter, UsageGroup
from inferbus_contracts.ids import choice_id, detached, request_id, uuid_text
from inferbus_meter import usage
from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.line_items import Charged, line_items
from inferbus_meter.core.margin import OperatingPrices
from inferbus_meter.core.usage import ALL_DIMENSIONS, Question
from inferbus_rating import PriceBook
from inferbus_runtime.errors import InferBusError

DAY = 86_400
BEGIN = int(datetime(2026, 10, 30, tzinfo=UTC).timestamp())
SPAN = 4 * DAY
MILLION = Decimal(1_000_000)
QUANTUM = Decimal("0.000000000001")
RATE = {"input": Decimal("0.15"), "cached": Decimal("0.075"), "output": Decimal("0.6"), "reasoning": Decimal("0.9")}


@dataclass
class Choice:
    """One row of ``requests`` and what re-rating changed of it."""

    id: bytes
    tenant: str
    project: str
    key: str
    model: str
    operation: str
    priority: str
    user: str
    tags: dict[str, str]
    end_us: int
    tokens: tuple[int, int, int, int]
    estimated: bool
    failed: bool
    currency: str
    factor: Decimal
    adjusted: list[Decimal] = field(default_factory=list)

    @property
    def cost(self) -> Decimal:
        if not self.currency:
            return Decimal(0)
        inputs, cached, outputs, reasoning = self.tokens
        amount = (inputs - cached) * RATE["input"] + cached * RATE["cached"]
        amount += (outputs - reasoning) * RATE["output"] + reasoning * RATE["reasoning"]
        return (amount * self.factor / MILLION + Decimal("0.002")).quantize(QUANTUM)

    @property
    def charge(self) -> Decimal:
        return self.cost + sum(self.adjusted)


def made(seed: int, calls: int) -> list[Choice]:
    draw = random.Random(seed)
    rows: list[Choice] = []
    for _ in range(calls):
        end_us = (BEGIN - DAY + draw.randrange(SPAN + 2 * DAY)) * 1_000_000 + draw.randrange(1_000_000)
        if draw.random() < 0.1:
            end_us = (BEGIN + draw.randrange(5) * DAY) * 1_000_000  # a border itself
        first = request_id(end_us // 1000, draw.randbytes(10), "edge-0")
        first = detached(first) if draw.random() < 0.2 else first
        tenant = draw.choice(["acme", "globex"])
        key = draw.randrange(3)
        common = {
            "tenant": tenant, "project": f"{tenant}-p{key % 2}", "key": f"{tenant}-k{key}",
            "model": draw.choice(["small", "large"]), "user": draw.choice(["", "ada", "bob'; --", "é"]),
            "operation": draw.choice(["chat", "chat", "text_completion", "embeddings", "inference", ""]),
            "priority": draw.choice(["interactive", "background", "batch"]),
            "tags": draw.choice([{}, {"team": "a"}, {"team": "b", "env": "prod"}, {"team": ""}]),
            "currency": draw.choice(["USD", "USD", "EUR", ""]),
        }  # fmt: skip
        for choice in range(draw.choice([1, 1, 1, 3])):
            inputs, outputs = (draw.randrange(5000) if choice == 0 else 0), draw.randrange(3000)
            rows.append(
                Choice(
                    id=choice_id(first, choice), end_us=end_us + choice * draw.choice([1, DAY * 1_000_000]),
                    tokens=(inputs, draw.randrange(inputs + 1), outputs, draw.randrange(outputs + 1)),
                    estimated=draw.random() < 0.2, failed=draw.random() < 0.1,
                    factor=Decimal("0.5") if common["priority"] == "batch" else Decimal(1), **common,
                )
            )  # fmt: skip
            if common["currency"] and draw.random() < 0.1:
                rows[-1].adjusted = [Decimal("-0.000000000123"), Decimal("0.01")][: draw.choice([1, 2])]
    return rows


async def put(store: Store, rows: Sequence[Choice]) -> None:
    for table, lines in (
        ("requests", [line for row in rows for line in _requests(row)]),
        ("adjustments", [line for row in rows for line in _adjustments(row)]),
    ):
        if lines:
            client = await store._connected()
            await client.raw_insert(table, insert_block="\n".join(map(json.dumps, lines)), fmt="JSONEachRow")


def _requests(row: Choice) -> Iterable[dict[str, Any]]:
    inputs, cached, outputs, reasoning = row.tokens
    last = {
        "request_id": uuid_text(row.id), "tenant_id": row.tenant, "project_id": row.project, "key_id": row.key,
        "model": row.model, "revision": "r1", "engine": "synthetic", "worker": f"worker-{row.key[-1]}", "attempt": 2,
        "operation": row.operation, "priority_class": row.priority, "end_user": row.user, "tags": row.tags,
        "accepted_time": _time(row.end_us - 3_000_000), "end_time": _time(row.end_us), "input_tokens": inputs,
        "cached_input_tokens": cached, "output_tokens": outputs, "reasoning_tokens": reasoning,
        "queue_us": 1_000_000, "e2e_us": 3_000_000, "energy_j": 2.5, "estimated": row.estimated,
        "finish_reason": "error" if row.failed else "stop", "cost": str(row.cost), "currency": row.currency,
        "rate_version": "v1" if row.currency else "", "input_per_million": str(RATE["input"]),
        "cached_input_per_million": str(RATE["cached"]), "output_per_million": str(RATE["output"]),
        "reasoning_per_million": str(RATE["reasoning"]), "factor": str(row.factor), "per_call": "0.002",
    }  # fmt: skip
    yield last
    if row.id[8] % 3 == 0:  # a Close of an attempt before, which does not count
        yield {**last, "attempt": 1, "output_tokens": 9, "cost": "99"}


def _adjustments(row: Choice) -> Iterable[dict[str, Any]]:
    for number, delta in enumerate(row.adjusted, start=1):
        yield {
            "request_id": uuid_text(row.id), "number": number, "tenant_id": row.tenant, "project_id": row.project,
            "key_id": row.key, "model": row.model, "revision": "r1", "end_time": _time(row.end_us),
            "delta": str(delta), "currency": row.currency, "from_rate_version": "v1", "to_rate_version": "v2",
            "rerate_id": "one", "created_time": _time(row.end_us), "reason": "test",
        }  # fmt: skip


def _time(unix_us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=unix_us)).strftime("%Y-%m-%d %H:%M:%S.%f")


ROWS = made(7, 250)


@pytest.fixture(scope="module")
async def filled(clickhouse, make):
    async with make.fresh_database(clickhouse) as store:
        await put(store, ROWS)
        yield store


# --- the model --------------------------------------------------------------------------------------------------------

_VALUES: dict[int, Callable[[Choice], Any]] = {
    Dimension.DIMENSION_TENANT: lambda row: row.tenant,
    Dimension.DIMENSION_PROJECT: lambda row: row.project,
    Dimension.DIMENSION_KEY: lambda row: row.key,
    Dimension.DIMENSION_MODEL: lambda row: row.model,
    Dimension.DIMENSION_REVISION: lambda row: "r1",
    Dimension.DIMENSION_OPERATION: lambda row: row.operation,
    Dimension.DIMENSION_PRIORITY_CLASS: lambda row: row.priority,
    Dimension.DIMENSION_END_USER: lambda row: row.user,
    Dimension.DIMENSION_TAGS: lambda row: tuple(sorted(row.tags.items())),
}


def shown(group: UsageGroup, dimension: int) -> Any:
    """A dimension's value in a group, as the model says it."""
    names = {1: "tenant_id", 2: "project_id", 3: "key_id", 4: "model", 5: "revision", 8: "end_user"}
    if dimension == Dimension.DIMENSION_OPERATION:
        return "" if not group.operation else Operation.Name(group.operation).removeprefix("OPERATION_").lower()
    if dimension == Dimension.DIMENSION_PRIORITY_CLASS:
        return PriorityClass.Name(group.priority_class).removeprefix("PRIORITY_CLASS_").lower()
    if dimension == Dimension.DIMENSION_TAGS:
        return tuple(sorted(group.tags.items()))
    return getattr(group, names[dimension])


def bucket_of(asked: Question, end_us: int) -> int:
    at = datetime.fromtimestamp(end_us // 1_000_000, UTC)
    if asked.width == BucketWidth.BUCKET_WIDTH_UNSPECIFIED:
        return asked.start_us // 1_000_000
    if asked.width == BucketWidth.BUCKET_WIDTH_MONTH:
        return int(at.replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp())
    seconds = {BucketWidth.BUCKET_WIDTH_MINUTE: 60, BucketWidth.BUCKET_WIDTH_HOUR: 3600}.get(asked.width, DAY)
    return end_us // 1_000_000 // seconds * seconds


def covered(asked: Question) -> list[Choice]:
    only = asked.filter
    operations = {Operation.Name(one).removeprefix("OPERATION_").lower() for one in only.operations}
    operations = {"" if one == "unspecified" else one for one in operations}
    return [
        row for row in ROWS
        if asked.start_us <= row.end_us < asked.end_us
        and (not only.tenant_id or row.tenant == only.tenant_id)
        and (not only.project_ids or row.project in only.project_ids)
        and (not only.key_ids or row.key in only.key_ids)
        and (not only.models or row.model in only.models)
        and (not only.end_users or row.user in only.end_users)
        and (not operations or row.operation in operations)
        and (not only.HasField("batch") or (row.priority == "batch") == only.batch)
        and only.tags.items() <= row.tags.items()
    ]  # fmt: skip


def keyed(asked: Question, row: Choice) -> tuple[Any, ...]:
    return (bucket_of(asked, row.end_us), *(_VALUES[one](row) for one in asked.dimensions), row.estimated)


_some = st.lists(st.sampled_from(["acme-p0", "acme-p1", "globex-p0", "nothing"]), max_size=2)
filters = st.builds(
    UsageFilter,
    tenant_id=st.sampled_from(["", "acme", "globex", "nobody"]),
    project_ids=_some,
    key_ids=st.lists(st.sampled_from(["acme-k0", "globex-k2"]), max_size=2),
    models=st.sampled_from([[], ["small"], ["small", "it's none"]]),
    operations=st.lists(st.sampled_from(Operation.values()), max_size=2),
    batch=st.sampled_from([None, True, False]),
    end_users=st.sampled_from([[], ["bob'; --"], ["ada", ""]]),
    tags=st.sampled_from([{}, {"team": "a"}, {"team": "b", "env": "prod"}, {"team": ""}]),
)
_moments = st.one_of(
    st.integers(BEGIN * 1_000_000, (BEGIN + SPAN) * 1_000_000),
    st.integers(-1, 5).map(lambda day: (BEGIN + day * DAY) * 1_000_000),
)
_widths = st.sampled_from([one for one in BucketWidth.values() if one != BucketWidth.BUCKET_WIDTH_MINUTE])
questions = st.builds(
    lambda moments, width, dimensions, only: Question(min(moments), max(moments) + 1, width, tuple(dimensions), only),
    st.tuples(_moments, _moments),
    _widths,
    st.lists(st.sampled_from(ALL_DIMENSIONS), unique=True, max_size=4),
    st.one_of(st.just(UsageFilter()), filters),
)
# A tag with nothing in it is no absent tag.
of_empty_tag = Question(
    BEGIN * 1_000_000, (BEGIN + SPAN) * 1_000_000, BucketWidth.BUCKET_WIDTH_DAY, (), UsageFilter(tags={"team": ""})
)
asking = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


# --- usage and costs --------------------------------------------------------------------------------------------------


@asking
@example(asked=of_empty_tag)
@given(asked=questions)
async def test_usage_is_the_sum_of_the_rows(filled: Store, asked: Question) -> None:
    wanted: dict[Any, list[int]] = defaultdict(lambda: [0] * 7)
    for row in covered(asked):
        first = row.id[15] & 0x7F == 0
        for at, value in enumerate((int(first), 1, int(row.failed), *row.tokens)):
            wanted[keyed(asked, row)][at] += value
    answer = await usage.usage(filled, asked)
    found = {}
    for one in answer.rows:
        values = (shown(one.group, dimension) for dimension in asked.dimensions)
        found[(one.bucket_time.seconds, *values, one.estimated)] = [
            one.requests, one.choices, one.errors, one.input_tokens, one.cached_input_tokens, one.output_tokens,
            one.reasoning_tokens,
        ]  # fmt: skip
    assert len(found) == len(answer.rows)
    assert found == wanted


@asking
@given(asked=questions)
async def test_costs_are_the_sum_of_the_charges_and_line_items_are_the_costs(filled: Store, asked: Question) -> None:
    wanted: dict[Any, Decimal] = defaultdict(Decimal)
    for row in covered(asked):
        if row.currency:
            wanted[(*keyed(asked, row), row.currency)] += row.charge

    def key(one: Any) -> tuple[Any, ...]:
        values = (shown(one.group, dimension) for dimension in asked.dimensions)
        return (one.bucket_time.seconds, *values, one.estimated, one.currency)

    answer = await usage.costs(filled, asked)
    assert {key(one): Decimal(one.amount) for one in answer.rows} == wanted
    assert len(answer.rows) == len(wanted)
    split: dict[Any, Decimal] = defaultdict(Decimal)
    names = set()
    lines = (await usage.costs_by_line_item(filled, asked, PriceBook.of([]))).rows
    for one in lines:
        split[key(one)] += Decimal(one.amount)
        names.add((key(one), one.line_item))
        assert one.HasField("quantity") == one.line_item.endswith("_tokens")
    assert split == wanted
    assert len(names) == len(lines)


TIERS = ((20_000, Fraction(9, 10)), (60_000, Fraction(1, 3)))
TIERED = PriceBook.of(
    [
        PriceRecord(
            rate_version="v1", currency="USD", input_per_million="1",
            tiers=[
                PriceTier(above_tokens=20_000, factor="0.9"), PriceTier(above_tokens=60_000, factor="0.333333333333"),
            ],
        ),
        PriceRecord(rate_version="v2", currency="USD", input_per_million="1"),
    ]
)  # fmt: skip


def month_of(row: Choice) -> str:
    return f"{datetime.fromtimestamp(row.end_us // 1_000_000, UTC):%Y-%m}"


def off(row: Choice) -> Fraction:
    """What the row's month takes off its charge: token by token of all that its tenant used of the model."""
    if not row.currency or row.adjusted:  # corrected: charged under v2 by now, which has no tiers
        return Fraction(0)
    same = [
        one for one in ROWS
        if (one.tenant, one.currency, one.model, month_of(one)) == (row.tenant, row.currency, row.model, month_of(row))
    ]  # fmt: skip
    tokens = sum(one.tokens[0] + one.tokens[2] for one in same)
    factors = [Fraction(1), *(factor for _, factor in TIERS)]
    ends = [*(above for above, _ in TIERS), max(tokens, TIERS[-1][0])]
    begins = [0, *(above for above, _ in TIERS)]
    saved = sum(
        (1 - factor) * max(0, min(tokens, end) - begin)
        for factor, begin, end in zip(factors, begins, ends, strict=True)
    )
    return Fraction(row.charge) * saved / tokens if tokens else Fraction(0)


OFF = [off(row) for row in ROWS]


@asking
@given(asked=questions)
async def test_each_part_of_the_charges_has_its_share_of_the_months_volume_discount(
    filled: Store, asked: Question
) -> None:
    assert sum(bool(one) for one in OFF) > 20
    by_id = {row.id: one for row, one in zip(ROWS, OFF, strict=True)}
    wanted: dict[Any, Fraction] = defaultdict(Fraction)
    for row in covered(asked):
        wanted[(*keyed(asked, row), row.currency, row.model)] -= by_id[row.id]
    found: dict[Any, Decimal] = {}
    with_tiers = (await usage.costs_by_line_item(filled, asked, TIERED)).rows
    for one in with_tiers:
        model, kind = one.line_item.split(", ")
        if kind == "volume_discount":
            values = (shown(one.group, dimension) for dimension in asked.dimensions)
            key = (one.bucket_time.seconds, *values, one.estimated, one.currency, model)
            assert key not in found
            assert Decimal(one.amount) < 0
            found[key] = Decimal(one.amount)
    for key in wanted.keys() | found.keys():
        # Rounded to 12 decimals by tenant, project and month; a third is no decimal.
        assert abs(Fraction(found.get(key, Decimal(0))) - wanted[key]) < Fraction(1, 10**10)
    without = (await usage.costs_by_line_item(filled, asked, PriceBook.of([]))).rows
    assert [one for one in with_tiers if not one.line_item.endswith("volume_discount")] == list(without)


amounts = st.decimals(0, 1000, places=6)


@given(
    st.lists(
        st.builds(
            Charged, st.sampled_from(["a", "b"]), amounts, amounts, amounts, amounts,
            st.sampled_from([Decimal(1), Decimal("0.5"), Decimal("0.333333333333")]), st.integers(0, 10**9),
            st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9),
            st.decimals(0, 10**9, places=12), st.decimals(-1000, 1000, places=12),
        ),
        max_size=5,
    )
)  # fmt: skip
def test_line_items_add_up_to_the_charges_exactly(charges: list[Charged]) -> None:
    lines = line_items(charges)
    assert sum(line.amount for line in lines) == sum(one.charge for one in charges)
    assert len({line.name for line in lines}) == len(lines)
    assert sum(line.quantity or 0 for line in lines) == sum(
        one.fresh + one.cached + one.spoken + one.reasoning for one in charges
    )


def test_a_line_item_is_its_tokens_at_their_rate() -> None:
    one = Charged(
        "m", *(RATE[name] for name in ("input", "cached", "output", "reasoning")), Decimal("0.5"),
        1_000_000, 2_000_000, 3_000_000, 0, Decimal("2.05"), Decimal("0.05"),
    )  # fmt: skip
    assert [(line.name, line.amount, line.quantity) for line in line_items([one])] == [
        ("m, input_tokens", Decimal("0.075"), 1_000_000), ("m, cached_input_tokens", Decimal("0.075"), 2_000_000),
        ("m, output_tokens", Decimal("0.9"), 3_000_000), ("m, calls", Decimal("0.95"), None),
        ("m, corrections", Decimal("0.05"), None),
    ]  # fmt: skip


# --- export -----------------------------------------------------------------------------------------------------------


def whole(width: Any = BucketWidth.BUCKET_WIDTH_DAY, **only: Any) -> Question:
    return Question((BEGIN - 9 * DAY) * 1_000_000, (BEGIN + 9 * DAY) * 1_000_000, width, (), UsageFilter(**only))


async def exported(store: Store, asked: Question, fmt: str) -> bytes:
    return b"".join([part async for part in usage.export(store, asked, fmt)])


async def test_an_export_has_every_charge_once(filled: Store) -> None:
    lines = list(csv.DictReader(io.StringIO((await exported(filled, whole(), "CSVWithNames")).decode())))
    assert sum(Decimal(line["charge"]) for line in lines) == sum(row.charge for row in ROWS)
    assert sum(int(line["choices"]) for line in lines) == len(ROWS)
    assert sum(int(line["output_tokens"]) for line in lines) == sum(row.tokens[2] for row in ROWS)
    assert {line["bucket_time"][10:] for line in lines} == {"T00:00:00Z"}
    as_json = [json.loads(line) for line in (await exported(filled, whole(), "JSONEachRow")).splitlines()]
    assert [line["charge_rate_version"] for line in as_json] == [line["charge_rate_version"] for line in lines]
    acme = await exported(filled, whole(tenant_id="acme"), "CSVWithNames")
    assert b"globex" not in acme
    assert acme.count(b"\n") == 1 + sum(line["tenant_id"] == "acme" for line in lines)


@pytest.mark.parametrize("fmt", ["CSVWithNames", "Parquet", "JSONEachRow"])
async def test_the_same_rows_in_another_order_and_other_parts_are_the_same_bytes(
    filled: Store, clickhouse: Any, make: Any, fmt: str
) -> None:
    shuffled = list(ROWS)
    random.Random(1).shuffle(shuffled)
    async with make.fresh_database(clickhouse) as store:
        for at in range(0, len(shuffled), 100):
            await put(store, shuffled[at : at + 100])
        assert await exported(store, whole(), fmt) == await exported(filled, whole(), fmt)


async def test_what_a_client_named_like_a_formula_is_text_in_a_spreadsheet(store: Store) -> None:
    named = ["=HYPERLINK(1)", "+1", "-1+1", "@SUM(1)", "\tx", "plain", "a=b"]
    rows = [
        Choice(**{**vars(ROWS[0]), "id": uuid.UUID(int=number << 64).bytes, "user": name})
        for number, name in enumerate(named)
    ]
    await put(store, rows)
    lines = csv.DictReader(io.StringIO((await exported(store, whole(), "CSVWithNames")).decode()))
    told = {line["end_user"] for line in lines}
    assert told == {"'=HYPERLINK(1)", "'+1", "'-1+1", "'@SUM(1)", "'\tx", "plain", "a=b"}
    as_json = (await exported(store, whole(), "JSONEachRow")).splitlines()
    assert {json.loads(line)["end_user"] for line in as_json} == set(named)


async def test_a_file_that_breaks_is_never_taken_for_whole(filled: Store) -> None:
    with pytest.raises(STORE_ERRORS):
        async for _ in filled.stream("SELECT throwIf(number = 3000000) FROM numbers(5000000)", {}, "CSV"):
            pass
    assert await filled.rows("SELECT 1") == [(1,)]


async def test_more_than_an_answer_holds_is_refused(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_ROWS", 3)
    with pytest.raises(InferBusError) as refused:
        await usage.usage(filled, whole())
    assert refused.value.reason == "too_many_rows"


# --- margin -----------------------------------------------------------------------------------------------------------


async def test_a_worker_is_busy_while_it_has_a_request_and_not_twice(store: Store) -> None:
    """Two requests of 2 s each in the engine, 1 s apart: 3 s. And one more of another model."""
    first = ROWS[0]
    at = BEGIN * 1_000_000
    rows = [
        Choice(**{**vars(first), "id": uuid.UUID(int=number << 64).bytes, "end_us": at + number * 1_000_000,
                  "key": "k1", "model": model, "currency": "USD", "tokens": (10, 0, 5, 0), "adjusted": []})
        for number, model in ((1, "m"), (2, "m"), (3, "n"))
    ]  # fmt: skip
    await put(store, rows)
    prices = OperatingPrices(Decimal(2), Decimal("0.3"), "USD", 4)
    answer = await usage.margin(store, at, at + 9_000_000, prices)
    m, n = answer.rows
    assert (m.model, m.worker, m.choices, n.choices) == ("m", "worker-1", 2, 1)
    assert m.busy.ToMicroseconds() == 3_000_000
    assert n.busy.ToMicroseconds() == 2_000_000
    assert Decimal(m.gpu_cost) == (Decimal(3 * 4 * 2) / 3600).quantize(QUANTUM)
    assert (m.energy_joules, m.measured_choices) == (5.0, 2)
    assert Decimal(m.energy_cost) == (Decimal("1.5") / 3_600_000).quantize(QUANTUM)
    revenue = sum(row.charge for row in rows[:2])
    assert [(one.currency, Decimal(one.value)) for one in m.revenue] == [("USD", revenue)]
    assert Decimal(m.margin) == revenue - Decimal(m.gpu_cost) - Decimal(m.energy_cost)
    unknown = (await usage.margin(store, at, at + 9_000_000, OperatingPrices(None, None, "USD", 1))).rows[0]
    assert (unknown.gpu_cost, unknown.energy_cost, unknown.margin) == ("", "", "")


async def test_a_workers_estimated_tokens_are_in_no_sum_of_its_counted_ones(store: Store) -> None:
    at = BEGIN * 1_000_000
    rows = [
        Choice(**{**vars(ROWS[0]), "id": uuid.UUID(int=number << 64).bytes, "end_us": at + number * 1_000_000,
                  "key": "k1", "model": "m", "estimated": number == 2, "tokens": (10 * number, 0, number, 0)})
        for number in (1, 2, 3)
    ]  # fmt: skip
    await put(store, rows)
    (row,) = (await usage.margin(store, at, at + 9_000_000, OperatingPrices(None, None, "USD", 1))).rows
    assert (row.choices, row.input_tokens, row.output_tokens) == (3, 40, 4)
    assert (row.estimated_input_tokens, row.estimated_output_tokens) == (20, 2)
    assert row.busy.ToMicroseconds() == 4_000_000  # of all of them: a worker's time is not divided


async def test_a_filter_may_name_as_much_as_a_tenant_has(filled: Store) -> None:
    """2,000 keys, as many as a tenant may have, and 100 names of each other kind."""
    many = {name: [f"{name}-{number:060}" for number in range(100)] for name in ("project_ids", "models", "end_users")}
    keys = [f"key-{number:020}" for number in range(1999)]
    answer = await usage.usage(filled, whole(key_ids=["acme-k0", *keys]))
    assert sum(row.choices for row in answer.rows) == sum(row.key == "acme-k0" for row in ROWS)
    assert not (await usage.costs(filled, whole(key_ids=keys, **many))).rows
