"""Options that the commands about tenants, projects and keys share, and what they send."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from inferbus.bus.v1.registry_pb2 import Limits
from inferbus_runtime.durations import parse_duration

from inferbus_cli.target import Target
from inferbus_cli.text import count

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
# What takes a setting away.
NONE = "none"


class Lifetime(click.ParamType[timedelta]):
    """``30d``, ``12h``, ``90m``, ``45s``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        given = value if isinstance(value, timedelta) else parse_duration(str(value))
        if given is None:
            self.fail("give a duration such as 30d, 12h or 45s", param, ctx)
        return given


class Limit(click.ParamType[str]):
    """A whole number from 1, or ``none``."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != NONE and not (str(value).isdecimal() and int(value) > 0):
            self.fail(f"give a number from 1, or '{NONE}' for no limit", param, ctx)
        return str(value)


def weight_option(command: CommandT) -> CommandT:
    """Gives ``command`` the argument ``weight``."""
    text = "Its part of what is served while several wait, against the others' (1 to 1000; without: 1)."
    return click.option("--weight", type=click.IntRange(1, 1000), help=text)(command)


def limit_options(command: CommandT) -> CommandT:
    """Gives ``command`` the arguments ``requests_per_minute``, ``tokens_per_minute`` and ``concurrent_requests``."""
    for name in reversed(LIMITS):
        flag = "--" + name.replace("_", "-")
        command = click.option(flag, type=Limit(), help=f"Number, or '{NONE}' for no limit.")(command)
    return command


def tenant_option(command: CommandT) -> CommandT:
    """Whose projects: ``tenant``, to be passed through :func:`tenant_of`."""
    text = "Tenant (default: 'default' on this machine's stack, else the key's own)."
    return click.option("--tenant", envvar="INFERBUS_TENANT", show_envvar=True, default="", help=text)(command)


def tenant_of(target: Target, tenant: str) -> str:
    """The first admin key of a stack is the operator's, who has no projects of his own to speak of."""
    return tenant or ("default" if target.home is not None else "")


def limits_body(given: dict[str, str | None], known: Limits | None = None) -> dict[str, int]:
    """Limits as the operator's API takes them: those that are known, changed by those that were given."""
    limits = {field.name: value for field, value in known.ListFields()} if known is not None else {}
    for name in LIMITS:
        value = given[name]
        if value == NONE:
            limits.pop(name, None)
        elif value is not None:
            limits[name] = int(value)
    return limits


def limits_text(limits: Limits) -> str:
    """``600 requests/min, 4 at once``; empty for none."""
    said = {
        "requests_per_minute": "requests/min",
        "tokens_per_minute": "tokens/min",
        "concurrent_requests": "at once",
    }
    return ", ".join(f"{count(value)} {said[field.name]}" for field, value in limits.ListFields())


def as_json(message: Message) -> str:
    return MessageToJson(message, preserving_proto_field_name=True, indent=None)
