"""Whether a file may serve in place of the one that it was made from: figures, and bounds that they must keep. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from inferbus.bus.v1.revision_pb2 import Validation, ValidationFigure

from inferbus_prepare.distributions import agreement, mean_divergence, perplexity, same_first
from inferbus_prepare.measured import Measured


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What a candidate must keep; None: the figure is only told. Chosen by measurement: docs/models.md.

    ``min_agreement``: of greedy texts, up to the first difference. ``min_same_first``: of positions with the same
    likeliest token. ``max_kl``: nats a token. Ratios are the candidate's by the reference's.
    """

    min_agreement: float | None = 0.3
    min_same_first: float | None = 0.9
    max_kl: float | None = 0.03
    max_perplexity_ratio: float | None = 1.03
    min_speed_ratio: float | None = None
    max_size_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """One of both files, measured."""

    measured: Measured
    size_bytes: int


def compare(reference: Side, candidate: Side, thresholds: Thresholds) -> list[ValidationFigure]:
    """The figures of a candidate that runs."""
    one, other = reference.measured, candidate.measured
    if one.text_ids != other.text_ids or one.vocabulary != other.vocabulary or len(one.greedy) != len(other.greedy):
        detail = "another tokenizer, or another workload: nothing else can be compared"
        return [figure("same_tokens", 0.0, detail=detail, at_least=1.0)]
    greedy = [agreement(*pair) for pair in zip(one.greedy, other.greedy, strict=True)]
    positions = f"{len(one.distributions)} positions of a held-out text"
    listed = min((len(each.top) for each in (*one.distributions, *other.distributions)), default=0)
    before, after = (perplexity(side.distributions, side.vocabulary) for side in (one, other))
    longest = max(map(len, one.greedy), default=0)
    equal = sum(each == 1.0 for each in greedy)
    return [
        figure(
            "greedy_agreement",
            math.fsum(greedy) / len(greedy) if greedy else math.nan,
            detail=f"{len(greedy)} prompts, up to {longest} tokens, {equal} equal throughout",
            at_least=thresholds.min_agreement,
        ),
        figure(
            "same_first_token",
            same_first(one.distributions, other.distributions) if one.distributions else math.nan,
            detail=positions,
            at_least=thresholds.min_same_first,
        ),
        figure(
            "kl_divergence",
            mean_divergence(one.distributions, other.distributions) if one.distributions else math.nan,
            unit="nats/token",
            detail=f"{positions}, from the {listed} likeliest tokens; a lower bound",
            at_most=thresholds.max_kl,
        ),
        figure(
            "perplexity_ratio",
            after / before if before > 0 else math.inf,
            detail=f"{after:.3f} against {before:.3f}, {positions}",
            at_most=thresholds.max_perplexity_ratio,
        ),
        figure(
            "size_ratio",
            candidate.size_bytes / reference.size_bytes,
            detail=f"{candidate.size_bytes:,} against {reference.size_bytes:,} bytes",
            at_most=thresholds.max_size_ratio,
        ),
        *_of_the_engine(one, other, thresholds),
    ]


def _of_the_engine(one: Measured, other: Measured, thresholds: Thresholds) -> list[ValidationFigure]:
    """Speed and memory; of a simulation there are none, and a bound of them is not kept."""
    if other.simulated:
        if thresholds.min_speed_ratio is None:
            return []
        detail = "not measured: the quantized model was simulated"
        return [figure("tokens_per_second_ratio", math.nan, detail=detail, at_least=thresholds.min_speed_ratio)]
    return [
        figure(
            "tokens_per_second_ratio",
            other.writing_rate / one.writing_rate if one.writing_rate > 0 else math.inf,
            detail=(
                f"writing {other.writing_rate:.1f} against {one.writing_rate:.1f} tokens/s, "
                f"reading {other.reading_rate:.1f} against {one.reading_rate:.1f}, one request at a time"
            ),
            at_least=thresholds.min_speed_ratio,
        ),
        figure(
            "memory_ratio",
            other.rss_bytes / one.rss_bytes if one.rss_bytes else math.inf,
            detail=f"{other.rss_bytes:,} against {one.rss_bytes:,} bytes of the engine's process at its largest",
        ),
    ]


def figure(
    name: str,
    value: float,
    *,
    unit: str = "",
    detail: str = "",
    at_least: float | None = None,
    at_most: float | None = None,
) -> ValidationFigure:
    """It passes if it keeps its bounds; what is no number keeps none."""
    low = at_least is None or value >= at_least
    high = at_most is None or value <= at_most
    return ValidationFigure(
        name=name, value=value, unit=unit, detail=detail, at_least=at_least, at_most=at_most, passed=low and high
    )


def sound(name: str, fault: str | None) -> ValidationFigure:
    """``structure`` or ``runs``: 1 without a fault, else 0 with the fault as its detail."""
    return figure(name, 0.0 if fault else 1.0, detail=fault or "", at_least=1.0)


def verdict(figures: Sequence[ValidationFigure], reference: str, end: datetime, duration: timedelta) -> Validation:
    """Passed only if there are figures and all passed."""
    made = Validation(passed=bool(figures) and all(one.passed for one in figures), reference=reference, figures=figures)
    made.end_time.FromDatetime(end)
    made.duration.FromTimedelta(duration)
    return made
