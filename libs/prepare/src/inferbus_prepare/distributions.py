"""Next-token distributions of which only the largest probabilities are known. Pure; natural logarithms.

**KL divergence.** P is the reference's, Q the candidate's. What is known of both is told apart token by token (the set
A); the rest is merged: B, the tokens that only P's list has, and R, all others. Of B the candidate's probability is not
known, but no token that it left out is likelier than the last one that it listed. So with x = Q(B)

    KL(P, Q) >= sum over A of p ln(p/q)  +  P(B) ln(P(B)/x)  +  P(R) ln(P(R)/(1 - Q(A) - x))

for the x in [0, |B| * least q listed] that makes it smallest. Merging never makes a divergence larger, so this is a
lower bound of the true one, and equal to it when both lists are whole.

**Perplexity.** That of the model whose tail is spread evenly over the tokens that are not listed.
"""

import math
from collections.abc import Sequence

from inferbus_prepare.measured import Distribution

_LEAST = 1e-12


def divergence(reference: Distribution, candidate: Distribution) -> float:
    """A lower bound of the KL divergence in nats, at least 0; infinite if a probability is none."""
    p_log, q_log = reference.top, candidate.top
    if not p_log or not q_log or not all(map(math.isfinite, q_log.values())):
        return math.inf
    shared = p_log.keys() & q_log.keys()
    total = sum(math.exp(p_log[token]) * (p_log[token] - q_log[token]) for token in shared)
    p_shared = math.fsum(math.exp(p_log[token]) for token in shared)
    p_alone = math.fsum(math.exp(log) for token, log in p_log.items() if token not in shared)
    q_left = max(0.0, 1.0 - math.fsum(math.exp(q_log[token]) for token in shared))
    p_rest = max(0.0, 1.0 - p_shared - p_alone)
    # What the candidate can have given to those tokens: no more than its tail, and each no more than its last.
    tail = max(0.0, 1.0 - math.fsum(map(math.exp, q_log.values())))
    bound = min(tail, (len(p_log) - len(shared)) * math.exp(min(q_log.values())))
    left = p_alone + p_rest
    best = q_left * p_alone / left if left > 0 else 0.0
    q_alone = min(best, bound)
    total += _part(p_alone, q_alone) + _part(p_rest, q_left - q_alone)
    return max(0.0, total)


def _part(p: float, q: float) -> float:
    """Below what sums of rounded probabilities can tell it is nothing."""
    return p * math.log(p / max(q, _LEAST)) if p > _LEAST else 0.0


def mean_divergence(reference: Sequence[Distribution], candidate: Sequence[Distribution]) -> float:
    """Of as many positions, at least one. Nats a token."""
    pairs = zip(reference, candidate, strict=True)
    return math.fsum(divergence(one, other) for one, other in pairs) / len(reference)


def perplexity(distributions: Sequence[Distribution], vocabulary: int) -> float:
    """e to the mean surprise at what the text goes on with; infinite if a probability is none."""
    surprises = [-_log_of_target(one, vocabulary) for one in distributions]
    if not all(map(math.isfinite, surprises)):
        return math.inf
    return math.exp(min(math.fsum(surprises) / len(surprises), 700.0))


def same_first(reference: Sequence[Distribution], candidate: Sequence[Distribution]) -> float:
    """The part of the positions at which both think the same token the likeliest."""
    same = sum(_first(one) == _first(other) for one, other in zip(reference, candidate, strict=True))
    return same / len(reference)


def _first(one: Distribution) -> int:
    return max(one.top, key=lambda token: (one.top[token], -token), default=-1)


def _log_of_target(one: Distribution, vocabulary: int) -> float:
    if one.target in one.top:
        return one.top[one.target]
    tail = 1.0 - math.fsum(map(math.exp, one.top.values()))
    return math.log(max(tail, _LEAST) / max(1, vocabulary - len(one.top)))


def agreement(reference: Sequence[int], candidate: Sequence[int]) -> float:
    """The part of the longer text up to the first difference; 1 of two empty ones."""
    longest = max(len(reference), len(candidate))
    same = 0
    for one, other in zip(reference, candidate, strict=False):
        if one != other:
            break
        same += 1
    return same / longest if longest else 1.0
