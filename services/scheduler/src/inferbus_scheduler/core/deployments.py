"""How a model is served: the record with its defaults filled in, and what is wrong with one that an operator sends."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from inferbus.bus.v1.registry_pb2 import DeploymentRecord

from inferbus_scheduler.core.request import base_of

IDLE_SECONDS = 300.0
COLD_START_SECONDS = 600.0
MAX_NAME = 256
MAX_FALLBACKS = 8
MAX_REPLICAS = 10_000
MAX_GPUS = 1024
# REQUESTS keeps a request for an hour, and the scheduler one for less: nothing waits for longer.
_LONGEST_WAIT = timedelta(minutes=30)
_LONGEST_IDLE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Times in seconds; a target that is None promises nothing. ``cold_start``: how long a request may wait for the
    first worker; None: as long as for any model. ``queue_target``: the wait from which on ``fallbacks`` are asked."""

    model: str
    ttft_target: float | None = None
    itl_target: float | None = None
    queue_target: float | None = None
    fallbacks: tuple[str, ...] = ()
    min_replicas: int = 0
    max_replicas: int = 0
    gpus_per_replica: int = 1
    idle_time: float = IDLE_SECONDS
    cold_start: float | None = None

    @property
    def scaled(self) -> bool:
        """Whether somebody decides how many workers it has."""
        return self.max_replicas > 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a record, for the operator. ``param``: the field."""

    param: str
    message: str


def deployment_of(record: DeploymentRecord) -> Deployment:
    """``record`` with the defaults in the place of what it leaves out."""
    deployment = Deployment(
        model=record.model,
        ttft_target=_seconds(record, "ttft_target"),
        itl_target=_seconds(record, "itl_target"),
        queue_target=_seconds(record, "queue_target"),
        fallbacks=tuple(record.fallbacks),
        min_replicas=record.min_replicas,
        max_replicas=record.max_replicas,
        gpus_per_replica=record.gpus_per_replica or 1,
        cold_start=_seconds(record, "cold_start"),
    )
    idle_time = _seconds(record, "idle_time")
    return replace(
        deployment,
        queue_target=deployment.ttft_target if deployment.queue_target is None else deployment.queue_target,
        idle_time=IDLE_SECONDS if idle_time is None else idle_time,
        cold_start=COLD_START_SECONDS if deployment.scaled and deployment.cold_start is None else deployment.cold_start,
    )


def fault_of(record: DeploymentRecord, others: Mapping[str, DeploymentRecord]) -> Fault | None:
    """Why ``record`` cannot stand beside ``others`` (by model; its own former self does not count); None: it can."""
    return (
        _name_fault(record)
        or _time_fault(record)
        or _bounds_fault(record)
        or _fallback_fault(record)
        or _circle_fault(record, others)
    )


def _name_fault(record: DeploymentRecord) -> Fault | None:
    if not record.model or len(record.model) > MAX_NAME:
        return Fault("model", f"Name a model, of at most {MAX_NAME} characters.")
    if record.model != base_of(record.model):
        return Fault("model", f"An adapter is served as its model is: name `{base_of(record.model)}`.")
    return None


def _time_fault(record: DeploymentRecord) -> Fault | None:
    longest = {"idle_time": _LONGEST_IDLE}
    for name in ("ttft_target", "itl_target", "queue_target", "idle_time", "cold_start"):
        if not record.HasField(name):
            continue
        given: Duration = getattr(record, name)
        bound = longest.get(name, _LONGEST_WAIT)
        seconds = given.seconds + given.nanos / 1e9
        if not 0 < seconds <= bound.total_seconds():
            return Fault(name, f"'{name}' must be above 0 and at most {bound.total_seconds():.0f} seconds.")
    return None


def _bounds_fault(record: DeploymentRecord) -> Fault | None:
    if record.max_replicas > MAX_REPLICAS:
        return Fault("max_replicas", f"'max_replicas' is at most {MAX_REPLICAS}.")
    if record.min_replicas > record.max_replicas:
        return Fault("min_replicas", "'min_replicas' must not be above 'max_replicas'; with 0 there it is not scaled.")
    if record.gpus_per_replica > MAX_GPUS:
        return Fault("gpus_per_replica", f"'gpus_per_replica' is at most {MAX_GPUS}.")
    return None


def _fallback_fault(record: DeploymentRecord) -> Fault | None:
    fallbacks = record.fallbacks
    if len(fallbacks) > MAX_FALLBACKS or len(set(fallbacks)) < len(fallbacks):
        return Fault("fallbacks", f"'fallbacks' names at most {MAX_FALLBACKS} models, each once.")
    if any(not name or len(name) > MAX_NAME for name in fallbacks):
        return Fault("fallbacks", f"Each of 'fallbacks' names a model, of at most {MAX_NAME} characters.")
    if any(base_of(name) == record.model for name in fallbacks):
        return Fault("fallbacks", "A model cannot be its own fallback.")
    return None


def _circle_fault(record: DeploymentRecord, others: Mapping[str, DeploymentRecord]) -> Fault | None:
    """A request goes from model to fallback; whatever is reached from ``record`` must not lead back to it."""
    seen: set[str] = set()
    ahead = [base_of(name) for name in record.fallbacks]
    while ahead:
        name = ahead.pop()
        if name == record.model:
            return Fault("fallbacks", "These fallbacks lead back to the model in a circle.")
        if name in seen or name not in others:
            continue
        seen.add(name)
        ahead += [base_of(each) for each in others[name].fallbacks]
    return None


def _seconds(record: DeploymentRecord, name: str) -> float | None:
    if not record.HasField(name):  # type: ignore[arg-type]  # a name of the parameter is no literal
        return None
    given: Duration = getattr(record, name)
    return given.seconds + given.nanos / 1e9
