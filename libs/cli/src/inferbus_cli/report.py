"""What ``inferbus usage`` and ``inferbus cost`` share: the options that say of what, and the columns that say whose."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import click
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus.meter.v1.usage_pb2 import UsageGroup

from inferbus_cli.text import rfc3339
from inferbus_cli.timerange import time_range

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
# Names for --by, and how a group shows each.
_SHOWN: dict[str, Callable[[UsageGroup], str]] = {
    "tenant": lambda group: group.tenant_id,
    "project": lambda group: group.project_id,
    "key": lambda group: group.key_id,
    "model": lambda group: group.model,
    "revision": lambda group: group.revision,
    "operation": lambda group: _name(Operation.Name(group.operation), "OPERATION_"),
    "class": lambda group: _name(PriorityClass.Name(group.priority_class), "PRIORITY_CLASS_"),
    "user": lambda group: group.end_user,
    "tags": lambda group: ", ".join(f"{name}={value}" for name, value in sorted(group.tags.items())),
}
_BUCKETS = ("all", "minute", "hour", "day", "month")
_BUCKET_LENGTHS = {"minute": 16, "hour": 16, "day": 10, "month": 7}


class Names(click.ParamType[tuple[str, ...]]):
    """``project,model``."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        names = value if isinstance(value, tuple) else tuple(filter(None, map(str.strip, str(value).split(","))))
        for name in names:
            if name not in _SHOWN:
                self.fail(f"'{name}' is none of {', '.join(_SHOWN)}", param, ctx)
        return tuple(dict.fromkeys(names))


def report_options(command: CommandT) -> CommandT:
    """Gives ``command`` the arguments ``since``, ``until``, ``by``, ``bucket``, and what to leave out as ``only``."""
    for option in (
        click.option("--tag", "tags", multiple=True, help="Only with this tag, NAME=VALUE; several: all of them."),
        click.option("--user", "users", multiple=True, help="Only for this end user."),
        click.option("--model", "models", multiple=True, help="Only of this model."),
        click.option("--project", "projects", multiple=True, help="Only in this project (its id)."),
        click.option("--tenant", help="Only this tenant's."),
        click.option("--bucket", type=click.Choice(_BUCKETS), help="Sums by minute, hour, day or month (UTC)."),
        click.option("--by", type=Names(), help=f"Sums by some of: {', '.join(_SHOWN)}."),
    ):
        command = option(command)
    return time_range(command)


def query_of(
    since: datetime | None, until: datetime | None, by: Iterable[str], bucket: str | None, only: dict[str, Any]
) -> list[tuple[str, str]]:
    """Parameters of the operator's reports; ``only`` as :func:`report_options` gives it."""
    query = [("start", since and rfc3339(since)), ("end", until and rfc3339(until)), ("by", ",".join(by))]
    query += [("bucket", bucket), ("tenant", only["tenant"])]
    for name in ("project", "model", "user", "tag"):
        query += [(name, value) for value in only[f"{name}s"]]
    return [(name, value) for name, value in query if value]


def cells(group: UsageGroup, by: Iterable[str]) -> list[str]:
    return [_SHOWN[name](group) for name in by]


def bucket_cell(unix_seconds: int, bucket: str) -> str:
    """Where it begins, in UTC, as exactly as it is long."""
    at = datetime.fromtimestamp(unix_seconds, UTC)
    return at.strftime("%Y-%m-%d %H:%M")[: _BUCKET_LENGTHS[bucket]]


def _name(text: str, prefix: str) -> str:
    name = text.removeprefix(prefix).lower()
    return "" if name == "unspecified" else name
