"""The options --since and --until of the commands that look at a range of time."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click
from inferbus_runtime import clock

from inferbus_cli.text import parse_moment

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


class Moment(click.ParamType[datetime]):
    """``2h`` (ago), ``now``, a date or ISO 8601."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return parse_moment(str(value), clock.now())
        except (ValueError, OverflowError):
            self.fail("give a duration ago (90m, 2h, 7d), a date or a time (2026-11-21T12:00:00Z)", param, ctx)


def time_range(command: CommandT) -> CommandT:
    """Gives ``command`` the arguments ``since`` and ``until``: datetimes, or None for an open end."""
    since = click.option("--since", type=Moment(), help="From here on: 2h (ago), a date or ISO 8601 (UTC).")
    until = click.option("--until", type=Moment(), help="Up to here, exclusive; default: now.")
    return since(until(command))
