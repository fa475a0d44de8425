"""One generation as the worker knows it, from its WORK message to its Close."""

from dataclasses import dataclass, field

from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.bus.v1.request_pb2 import Sampling as WireSampling
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.timing import unix_us
from inferbus_worker.engine import Generation, Message, Sampling


@dataclass(slots=True, eq=False)
class Running:
    """``ids``: output tokens on the log so far, those of earlier attempts included.

    ``last_us``: time of the request's previous token, of its acceptance before the first. ``closing``: the engine
    was told to end it; ``verdict`` says why, if it is not the client's cancel. ``expire_us``: 0 for never.
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
    first_us: int = 0
    ids: list[int] = field(default_factory=list)
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


def generation_of(running: Running) -> Generation:
    """What the engine is asked to do now. Raises InferBusError for an input that no engine takes."""
    request = running.request
    if request.WhichOneof("input") != "chat":
        raise invalid("Send chat messages.", param="messages")
    messages = tuple(Message(message.role, message.content) for message in request.chat.messages)
    return Generation(running.key, messages, sampling_of(request.sampling), tuple(running.ids))


def sampling_of(wire: WireSampling) -> Sampling:
    """Absent fields are None: the model's own default."""

    def given(name: str) -> bool:
        return wire.HasField(name)  # type: ignore[arg-type]

    return Sampling(
        temperature=wire.temperature if given("temperature") else None,
        top_p=wire.top_p if given("top_p") else None,
        top_k=wire.top_k if given("top_k") else None,
        seed=wire.seed if given("seed") else None,
        stop=tuple(wire.stop),
        max_tokens=wire.max_tokens if given("max_tokens") else None,
        frequency_penalty=wire.frequency_penalty if given("frequency_penalty") else None,
        presence_penalty=wire.presence_penalty if given("presence_penalty") else None,
        repetition_penalty=wire.repetition_penalty if given("repetition_penalty") else None,
    )
