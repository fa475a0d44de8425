"""Calendar months in UTC, as ``2026-11``. Such texts sort by time."""

import re
from datetime import UTC, date, datetime

_MONTH = re.compile(r"^(\d{4})-(0[1-9]|1[0-2])$", re.ASCII)
FIRST_MONTH = "1970-01"
ENDED_IN = "formatDateTime(end_time, '%Y-%m')"
"""In SQL: the month in which a request ended."""
# What a time can be in the tables.
_YEARS = range(1970, 2106)


def parse_month(text: str) -> str:
    """``text`` if it is a month. Raises ValueError."""
    found = _MONTH.match(text)
    if found is None or int(found[1]) not in _YEARS:
        raise ValueError("a month is written as 2026-11")
    return text


def first_day(month: str) -> date:
    return date(int(month[:4]), int(month[5:]), 1)


def months_before(month: str, count: int) -> str:
    """The month ``count`` months earlier; later ones for a negative count."""
    year, index = divmod(int(month[:4]) * 12 + int(month[5:]) - 1 - count, 12)
    return f"{year:04}-{index + 1:02}"


def begin_us(month: str) -> int:
    """Its first moment, Unix microseconds; its end is the first moment of the next one."""
    return round(datetime.combine(first_day(month), datetime.min.time(), UTC).timestamp()) * 1_000_000


def end_us(month: str) -> int:
    return begin_us(months_before(month, -1))
