"""``inferbus simulate``: the scheduler's decisions in simulated time. The scheduler's own program does it."""

import importlib.util
import subprocess
import sys

import click

_PROGRAM = "inferbus_scheduler"


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    short_help="Try policies on a trace, in simulated time.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> None:
    """Try scheduling policies on a trace, in simulated time over fleets of timing models."""
    # It reads files and prints; it finds no stack and needs none.
    sys.exit(subprocess.run([*program(), *arguments], check=False).returncode)


def program() -> list[str]:
    """The simulator's command line. Raises ClickException where it is not installed."""
    if importlib.util.find_spec(_PROGRAM) is None:
        raise click.ClickException("The scheduler is not installed here, and the simulator is a part of it.")
    return [sys.executable, "-m", f"{_PROGRAM}.simulate"]
