"""Durations as people write them: ``200ms``, ``1.5s``, ``5m``, ``1h30m``."""

import re
from datetime import timedelta

UNITS = {
    "us": timedelta(microseconds=1),
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
WHOLE = re.compile(rf"(?:{PART.pattern})+")


def parse_duration(text: str) -> timedelta | None:
    """The duration that ``text`` says in numbers with units, largest first or not; None if it says none."""
    if not WHOLE.fullmatch(text):
        return None
    try:
        return sum((float(number) * UNITS[unit] for number, unit in PART.findall(text)), timedelta())
    except OverflowError:
        return None


def format_duration(duration: timedelta) -> str:
    """The shortest text in one unit that :func:`parse_duration` reads back as ``duration`` (not negative)."""
    for unit in ("h", "m", "s", "ms"):
        if duration and duration % UNITS[unit] == timedelta():
            return f"{duration // UNITS[unit]}{unit}"
    return f"{duration // UNITS['us']}us" if duration else "0s"
