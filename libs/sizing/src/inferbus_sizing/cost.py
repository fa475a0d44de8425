"""Watts, dollars, and when an API would be dearer."""

from collections.abc import Iterator
from dataclasses import dataclass

from inferbus_sizing.choice import Choice
from inferbus_sizing.figure import Figure
from inferbus_sizing.hardware import PRICE_SOURCE
from inferbus_sizing.wanted import Wanted

HOURS_A_MONTH = 730.0
MILLION = 1e6
HOST_FACTOR = 10.2 / 5.6
_HOST_SOURCE = "NVIDIA DGX H100 data sheet: 10.2 kW at most, of which 8 GPUs 5.6 kW; an upper bound, without cooling"
_POINTS = 48


@dataclass(frozen=True, slots=True)
class Point:
    """Dollars a month for so many requests a month. ``own``: with as many replicas as they take."""

    requests: float
    own: float
    api: float


@dataclass(frozen=True, slots=True)
class Crossover:
    """``requests``: a month, from which on own GPUs are cheaper than the API; None: they never are. ``capacity``: of
    the plan's replicas, at full load all month."""

    requests: float | None
    capacity: float
    points: tuple[Point, ...]


def api_dollars(wanted: Wanted) -> float | None:
    """Of one request at the API's prices; None without prices."""
    if wanted.api_price_in is None and wanted.api_price_out is None:
        return None
    into, out = wanted.api_price_in or 0.0, wanted.api_price_out or 0.0
    return (wanted.input_tokens * into + wanted.output_tokens * out) / MILLION


def cost_figures(wanted: Wanted, choice: Choice, rate: float) -> Iterator[Figure]:
    """``rate``: requests a second of the whole plan."""
    priced = "as given" if wanted.dollars_per_hour is not None else PRICE_SOURCE
    gpu_watts = choice.gpus * wanted.hardware.watts
    watts = gpu_watts * HOST_FACTOR
    hourly = choice.gpus * wanted.hourly + watts / 1000 * wanted.dollars_per_kwh
    second = hourly / 3600
    yield Figure("power_gpus", gpu_watts, "watts", f"GPUs x {wanted.hardware.watts} W (TDP)", wanted.hardware.source)
    yield Figure("power", watts, "watts", f"GPUs' power x {HOST_FACTOR:.2f} for their hosts", _HOST_SOURCE)
    yield Figure(
        "energy_per_million", watts / 3.6e6 / (rate * wanted.output_tokens) * MILLION, "kWh",
        "power / output tokens a second, per million", _HOST_SOURCE,
    )  # fmt: skip
    energy = f" + power x ${wanted.dollars_per_kwh:g}/kWh" if wanted.dollars_per_kwh else ""
    yield Figure("cost_per_hour", hourly, "dollars", f"GPUs x ${wanted.hourly:g}{energy}", priced)
    yield Figure("cost_per_month", hourly * HOURS_A_MONTH, "dollars", f"cost an hour x {HOURS_A_MONTH:g}", priced)
    yield from _per_million(wanted, choice, second, rate, priced)
    each = api_dollars(wanted)
    if each is None:
        return
    yield Figure(
        "api_per_request", each, "dollars",
        f"({wanted.input_tokens:,} x ${wanted.api_price_in or 0:g} + {wanted.output_tokens:,} x "
        f"${wanted.api_price_out or 0:g}) / 1,000,000", "as given",
    )  # fmt: skip
    found = crossover(wanted, choice, rate)
    assert found is not None  # noqa: S101 - there are prices
    never = "never: at full load all month a request still costs more than the API's"
    yield Figure(
        "crossover", found.requests, "requests/month",
        never if found.requests is None else "cost of the plan a month / API's price of a request", priced,
    )  # fmt: skip
    yield Figure(
        "capacity", found.capacity, "requests/month", f"requests a second x 3600 x {HOURS_A_MONTH:g}", "full load"
    )
    if wanted.requests_per_month:
        asked = wanted.requests_per_month
        yield Figure("api_per_month", asked * each, "dollars", f"{asked:,.0f} requests x API's price", "as given")
        yield Figure(
            "own_per_month", _own(wanted, choice, rate, asked), "dollars",
            "cost of as many replicas as that takes, the plan's at least", priced,
        )  # fmt: skip


def crossover(wanted: Wanted, choice: Choice, rate: float) -> Crossover | None:
    """None without the API's prices."""
    each = api_dollars(wanted)
    if each is None:
        return None
    capacity = rate * 3600 * HOURS_A_MONTH
    month = _own(wanted, choice, rate, 0.0)
    meeting = month / each if each else float("inf")
    reach = max(capacity * 1.25, wanted.requests_per_month * 1.25, min(meeting, capacity * 4) * 1.25)
    points = tuple(
        Point(asked, _own(wanted, choice, rate, asked), asked * each)
        for asked in (reach * step / _POINTS for step in range(_POINTS + 1))
    )
    return Crossover(meeting if meeting <= capacity else None, capacity, points)


def _own(wanted: Wanted, choice: Choice, rate: float, requests: float) -> float:
    """Dollars a month: the plan's replicas, and more of them where the load needs them."""
    replica = rate * 3600 * HOURS_A_MONTH / choice.replicas
    needed = max(choice.replicas, -(-requests // replica))
    gpus = needed * choice.deployment.parallel.gpus
    watts = gpus * wanted.hardware.watts * HOST_FACTOR
    return (gpus * wanted.hourly + watts / 1000 * wanted.dollars_per_kwh) * HOURS_A_MONTH


def _per_million(wanted: Wanted, choice: Choice, second: float, rate: float, priced: str) -> Iterator[Figure]:
    """Shared between input and output as the GPUs' time is."""
    speed = choice.speed
    request = second / rate
    work = speed.prefill_work_seconds(wanted.input_tokens) * choice.sequences / wanted.output_tokens
    share = work / speed.cycle_seconds(choice.sequences, wanted.input_tokens, wanted.output_tokens)
    yield Figure("cost_per_request", request, "dollars", "cost a second / requests a second, at full load", priced)
    yield Figure(
        "cost_per_million_in", request * share / wanted.input_tokens * MILLION, "dollars",
        f"cost of a request x {share:.1%} (the time that goes into prompts) / input tokens, per million", priced,
    )  # fmt: skip
    yield Figure(
        "cost_per_million_out", request * (1 - share) / wanted.output_tokens * MILLION, "dollars",
        f"cost of a request x {1 - share:.1%} (the time that goes into steps) / output tokens, per million", priced,
    )  # fmt: skip
    yield Figure(
        "cost_per_million", request / (wanted.input_tokens + wanted.output_tokens) * MILLION, "dollars",
        "cost of a request / its tokens, input and output alike, per million", priced,
    )  # fmt: skip
