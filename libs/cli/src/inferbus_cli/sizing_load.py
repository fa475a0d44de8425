"""What a plan is held against: the scheduler's simulator over its timings, and what a running stack has measured."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from inferbus.meter.v1.analytics_pb2 import AnalyticsRow, QueryAnalyticsResponse
from inferbus_runtime import clock
from inferbus_sizing import Plan

from inferbus_cli.edge import PATIENCE, Edge
from inferbus_cli.text import rfc3339

_REQUESTS = 2000
_LEAST_SECONDS = 120.0
_ANSWERS = 4
# A day has 1,440 minutes, and the API answers for 1,500 steps.
_STEPS = ((24.5 * 3600, "1m"), (60 * 24.5 * 3600, "1h"))


def simulate(plan: Plan, load: float, program: Sequence[str]) -> dict[str, Any]:
    """The simulator's figures of the policy ``inferbus`` with ``load`` times the requests that ``plan`` can take,
    lengths spread as its made-up trace has them. Raises ClickException with what the program said."""
    wanted, timing = plan.wanted, plan.timing
    rate = load * plan["requests_per_second"]
    seconds = max(_LEAST_SECONDS, _REQUESTS / rate, _ANSWERS * wanted.output_tokens * plan["itl"])
    with TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [
            *program, "--policies", "inferbus", "--json", str(figures), "--rate", f"{rate:g}",
            "--seconds", f"{seconds:.0f}", "--input-tokens", str(wanted.input_tokens),
            "--output-tokens", str(wanted.output_tokens), "--chat-share", "0",
            "--workers", str(plan.choice.replicas), "--capacity", str(timing.capacity),
            "--step", repr(timing.step_seconds), "--step-per-sequence", repr(timing.step_seconds_per_sequence),
            "--prefill-rate", f"{timing.prefill_tokens_per_second:g}", "--kv-blocks", str(timing.kv_blocks),
            "--block-tokens", str(timing.kv_block_tokens),
            "--cost", f"{wanted.hourly * plan.choice.deployment.parallel.gpus:g}",
            *(["--ttft-target", f"{wanted.ttft_seconds:g}"] if wanted.ttft_seconds else []),
            *(["--itl-target", f"{wanted.itl_seconds:g}"] if wanted.itl_seconds else []),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise click.ClickException(f"The simulator did not run: {done.stderr.strip()[-500:]}")
        (summary,) = json.loads(figures.read_text())
    told = ("requests", "done", "refused", "failed", "good_share", "output_rate", "ttft", "itl", "tpot", "busy_share")
    return {"rate": rate, "load": load, "seconds": seconds, **{name: summary[name] for name in told}}


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured of one model: requests with their mean lengths, how many were under way when one was (each
    minute weighed by them), output tokens a second in the busiest step, and latencies in seconds (p50, p95, p99)."""

    name: str
    revisions: tuple[str, ...]
    requests: int
    input_tokens: float
    output_tokens: float
    in_flight: float
    peak_output: float
    ttft: tuple[float, float, float]
    itl: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_of(edge: Edge, name: str, since: datetime) -> Load | None:
    """None where nothing of it was measured since then. Raises click's errors like ``edge``."""
    age = (clock.now() - since).total_seconds()
    step = next((step for most, step in _STEPS if age <= most), "1d")

    def ask(measure: str, *more: tuple[str, str]) -> Sequence[AnalyticsRow]:
        query = [("measure", measure), ("model", name), ("start", rfc3339(since)), *more]
        answer = edge.ask("GET", "/analytics", QueryAnalyticsResponse(), params=query, patience=PATIENCE)
        return answer.rows

    ttft, itl, requests, tokens = (ask(measure) for measure in ("ttft", "itl", "requests", "tokens"))
    count = sum(row.numbers["requests"] for row in requests)
    if not ttft or not itl or not count:
        return None
    busy = [row.numbers["in_flight"] for row in ask("in_flight", ("step", step))]
    made = [row.numbers["output_rate"] for row in ask("output", ("step", step))]
    revisions = tuple(sorted({row.group.revision for row in ask("requests", ("by", "revision"))}))
    return Load(
        name=name,
        revisions=revisions,
        requests=int(count),
        input_tokens=sum(row.numbers["input_tokens"] for row in tokens) / count,
        output_tokens=sum(row.numbers["output_tokens"] for row in tokens) / count,
        in_flight=sum(one * one for one in busy) / sum(busy) if sum(busy) else 0.0,
        peak_output=max(made, default=0.0),
        ttft=_percentiles(ttft[0]),
        itl=_percentiles(itl[0]),
    )


def _percentiles(row: AnalyticsRow) -> tuple[float, float, float]:
    return row.numbers["p50"], row.numbers["p95"], row.numbers["p99"]
