"""What a run is judged by: outcomes of requests, gaps between tokens, who got how much."""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import exp, log

from inferbus_scheduler.core.request import Priority
from inferbus_scheduler.core.simulate.trace import Arrival

# Gaps between tokens are counted in classes of 1 %.
_FINENESS = 0.01
_LEAST = 1e-6
_BINS = 60


class Ending(IntEnum):
    DONE = 0
    REFUSED = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds. An interactive request is within them by its TTFT and the mean of its gaps (TPOT); for the other classes
    it is enough to be done."""

    ttft: float = 1.0
    itl: float = 0.05


class Gaps:
    """Gaps between tokens as a histogram: there are as many of them as tokens."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[int, float] = {}

    @staticmethod
    def number(seconds: float) -> int:
        """The class of a gap; worth keeping where the same gap is added often."""
        return round(log(max(_LEAST, seconds)) / _FINENESS)

    def add(self, number: int, tokens: float) -> None:
        self._counts[number] = self._counts.get(number, 0.0) + tokens

    def percentile(self, share: float) -> float:
        """Seconds; 0 where there are none."""
        left = share * sum(self._counts.values())
        for number in sorted(self._counts):
            left -= self._counts[number]
            if left <= 0:
                return exp(number * _FINENESS)
        return 0.0


class Measures:
    """Told each end once. A request costs 44 bytes."""

    def __init__(self) -> None:
        self.gaps = Gaps()
        self.tenants: dict[str, int] = {}
        self.arrived_at = array("d")
        self.ttft = array("d")
        self.tpot = array("d")
        self.ended_at = array("d")
        self.tenant = array("H")
        self.ending = array("B")
        self.interactive = array("B")
        self.output_tokens = array("L")
        self.reasons: dict[str, int] = {}
        self.demanded: dict[str, int] = {}
        self.input_tokens = 0
        self.hit_tokens = 0
        self.preemptions = 0
        self.migrations = 0
        self.reread_tokens = 0

    def demand(self, tenant: str, output_tokens: int) -> None:
        """A request arrived."""
        self.demanded[tenant] = self.demanded.get(tenant, 0) + output_tokens

    def read(self, input_tokens: int, hit_tokens: int, *, again: bool) -> None:
        """An input began to be read, of which its KV cache held ``hit_tokens``; ``again``: not for the first time."""
        self.input_tokens += input_tokens
        self.hit_tokens += hit_tokens
        if again:
            self.reread_tokens += input_tokens - hit_tokens

    def ended(
        self,
        arrival: Arrival,
        ending: Ending,
        reason: str,
        *,
        first_at: float,
        ended_at: float,
        tokens: int,
    ) -> None:
        """``first_at``: of its first token, negative if it had none. ``tokens``: delivered."""
        tenant = arrival.tenant
        self.arrived_at.append(arrival.time)
        self.interactive.append(arrival.priority is Priority.INTERACTIVE)
        self.ttft.append(first_at - arrival.time if first_at >= 0 else -1.0)
        self.tpot.append((ended_at - first_at) / (tokens - 1) if first_at >= 0 and tokens > 1 else 0.0)
        self.ended_at.append(ended_at)
        self.tenant.append(self.tenants.setdefault(tenant, len(self.tenants)))
        self.ending.append(ending)
        self.output_tokens.append(tokens)
        if reason:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy's run. Rates are per second of the time in which requests arrived."""

    policy: str
    requests: int
    done: int
    refused: int
    failed: int
    reasons: Mapping[str, int]
    seconds: float
    makespan: float
    goodput: float
    good_share: float
    output_tokens: int
    output_rate: float
    ttft: tuple[float, float, float]
    itl: tuple[float, float, float]
    tpot: float
    tenant_ttft_p99: Mapping[str, float]
    modest_ttft_p99: float
    fairness: float
    hit_rate: float
    preemptions: int
    migrations: int
    reread_tokens: int
    cost_per_million: float
    cost_per_good_million: float
    busy_share: float
    ttft_curve: tuple[float, ...]
    goodput_curve: tuple[tuple[float, float], ...]


def summarize(
    policy: str,
    measures: Measures,
    *,
    seconds: float,
    targets: Targets,
    weights: Mapping[str, float],
    cost: float,
    busy_share: float,
) -> Summary:
    """``seconds``: in which requests arrived; ``cost``: of all workers in the whole run."""
    good = [
        ending == Ending.DONE and (not interactive or (ttft <= targets.ttft and tpot <= targets.itl))
        for ending, interactive, ttft, tpot in zip(
            measures.ending, measures.interactive, measures.ttft, measures.tpot, strict=True
        )
    ]
    firsts = sorted(
        ttft for ttft, interactive in zip(measures.ttft, measures.interactive, strict=True) if ttft >= 0 and interactive
    )
    tokens = sum(measures.output_tokens)
    good_tokens = sum(count for count, within in zip(measures.output_tokens, good, strict=True) if within)
    within_window = _delivered(measures, seconds)
    allotted = fair_shares(measures.demanded, weights, sum(within_window.values()))
    by_tenant = _ttft_p99(measures)
    modest = [
        by_tenant[tenant]
        for tenant, share in allotted.items()
        if tenant in by_tenant and share >= 0.999 * measures.demanded[tenant]
    ]
    counts = [measures.ending.count(ending) for ending in Ending]
    return Summary(
        policy=policy,
        requests=len(measures.ending),
        done=counts[Ending.DONE],
        refused=counts[Ending.REFUSED],
        failed=counts[Ending.FAILED],
        reasons=dict(sorted(measures.reasons.items())),
        seconds=seconds,
        makespan=max(measures.ended_at, default=0.0),
        goodput=sum(good) / seconds if seconds else 0.0,
        good_share=sum(good) / len(good) if good else 0.0,
        output_tokens=tokens,
        output_rate=sum(within_window.values()) / seconds if seconds else 0.0,
        ttft=(_at(firsts, 0.5), _at(firsts, 0.95), _at(firsts, 0.99)),
        itl=(measures.gaps.percentile(0.5), measures.gaps.percentile(0.95), measures.gaps.percentile(0.99)),
        tpot=_at(sorted(measures.tpot), 0.5),
        tenant_ttft_p99=by_tenant,
        modest_ttft_p99=max(modest or by_tenant.values(), default=0.0),
        fairness=jain([within_window.get(tenant, 0) / share for tenant, share in allotted.items() if share > 0]),
        hit_rate=measures.hit_tokens / measures.input_tokens if measures.input_tokens else 0.0,
        preemptions=measures.preemptions,
        migrations=measures.migrations,
        reread_tokens=measures.reread_tokens,
        cost_per_million=cost / tokens * 1e6 if tokens else 0.0,
        cost_per_good_million=cost / good_tokens * 1e6 if good_tokens else 0.0,
        busy_share=busy_share,
        ttft_curve=tuple(_at(firsts, step / 100) for step in range(101)),
        goodput_curve=_over_time(measures, good, seconds),
    )


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 if all are equal, 1/n if one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def fair_shares(demands: Mapping[str, float], weights: Mapping[str, float], total: float) -> dict[str, float]:
    """How ``total`` is to be divided: by weight, nobody more than he asks for, what is left to the others (max-min)."""
    shares = dict.fromkeys(demands, 0.0)
    # Who is satisfied first: the least demand for his weight.
    order = sorted(demands, key=lambda name: (demands[name] / weights.get(name, 1.0), name))
    left, weight = total, sum(weights.get(name, 1.0) for name in order)
    for name in order:
        own = weights.get(name, 1.0)
        shares[name] = min(demands[name], left * own / weight)
        left -= shares[name]
        weight -= own
    return shares


def _delivered(measures: Measures, seconds: float) -> dict[str, int]:
    """Output tokens by tenant of what ended while requests still arrived: later everybody gets everything."""
    names = list(measures.tenants)
    delivered = dict.fromkeys(names, 0)
    for tenant, at, tokens in zip(measures.tenant, measures.ended_at, measures.output_tokens, strict=True):
        if at <= seconds:
            delivered[names[tenant]] += tokens
    return delivered


def _ttft_p99(measures: Measures) -> dict[str, float]:
    by_tenant: list[list[float]] = [[] for _ in measures.tenants]
    for tenant, ttft, interactive in zip(measures.tenant, measures.ttft, measures.interactive, strict=True):
        if ttft >= 0 and interactive:
            by_tenant[tenant].append(ttft)
    return {name: _at(sorted(values), 0.99) for name, values in zip(measures.tenants, by_tenant, strict=True) if values}


def _over_time(measures: Measures, good: Iterable[bool], seconds: float) -> tuple[tuple[float, float], ...]:
    """(time, good requests a second) by the time of the arrival."""
    width = seconds / _BINS
    if width <= 0:
        return ()
    bins = [0] * _BINS
    for at, within in zip(measures.arrived_at, good, strict=True):
        if within:
            bins[min(_BINS - 1, int(at / width))] += 1
    return tuple(((number + 0.5) * width, count / width) for number, count in enumerate(bins))


def _at(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the ``ordered`` lie; 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
