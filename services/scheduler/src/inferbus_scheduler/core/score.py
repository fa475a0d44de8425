"""How good a worker is for a request: named parts in [0, 1] and their weighted mean.

All parts but ``prefix`` are of the worker alone, so that workers can be kept in their order: that of what they have to
read when they were heard last. What they have read since is added where the first ones are compared.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferbus_contracts.prefixes import CHUNK_TOKENS

if TYPE_CHECKING:
    from inferbus_scheduler.core.view import WorkerView


@dataclass(frozen=True, slots=True)
class Weights:
    """What each part counts. The scales are where a part has fallen to (``prefix``: has risen to) one half."""

    load: float = 1.0
    kv: float = 0.5
    prefill: float = 2.0
    prefix: float = 1.0
    cost: float = 0.25
    # Tokens that wait to be read.
    prefill_scale: float = 1024.0
    # Tokens that need not be read.
    prefix_scale: float = 1024.0
    # What an hour of one batch slot costs; a worker whose cost is not known counts as one of this.
    cost_scale: float = 0.05

    @property
    def total(self) -> float:
        return (self.load + self.kv + self.prefill + self.prefix + self.cost) or 1.0


def parts(worker: "WorkerView", hits: int, weights: Weights, now: float) -> dict[str, float]:
    """Each in [0, 1], the more the better. ``hits``: chunks of the request's prefix that the worker holds."""
    saved = hits * CHUNK_TOKENS
    return {
        "load": clamped(1.0 - worker.load),
        # Where blocks are not known, slots speak for them.
        "kv": clamped(1.0 - (worker.kv_load if worker.kv_blocks else worker.load)),
        "prefill": weights.prefill_scale / (weights.prefill_scale + worker.unread(now)),
        "prefix": saved / (weights.prefix_scale + saved) if saved else 0.0,
        "cost": weights.cost_scale / (weights.cost_scale + _slot_cost(worker)) if worker.cost_per_hour else 0.5,
    }


def alone(worker: "WorkerView", weights: Weights) -> float:
    """The score without a prefix."""
    load = worker.load
    free = clamped(1.0 - load)
    kv = clamped(1.0 - worker.kv_load) if worker.kv_blocks else free
    prefill = weights.prefill_scale / (weights.prefill_scale + worker.prefill_tokens)
    cost = weights.cost_scale / (weights.cost_scale + _slot_cost(worker)) if worker.cost_per_hour else 0.5
    return (weights.load * free + weights.kv * kv + weights.prefill * prefill + weights.cost * cost) / weights.total


def for_reading(worker: "WorkerView", now: float, weights: Weights) -> float:
    """What is added to the score since some of what it reads will have been read by ``now``."""
    if not worker.token_seconds or not worker.prefill_tokens:
        return 0.0
    scale = weights.prefill_scale
    gained = scale / (scale + worker.unread(now)) - scale / (scale + worker.prefill_tokens)
    return weights.prefill * gained / weights.total


def for_prefix(hits: int, weights: Weights) -> float:
    """What a prefix of so many chunks adds to the score."""
    saved = hits * CHUNK_TOKENS
    return weights.prefix * (saved / (weights.prefix_scale + saved)) / weights.total if saved else 0.0


def clamped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _slot_cost(worker: "WorkerView") -> float:
    """Of one batch slot and hour: what a machine costs says nothing until it is known how much it carries."""
    return worker.cost_per_hour / max(1, worker.capacity)
