"""Sizes of memory, as they are given and shown."""

import re
from typing import Any

import click

_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_GIVEN = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]iB|B|)")


class Size(click.ParamType[int]):
    """``2GiB``, ``800MiB``, or bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _GIVEN.fullmatch(str(value).strip())
        if found is None or not float(found[1]):
            self.fail("give a size such as 2GiB or 800MiB", param, ctx)
        return round(float(found[1]) * _UNITS[found[2]])


def size(value: int) -> str:
    """``1.5 GiB``, ``310 MiB``; ``-`` for nothing known."""
    if value <= 0:
        return "-"
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if value >= _UNITS[unit]:
            amount = value / _UNITS[unit]
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{value} B"
