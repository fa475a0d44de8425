"""One generation as the worker knows it, from its WORK message to its Close."""

from dataclasses import dataclass, field

from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_contracts.recovery import begun
from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.timing import unix_us


@dataclass(slots=True, eq=False)
class Running:
    """``ids``: output tokens on the log so far, those of earlier attempts included.

    ``last_us``: time of the request's previous token, of its acceptance before the first. ``closing``: the engine
    was told to end it; ``verdict`` says why, if it is not the client's cancel. ``expire_us``: 0 for never. ``opened``:
    a frame of this attempt carries its Open. ``first_started_us``: as ``started_us``, but in whichever attempt; 0: not
    known. ``fails_over``: if the engine fails it, another revision is to do it. ``texts``: what ``ids`` stand for, if
    the engine goes on by text. ``resumed``: an earlier attempt had tokens.
    ``told_tokens``, ``told_input_tokens``, ``prefill_tokens``: see :class:`inferbus_worker.core.load.LoadCount`.
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
    resumed: bool = False
    told_tokens: int = 0
    told_input_tokens: int = 0
    prefill_tokens: int = 0
    fails_over: bool = False
    cold_start_us: int = 0


def running_of(work: Work, revision: str, attempt: int | None = None, *, by_text: bool = False) -> Running:
    """What goes on from ``work.request.resume``, or, without one, a new one: nothing delivered, nothing started.

    ``attempt``: that of ``work``, unless it is another. ``by_text``: the engine goes on by text.
    """
    request = work.request
    context = RequestContext()
    context.CopyFrom(request.context)
    context.revision = revision
    accepted = unix_us(request.accepted_time)
    before = begun(request.resume)
    return Running(
        key=request.request_id,
        edge=request.edge,
        request=request,
        context=context,
        context_key=context.SerializeToString(deterministic=True),
        attempt=attempt or attempt_of(work),
        accepted_us=accepted,
        placed_us=unix_us(work.placed_time) if work.HasField("placed_time") else 0,
        expire_us=unix_us(request.expire_time) if request.HasField("expire_time") else 0,
        last_us=before.last_us or accepted,
        first_us=before.first_us,
        first_started_us=before.first_started_us,
        ids=before.ids,
        texts=[text for _, text in before.texts] if by_text else None,
        resumed=bool(before.ids),
        fails_over=work.fails_over,
        cold_start_us=work.cold_start_us,
    )


def attempt_of(work: Work) -> int:
    return max(1, work.attempt)
