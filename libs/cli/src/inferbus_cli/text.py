"""How numbers, times and durations are shown and read in a terminal. Pure."""

from datetime import UTC, datetime, timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus_runtime.durations import parse_duration


def count(value: int | float) -> str:
    """``12,345``."""
    return f"{value:,.0f}"


def rate(value: float) -> str:
    """Per second: three digits are enough."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def seconds(value: float) -> str:
    """``870 µs``, ``12.3 ms``, ``1.25 s``; ``-`` for nothing measured."""
    if value <= 0:
        return "-"
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1000:.1f} ms"
    return f"{value:.2f} s"


def age(value: float) -> str:
    """``42 s``, ``3 min``, ``5 h``, ``12 d``."""
    for size, name in ((86_400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.0f} {name}"
    return f"{value:.0f} s"


def duration(value: Duration) -> str:
    return seconds(value.ToTimedelta().total_seconds())


def moment(value: Timestamp) -> str:
    """``2026-11-21 12:03:04`` in UTC; empty if it is not set."""
    if not value.seconds and not value.nanos:
        return ""
    return value.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S")


def epoch(unix_seconds: int) -> str:
    """:func:`moment` of Unix seconds."""
    return moment(Timestamp(seconds=unix_seconds))


def parse_moment(text: str, now: datetime) -> datetime:
    """``90m`` or ``2h30m`` (that long before ``now``), ``now``, a date, or ISO 8601 (UTC if it names no zone).

    Raises ValueError for anything else.
    """
    if text == "now":
        return now
    ago: timedelta | None = parse_duration(text)
    if ago is not None:
        return now - ago
    given = datetime.fromisoformat(text)
    return given if given.tzinfo is not None else given.replace(tzinfo=UTC)


def rfc3339(value: datetime) -> str:
    """As protobuf's JSON reads a Timestamp."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
