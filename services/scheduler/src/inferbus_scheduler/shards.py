"""Which models are ours: each shard of them is scheduled by whoever holds its lease."""

from datetime import timedelta

from inferbus_bus.connection import Bus
from inferbus_bus.shards import Shards
from inferbus_contracts.subjects import SHARDS, model_shard
from inferbus_runtime import metrics

ROLE = "scheduler"
_REMEMBERED = 10_000


class ModelShards:
    """What is asked of :class:`Shards` by the names of models, on the way of each request."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._shard_of: dict[str, int] = {}

    def owns(self, model: str) -> bool:
        """Whether requests of ``model`` are to be placed here."""
        return self._shards.owns(self._shard(model))

    def holds(self, model: str) -> bool:
        """Like :meth:`owns`, and also while its shard is being left: what was begun may be ended."""
        return self._shards.holds(self._shard(model))

    def _shard(self, model: str) -> int:
        shard = self._shard_of.get(model)
        if shard is None:
            if len(self._shard_of) > _REMEMBERED:
                self._shard_of.clear()
            shard = self._shard_of[model] = model_shard(model)
        return shard


def shards_of(bus: Bus, name: str, ttl: timedelta) -> Shards:
    """Those of all models."""
    return Shards(bus, role=ROLE, count=SHARDS, name=name, ttl=ttl, on_held=metrics.SCHEDULER_SHARDS.set)
