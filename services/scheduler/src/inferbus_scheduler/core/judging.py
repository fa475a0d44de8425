"""Whether a revision on trial is worse than the stable one: figures with samples, by tests that say how sure they are.

Times are compared as whole distributions (Mann and Whitney 1947, normal approximation with ties) and in their tails
(how many are above the 95th percentile of the other), parts by Fisher's exact test. Each asks one thing: is the
candidate worse *by more than is allowed*? So a difference that is real and harmless is no reason, and neither is a
large one of few samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from math import erfc, exp, lgamma, log, sqrt

# Less says nothing of a distribution by a normal approximation.
LEAST_TIMES = 20
LEAST_PARTS = 5
# Of the stable one's times so many are above its 95th percentile.
_TAIL = 0.05
# By how much the candidate's part in that tail may be larger.
_TAIL_MARGIN = 0.05


class Verdict(Enum):
    """OPEN: there are too few samples to say."""

    GOOD = "good"
    BAD = "bad"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured of one revision's requests. Times in seconds, of some of them where there are many.

    ``failed``: ended with an error, or failed here and were done by another revision; ``requests`` counts both.
    ``at_limit``: of ``answered`` those that ended by their length; ``empty``: those with no more than one token.
    """

    requests: int = 0
    failed: int = 0
    answered: int = 0
    at_limit: int = 0
    empty: int = 0
    ttft: tuple[float, ...] = ()
    itl: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """``slowdown``: by how much times may be larger (0.25: by a quarter); ``errors`` and ``shape``: by how much the
    parts of failed, and of over-long or empty answers may be larger. ``significance``: the probability of so bad a
    sample if the candidate kept the bound, below which it is held to break it."""

    slowdown: float = 0.25
    errors: float = 0.01
    shape: float = 0.2
    significance: float = 0.01


@dataclass(frozen=True, slots=True)
class Figure:
    """One comparison. ``limit``: what the candidate's had to keep."""

    name: str
    candidate: float | None
    stable: float | None
    candidate_samples: int
    stable_samples: int
    p_value: float | None
    limit: float | None
    verdict: Verdict


def judge(candidate: Sample, stable: Sample, bounds: Bounds) -> tuple[Figure, ...]:
    """All comparisons, in a fixed order."""
    return (
        part(
            "error_rate",
            (candidate.failed, candidate.requests),
            (stable.failed, stable.requests),
            bounds.errors,
            bounds,
        ),
        times("ttft", candidate.ttft, stable.ttft, bounds),
        tail("ttft_p95", candidate.ttft, stable.ttft, bounds),
        times("itl", candidate.itl, stable.itl, bounds),
        tail("itl_p95", candidate.itl, stable.itl, bounds),
        part(
            "length_rate",
            (candidate.at_limit, candidate.answered),
            (stable.at_limit, stable.answered),
            bounds.shape,
            bounds,
        ),
        part(
            "empty_rate", (candidate.empty, candidate.answered), (stable.empty, stable.answered), bounds.shape, bounds
        ),
    )


def part(name: str, candidate: tuple[int, int], stable: tuple[int, int], margin: float, bounds: Bounds) -> Figure:
    """Of (those that have it, all). BAD: more than ``margin`` above the stable one's, and not by chance."""
    (bad, of), (stable_bad, stable_of) = candidate, stable
    rate = bad / of if of else None
    stable_rate = stable_bad / stable_of if stable_of else None
    if rate is None or of < LEAST_PARTS:
        return Figure(name, rate, stable_rate, of, stable_of, None, None, Verdict.OPEN)
    limit = (stable_rate or 0.0) + margin
    # By the first the stable part is known exactly; by the second it was measured, too.
    p_value = max(binomial_tail(bad, of, min(1.0, limit)), fisher(bad, of, stable_bad, stable_of))
    verdict = Verdict.BAD if rate > limit and p_value < bounds.significance else Verdict.GOOD
    return Figure(name, rate, stable_rate, of, stable_of, p_value, limit, verdict)


def times(name: str, candidate: Sequence[float], stable: Sequence[float], bounds: Bounds) -> Figure:
    """Medians, judged by whole distributions: BAD if the candidate's are larger than the stable one's times
    1 + slowdown."""
    found = median(candidate), median(stable)
    counts = len(candidate), len(stable)
    if min(counts) < LEAST_TIMES or found[1] is None:
        return Figure(name, *found, *counts, None, None, Verdict.OPEN)
    allowed = 1.0 + bounds.slowdown
    p_value = mann_whitney(candidate, [each * allowed for each in stable])
    verdict = Verdict.BAD if p_value < bounds.significance else Verdict.GOOD
    return Figure(name, *found, *counts, p_value, found[1] * allowed, verdict)


def tail(name: str, candidate: Sequence[float], stable: Sequence[float], bounds: Bounds) -> Figure:
    """95th percentiles, judged by how many of the candidate's are above the stable one's times 1 + slowdown."""
    found = quantile(candidate, 0.95), quantile(stable, 0.95)
    counts = len(candidate), len(stable)
    if min(counts) < LEAST_TIMES or found[1] is None:
        return Figure(name, *found, *counts, None, None, Verdict.OPEN)
    limit = found[1] * (1.0 + bounds.slowdown)
    above = sum(each > limit for each in candidate)
    p_value = binomial_tail(above, counts[0], _TAIL + _TAIL_MARGIN)
    verdict = Verdict.BAD if p_value < bounds.significance else Verdict.GOOD
    return Figure(name, *found, *counts, p_value, limit, verdict)


def median(values: Sequence[float]) -> float | None:
    return quantile(values, 0.5)


def quantile(values: Sequence[float], level: float) -> float | None:
    """The smallest value that at least ``level`` of all do not exceed; None of none."""
    if not values:
        return None
    at = max(0, -int(-level * len(values) // 1) - 1)
    return sorted(values)[min(at, len(values) - 1)]


def mann_whitney(larger: Sequence[float], smaller: Sequence[float]) -> float:
    """The probability of ranks as high as those of ``larger``, or higher, if both came from one distribution. Normal
    approximation with correction for ties and continuity; both have some."""
    n, m = len(larger), len(smaller)
    pooled = sorted([(value, True) for value in larger] + [(value, False) for value in smaller])
    rank_sum, ties, at = 0.0, 0.0, 0
    while at < len(pooled):
        end = at
        while end < len(pooled) and pooled[end][0] == pooled[at][0]:
            end += 1
        rank = (at + 1 + end) / 2
        rank_sum += rank * sum(mine for _, mine in pooled[at:end])
        ties += (end - at) ** 3 - (end - at)
        at = end
    u = rank_sum - n * (n + 1) / 2
    whole = n + m
    variance = n * m / 12 * (whole + 1 - ties / (whole * (whole - 1)))
    if variance <= 0:
        return 1.0  # all are equal
    return 0.5 * erfc((u - n * m / 2 - 0.5) / sqrt(2 * variance))


def binomial_tail(hits: int, of: int, probability: float) -> float:
    """Of ``hits`` or more among ``of``, each with that probability."""
    if hits <= 0:
        return 1.0
    if probability <= 0.0:
        return 0.0
    if probability >= 1.0:
        return 1.0
    total = 0.0
    for k in range(hits, of + 1):
        term = exp(_choose(of, k) + k * log(probability) + (of - k) * log(1 - probability))
        total += term
        if k > of * probability and term < total * 1e-12:
            break
    return min(1.0, total)


def fisher(hits: int, of: int, other_hits: int, other_of: int) -> float:
    """Fisher's exact test, one-sided: the probability of ``hits`` or more among ``of`` if the hits of both were spread
    by chance. Of no others: 1 minus nothing known, which is taken for 0."""
    if not other_of:
        return 0.0
    whole, marked = of + other_of, hits + other_hits
    base = _choose(whole, of)
    total = 0.0
    for k in range(hits, min(of, marked) + 1):
        if marked - k <= other_of and of - k <= whole - marked:
            total += exp(_choose(marked, k) + _choose(whole - marked, of - k) - base)
    return min(1.0, total)


def _choose(n: int, k: int) -> float:
    """Natural logarithm of n over k."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)


def agreement(candidate: Sequence[Sequence[int]], stable: Sequence[Sequence[int]]) -> float | None:
    """Of greedy answers to the same prompts: the mean part of each that is equal from its start on. None: no prompts.

    Once two greedy texts differ, what follows differs by itself, so what is after the first difference does not count.
    """
    parts = []
    for one, other in zip(candidate, stable, strict=True):
        longest = max(len(one), len(other))
        same = 0
        for left, right in zip(one, other, strict=False):
            if left != right:
                break
            same += 1
        parts.append(same / longest if longest else 1.0)
    return sum(parts) / len(parts) if parts else None
