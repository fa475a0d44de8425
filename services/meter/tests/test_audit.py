"""The audit's judgement, as a function: it is quiet exactly if everything agrees."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_meter.core.audit import Bill, End, Stored, Tally, compare
from inferbus_meter.core.laws import Run
from inferbus_meter.core.rating import Rate, cost

REQUEST = bytes(16)
RATE = Rate("v1", "USD", Decimal("0.15"), Decimal("0.15"), Decimal("0.6"))
BOOK = {"m": RATE}


def agreeing(first: int, second: int, inputs: int = 7) -> tuple[Tally, Stored, Bill]:
    """A request of two attempts that resumed where the first had ended."""
    runs = [run for run in (Run(1, 0, first), Run(2, first, second)) if run.count]
    tokens = first + second
    usage = Usage(input_tokens=inputs, output_tokens=tokens)
    tally = Tally(runs, tokens, 12345, [End(2, "m", usage, 9)])
    return tally, Stored(tokens, 12345, tokens), Bill(1, 2, tokens, cost(usage, RATE), RATE)


def reasons(tally: Tally, stored: Stored | None, bill: Bill | None, book: dict[str, Rate] = BOOK) -> list[str]:
    return [difference.reason for difference in compare(REQUEST, tally, stored, bill, book)]


counts = st.integers(0, 1000)


@given(counts, counts, counts)
def test_what_agrees_has_no_difference(first: int, second: int, inputs: int) -> None:
    assert reasons(*agreeing(first, second, inputs)) == []
    tally, stored, _ = agreeing(first, second)
    tally.ends.clear()
    assert reasons(tally, stored, None) == []  # still running


@given(st.integers(1, 1000), counts, st.integers(1, 1000), st.booleans())
def test_any_count_that_is_off_is_named(first: int, second: int, off: int, more: bool) -> None:
    tally, stored, bill = agreeing(first, second)
    by = off if more else -off
    assert reasons(tally, replace(stored, rows=stored.rows + by), bill) == ["duplicate_row" if more else "missing_row"]
    assert reasons(tally, replace(stored, checksum=stored.checksum + by), bill) == ["missing_row"]
    assert reasons(tally, replace(stored, valid=stored.valid + by), bill) == ["output_tokens"]
    assert reasons(tally, stored, replace(bill, output_tokens=bill.output_tokens + by)) == ["output_tokens"]
    assert reasons(tally, stored, replace(bill, cost=bill.cost + by)) == ["cost"]
    assert reasons(tally, None, bill) == ["missing_row"]
    assert reasons(tally, stored, None) == ["missing_row"]
    assert reasons(tally, stored, replace(bill, rows=1 + off)) == ["duplicate_row"]


def test_a_rate_changed_under_its_version_is_named_and_a_new_version_is_not() -> None:
    dearer = replace(RATE, output_per_million=Decimal(9))
    assert reasons(*agreeing(3, 0), {"m": dearer}) == ["cost"]
    assert reasons(*agreeing(3, 0), {"m": replace(dearer, version="v2")}) == []
    assert reasons(*agreeing(3, 0), {}) == []


def test_a_close_after_the_range_that_replaced_the_row_is_no_difference() -> None:
    tally, stored, bill = agreeing(3, 2)
    assert reasons(tally, stored, replace(bill, attempt=3, output_tokens=99)) == []


@pytest.mark.parametrize(
    ("usage", "expected"), [(Usage(output_tokens=5), []), (Usage(output_tokens=6), ["duplicate_end"])]
)
def test_an_end_said_twice_is_harmless_unless_it_says_something_else(usage: Usage, expected: list[str]) -> None:
    tally, stored, bill = agreeing(3, 2, inputs=0)
    tally.ends.insert(0, replace(tally.ends[0], usage=usage))
    assert reasons(tally, stored, bill) == expected


def test_billed_without_an_end_on_the_stream_is_named() -> None:
    tally, stored, bill = agreeing(3, 2)
    tally.ends.clear()
    assert reasons(tally, stored, bill) == ["unknown_request"]
