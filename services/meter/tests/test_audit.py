"""The audit's judgement, as a function: it is quiet exactly if everything agrees."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_meter.core.audit import Bill, Delivery, End, Stored, Tally, compare
from inferbus_meter.core.audit_corrections import Adjustment, Charged, correction_faults
from inferbus_meter.core.audit_rates import rate_fault
from inferbus_meter.core.frames import ClosedRequest
from inferbus_meter.core.laws import Run
from inferbus_rating import PriceBook

REQUEST = bytes(16)


def agreeing(first: int, second: int) -> tuple[Tally, Stored, Bill]:
    """A request of two attempts that resumed where the first had ended."""
    runs = [run for run in (Run(1, 0, first), Run(2, first, second)) if run.count]
    tokens = first + second
    tally = Tally(runs, tokens, [End(2, Usage(output_tokens=tokens), 9)])
    return tally, Stored(tokens, tokens), Bill(1, 2, tokens, 9)


def reasons(tally: Tally, stored: Stored | None, bill: Bill | None, later: range = range(0)) -> list[str]:
    return [difference.reason for difference in compare(REQUEST, tally, stored, bill, None, later)]


counts = st.integers(0, 1000)


@given(counts, counts)
def test_what_agrees_has_no_difference(first: int, second: int) -> None:
    assert reasons(*agreeing(first, second)) == []
    tally, stored, _ = agreeing(first, second)
    tally.ends.clear()
    assert reasons(tally, stored, None) == []  # still running


@given(st.integers(1, 1000), counts, st.integers(1, 1000), st.booleans())
def test_any_count_that_is_off_is_named(first: int, second: int, off: int, more: bool) -> None:
    tally, stored, bill = agreeing(first, second)
    by = off if more else -off
    assert reasons(tally, replace(stored, rows=stored.rows + by), bill) == ["duplicate_row" if more else "missing_row"]
    assert reasons(replace(tally, unlike=frozenset({"token_id"})), stored, bill) == ["missing_row"]
    assert reasons(replace(tally, unlike=frozenset({"gap_us"})), stored, bill) == ["column"]
    assert reasons(tally, replace(stored, valid=stored.valid + by), bill) == ["output_tokens"]
    assert reasons(tally, stored, replace(bill, output_tokens=bill.output_tokens + by)) == ["output_tokens"]
    assert reasons(tally, stored, replace(bill, sequence=9 + by)) == ["column"]
    assert reasons(tally, stored, replace(bill, sequence=9 + off), range(10, 10 + off)) == []
    assert reasons(tally, None, bill) == ["missing_row"]
    assert reasons(tally, stored, None) == ["missing_row"]
    assert reasons(tally, stored, replace(bill, rows=1 + off)) == ["duplicate_row"]


def test_a_close_after_the_range_that_replaced_the_row_is_no_difference() -> None:
    tally, stored, bill = agreeing(3, 2)
    assert reasons(tally, stored, replace(bill, attempt=3, output_tokens=99)) == []


@pytest.mark.parametrize(
    ("usage", "expected"), [(Usage(output_tokens=5), []), (Usage(output_tokens=6), ["duplicate_end"])]
)
def test_an_end_said_twice_is_harmless_unless_it_says_something_else(usage: Usage, expected: list[str]) -> None:
    tally, stored, bill = agreeing(3, 2)
    tally.ends.insert(0, replace(tally.ends[0], usage=usage))
    assert reasons(tally, stored, bill) == expected


def test_billed_without_an_end_on_the_stream_is_named() -> None:
    tally, stored, bill = agreeing(3, 2)
    tally.ends.clear()
    assert reasons(tally, stored, bill) == ["unknown_request"]


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), st.booleans())
def test_what_edges_say_may_be_less_than_the_log_but_not_more_and_the_whole_is_all(
    first: int, second: int, delivered: int, whole: bool
) -> None:
    tally, stored, bill = agreeing(first, second)
    tokens = first + second
    delivery = Delivery(delivered, "edge-0", (delivered, delivered) if whole else None)
    found = [one.reason for one in compare(REQUEST, tally, stored, bill, delivery)]
    wrong = delivered > tokens or (whole and delivered != tokens)
    assert found == (["delivered"] if wrong else [])
    tally.ends.clear()  # it may be that not all of it was read yet
    assert compare(REQUEST, tally, stored, None, delivery) == []


def price(version: str, made_us: int, effective_us: int = 0, **fields: str) -> PriceRecord:
    record = PriceRecord(rate_version=version, currency="USD", output_per_million="1", **fields)
    record.create_time.FromMicroseconds(made_us)
    record.effective_time.FromMicroseconds(effective_us)
    return record


HOUR_US = 3_600_000_000
ENDED_US = 100 * HOUR_US


def charged_by(version: str, *records: PriceRecord) -> str:
    """Of a request that was accepted an hour before it ended."""
    close = Close(request_id=REQUEST, attempt=1)
    close.accepted_time.FromMicroseconds(ENDED_US - HOUR_US)
    of = RequestContext(tenant_id="acme", project_id="p", model="m", revision="r")
    return rate_fault(ClosedRequest(close, of, "edge-0", "worker-0", ENDED_US, 9), version, PriceBook.of(records))


def test_a_request_is_charged_by_the_price_that_was_in_force_and_known() -> None:
    base, own = price("base", 1), price("own", 1, tenant_id="acme")
    assert charged_by("base", base) == ""
    assert charged_by("", price("other", 1, model="another")) == ""
    assert "while 'base' was in force" in charged_by("", base)
    assert "while 'own' was in force" in charged_by("base", base, own)
    assert charged_by("own", base, own) == ""
    assert "is not in the price book" in charged_by("gone", base)
    # Not for it: of another tenant, or from a later time on.
    assert "was not in force for it" in charged_by("theirs", price("theirs", 1, tenant_id="umbrella"))
    assert "was not in force for it" in charged_by("next", price("next", 1, effective_us=ENDED_US))
    # Made when it had ended already, or just then: both may be right.
    for made_us in (ENDED_US - 1_000_000, ENDED_US + HOUR_US):
        late = price("late", made_us, effective_us=5)
        assert charged_by("base", base, late) == charged_by("late", base, late) == charged_by("", late) == ""
    assert "while 'late' was in force" in charged_by("base", base, price("late", 1, effective_us=5))


@given(st.lists(st.tuples(st.sampled_from(["v1", "v2", ""]), st.integers(-3, 3)), max_size=5), st.booleans())
def test_corrections_lead_from_one_price_to_the_next(steps: list[tuple[str, int]], removed: bool) -> None:
    """Independent of the code: a price of 1 and one of 2 for each of 1,000,000 tokens; none costs nothing."""
    gives = {"": 0, "v1": 1, "v2": 2}
    records = [price("v1", 1), price("v2", 1)]
    records[1].output_per_million = "2"
    close = Close(request_id=REQUEST, attempt=1, usage=Usage(output_tokens=1_000_000))
    item = ClosedRequest(close, RequestContext(tenant_id="acme"), "edge-0", "worker-0", ENDED_US, 9)
    found, charge, version, wrong = [], Decimal(1), "v1", False
    for number, (to, off) in enumerate(steps, 1):
        delta = gives[to] + off - charge
        wrong |= off != 0
        found.append(Adjustment(number, ("acme", "", "", "", ""), ENDED_US, delta, "USD", version, to))
        charge, version = charge + delta, to
    if removed and len(found) > 1:
        del found[0]
        wrong = True
    charged = Charged(Decimal(1), "USD", "v1")
    assert bool(correction_faults(item, charged, found, PriceBook.of(records))) == wrong
    unknown = [one for one in found if one.to_version]
    assert len(correction_faults(item, charged, unknown, PriceBook.of([]))) >= len(unknown)
