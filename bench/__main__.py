"""``python -m bench [NAME ...] [--quick]``: print tables, keep them under results/."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from bench import cost, edge, ingest, overhead, throughput
from bench.measure import keep, machine

BENCHES: dict[str, tuple[Callable[..., Awaitable[str]], dict[str, Any]]] = {
    "overhead": (overhead.run, {"seconds": 2.0}),
    "cost": (cost.run, {"seconds": 2.0}),
    "throughput": (throughput.run, {"seconds": 2.0}),
    "ingest": (ingest.run, {"tokens": 200_000}),
    "edge": (edge.run, {"seconds": 2.0, "levels": (16,), "streams": 50}),
}


async def main(names: list[str], quick: bool) -> None:
    print(machine())
    for name in names:
        run, short = BENCHES[name]
        text = await run(**(short if quick else {}))
        print(text, flush=True)
        if not quick:
            print("kept in", keep(name, text), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="bench", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="short windows, nothing kept: does it still run?")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(options.names or list(BENCHES), options.quick))
