"""``inferbus deploy`` and ``inferbus rollouts``: a revision takes over, or goes back, by figures or by hand."""

import sys
import time
from datetime import timedelta
from typing import Any

import click
from google.protobuf.message import Message
from inferbus.bus.v1.revision_pb2 import RolloutEvent, RolloutFigure, RolloutRecord, RolloutState, RolloutVerdict
from inferbus.scheduler.v1 import rollout_pb2 as api

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import Lifetime
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import count, moment, seconds

_PATH = "/rollouts"
_POLL_SECONDS = 1.0
_TIMES = ("ttft", "ttft_p95", "itl", "itl_p95")


class _Part(click.ParamType[float]):
    """``25%`` or ``0.25``."""

    name = "part"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        try:
            return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            self.fail(f"{text!r} is no part, such as 25% or 0.25", param, ctx)


class _Steps(click.ParamType[tuple[int, ...]]):
    """``5,25,100``: per cent of the requests."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            steps = tuple(round(float(part.strip().removesuffix("%")) * 10) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} are no steps, such as 5,25,100", param, ctx)
        if not all(0 < step <= 1000 for step in steps):
            self.fail("each step is above 0 and at most 100 per cent", param, ctx)
        return steps


@click.command()
@click.argument("model")
@click.argument("revision")
@click.option("--canary", type=_Steps(), help="Per cent of the requests, step by step: 5,25,100, which is the default.")
@click.option("--blue-green", is_flag=True, help="All at once when it has as many workers; the old one is kept.")
@click.option("--step-time", type=Lifetime(), help="How long a step lasts at least: 60s.")
@click.option("--min-requests", type=click.IntRange(0), help="Requests that a step needs at least: 50.")
@click.option("--max-slowdown", type=_Part(), help="How much larger TTFT and ITL may be: 25%.")
@click.option("--max-errors", type=_Part(), help="By how much the part of failed requests may be larger: 1%.")
@click.option("--min-agreement", type=_Part(), help="Of greedy tokens on the probes: 50% of a quantized one; 0: any.")
@click.option("--patience", type=Lifetime(), help="How long it may take to be warm, or to have its requests: 15m.")
@click.option("--wait", is_flag=True, help="Follow it to its end; exit code 1 if it is rolled back.")
@json_option
@with_target
def deploy(
    target: Target,
    model: str,
    revision: str,
    as_json: bool,
    canary: tuple[int, ...] | None,
    blue_green: bool,
    wait: bool,
    **policy: Any,
) -> None:
    """Have REVISION serve MODEL: as a canary that goes on or back by itself, or blue-green.

    It begins when the revision has workers and its first answers were compared; what it is judged by is in the same
    tables as the bills.
    """
    if canary and blue_green:
        raise click.UsageError("--canary goes without --blue-green.")
    names = {"max_errors": "max_error_increase"}
    given = {
        names.get(name, name): value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in policy.items()
        if value is not None
    }
    body: dict[str, Any] = {"model": model, "revision": revision, "policy": given}
    body["strategy"] = "blue_green" if blue_green else "canary"
    if canary:
        body["step_permille"] = list(canary)
    with Edge(target) as edge:
        answer = edge.ask("POST", _PATH, api.StartRolloutResponse(), json=body, patience=PATIENCE)
        if as_json and not wait:
            click.echo(json_of(answer))
            return
        shown = _tell(answer.rollout, 0 if answer.rollout.candidate_revision else len(answer.rollout.events) - 1)
        if wait:
            sys.exit(_follow(edge, model, shown))


@click.group()
def rollouts() -> None:
    """Which revisions serve models, and what was decided about them (needs an operator's key)."""


@rollouts.command("list")
@json_option
@with_target
def list_rollouts(target: Target, as_json: bool) -> None:
    """List the models with a rollout: what is stable, what is tried, and what happened last."""
    with Edge(target) as edge:
        answer = edge.ask("GET", _PATH, api.ListRolloutsResponse(), patience=PATIENCE)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("model"), Column("stable"), Column("candidate"), Column("of requests", number=True), Column("state")),
        *(Column("workers", folds=True, spare=2), Column("since (UTC)", folds=True, spare=1)),
    )
    for one in answer.rollouts:
        record = one.rollout
        workers = ", ".join(f"{name}: {number}" for name, number in sorted(one.workers.items()))
        table.add(
            *(record.model, record.stable_revision, record.candidate_revision, _weight(record), _state(record)),
            *(workers, moment(record.step_time)),
        )
    terminal().print(table if answer.rollouts else "No revision was rolled out: all models are as their workers are.")


@rollouts.command()
@click.argument("model")
@json_option
@with_target
def show(target: Target, model: str, as_json: bool) -> None:
    """Show the rollout of MODEL: what serves it, the figures of now, and what was decided by which figures."""
    with Edge(target) as edge:
        one = _asked(edge, model)
    if as_json:
        click.echo(json_of(one))
        return
    record = one.rollout
    click.echo(f"model: {record.model}")
    click.echo(f"stable: {record.stable_revision}")
    click.echo(f"state: {_state(record)}")
    if record.candidate_revision:
        click.echo(f"candidate: {record.candidate_revision}, {_weight(record) or 'none'} of the requests")
    if record.previous_revision:
        kept = ", its workers are kept for a return" if record.keep_previous else ""
        click.echo(f"before: {record.previous_revision}{kept}")
    for pin in record.pins:
        click.echo(f"pinned: {pin.tenant_id} to {pin.revision}")
    if record.shadow.revision:
        click.echo(f"shadowed: {record.shadow.permille / 10:g} % on {record.shadow.revision}")
    click.echo("workers: " + (", ".join(f"{name}: {number}" for name, number in sorted(one.workers.items())) or "none"))
    if one.figures:
        click.echo()
        terminal().print(_figures(one.figures))
    click.echo()
    for event in record.events:
        click.echo(_line(event))
        if event.figures:
            terminal().print(_figures(event.figures))


def _move(name: str, move: str, text: str) -> None:
    @rollouts.command(name, help=text)
    @click.argument("model")
    @json_option
    @with_target
    def command(target: Target, model: str, as_json: bool) -> None:
        with Edge(target) as edge:
            body = {"model": model, "move": move}
            answer = edge.ask("POST", f"{_PATH}/move", api.MoveRolloutResponse(), json=body)
        _done(answer, answer.rollout, as_json)


_move("promote", "promote", "Make the candidate of MODEL the stable one now, whatever its figures say.")
_move("roll-back", "roll_back", "Take the candidate of MODEL back now; what it runs ends well.")
_move("pause", "pause", "Take no further step with MODEL; a bad figure still takes it back.")
_move("resume", "resume", "Go on with MODEL: its step begins anew.")
_move("return", "return", "After a promotion: what served MODEL before serves it again, at once.")
_move("let-go", "let_go", "Keep what served MODEL before no longer.")


@rollouts.command()
@click.argument("model")
@click.argument("tenant")
@click.argument("revision", required=False)
@click.option("--off", is_flag=True, help="No longer.")
@json_option
@with_target
def pin(target: Target, model: str, tenant: str, revision: str | None, off: bool, as_json: bool) -> None:
    """Have all requests of TENANT for MODEL go to REVISION, and wait for it."""
    if off == (revision is not None):
        raise click.UsageError("Name a revision, or --off.")
    with Edge(target) as edge:
        listed = edge.ask("GET", _PATH, api.ListRolloutsResponse(), patience=PATIENCE).rollouts
        known = next((one.rollout for one in listed if one.rollout.model == model), RolloutRecord())
        pins = {one.tenant_id: one.revision for one in known.pins}
        pins.pop(tenant, None)
        if revision is not None:
            pins[tenant] = revision
        body = {"model": model, "pins": [{"tenant_id": name, "revision": to} for name, to in sorted(pins.items())]}
        answer = edge.ask("PUT", f"{_PATH}/pins", api.SetPinsResponse(), json=body)
    _done(answer, answer.rollout, as_json)


@rollouts.command()
@click.argument("model")
@click.argument("revision", required=False)
@click.option("--part", type=_Part(), default=0.05, show_default=True, help="Of the requests: 5%.")
@click.option("--off", is_flag=True, help="Nothing any more.")
@json_option
@with_target
def shadow(target: Target, model: str, revision: str | None, part: float, off: bool, as_json: bool) -> None:
    """Have REVISION do a part of the requests for MODEL, too: nobody gets or pays for what comes of it."""
    if off == (revision is not None):
        raise click.UsageError("Name a revision, or --off.")
    body: dict[str, Any] = {"model": model}
    if revision is not None:
        body["shadow"] = {"revision": revision, "permille": round(part * 1000)}
    with Edge(target) as edge:
        answer = edge.ask("PUT", f"{_PATH}/shadow", api.SetShadowResponse(), json=body)
    _done(answer, answer.rollout, as_json)


def _asked(edge: Edge, model: str) -> api.GetRolloutResponse:
    answer = edge.ask("GET", _PATH, api.ListRolloutsResponse(), params={"model": model}, patience=PATIENCE)
    return answer.rollouts[0]


def _follow(edge: Edge, model: str, shown: int) -> int:
    """Tells what happens until the rollout ends; the exit code."""
    while True:
        record = _asked(edge, model).rollout
        shown = _tell(record, shown)
        if not record.candidate_revision:
            return 0 if record.state == RolloutState.ROLLOUT_STATE_PROMOTED else 1
        time.sleep(_POLL_SECONDS)


def _tell(record: RolloutRecord, shown: int) -> int:
    """The events after the first ``shown``; how many there are."""
    for event in record.events[shown:]:
        click.echo(_line(event))
        if event.figures:
            terminal().print(_figures(event.figures))
    return len(record.events)


def _done(answer: Message, record: RolloutRecord, as_json: bool) -> None:
    click.echo(json_of(answer) if as_json else _line(record.events[-1]))


def _line(event: RolloutEvent) -> str:
    return f"{moment(event.event_time)}  {event.action} ({event.reason}): {event.message}"


def _figures(figures: Any) -> Rows:
    table = Rows(
        *(Column("figure"), Column("candidate", number=True), Column("stable", number=True)),
        *(Column("allowed", number=True), Column("p", number=True, spare=2)),
        *(Column("requests", number=True, spare=1), Column("verdict")),
    )
    for one in figures:
        sure = f"{one.p_value:.2g}" if one.HasField("p_value") else ""
        table.add(
            *(one.name, _value(one, "candidate"), _value(one, "stable"), _value(one, "limit"), sure),
            *(f"{count(one.candidate_samples)} / {count(one.stable_samples)}", _verdict(one)),
        )
    return table


def _value(figure: RolloutFigure, name: Any) -> str:
    if not figure.HasField(name):
        return ""
    value = getattr(figure, name)
    return seconds(value) if figure.name in _TIMES else f"{value:.1%}"


def _verdict(figure: RolloutFigure) -> str:
    return RolloutVerdict.Name(figure.verdict).removeprefix("ROLLOUT_VERDICT_").lower()


def _weight(record: RolloutRecord) -> str:
    return f"{record.weight_permille / 10:g} %" if record.candidate_revision and record.weight_permille else ""


def _state(record: RolloutRecord) -> str:
    return RolloutState.Name(record.state).removeprefix("ROLLOUT_STATE_").lower().replace("_", " ")
