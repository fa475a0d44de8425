"""One generation as the worker knows it, from its WORK message to its Close."""

from dataclasses import dataclass, field

from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.timing import unix_us


@dataclass(slots=True, eq=False)
class Running:
    """``ids``: output tokens on the log so far, those of earlier attempts included.

    ``last_us``: time of the request's previous token, of its acceptance before the first. ``closing``: the engine
    was told to end it; ``verdict`` says why, if it is not the client's cancel. ``expire_us``: 0 for never. ``opened``:
    a frame of this attempt carries its Open. ``first_started_us``: as ``started_us``, but in whichever attempt; 0: not
    known. ``texts``: what ``ids`` stand for, if the engine goes on by text.
    """

    key: bytes
    edge: str
    request: GenerateRequest
    context: RequestContext
    context_key: bytes
    attempt: int
    accepted_us: int
    placed_us: int
    expire_us: int
    last_us: int
    started_us: int = 0
    first_started_us: int = 0
    first_us: int = 0
    ids: list[int] = field(default_factory=list)
    texts: list[bytes] | None = None
    opened: bool = False
    closing: bool = False
    verdict: InferBusError | None = None


def running_of(work: Work, revision: str, attempt: int) -> Running:
    """A new one: nothing delivered, nothing started."""
    request = work.request
    context = RequestContext()
    context.CopyFrom(request.context)
    context.revision = revision
    accepted = unix_us(request.accepted_time)
    return Running(
        key=request.request_id,
        edge=request.edge,
        request=request,
        context=context,
        context_key=context.SerializeToString(deterministic=True),
        attempt=attempt,
        accepted_us=accepted,
        placed_us=unix_us(work.placed_time) if work.HasField("placed_time") else 0,
        expire_us=unix_us(request.expire_time) if request.HasField("expire_time") else 0,
        last_us=accepted,
    )
