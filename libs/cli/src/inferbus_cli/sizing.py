"""Plans as tables for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inferbus_sizing import GPUS, PRECISIONS, DoesNotFitError, Figure, Plan, models

from inferbus_cli.sizing_load import Load
from inferbus_cli.tables import Column, Rows
from inferbus_cli.text import count, rate, seconds

_SCALES = (("T", 1e12), ("B", 1e9), ("M", 1e6))


def value(figure: Figure) -> str:
    """A figure's value with its unit, as short as it can be told."""
    found = figure.value
    if found is None:
        return "never" if figure.name == "crossover" else "-"
    if figure.unit == "bytes":
        size, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if found >= s), (1, "B"))
        return f"{found / size:,.1f} {unit}"
    if figure.unit == "seconds":
        return seconds(found)
    if figure.unit == "dollars":
        return dollars(found)
    if figure.unit == "watts":
        return f"{found / 1000:,.1f} kW"
    if figure.unit == "parameters":
        return large(found)
    if figure.unit in ("tokens/s", "requests/s", "kWh"):
        return f"{rate(found) if found >= 1 else f'{found:.2g}'} {figure.unit}"
    return f"{large(found) if found >= 1e6 else count(found)} {figure.unit}"


def large(found: float) -> str:
    """``70.6 B``."""
    size, unit = next(((s, u) for u, s in _SCALES if found >= s), (1.0, ""))
    return f"{found / size:,.1f} {unit}" if unit else count(found)


def dollars(found: float) -> str:
    """Cents where there are dollars, else three digits."""
    return f"${found:,.2f}" if found >= 1 else f"${found:.3g}"


def shown(plan: Plan) -> Iterator[Any]:
    """One plan, a figure a line."""
    yield _head(plan)
    table = Rows(Column("figure"), Column("is", number=True))
    for figure in plan.figures:
        table.add(figure.title, value(figure))
    yield table
    yield "With --explain: each figure's formula and source. What they were checked against: docs/sizing.md."


def explained(plan: Plan) -> Iterator[Any]:
    """The same with formulas and sources."""
    yield _head(plan)
    for figure in plan.figures:
        yield f"\n{figure.title}: {value(figure)}\n  = {figure.formula}\n  from {figure.source}"


def _head(plan: Plan) -> str:
    wanted, choice = plan.wanted, plan.choice
    arithmetic, _ = wanted.hardware.rate(wanted.numbers.arithmetic)
    return (
        f"{wanted.model.name} in {wanted.numbers.title} (KV cache {wanted.kv_name}) on {choice.gpus} x "
        f"{wanted.hardware.title}: {choice.replicas} x {choice.deployment.parallel.name}, products in "
        f"{arithmetic.upper()}; {wanted.concurrency:,} at once, {wanted.input_tokens:,} tokens in, "
        f"{wanted.output_tokens:,} out, contexts up to {wanted.context:,}"
    )


def comparison(made: Sequence[tuple[str, Plan | DoesNotFitError]]) -> Iterator[Any]:
    """All GPUs, those that do it first, the cheapest first; then why the others do not."""
    plans = [one for _, one in made if isinstance(one, Plan)]
    crossing = any(one.crossover is not None for one in plans)
    if plans:
        wanted = plans[0].wanted
        yield (
            f"{wanted.model.name} in {wanted.numbers.title}: {wanted.concurrency:,} at once, {wanted.input_tokens:,} "
            f"tokens in, {wanted.output_tokens:,} out, contexts up to {wanted.context:,}"
        )
    table = Rows(
        Column("GPU"), Column("GPUs", number=True), Column("replicas"), Column("output", number=True),
        Column("ITL", number=True), Column("TTFT", number=True), Column("kW", number=True, spare=2),
        Column("$/hour", number=True, spare=1), Column("$/M in", number=True), Column("$/M out", number=True),
        *([Column("cheaper than the API from", number=True)] if crossing else []),
    )  # fmt: skip
    for plan in sorted(plans, key=lambda one: one["cost_per_request"]):
        figures = {one.name: one for one in plan.figures}
        table.add(
            plan.wanted.hardware.title, count(plan["gpus"]),
            f"{plan.choice.replicas} x {plan.choice.deployment.parallel.name}",
            value(figures["tokens_per_second"]), seconds(plan["itl"]), seconds(plan["ttft"]),
            f"{plan['power'] / 1000:,.1f}", f"{plan['cost_per_hour']:,.2f}", f"{plan['cost_per_million_in']:,.3f}",
            f"{plan['cost_per_million_out']:,.3f}", *([value(figures["crossover"])] if crossing else []),
        )  # fmt: skip
    if plans:
        yield table
        yield "Prices of GPUs are examples: --gpu NAME --price DOLLARS takes your own, and shows all figures."
    for name, error in made:
        if isinstance(error, DoesNotFitError):
            yield f"{name}: {error}"


def listed() -> Iterator[Any]:
    """What is built in."""
    table = Rows(Column("model"), Column("is"), Column("parameters", number=True), Column("active", number=True),
                 Column("context", number=True), Column("published in"))  # fmt: skip
    for model in models().values():
        one = model.architecture
        table.add(model.name, model.title, large(one.parameters), large(one.active_parameters),
                  count(one.context_limit), one.native)  # fmt: skip
    yield table
    numbers = ("memory", "GB/s", "BF16 TFLOPS", "watts", "$/hour")
    gpus = Rows(Column("GPU"), Column("is"), *(Column(name, number=True) for name in numbers))
    for gpu in GPUS.values():
        gpus.add(gpu.name, gpu.title, f"{gpu.memory / 1e9:.1f} GB", count(gpu.bandwidth / 1e9),
                 count(gpu.flops["bf16"] / 1e12), count(gpu.watts), f"{gpu.dollars_per_hour:.2f}")  # fmt: skip
    yield gpus
    precisions = Rows(Column("precision"), Column("is"), Column("bytes of a weight", number=True))
    for precision in PRECISIONS.values():
        precisions.add(precision.name, precision.title, f"{precision.bytes:.4g}")
    yield precisions


def simulated_table(plan: Plan, run: Mapping[str, Any]) -> Iterator[Any]:
    """The roofline's means beside the simulator's percentiles."""
    yield (
        f"The scheduler's simulator over {plan.choice.replicas} such workers: {run['rate']:.3g} requests/s "
        f"({run['load']:.0%} of what the plan can take) for {count(run['seconds'])} s, "
        f"{count(run['requests'])} requests, {count(run['refused'])} refused"
    )
    table = Rows(Column("latency"), Column("roofline", number=True), Column("p50", number=True),
                 Column("p95", number=True), Column("p99", number=True))  # fmt: skip
    table.add("TTFT", seconds(plan["ttft"]), *map(seconds, run["ttft"]))
    table.add("ITL", seconds(plan["itl"]), *map(seconds, run["itl"]))
    yield table
    yield f"Output {rate(run['output_rate'])} tokens/s, {run['good_share']:.1%} of the requests within the targets."


def measured_table(plan: Plan, load: Load) -> Iterator[Any]:
    """What was worked out beside what was measured."""
    yield (
        f"Measured of {load.name} ({', '.join(filter(None, load.revisions)) or 'no revision'}): {count(load.requests)} "
        f"requests of {load.input_tokens:,.0f} tokens in and {load.output_tokens:,.0f} out on average, "
        f"{load.in_flight:.1f} under way when one was"
    )
    table = Rows(Column("figure"), Column("worked out", number=True), Column("measured", number=True),
                 Column("measured / worked out", number=True))  # fmt: skip
    pairs = (
        ("TTFT, p50", plan["ttft"], load.ttft[0], seconds),
        ("ITL, p50", plan["itl"], load.itl[0], seconds),
        ("output tokens/s, busiest", plan["tokens_per_second"], load.peak_output, rate),
    )
    for name, expected, found, told in pairs:
        table.add(name, told(expected), told(found), f"{found / expected:.2f}")
    yield table
    yield "Worked out are means of the load above; TTFT has no network, no scheduler and no KV cache hits in it."
