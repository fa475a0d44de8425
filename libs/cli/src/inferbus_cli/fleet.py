"""The fleet as the edge's API gives it, and in words."""

from dataclasses import dataclass

from inferbus.bus.v1.control_pb2 import EngineStatistics
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.scheduler.v1.scheduler_pb2 import ListSchedulersResponse, ModelQueue, WatchFleetResponse

from inferbus_cli.edge import Edge, as_message
from inferbus_cli.text import count, duration

FLEET = "/fleet"


@dataclass(frozen=True, slots=True)
class Fleet:
    """``schedulers``: who schedules which shards; empty if they do not say."""

    picture: WatchFleetResponse
    schedulers: ListSchedulersResponse


def fleet_of(edge: Edge, patience: float = 0.0) -> Fleet:
    """Raises Refused and Unreachable."""
    shown = edge.facts(FLEET, patience=patience)
    return Fleet(as_message(shown, WatchFleetResponse()), as_message(shown, ListSchedulersResponse()))


def state_of(record: WorkerRecord) -> str:
    return WorkerState.Name(record.state).removeprefix("WORKER_STATE_").lower()


def kv_used(engine: EngineStatistics) -> str:
    """``-`` for an engine that does not say."""
    says = engine.HasField("kv_blocks_used") and engine.kv_blocks_total
    return f"{engine.kv_blocks_used / engine.kv_blocks_total:.0%}" if says else "-"


def from_cache(engine: EngineStatistics) -> str:
    """Input tokens that were not read again since the engine's start; ``-`` for an engine that does not say."""
    if not engine.HasField("kv_blocks_reused_total"):
        return "-"
    return count(engine.kv_blocks_reused_total * (engine.kv_block_tokens or 1))


def queued(picture: WatchFleetResponse) -> str:
    """One line."""
    waiting = [_queue(one) for one in picture.queues if one.queued]
    return f"queued: {', '.join(waiting)}" if waiting else "nothing is queued"


def shards_of(shards: list[int]) -> str:
    """``0-3, 7``."""
    runs: list[tuple[int, int]] = []
    for one in sorted(shards):
        if runs and one == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], one)
        else:
            runs.append((one, one))
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def _queue(queue: ModelQueue) -> str:
    interactive = PriorityClass.PRIORITY_CLASS_INTERACTIVE
    lower = queue.priority_class not in (interactive, PriorityClass.PRIORITY_CLASS_UNSPECIFIED)
    name = PriorityClass.Name(queue.priority_class).removeprefix("PRIORITY_CLASS_").lower()
    of_class = f" {name}" if lower else ""
    return f"{queue.model}{of_class} {count(queue.queued)} (oldest {duration(queue.oldest_age)})"
