"""How many GPUs a replica has, how they share the work, and how many replicas there are: the fewest GPUs that do."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from inferbus_sizing.errors import DoesNotFitError
from inferbus_sizing.hardware import GPUS
from inferbus_sizing.memory import Deployment, Parallel
from inferbus_sizing.performance import DEFAULT, MOST_SEQUENCES, Efficiency, Speed
from inferbus_sizing.precision import PRECISIONS
from inferbus_sizing.wanted import Wanted

_WIDTHS = (1, 2, 4, 8, 16, 32, 64)
_DEPTHS = (1, 2, 4, 8)
_SUGGESTIONS = 2


@dataclass(frozen=True, slots=True)
class Choice:
    """``sequences``: at once in each of ``replicas``; ``room``: those that each has memory for."""

    speed: Speed
    replicas: int
    sequences: int
    room: int

    @property
    def deployment(self) -> Deployment:
        return self.speed.of

    @property
    def gpus(self) -> int:
        return self.replicas * self.deployment.parallel.gpus


def choose(wanted: Wanted, efficiency: Efficiency = DEFAULT) -> Choice:
    """The fewest GPUs; among equally many, the shorter gap between tokens. Raises :class:`DoesNotFitError`."""
    found = [one for one in _choices(wanted, efficiency) if one is not None]
    if not found:
        raise DoesNotFitError("gpu", _why_not(wanted, efficiency))
    return min(found, key=lambda one: (one.gpus, _gap(one.speed, wanted, one.sequences)))


def _choices(wanted: Wanted, efficiency: Efficiency) -> Iterator[Choice | None]:
    for parallel in _parallels(wanted):
        yield _choice(Speed(_deployment(wanted, parallel), efficiency), wanted)


def _deployment(wanted: Wanted, parallel: Parallel) -> Deployment:
    return Deployment(wanted.model, wanted.numbers, wanted.kv_bytes, wanted.hardware, parallel)


def _parallels(wanted: Wanted) -> Iterator[Parallel]:
    """Within what one fast link joins by tensors, several of those by layers."""
    model, together = wanted.model, wanted.hardware.together
    for tensor in _WIDTHS:
        if tensor > together or model.attention.heads % tensor:
            continue
        for pipeline in _DEPTHS:
            if pipeline > 1 and (tensor < min(together, 8) or pipeline > model.layers):
                continue
            if wanted.gpus_per_replica and tensor * pipeline != wanted.gpus_per_replica:
                continue
            yield Parallel(tensor, pipeline)
            if model.experts is not None and tensor > 1 and model.experts.count % tensor == 0:
                yield Parallel(tensor, pipeline, expert=True)


def _choice(speed: Speed, wanted: Wanted) -> Choice | None:
    room = speed.of.sequences(wanted.context)
    low, high = 0, min(room, wanted.concurrency, MOST_SEQUENCES * speed.of.parallel.pipeline)
    # Both means grow with the number of sequences, so that the most that meet the targets can be bisected.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _meets(speed, wanted, middle) else (low, middle - 1)
    if low == 0:
        return None
    replicas = -(-wanted.concurrency // low)
    return Choice(speed, replicas, -(-wanted.concurrency // replicas), room)


def _meets(speed: Speed, wanted: Wanted, sequences: int) -> bool:
    if wanted.itl_seconds and _gap(speed, wanted, sequences) > wanted.itl_seconds:
        return False
    return not wanted.ttft_seconds or _first(speed, wanted, sequences) <= wanted.ttft_seconds


def _gap(speed: Speed, wanted: Wanted, sequences: int) -> float:
    return speed.cycle_seconds(sequences, wanted.input_tokens, wanted.output_tokens)


def _first(speed: Speed, wanted: Wanted, sequences: int) -> float:
    return speed.ttft_seconds(sequences, wanted.input_tokens, wanted.output_tokens)


# --- when nothing does ---


def _why_not(wanted: Wanted, efficiency: Efficiency) -> str:
    speeds = [Speed(_deployment(wanted, one), efficiency) for one in _parallels(wanted)]
    holding = [one for one in speeds if one.of.sequences(wanted.context) > 0]
    gpu = wanted.hardware.title
    if holding:
        gap, first = (min(how(one, wanted, 1) for one in holding) for how in (_gap, _first))
        return (
            f"{wanted.model.name} in {wanted.numbers.title} fits {gpu}, and no number of them meets the targets: alone "
            f"a sequence has a TTFT of {first * 1e3:,.0f} ms and an ITL of {gap * 1e3:,.1f} ms at best"
        )
    most = max((one.of.parallel.gpus for one in speeds), default=wanted.gpus_per_replica)
    total = wanted.numbers.weights(wanted.model).total
    said = (
        f"{wanted.model.name} in {wanted.numbers.title} has {total / 1e9:,.1f} GB of weights, and with a context of "
        f"{wanted.context:,} tokens it does not fit {most} x {gpu}"
    )
    others = "; ".join(_fitting(wanted, efficiency))
    return f"{said}. What would fit: {others}" if others else said


def _fitting(wanted: Wanted, efficiency: Efficiency) -> list[str]:
    """More of the same GPUs, narrower weights on them, the same weights on others; of each kind those that take the
    fewest GPUs."""
    free = replace(wanted, gpus_per_replica=0, kv_precision="")
    narrower = [
        replace(free, precision=name)
        for name, one in PRECISIONS.items()
        if one.bytes < wanted.numbers.bytes and (not one.experts_only or wanted.model.native == name)
    ]
    others = [replace(free, gpu=name) for name in GPUS if name != wanted.hardware.name]
    return [said for kind in ([free], narrower, others) for said in _fewest(kind, efficiency)]


def _fewest(tries: list[Wanted], efficiency: Efficiency) -> list[str]:
    found: list[tuple[int, str]] = []
    for one in tries:
        gpus = min((choice.gpus for choice in _choices(one, efficiency) if choice is not None), default=0)
        if gpus:
            found.append((gpus, f"{gpus} x {one.hardware.title} in {one.numbers.title}"))
    return [said for _, said in sorted(found, key=lambda item: item[0])[:_SUGGESTIONS]]
