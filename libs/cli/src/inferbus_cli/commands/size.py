"""``inferbus size``: which GPUs a model needs, how fast it will be there, and what that costs."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import click
from inferbus_runtime import clock
from inferbus_runtime.durations import parse_duration
from inferbus_sizing import DoesNotFitError, Plan, SizingError, compare
from inferbus_sizing.objects import Asked, answer_of, asked_of, catalogue

from inferbus_cli.commands.simulate import program
from inferbus_cli.edge import Edge
from inferbus_cli.sizing import comparison, explained, listed, measured_table, shown, simulated_table
from inferbus_cli.sizing_load import Load, load_of, simulate
from inferbus_cli.tables import terminal
from inferbus_cli.target import Target, json_option, with_target_if_asked
from inferbus_cli.timerange import Moment

_DAY = timedelta(days=1)
# An option's name -> the field of the question, where they differ.
_FIELDS = {
    "kv": "kv_precision", "input": "input_tokens", "output": "output_tokens", "ttft": "ttft_seconds",
    "itl": "itl_seconds", "gpus": "gpus_per_replica", "price": "dollars_per_hour", "kwh_price": "dollars_per_kwh",
}  # fmt: skip


class Seconds(click.ParamType[float]):
    """``500ms``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = parse_duration(str(value))
        if found is None:
            self.fail("give a duration: 500ms, 2s", param, ctx)
        return found.total_seconds()


class DoesNotFit(click.ClickException):
    """The one GPU that was named does not do it."""

    exit_code = 2


def _options(command: Any) -> Any:
    for option in reversed((
        click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                     help="A Hugging Face config.json instead of a built-in model."),
        click.option("--gpu", help="One kind of GPU; left out: all are compared."),
        click.option("--precision", help="Of the weights: fp16, fp8, int4, nvfp4, …; left out: as published."),
        click.option("--kv", help="Of the KV cache: bf16, fp8, nvfp4."),
        click.option("--context", type=int, help="Tokens of the longest sequence (8192)."),
        click.option("--concurrency", type=int, help="Sequences at once (32)."),
        click.option("--input", type=int, help="Tokens of a usual prompt (1000)."),
        click.option("--output", type=int, help="Tokens of a usual answer (500)."),
        click.option("--ttft", type=Seconds(), help="Time to the first token that may not be exceeded on average."),
        click.option("--itl", type=Seconds(), help="The same of the gap between tokens."),
        click.option("--gpus", type=int, help="GPUs of a replica; left out: as many as it takes."),
        click.option("--price", type=float, help="Dollars of a GPU and hour (with --gpu)."),
        click.option("--kwh-price", type=float, help="Dollars of a kWh, if power is paid apart."),
        click.option("--api-price-in", type=float, help="Dollars of an API's million input tokens."),
        click.option("--api-price-out", type=float, help="The same of output tokens."),
        click.option("--requests-per-month", type=float, help="To compare both at."),
        click.option("--explain", is_flag=True, help="Each figure with its formula and source."),
        click.option("--list", "list_", is_flag=True, help="The built-in models, GPUs and precisions."),
        click.option("--simulate", "simulated", is_flag=True,
                     help="Run the scheduler's simulator over the plan, too (with --gpu)."),
        click.option("--load", type=click.FloatRange(0.01, 2.0), default=0.7, show_default=True,
                     help="Of --simulate: requests, as a part of what the plan can take."),
        click.option("--measured", metavar="NAME",
                     help="Beside what the running stack has measured of its model NAME (with --gpu)."),
        click.option("--since", type=Moment(), help="Of --measured: from here on; default: a day ago."),
    )):  # fmt: skip
        command = option(command)
    return command


@click.command(short_help="Size a model: GPUs, tokens/s, TTFT, power, cost, when an API is dearer.")
@click.argument("model", required=False)
@_options
@json_option
@with_target_if_asked
def size(target: Callable[[], Target], model: str | None, as_json: bool, **given: Any) -> None:
    """Which GPUs MODEL needs (or a config.json), how fast it will be there, and what that costs.

    Weights and KV cache, GPUs and how they share the work, tokens a second and latencies from a roofline, power,
    dollars a million tokens, and from how many requests a month on own GPUs are cheaper than an API. What it was
    checked against, and how far off it is: docs/sizing.md.
    """
    if given.pop("list_"):
        click.echo(json.dumps(catalogue())) if as_json else _print(*listed())
        return
    explain, simulated, load = given.pop("explain"), given.pop("simulated"), given.pop("load")
    name, since = given.pop("measured"), given.pop("since")
    if (simulated or name) and given["gpu"] is None:
        raise click.UsageError("--simulate and --measured need --gpu: they are of one plan.")
    asked = _asked(model, given)
    measured = None if name is None else _measured(target(), name, since)
    if measured is not None:
        asked = _at(measured, asked, given)
    (_, first), *others = made = compare(asked.wanted, asked.gpus)
    if not others and isinstance(first, DoesNotFitError):
        raise DoesNotFit(str(first))
    runs = simulate(first, load, program()) if simulated and isinstance(first, Plan) else None
    if as_json:
        extra = {"simulated": runs, "measured": None if measured is None else measured.as_dict()}
        click.echo(json.dumps(answer_of(asked) | {key: value for key, value in extra.items() if value is not None}))
        return
    if others:
        _print(*comparison(made))
    elif isinstance(first, Plan):
        _print(*(explained(first) if explain else shown(first)))
        if runs is not None:
            _print(*simulated_table(first, runs))
        if measured is not None:
            _print(*measured_table(first, measured))
        elif name is not None:
            click.echo(f"The stack has measured nothing of {name} in that time.")


def _asked(model: str | None, given: dict[str, Any]) -> Asked:
    body = {_FIELDS.get(name, name): value for name, value in given.items() if name != "config"}
    path = given["config"]
    if path is not None:
        try:
            body["config"] = json.loads(path.read_text())
        except ValueError as error:
            raise click.BadParameter(f"{path} is no JSON: {error}", param_hint="--config") from None
    try:
        return asked_of({**body, "model": model})
    except SizingError as error:
        raise _told(error) from None


def _told(error: SizingError) -> click.UsageError:
    option = {field: name for name, field in _FIELDS.items()}.get(error.param, error.param).replace("_", "-")
    if error.param in ("model", "config") or error.param.startswith("config."):
        return click.UsageError(f"{error}. --list shows what is built in.")
    return click.BadParameter(str(error), param_hint=f"--{option}")


def _measured(target: Target, name: str, since: datetime | None) -> Load | None:
    with Edge(target) as edge:
        return load_of(edge, name, since or clock.now() - _DAY)


def _at(measured: Load, asked: Asked, given: dict[str, Any]) -> Asked:
    """At the load that was measured, as far as the options say no other: only so is there anything to compare."""
    wanted = asked.wanted
    input_tokens = given["input"] or max(1, round(measured.input_tokens))
    output_tokens = given["output"] or max(1, round(measured.output_tokens))
    try:
        found = replace(
            wanted,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            context=given["context"] or max(wanted.context, input_tokens + output_tokens),
            concurrency=given["concurrency"] or max(1, round(measured.in_flight)),
        )
    except SizingError as error:
        raise _told(error) from None
    return replace(asked, wanted=found)


def _print(*parts: Any) -> None:
    console = terminal()
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), markup=False)
