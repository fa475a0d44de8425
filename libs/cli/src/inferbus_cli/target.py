"""Which stack a command talks to: the one of this machine, found by its folder, or a remote one by URL and key.

click reads the variables (``envvar``), so nothing here touches the environment.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
from inferbus_stack.home import Home, StackError, read_stack

DEFAULT_HOME = ".inferbus"
P = ParamSpec("P")
R = TypeVar("R")

home_option = click.option(
    "--home",
    envvar="INFERBUS_HOME",
    show_envvar=True,
    default=DEFAULT_HOME,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the stack on this machine.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
_url_option = click.option("--url", envvar="INFERBUS_URL", show_envvar=True, help="Base URL of a remote stack's edge.")
_key_option = click.option(
    "--key", envvar="INFERBUS_KEY", show_envvar=True, help="API key (default: the local stack's)."
)
_ca_option = click.option(
    "--ca",
    envvar="INFERBUS_CA",
    show_envvar=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate of the authority of an https --url, if this system does not know it.",
)


@dataclass(frozen=True, slots=True)
class Target:
    """An edge. ``url`` has no path; ``home`` is what an error names if nobody answers there.

    ``ca``: the authority whose certificates are believed; None: those that this system believes.
    """

    url: str
    api_key: str
    admin_key: str
    home: Path | None
    ca: Path | None = None


class NotRunning(click.ClickException):
    """There is no stack to ask."""

    exit_code = 2


def stack_at(home: Path) -> dict[str, Any]:
    """What stack.json says. Raises NotRunning with the command that starts a stack."""
    try:
        return read_stack(Home(home))
    except StackError as error:
        raise NotRunning(str(error)) from None


def _resolve(home: Path, url: str | None, key: str | None, ca: Path | None) -> Target:
    if url is not None:
        if not key:
            raise click.UsageError("--url needs --key (or INFERBUS_KEY)")
        return Target(url.rstrip("/").removesuffix("/v1"), key, key, None, ca)
    stack = stack_at(home)
    base = str(stack["base_url"]).removesuffix("/v1")
    own_ca = Path(stack["ca"]) if "ca" in stack else None
    return Target(base, key or stack["api_key"], key or stack["admin_key"], home, ca or own_ca)


def with_target(command: Callable[P, R]) -> Callable[..., R]:
    """Gives ``command`` the options --home, --url, --key and --ca, and their meaning as its argument ``target``."""

    @with_target_later
    @functools.wraps(command)
    def wrapped(target: Callable[[], Target], *args: Any, **options: Any) -> R:
        return command(*args, target=target(), **options)  # type: ignore[arg-type]

    return wrapped


def with_target_later(command: Callable[..., R]) -> Callable[..., R]:
    """As :func:`with_target` for a command that may not need a stack: its ``target`` is called where it does."""

    @home_option
    @_url_option
    @_key_option
    @_ca_option
    @functools.wraps(command)
    def wrapped(home: Path, url: str | None, key: str | None, ca: Path | None, *args: Any, **options: Any) -> R:
        return command(*args, target=functools.partial(_resolve, home, url, key, ca), **options)

    return wrapped


def with_target_if_asked(command: Callable[P, R]) -> Callable[..., R]:
    """:func:`with_target` for a command that needs a stack for some of what it does only: ``target`` is a function
    that finds it."""

    @home_option
    @_url_option
    @_key_option
    @_ca_option
    @functools.wraps(command)
    def wrapped(home: Path, url: str | None, key: str | None, ca: Path | None, *args: Any, **options: Any) -> R:
        return command(*args, target=lambda: _resolve(home, url, key, ca), **options)  # type: ignore[arg-type]

    return wrapped
