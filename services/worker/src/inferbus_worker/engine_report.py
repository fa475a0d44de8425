"""What the engine says of itself, for heartbeats, GetStatus and the metrics."""

import logging
from math import nan
from typing import Any

from inferbus.bus.v1 import control_pb2 as wire
from inferbus_runtime import metrics
from prometheus_client import Gauge

from inferbus_worker.engine import Engine

log = logging.getLogger(__name__)

# Field of the statistics: its gauge, and the labels beside the engine's name.
_GAUGES: dict[str, tuple[Gauge, tuple[str, ...]]] = {
    "engine_running": (metrics.ENGINE_REQUESTS, ("running",)),
    "engine_waiting": (metrics.ENGINE_REQUESTS, ("waiting",)),
    "kv_blocks_total": (metrics.ENGINE_KV_BLOCKS, ()),
    "kv_blocks_used": (metrics.ENGINE_KV_BLOCKS_USED, ()),
    "kv_block_tokens": (metrics.ENGINE_KV_BLOCK_TOKENS, ()),
    "kv_blocks_reused_total": (metrics.ENGINE_KV_BLOCKS_REUSED, ()),
    "step_seconds": (metrics.ENGINE_STEP_SECONDS, ()),
    "drafted_tokens_total": (metrics.ENGINE_DRAFTED_TOKENS, ()),
    "accepted_tokens_total": (metrics.ENGINE_ACCEPTED_TOKENS, ()),
}
_FIELDS = ("running", "waiting", *_GAUGES)


class EngineReport:
    """Asked at each heartbeat, so it costs little: a gauge is touched only when its value is another one."""

    def __init__(self, engine: Engine, name: str) -> None:
        """``name``: of the engine, for the metrics."""
        self._engine = engine
        self._name = name
        self._shown: dict[str, Any] | None = None
        self._gauges: dict[str, Gauge] = {}  # those with a series now: labels() costs more than what it is for
        self._failed = False

    def current(self) -> wire.EngineStatistics | None:
        """None if the engine fails to say it, which never keeps a worker from its work."""
        try:
            said, message = self._asked()
        except Exception:
            if not self._failed:
                log.exception("the engine's statistics failed; said once")
            self._failed, said, message = True, {}, None
        if said != self._shown:
            self._show(said)
        return message

    def _asked(self) -> tuple[dict[str, Any], wire.EngineStatistics]:
        """ValueError, and whatever the engine raises: of a number that none of them can be, too."""
        told = self._engine.statistics()
        said = {name: value for name in _FIELDS if (value := getattr(told, name)) is not None}
        return said, wire.EngineStatistics(**said)

    def _show(self, said: dict[str, Any]) -> None:
        metrics.WORKER_ACTIVE.set(said.get("running", nan))
        metrics.WORKER_WAITING.set(said.get("waiting", nan))
        before = self._shown or {}
        for field in self._gauges.keys() - said.keys():
            gauge, labels = _GAUGES[field]
            gauge.remove(self._name, *labels)
            del self._gauges[field]
        for field in said.keys() & _GAUGES.keys():
            if field not in self._gauges:
                gauge, labels = _GAUGES[field]
                self._gauges[field] = gauge.labels(self._name, *labels)
            if said[field] != before.get(field):
                self._gauges[field].set(said[field])
        self._shown = said
