"""``python -m bench [NAME ...] [--quick]``: print tables, keep them under results/."""

import argparse
import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from bench import (
    analytics,
    batch_beside,
    batch_files,
    batch_lines,
    batch_prefixes,
    cost,
    edge,
    embeddings,
    engines,
    ingest,
    migration,
    neighbour,
    overhead,
    placement,
    prefixes,
    scheduler_memory,
    simulator,
    throughput,
)
from bench.measure import keep, machine

BENCHES: dict[str, tuple[Callable[..., Awaitable[str]], dict[str, Any]]] = {
    "overhead": (overhead.run, {"seconds": 2.0}),
    "cost": (cost.run, {"seconds": 2.0}),
    "throughput": (throughput.run, {"seconds": 2.0}),
    "engines": (engines.run, {"seconds": 1.0, "rounds": 2, "levels": (2,)}),
    "ingest": (ingest.run, {"tokens": 200_000, "seconds": 3.0}),
    "edge": (edge.run, {"seconds": 2.0, "levels": (16,), "streams": 50}),
    "embeddings": (embeddings.run, {"rounds": 3}),
    "migration": (migration.run, {"lengths": (0, 100)}),
    "analytics": (analytics.run, {"tokens": 300_000}),
    "batch_beside": (batch_beside.run, {"seconds": 5.0, "rounds": 1}),
    "batch_files": (batch_files.run, {"megabytes": 32}),
    "batch_lines": (batch_lines.run, {"lines": 1000}),
    "batch_prefixes": (batch_prefixes.run, {"lines": 24, "prefixes": 4}),
    "neighbour": (neighbour.run, {"seconds": 5.0}),
    "placement": (placement.run, {"rounds": 1000}),
    "prefixes": (prefixes.run, {"turns": 1}),
    "scheduler_memory": (scheduler_memory.run, {"requests": 20_000, "every": 5_000}),
    "simulator": (simulator.run, {"seconds": 8.0, "policies": ("inferbus",)}),
}


async def main(names: list[str], quick: bool, given: dict[str, Any]) -> None:
    print(machine())
    for name in names:
        run, short = BENCHES[name]
        text = await run(**(short if quick else {}) | given)
        print(text, flush=True)
        if not quick:
            print("kept in", keep("_".join([name, *given.get("only", ())]), text), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="bench", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="short windows, nothing kept: does it still run?")
    parser.add_argument("--engine", action="append", choices=engines.PAIRS, dest="only", help="engines: only this one")
    parser.add_argument("--seconds", type=float, help="of each window")
    parser.add_argument("--rounds", type=int, help="engines: windows of each side and level")
    parser.add_argument("--tokens", type=int, help="ingest, analytics: how many")
    parser.add_argument("--requests", type=int, help="scheduler_memory: how many")
    parser.add_argument("--mb", type=int, dest="megabytes", help="batch_files: MiB of the file")
    parser.add_argument("--lines", type=int, help="batch_lines, batch_prefixes: how many")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    names = options.names or list(BENCHES)
    settable = ("only", "seconds", "rounds", "tokens", "requests", "megabytes", "lines")
    asked = {name: getattr(options, name) for name in settable}
    given = {name: value for name, value in asked.items() if value is not None}
    for name in names:
        if strange := given.keys() - inspect.signature(BENCHES[name][0]).parameters:
            parser.error(f"{name} takes no {', '.join(sorted(strange))}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(names, options.quick, given))
