"""``python -m inferbus_scheduler.simulate``: policies side by side on one trace, in simulated time."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.proto import parse_length_prefixed
from inferbus.bus.v1.decision_pb2 import PlacementDecisions
from inferbus_bus.errors import StreamApiError
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.timing_model import TimingModel

from inferbus_scheduler.core.placement import Policy
from inferbus_scheduler.core.score import Weights
from inferbus_scheduler.core.simulate.compare import POLICIES, Setup, compare
from inferbus_scheduler.core.simulate.engine import WorkerKind
from inferbus_scheduler.core.simulate.generate import Tenant, Workload, generate
from inferbus_scheduler.core.simulate.measures import Summary, Targets
from inferbus_scheduler.core.simulate.replay import replay
from inferbus_scheduler.core.simulate.report import page, replayed, sketch, table
from inferbus_scheduler.core.simulate.run import Deaths, Delays
from inferbus_scheduler.core.simulate.scheduling import Settings
from inferbus_scheduler.core.simulate.trace import Arrival, Defaults, TraceError, line_of, parse
from inferbus_scheduler.export_decisions import export

DEFAULT_POLICIES = ("inferbus", "round_robin", "least_requests", "random")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.export_decisions is not None:
            count = export(options.home / "stack.json", options.export_decisions)
            _say(f"{count:,} messages of decisions: {options.export_decisions}")
            return 0
        if options.decisions is not None:
            return _replay(options)
        return _simulate(options)
    except (OSError, TraceError, json.JSONDecodeError, InferBusError, StreamApiError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _simulate(options: argparse.Namespace) -> int:
    kinds = _fleet(options)
    arrivals = _arrivals(options)
    if options.save_trace is not None:
        with options.save_trace.open("w") as out:
            out.writelines(json.dumps(line_of(arrival)) + "\n" for arrival in arrivals())
    setup = Setup(
        kinds=kinds,
        targets=Targets(options.ttft_target, options.itl_target),
        weights={tenant.name: float(tenant.weight) for tenant in _tenants(options)},
        deaths=Deaths(options.dies_every, options.back_after),
        delays=replace(_delays(options.overhead), **dict(options.delay)),
        settings=Settings(policy=_policy(options)),
    )
    runs: list[Summary] = []
    for name in options.policies:
        began = clock.monotonic()
        run = compare(name, arrivals(), setup, _draws(options.seed, name), _draws(options.seed, "fates"))
        spent = clock.monotonic() - began
        runs.append(run)
        each = spent / max(1, run.requests) * 1e6
        _say(
            f"{name}: {run.requests:,} requests, {run.makespan:,.0f} simulated s in {spent:,.1f} s, {each:,.0f} us each"
        )
    _print(table(runs) + "\n" + sketch(runs))
    if options.plot is not None:
        options.plot.write_text(page(f"{sum(kind.count for kind in kinds)} workers", runs, setup.targets))
        _say(f"plots: {options.plot}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n")
    return 0


def _replay(options: argparse.Namespace) -> int:
    policy = replace(_policy(options), name="other" if options.weight else "inferbus")
    messages = _messages(BytesIO(options.decisions.read_bytes()), options.decisions)
    _print(replayed(replay(messages, policy), policy.name))
    return 0


def _policy(options: argparse.Namespace) -> Policy:
    return Policy(weights=replace(Weights(), **dict(options.weight)))


def _messages(source: BytesIO, path: Path) -> Iterator[PlacementDecisions]:
    while True:
        try:
            message = parse_length_prefixed(PlacementDecisions, source)
        except (DecodeError, ValueError) as error:
            raise TraceError(f"{path}: {error}") from error
        if message is None:
            return
        yield message


def _arrivals(options: argparse.Namespace) -> Callable[[], Iterator[Arrival]]:
    """The same arrivals at each call."""
    if options.trace is None:
        workload = _workload(options)
        return lambda: generate(workload, _draws(options.seed, "trace"))
    defaults = Defaults(model=options.model)
    return lambda: _read(options.trace, defaults, options.speed)


def _draws(seed: int, what: str) -> Random:
    return Random(f"{seed}/{what}")  # noqa: S311 - a simulation's draws


def _read(path: Path, defaults: Defaults, speed: float) -> Iterator[Arrival]:
    with path.open() as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                arrival = parse(json.loads(line), defaults)
            except (TraceError, json.JSONDecodeError) as error:
                raise TraceError(f"{path}, line {number}: {error}") from error
            yield replace(arrival, time=arrival.time / speed) if speed != 1 else arrival


def _workload(options: argparse.Namespace) -> Workload:
    known = {field.name for field in fields(Workload)} & vars(options).keys()
    given = {name: getattr(options, name) for name in known}
    return Workload(**given | {"tenants": _tenants(options), "models": (options.model,)})


def _delays(overhead: float | None) -> Delays:
    return Delays() if overhead is None else Delays.of(overhead)


def _tenants(options: argparse.Namespace) -> tuple[Tenant, ...]:
    """``--tenants 4`` or ``--tenant name:demand:weight`` for each; ``--noisy``: the first asks for so much more."""
    if options.tenant:
        return tuple(options.tenant)
    return tuple(
        Tenant(f"tenant-{number}", demand=options.noisy if number == 0 else 1.0) for number in range(options.tenants)
    )


def _fleet(options: argparse.Namespace) -> tuple[WorkerKind, ...]:
    """``--fleet``: a JSON list of kinds of workers, mixed; otherwise equal ones."""
    if options.fleet is not None:
        try:
            return tuple(_kind(given, options.model) for given in json.loads(options.fleet.read_text()))
        except (TypeError, ValueError, KeyError) as error:
            raise TraceError(f"{options.fleet}: {error}") from error
    timing = TimingModel(
        step_seconds=options.step,
        step_seconds_per_sequence=options.step_per_sequence,
        prefill_tokens_per_second=options.prefill_rate,
        kv_blocks=options.kv_blocks,
        kv_block_tokens=options.block_tokens,
    )
    return (
        WorkerKind("worker", options.workers, timing, options.model, options.capacity, options.cost, options.zones),
    )


def _kind(given: dict[str, Any], model: str) -> WorkerKind:
    return WorkerKind(**{"model": model} | given | {"timing": TimingModel(**given["timing"])})


def _tenant(text: str) -> Tenant:
    name, _, rest = text.partition(":")
    demand, _, weight = rest.partition(":")
    return Tenant(name, float(demand or 1), int(weight or 1))


def _delay(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in {field.name for field in fields(Delays)}:
        raise argparse.ArgumentTypeError(f"one of {', '.join(field.name for field in fields(Delays))}")
    return name, float(value)


def _weight(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    known = [field.name for field in fields(Weights)]
    if name not in known:
        raise argparse.ArgumentTypeError(f"no weight {name}; there are {', '.join(known)}")
    return name, float(value)


def _policies(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in POLICIES]:
        raise argparse.ArgumentTypeError(f"no policy {unknown[0]}; there are {', '.join(POLICIES)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inferbus simulate",
        description="Run the scheduler's own decisions in simulated time over a fleet of timing models, beside other "
        "policies on the same requests. Times are seconds.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    plain = Workload(rate=40.0, seconds=120.0)
    parser.add_argument("--policies", type=_policies, default=",".join(DEFAULT_POLICIES), help=", ".join(POLICIES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ttft-target", type=float, default=Targets().ttft)
    parser.add_argument("--itl-target", type=float, default=Targets().itl)
    parser.add_argument("--plot", type=Path, help="write an SVG: TTFT and goodput of each policy")
    parser.add_argument("--json", type=Path, help="write all figures")
    parser.add_argument("--overhead", type=float, metavar="SECONDS", help="of the stack, to a first token, at idle")
    parser.add_argument("--delay", type=_delay, action="append", default=[], metavar="NAME=SECONDS", help="see Delays")
    parser.add_argument(
        "--weight", type=_weight, action="append", default=[], metavar="NAME=VALUE",
        help="of a part of the score by which inferbus picks",
    )  # fmt: skip
    trace = parser.add_argument_group("a trace from a file")
    trace.add_argument("--trace", type=Path, help="JSON lines; also Mooncake's published form")
    trace.add_argument("--speed", type=float, default=1.0, help="how much faster than the file says")
    made = parser.add_argument_group("a made-up trace")
    for field in fields(Workload):
        if field.name not in ("tenants", "models"):
            name, default = "--" + field.name.replace("_", "-"), getattr(plain, field.name)
            made.add_argument(name, type=type(default), default=default)
    made.add_argument("--tenants", type=int, default=4)
    made.add_argument("--tenant", type=_tenant, action="append", metavar="NAME[:DEMAND[:WEIGHT]]")
    made.add_argument("--noisy", type=float, default=1.0, help="how many times as much the first tenant asks for")
    made.add_argument("--save-trace", type=Path, help="write it as a file for --trace")
    fleet = parser.add_argument_group("the fleet")
    fleet.add_argument("--fleet", type=Path, help="JSON list of kinds of workers, for mixed fleets")
    fleet.add_argument("--workers", type=int, default=8)
    fleet.add_argument("--model", default="synthetic")
    fleet.add_argument("--capacity", type=int, default=32, help="generations at once")
    fleet.add_argument("--step", type=float, default=0.015, help="of an empty decode step")
    fleet.add_argument("--step-per-sequence", type=float, default=0.0004)
    fleet.add_argument("--prefill-rate", type=float, default=20_000.0, help="tokens a second; 0: at once")
    fleet.add_argument("--kv-blocks", type=int, default=8192, help="0: no bound, and no prefix cache")
    fleet.add_argument("--block-tokens", type=int, default=16)
    fleet.add_argument("--cost", type=float, default=2.0, help="of a worker and hour")
    fleet.add_argument("--zones", type=int, default=1)
    fleet.add_argument("--dies-every", type=float, default=0.0, help="mean time between deaths of one worker; 0: never")
    fleet.add_argument("--back-after", type=float, default=30.0)
    replay = parser.add_argument_group("yesterday's decisions with another policy")
    replay.add_argument("--decisions", type=Path, help="PlacementDecisions, each after its length as a varint")
    replay.add_argument("--export-decisions", type=Path, metavar="FILE", help="write what the stack of --home decided")
    replay.add_argument("--home", type=Path, default=Path(".inferbus"), help="folder of that stack")
    return parser


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
