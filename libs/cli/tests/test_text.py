"""How values are shown and read."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_cli.text import count, parse_moment, rate, rfc3339, seconds

# hypothesis wants bounds without a zone
FIRST, LAST = datetime(1970, 1, 1), datetime(2200, 1, 1)  # noqa: DTZ001
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "-"), (0.00087, "870 µs"), (0.0123, "12.3 ms"), (1.25, "1.25 s"), (90, "90.00 s")]
)
def test_seconds(value: float, shown: str) -> None:
    assert seconds(value) == shown


def test_numbers() -> None:
    assert count(12345) == "12,345"
    assert (rate(0.04), rate(12.34), rate(1234.5)) == ("0.0", "12.3", "1,234")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", NOW),
        ("90m", NOW - timedelta(minutes=90)),
        ("2h30m", NOW - timedelta(hours=2, minutes=30)),
        ("2026-11-20", datetime(2026, 11, 20, tzinfo=UTC)),
        ("2026-11-20T10:00:00+02:00", datetime(2026, 11, 20, 8, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "5", "2026-13-01"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError):
        parse_moment(text, NOW)


@given(st.datetimes(min_value=FIRST, max_value=LAST, timezones=st.just(UTC)))
def test_a_moment_survives_its_text(moment: datetime) -> None:
    assert parse_moment(rfc3339(moment), NOW) == moment
