"""``inferbus top``: what the stack does now."""

import json
import time
from dataclasses import dataclass

import click
from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.control_pb2 import GpuStatus
from inferbus.meter.v1.meter_pb2 import GetLiveResponse, Percentiles
from inferbus.scheduler.v1.scheduler_pb2 import FleetWorker, WatchFleetResponse
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from inferbus_cli.edge import PATIENCE, Edge, Refused, Unreachable
from inferbus_cli.fleet import FLEET, kv_used, queued, state_of
from inferbus_cli.tables import Column, Rows, terminal
from inferbus_cli.target import Target, json_option, with_target
from inferbus_cli.text import count, duration, rate


@dataclass(frozen=True, slots=True)
class View:
    """One look at the stack. A part that did not answer is None, and ``problems`` says why."""

    live: GetLiveResponse | None
    fleet: WatchFleetResponse | None
    problems: tuple[str, ...]


@click.command()
@click.option("--window", type=click.IntRange(1, 86_400), default=60, show_default=True, help="Seconds to look back.")
@click.option("--interval", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Seconds per refresh.")
@click.option("--once", is_flag=True, help="Print once and end, for scripts.")
@json_option
@with_target
def top(target: Target, window: int, interval: float, once: bool, as_json: bool) -> None:
    """Show requests, tokens per second, TTFT and ITL percentiles, queues and workers, live (needs an admin key)."""
    with Edge(target) as edge:
        view = _look(edge, window, PATIENCE if once or as_json else 0.0)
        if as_json:
            click.echo(_json(view))
        elif once:
            terminal().print(render(view, target.url))
        if as_json or once:
            if view.live is None or view.fleet is None:
                raise Refused("; ".join(view.problems))
            return
        with Live(render(view, target.url), console=terminal(), screen=True, auto_refresh=False) as display:
            while True:
                try:
                    time.sleep(interval)
                    display.update(render(_look(edge, window), target.url), refresh=True)
                except KeyboardInterrupt:
                    return


def _look(edge: Edge, window: int, patience: float = 0.0) -> View:
    problems: list[str] = []
    live: GetLiveResponse | None = None
    fleet: WatchFleetResponse | None = None
    try:
        live = edge.ask("GET", "/live", GetLiveResponse(), params={"window": window}, patience=patience)
    except (Refused, Unreachable) as error:
        problems.append(f"figures: {error.message}")
    try:
        fleet = edge.ask("GET", FLEET, WatchFleetResponse(), patience=patience)
    except (Refused, Unreachable) as error:
        problems.append(f"fleet: {error.message}")
    return View(live, fleet, tuple(problems))


def render(view: View, url: str) -> RenderableType:
    parts: list[RenderableType] = [Text(f"InferBus at {url}", style="bold")]
    if view.live is not None:
        parts += [_rates(view.live), _latencies(view.live)]
    if view.fleet is not None:
        parts += [Text(queued(view.fleet)), _workers(view.fleet), *_gpus(view.fleet)]
    return Group(*parts, *(Text(problem, style="red") for problem in view.problems))


def _rates(live: GetLiveResponse) -> RenderableType:
    window = live.window.ToTimedelta().total_seconds() or 60.0
    return Text(
        f"last {window:.0f} s: {count(live.requests)} requests ({rate(live.requests / window)}/s), "
        f"{count(live.errors)} errors, {count(live.output_tokens)} tokens ({rate(live.output_tokens / window)}/s); "
        f"{count(live.ingest_lag)} frames not yet in ClickHouse"
    )


def _latencies(live: GetLiveResponse) -> RenderableType:
    table = Rows(Column(""), *(Column(name, number=True) for name in ("P50", "P95", "P99")))
    named: tuple[tuple[str, Percentiles], ...] = (("TTFT", live.ttft), ("ITL", live.itl), ("E2E", live.e2e))
    for name, values in named:
        table.add(name, *(duration(value) for value in (values.p50, values.p95, values.p99)))
    return table


def _workers(fleet: WatchFleetResponse) -> RenderableType:
    if not fleet.workers:
        return Text("no worker has registered", style="red")
    table = Rows(
        *(Column("worker"), Column("model"), Column("engine", spare=2), Column("state")),
        *(Column("active", number=True), Column("on the way", number=True, spare=3), Column("capacity", number=True)),
        Column("KV used", number=True, spare=4),
        *(Column("tokens", number=True), Column("heartbeat", number=True, spare=1)),
    )
    for worker in sorted(fleet.workers, key=lambda worker: worker.record.worker):
        table.add(*_worker(worker))
    return table


def _worker(worker: FleetWorker) -> tuple[str, ...]:
    record = worker.record
    return (
        *(record.worker, record.model, record.engine, state_of(record)),
        *(count(worker.active), count(worker.on_the_way), count(record.capacity), kv_used(worker.engine)),
        count(worker.output_tokens_total),
        f"{duration(worker.heartbeat_age)} ago",
    )


def _gpus(fleet: WatchFleetResponse) -> list[RenderableType]:
    """Nothing where no worker tells of a GPU; ``-`` for what a GPU does not say."""
    told = [(worker.record.worker, gpu) for worker in fleet.workers for gpu in worker.gpus]
    if not told:
        return []
    table = Rows(
        *(Column("worker"), Column("GPU", number=True), Column("device", spare=2), Column("busy", number=True)),
        *(Column("memory", number=True), Column("power", number=True, spare=1), Column("at", number=True, spare=1)),
        *(Column("held down by", spare=3), Column("fault")),
    )
    for worker, gpu in sorted(told, key=lambda one: (one[0], one[1].index, one[1].uuid)):
        table.add(worker, *_gpu(gpu))
    return [table]


def _gpu(gpu: GpuStatus) -> tuple[str, ...]:
    used, total = (f"{part / 2**30:.1f}" for part in (gpu.memory_used_bytes, gpu.memory_total_bytes))
    return (
        str(gpu.index) if gpu.HasField("index") else gpu.uuid,
        gpu.name,
        f"{gpu.utilization:.0%}" if gpu.HasField("utilization") else "-",
        f"{used}/{total} GiB" if gpu.HasField("memory_total_bytes") else "-",
        f"{gpu.power_watts:.0f} W" if gpu.HasField("power_watts") else "-",
        f"{gpu.temperature_celsius:.0f} °C" if gpu.HasField("temperature_celsius") else "-",
        ", ".join(gpu.throttle_reasons),
        gpu.fault,
    )


def _json(view: View) -> str:
    parts = {"live": view.live, "fleet": view.fleet}
    shown = {
        name: MessageToDict(part, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        for name, part in parts.items()
        if part is not None
    }
    return json.dumps({**shown, "problems": list(view.problems)})
