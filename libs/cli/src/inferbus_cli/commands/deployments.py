"""``inferbus deployments``: how models are served, and how many workers they should have."""

from datetime import timedelta
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.decision_pb2 import ScalingDecision, ScalingSignals
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus.scheduler.v1.deployment_pb2 import (
    ColdStart,
    DeleteDeploymentResponse,
    GetDeploymentResponse,
    ListDeploymentsResponse,
    SetDeploymentResponse,
)

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.sizes import size
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.tenancy import NONE, Lifetime
from inferbus_cli.tenancy import as_json as json_of
from inferbus_cli.text import duration, moment, seconds

_PATH = "/deployments"
TOO_LARGE = "too_large"
_TIMES = ("ttft_target", "itl_target", "queue_target", "idle_time", "cold_start")
_COUNTS = ("min_replicas", "max_replicas", "gpus_per_replica")


class _Time(Lifetime):
    """A duration, or ``none``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return NONE if value == NONE else super().convert(value, param, ctx)


@click.group()
def deployments() -> None:
    """How models are served: targets, fallbacks, number of workers (needs an operator's key)."""


@deployments.command("list")
@json_option
@with_target
def list_deployments(target: Target, as_json: bool) -> None:
    """List the deployments, and what was decided last about their workers."""
    with Edge(target) as edge:
        answer = edge.ask("GET", _PATH, ListDeploymentsResponse(), patience=PATIENCE)
    if as_json:
        click.echo(json_of(answer))
        return
    table = Rows(
        *(Column("model"), Column("replicas", number=True), Column("of"), Column("why")),
        *(Column("memory", number=True, spare=2), Column("cold start", number=True, spare=2)),
        *(Column("TTFT", number=True, spare=1), Column("ITL", number=True, spare=1)),
        *(Column("fallbacks", folds=True, spare=2), Column("decided (UTC)", spare=3, folds=True)),
    )
    for one in answer.deployments:
        record, decided = one.deployment, _decision(one)
        table.add(
            *(record.model, str(decided.replicas) if decided else "", _bounds(record)),
            *(decided.reason if decided else "", size(_memory(one)), duration(one.cold_start.total_duration)),
            *(_time(record, "ttft_target"), _time(record, "itl_target")),
            *(", ".join(record.fallbacks), moment(decided.decision_time) if decided else ""),
        )
    terminal().print(table if answer.deployments else "There are no deployments: all models have the defaults.")


@deployments.command()
@click.argument("model")
@json_option
@with_target
def show(target: Target, model: str, as_json: bool) -> None:
    """Show the deployment of MODEL, and by what its number of workers was decided."""
    with Edge(target) as edge:
        answer = edge.ask("GET", _PATH, ListDeploymentsResponse(), params={"model": model}, patience=PATIENCE)
    one = answer.deployments[0]
    if as_json:
        click.echo(json_of(one))
        return
    record, decided = one.deployment, _decision(one)
    click.echo(f"model: {record.model}")
    for name in _TIMES:
        click.echo(f"{name.replace('_', ' ')}: {_time(record, name) or 'default'}")
    click.echo(f"fallbacks: {', '.join(record.fallbacks) or 'none'}")
    click.echo(f"replicas: {_bounds(record)}, {record.gpus_per_replica or 1} GPU each")
    if decided is None:
        click.echo("No number of workers was decided yet.")
        return
    click.echo(_decided(decided))
    if decided.reason == TOO_LARGE:
        click.echo(
            f"it will not be loaded: a worker of it needs {size(decided.memory_bytes)}, more than there is for it"
        )
    click.echo(f"seen then: {_seen(decided.signals)}")
    for revision in one.revisions:
        click.echo(f"revision {revision.revision}: {_decided(revision)}")
    if _memory(one):
        click.echo(f"memory of a worker: {size(_memory(one))}")
    if one.HasField("cold_start"):
        click.echo(f"last cold start: {_cold(one.cold_start)}")


@deployments.command("set")
@click.argument("model")
@click.option("--ttft-target", type=_Time(), help=f"To the first token at the 95th percentile: 800ms; '{NONE}'.")
@click.option("--itl-target", type=_Time(), help=f"Between two tokens at the 95th percentile: 40ms; '{NONE}'.")
@click.option("--queue-target", type=_Time(), help=f"The longest wait without a fallback; '{NONE}': the TTFT target.")
@click.option("--fallback", "fallbacks", multiple=True, help="Model that answers instead. Several times, in order.")
@click.option("--no-fallbacks", is_flag=True)
@click.option("--min", "min_replicas", type=click.IntRange(0), help="Workers at least; 0: none while it is idle.")
@click.option("--max", "max_replicas", type=click.IntRange(0), help="Workers at most; 0: it is not scaled.")
@click.option("--gpus", "gpus_per_replica", type=click.IntRange(1), help="Of each worker.")
@click.option("--idle-time", type=_Time(), help=f"Without a request for so long, it has none; '{NONE}': 5 minutes.")
@click.option("--cold-start", type=_Time(), help=f"The longest wait for the first worker; '{NONE}': 10 minutes.")
@json_option
@with_target
def set_deployment(target: Target, model: str, as_json: bool, no_fallbacks: bool, **given: Any) -> None:
    """Make or change the deployment of MODEL; what is not named stays."""
    if no_fallbacks and given["fallbacks"]:
        raise click.UsageError("--no-fallbacks goes without --fallback.")
    with Edge(target) as edge:
        body = _known(edge, model)
        for name, value in given.items():
            if value == NONE:
                body.pop(name, None)
            elif value not in (None, ()):
                body[name] = value.total_seconds() if isinstance(value, timedelta) else value
        if no_fallbacks:
            body["fallbacks"] = []
        answer = edge.ask("PUT", _PATH, SetDeploymentResponse(), json=body | {"model": model}, patience=PATIENCE)
    record = answer.deployment
    click.echo(json_of(answer) if as_json else f"{record.model}: replicas {_bounds(record)}.")


@deployments.command()
@click.argument("model")
@json_option
@with_target
def delete(target: Target, model: str, as_json: bool) -> None:
    """Delete the deployment of MODEL: it is served by the defaults again, and its workers stay as they are."""
    with Edge(target) as edge:
        answer = edge.ask("DELETE", _PATH, DeleteDeploymentResponse(), params={"model": model})
    click.echo(json_of(answer) if as_json else f"The deployment of {model} is deleted.")


def _known(edge: Edge, model: str) -> dict[str, Any]:
    """What is set of it so far, as the API takes it."""
    listed = edge.ask("GET", _PATH, ListDeploymentsResponse(), patience=PATIENCE).deployments
    record = next((one.deployment for one in listed if one.deployment.model == model), None)
    if record is None:
        return {}
    values: dict[str, Any] = MessageToDict(record, preserving_proto_field_name=True)
    return {name: values[name] for name in (*_TIMES, *_COUNTS, "fallbacks") if name in values}


def _decided(decided: ScalingDecision) -> str:
    return (
        f"{decided.replicas} since {moment(decided.decision_time)} UTC, before {decided.replicas_before}, "
        f"wanted {decided.replicas_wanted}; why: {decided.reason}"
    )


def _memory(one: GetDeploymentResponse) -> int:
    return max((each.memory_bytes for each in (one.scaling, *one.revisions)), default=0)


def _cold(cold: ColdStart) -> str:
    """The whole, and what is known of its parts."""
    start = cold.start
    parts = [
        f"{name} {duration(part)}"
        for name, part in (
            ("process", start.process_duration), ("artifacts", start.artifacts_duration),
            ("engine", start.engine_duration),
        )
        if part.ToNanoseconds()
    ]  # fmt: skip
    split = f"; of that {', '.join(parts)}" if parts else ""
    return f"{duration(cold.total_duration)} from {moment(cold.decision_time)} UTC on, {cold.worker}{split}"


def _decision(one: GetDeploymentResponse) -> ScalingDecision | None:
    return one.scaling if one.HasField("scaling") else None


def _bounds(record: DeploymentRecord) -> str:
    return f"{record.min_replicas} to {record.max_replicas}" if record.max_replicas else "not scaled"


def _time(record: DeploymentRecord, name: Any) -> str:
    return duration(getattr(record, name)) if record.HasField(name) else ""


def _seen(signals: ScalingSignals) -> str:
    """What it was decided by, as far as it was known."""
    parts = [f"{signals.workers} workers, {signals.running} running, {signals.queued} queued"]
    if signals.HasField("slots_used"):
        parts.append(f"{signals.slots_used:.0%} of the slots")
    if signals.HasField("kv_used"):
        parts.append(f"{signals.kv_used:.0%} of the KV cache")
    if signals.HasField("ttft_seconds"):
        parts.append(f"TTFT p95 {seconds(signals.ttft_seconds)}")
    if signals.HasField("itl_seconds"):
        parts.append(f"ITL p95 {seconds(signals.itl_seconds)}")
    if signals.HasField("idle_seconds") and signals.idle_seconds >= 1:
        parts.append(f"idle for {seconds(signals.idle_seconds)}")
    return ", ".join(parts)
