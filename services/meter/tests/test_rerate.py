"""Prices over time and re-rating: as values, and through the real store."""

import asyncio
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass, Usage
from inferbus_meter import rerate
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.rerate import CURRENCY, Change, Charged, correction_of, sum_up, windows
from inferbus_meter.core.rows import request_rows
from inferbus_meter.rerate import RerateRange, Reratings
from inferbus_rating import UNRATED, PriceBook, Scope, cost
from inferbus_runtime.errors import InferBusError

HOUR = 3_600_000_000
NOON = 1_795_003_200_000_000  # 2026-11-18 12:00 UTC
EVERYTHING = RerateRange(NOON - 24 * HOUR, NOON + 24 * HOUR, "")


def price(version: str, per_output: str = "1", since_us: int | None = None, **fields: str) -> PriceRecord:
    given = {"currency": "USD", "input_per_million": "1", "output_per_million": per_output, **fields}
    record = PriceRecord(rate_version=version, **given)  # type: ignore[arg-type]
    if since_us is not None:
        record.effective_time.FromMicroseconds(since_us)
    return record


def book(*records: PriceRecord) -> PriceBook:
    made = PriceBook.of(records)
    assert made.faults == ()
    return made


# --- values ---

charges = st.builds(
    lambda number, inputs, outputs, second, tenant, finish, operation, priority: Charged(
        number.to_bytes(15, "big") + bytes((second,)), Scope(tenant, "p", "m", "r"), "k", operation, priority, finish,
        NOON, NOON, Usage(input_tokens=inputs, output_tokens=outputs), Decimal(0), "", "", 0,
    ),
    st.integers(0, 2**100), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 1),
    st.sampled_from(["acme", "zeta"]), st.sampled_from(["stop", "length", "cancelled", "error"]),
    st.sampled_from(["", "chat", "embeddings"]), st.sampled_from(["", "interactive", "batch"]),
)  # fmt: skip
amounts = st.decimals(min_value=0, max_value=10, places=6).map(str)
prices = st.builds(
    lambda number, currency, tenant, inputs, output, vectors, call, factor, least: price(
        f"v{number}", output, tenant_id=tenant, currency=currency, input_per_million=inputs,
        embedding_per_million=vectors, per_call=call, batch_factor=factor, minimum=least,
    ),
    st.integers(0, 10**6), st.sampled_from(["USD", "USD", "EUR"]), st.sampled_from(["", "acme"]), amounts, amounts,
    st.one_of(st.just(""), amounts), amounts, st.sampled_from(["", "0.5"]), amounts,
)  # fmt: skip
books = st.lists(prices, max_size=3).map(PriceBook.of)


def corrected(charged: Charged, present: PriceBook) -> Charged:
    """As it stands after a run with ``present``."""
    correction = correction_of(charged, present)
    if correction is None or correction.refused:
        return charged
    return replace(
        charged, charge=charged.charge + correction.delta, currency=correction.currency,
        rate_version=correction.to_rate_version, corrections=charged.corrections + 1,
    )  # fmt: skip


@given(charges, st.lists(books, min_size=1, max_size=4))
def test_a_run_makes_a_charge_what_the_book_makes_of_it_and_a_second_run_nothing(
    charged: Charged, over_time: list[PriceBook]
) -> None:
    for present in over_time:
        operation = Operation.Value(f"OPERATION_{charged.operation.upper() or 'UNSPECIFIED'}")
        priority = PriorityClass.Value(f"PRIORITY_CLASS_{charged.priority_class.upper() or 'UNSPECIFIED'}")
        rate = present.rate_at(charged.scope, operation, priority, charged.accepted_us)
        first, answered = charged.request_id[-1] == 0, charged.finish_reason in ("stop", "length")
        wanted = cost(charged.usage, rate, first_choice=first, answered=answered)
        after = corrected(charged, present)
        if rate.currency in ("", charged.currency) or not charged.currency:
            assert after.charge == wanted
        else:
            assert after.charge == charged.charge
        assert corrected(after, present) == after
        charged = after


def test_a_charge_that_stays_the_same_is_left_alone_under_its_name() -> None:
    old, renamed = book(price("v1")), book(price("v2"))
    charged = Charged(bytes(16), Scope("t", "p", "m", ""), "k", "chat", "", "stop", NOON, NOON,
                      Usage(output_tokens=5), Decimal(0), "", "", 0)  # fmt: skip
    assert correction_of(corrected(charged, old), renamed) is None


def test_a_charge_stays_in_its_currency() -> None:
    charged = Charged(bytes(16), Scope("t", "p", "m", ""), "k", "chat", "", "stop", NOON, NOON,
                      Usage(output_tokens=5), Decimal("0.5"), "USD", "v1", 0)  # fmt: skip
    refused = correction_of(charged, book(price("v2", currency="EUR")))
    assert refused is not None
    assert refused.refused == CURRENCY
    gone = correction_of(charged, book())
    assert gone is not None
    assert (gone.delta, gone.currency, gone.to_rate_version) == (Decimal("-0.5"), "USD", UNRATED.version)


@given(st.lists(charges, max_size=20), books)
def test_the_sums_shown_are_those_of_the_corrections(all_of_them: list[Charged], present: PriceBook) -> None:
    found = [one for one in (correction_of(charged, present) for charged in all_of_them) if one is not None]
    changes: dict[tuple[str, str, str, str, str, str], Change] = {}
    sum_up(changes, found)
    assert sum(change.requests for change in changes.values()) == len(found)
    for key, change in changes.items():
        alike = [c for c in found
                 if key == (c.of.scope.tenant_id, c.of.scope.model, c.of.rate_version, c.to_rate_version,
                            c.currency, c.refused)]  # fmt: skip
        assert Fraction(change.to_charge) - Fraction(change.from_charge) == sum(Fraction(c.delta) for c in alike)


@given(
    st.dictionaries(st.integers(0, 30), st.integers(1, 50), max_size=12), st.integers(0, HOUR), st.integers(1, HOUR),
    st.integers(1, 60),
)  # fmt: skip
def test_parts_of_a_range_cover_every_hour_with_requests_once(
    hours: dict[int, int], before: int, after: int, most: int
) -> None:
    by_hour = {hour * HOUR: count for hour, count in hours.items()}
    first, last = min(by_hour, default=0), max(by_hour, default=0)
    start, end = first + before % HOUR, last + after if last > first else last + HOUR
    parts = windows(by_hour, start, end, most)
    assert parts == sorted(parts)
    assert all(begin < stop for begin, stop in parts)
    assert all(one[1] <= other[0] for one, other in pairwise(parts))
    for hour in by_hour:
        moments = [at for at in (max(start, hour), min(end, hour + HOUR) - 1) if start <= at < end]
        assert all(sum(begin <= at < stop for begin, stop in parts) == 1 for at in moments)
    for begin, stop in parts:
        inside = [count for hour, count in by_hour.items() if begin <= hour < stop]
        assert len(inside) <= 1 or sum(inside) <= most


# --- the store ---


async def ended(store: Store, make, moments: list[int], prices_then: PriceBook, **fields: object) -> list[bytes]:
    """Requests that were accepted at these moments, charged by the book; 10 tokens of input, 100 of output."""
    gather, ids = FrameGather(bordered=False), []
    for sequence, moment in enumerate(moments, start=1):
        request = make.request_id(moment)[:15] + b"\0"
        frame = make.close(Frame(time_us=moment + 900_000), request, 100, **fields)
        frame.closes[0].accepted_time.FromMicroseconds(moment)
        gather.add(sequence, frame.time_us, frame.SerializeToString())
        ids.append(request)
    await store.insert("requests", request_rows(gather.finish(), prices_then).data, ids[0].hex())
    return ids


async def run(store: Store, present: PriceBook, *, apply: bool, wanted: RerateRange = EVERYTHING):
    """(changes, summary)."""
    events = [event async for event in Reratings(store).run(wanted, present, apply=apply, reason="test")]
    return [event.change for event in events if event.HasField("change")], events[-1].summary


async def total(store: Store) -> list[tuple[str, int, Decimal]]:
    return [
        tuple(row)
        for row in await store.rows(
            "SELECT charge_rate_version, count(), sum(charge) FROM charges GROUP BY 1 ORDER BY 1"
        )
    ]


async def test_a_price_change_at_noon_splits_the_day_by_when_requests_were_accepted(store: Store, make) -> None:
    present = book(price("morning", "1"), price("afternoon", "2", NOON))
    await ended(store, make, [NOON - 6 * HOUR, NOON - 1, NOON, NOON + 6 * HOUR, NOON + 7 * HOUR], present)
    # The one accepted a microsecond before noon ended after it.
    assert await total(store) == [("afternoon", 3, Decimal("0.000630")), ("morning", 2, Decimal("0.000220"))]


async def test_a_row_says_all_that_its_charge_was_computed_with(store: Store, make) -> None:
    dear = price("v", "2", reasoning_per_million="3", per_call="0.1", minimum="0.2", batch_factor="0.5")
    await ended(store, make, [NOON], book(dear))
    [row] = await store.rows(
        "SELECT reasoning_per_million, per_call, minimum, factor, charge, adjusted, adjustments FROM charges"
    )
    assert tuple(row) == (3, Decimal("0.1"), Decimal("0.2"), 1, Decimal("0.2"), 0, 0)


async def test_every_charge_follows_from_its_row_alone(store: Store, make) -> None:
    """Of requests of all kinds, worked out in fractions from what the row says."""
    rare = price("v", "2.25", cached_input_per_million="0.5", reasoning_per_million="3", per_call="0.0001",
                 minimum="0.0002", batch_factor="0.5", embedding_per_million="0.1")  # fmt: skip
    gather = FrameGather(bordered=False)
    kinds = product(range(2), range(1, 5), (0, 7, 400), (Operation.OPERATION_CHAT, Operation.OPERATION_EMBEDDINGS),
                    (PriorityClass.PRIORITY_CLASS_INTERACTIVE, PriorityClass.PRIORITY_CLASS_BATCH))  # fmt: skip
    for number, (choice, finish, tokens, operation, priority) in enumerate(kinds, start=1):
        request = make.request_id(NOON)[:15] + bytes((choice,))
        frame = make.close(Frame(time_us=NOON), request, tokens, finish=finish, input_tokens=tokens and 20)
        frame.closes[0].operation, frame.closes[0].priority_class = operation, priority
        usage = frame.closes[0].usage
        usage.reasoning_tokens, usage.cached_input_tokens = tokens // 3, 4 if tokens else 0
        gather.add(number, NOON, frame.SerializeToString())
    await store.insert("requests", request_rows(gather.finish(), book(rare)).data, "all kinds")
    rows = await store.rows(
        "SELECT input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, input_per_million, "
        "cached_input_per_million, output_per_million, reasoning_per_million, per_call, minimum, factor, "
        "finish_reason, bitAnd(toUInt128(request_id), 127) = 0, operation, priority_class, charge FROM charges"
    )
    assert len(rows) == 2 * 4 * 3 * 2 * 2
    for *numbers, finish, first, operation, priority, charge in rows:
        inputs, cached, outputs, reasoning, p_input, p_cached, p_output, p_reasoning, call, least, factor = map(
            Fraction, numbers
        )
        assert p_input == (Fraction("0.1") if operation == "embeddings" else 1)
        assert factor == (Fraction("0.5") if priority == "batch" else 1)
        answered = finish in ("stop", "length")
        tokens = (inputs - cached) * p_input + cached * p_cached
        tokens += (outputs - reasoning) * p_output + reasoning * p_reasoning
        exact = factor * (tokens / 10**6 + (call if first and answered else 0))
        if first and (answered or inputs or outputs):
            exact = max(exact, least)
        assert Fraction(charge) == Fraction(round(exact * 10**12), 10**12)


async def test_rows_of_before_were_charged_without_what_came_later(store: Store) -> None:
    await store.command(
        "INSERT INTO requests (request_id, tenant_id, end_time, output_per_million) "
        "VALUES (generateUUIDv7(), 'old', now(), 1.5)"
    )
    shown = await store.rows("SELECT reasoning_per_million, per_call, minimum, factor, adjusted FROM charges")
    assert shown == [(Decimal("1.5"), 0, 0, 1, 0)]


async def test_a_dry_run_shows_the_difference_and_writes_nothing(store: Store, make) -> None:
    await ended(store, make, [NOON - HOUR, NOON], book(price("v1")))
    changes, summary = await run(store, book(price("v1"), price("v2", "3", NOON)), apply=False)
    assert [(c.tenant_id, c.model, c.from_rate_version, c.to_rate_version, c.currency, c.requests, c.from_charge,
             c.to_charge, c.delta) for c in changes] == [
        ("acme", "synthetic", "v1", "v2", "USD", 1, "0.00011", "0.00031", "0.0002")
    ]  # fmt: skip
    assert (summary.requests, summary.changed_requests, summary.applied, summary.rerate_id) == (2, 1, False, "")
    assert await store.rows("SELECT count() FROM adjustments") == [(0,)]


async def test_applied_it_is_right_and_applied_again_nothing_is_added(store: Store, make) -> None:
    await ended(store, make, [NOON - HOUR, NOON], book(price("v1")))
    cheaper = book(price("v1"), price("v2", "0.5", NOON))
    for again in range(3):
        changes, summary = await run(store, cheaper, apply=True)
        assert (len(changes), summary.changed_requests) == ((0, 0) if again else (1, 1))
        assert await total(store) == [("v1", 1, Decimal("0.000110")), ("v2", 1, Decimal("0.000060"))]
    await run(store, book(price("v1")), apply=True)  # and back
    assert await total(store) == [("v1", 2, Decimal("0.000220"))]
    assert await store.rows("SELECT sum(delta), count() FROM adjustments FINAL") == [(0, 2)]
    assert await store.rows("SELECT sum(cost) FROM usage_by_day") == [(Decimal("0.000220"),)]


async def test_two_runs_at_once_count_once(store: Store, make) -> None:
    await ended(store, make, [NOON + at for at in range(50)], book(price("v1")))
    dearer = book(price("v2", "2"))
    await asyncio.gather(*(run(store, dearer, apply=True) for _ in range(3)))
    assert await total(store) == [("v2", 50, 50 * Decimal("0.000210"))]
    assert (await run(store, dearer, apply=True))[1].changed_requests == 0


async def test_one_that_was_cut_off_is_simply_run_again(store: Store, make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rerate, "_REQUESTS_A_PART", 4)
    await ended(store, make, [NOON + at * HOUR // 4 for at in range(20)], book(price("v1")))
    dearer = book(price("v2", "2"))
    reratings = Reratings(store)
    events = reratings.run(EVERYTHING, dearer, apply=True, reason="test")
    await anext(events)
    with pytest.raises(InferBusError, match="rerate_running"):
        await anext(reratings.run(EVERYTHING, dearer, apply=True, reason="test"))
    await events.aclose()
    halfway = {version: count for version, count, _ in await total(store)}
    assert 0 < halfway["v2"] < 20
    assert (await run(store, dearer, apply=True))[1].changed_requests == 20 - halfway["v2"]
    assert await total(store) == [("v2", 20, 20 * Decimal("0.000210"))]


async def test_what_had_no_price_gets_one_and_its_currency(store: Store, make) -> None:
    await ended(store, make, [NOON], book())
    assert (await run(store, book(price("v1")), apply=True))[1].changed_requests == 1
    assert await store.rows("SELECT currency, cost, charge, rate_version, charge_rate_version FROM charges") == [
        ("USD", 0, Decimal("0.000110"), "", "v1")
    ]
    _, summary = await run(store, book(price("v2", currency="EUR")), apply=True)
    assert (summary.changed_requests, summary.refused_requests) == (0, 1)


async def test_only_the_range_and_the_tenant_that_were_asked_for(store: Store, make) -> None:
    for tenant in ("acme", "zeta"):
        await ended(store, make, [NOON - 20 * HOUR, NOON], book(price("v1")), of=make.context(tenant))
    wanted = RerateRange(NOON, NOON + HOUR, "zeta")
    _, summary = await run(store, book(price("v2", "2")), apply=True, wanted=wanted)
    assert (summary.requests, summary.changed_requests) == (1, 1)
    assert await store.rows("SELECT tenant_id, sum(adjusted) > 0 FROM charges GROUP BY 1 ORDER BY 1") == [
        ("acme", False), ("zeta", True),
    ]  # fmt: skip
