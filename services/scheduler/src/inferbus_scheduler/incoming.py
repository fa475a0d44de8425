"""A request as it came over the bus → the record that decisions are made on."""

from inferbus.bus.v1.request_pb2 import GenerateRequest, PromptInput
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_contracts.prefixes import hashes_of
from inferbus_runtime import clock

from inferbus_scheduler.core.estimates import OutputMeans
from inferbus_scheduler.core.request import Priority, Request

_PRIORITIES = {
    PriorityClass.PRIORITY_CLASS_INTERACTIVE: Priority.INTERACTIVE,
    PriorityClass.PRIORITY_CLASS_BACKGROUND: Priority.BACKGROUND,
    PriorityClass.PRIORITY_CLASS_BATCH: Priority.BATCH,
}
# Nobody counts tokens here: of most texts one is about so many bytes.
_BYTES_A_TOKEN = 4


def request_of(message: GenerateRequest, means: OutputMeans, *, now: float, now_us: int, max_wait: float) -> Request:
    """Unix times become monotonic ones (``now`` and ``now_us`` are the same moment), so that a step of the clock
    expires nobody. ``max_wait`` (seconds since acceptance, or since it was taken from a worker) holds whatever the
    request says itself."""
    arrived_at = queued_at = now
    if message.HasField("accepted_time"):
        arrived_at = queued_at = now - max(0, now_us - clock.unix_us(message.accepted_time)) / 1e6
    resume = message.resume
    if resume.HasField("interrupted_time"):
        queued_at = now - max(0, now_us - clock.unix_us(resume.interrupted_time)) / 1e6
    expires_at = queued_at + max_wait
    if message.HasField("expire_time"):
        expires_at = min(expires_at, now + (clock.unix_us(message.expire_time) - now_us) / 1e6)
    done = len(resume.token_ids)
    return Request(
        request_id=message.request_id,
        model=message.context.model,
        tenant=message.context.tenant_id,
        project=message.context.project_id,
        priority=_PRIORITIES.get(message.priority_class, Priority.INTERACTIVE),
        arrived_at=arrived_at,
        expires_at=expires_at,
        attempt=resume.attempt or 1,
        input_tokens=input_tokens(message) + done,
        output_tokens=_output_tokens(message, means, done),
        prefix=hashes_of(message.prefix),
        suspect=resume.fruitless_deaths > 0,
        queued_at=queued_at,
        avoid=resume.worker,
        resumed_tokens=done,
        revision=message.only_revision,
        failed_revisions=tuple(resume.failed_revisions),
        last_revision=resume.revision,
    )


def input_tokens(message: GenerateRequest) -> int:
    """An estimate; 0 where no prompt is read."""
    match message.WhichOneof("input"):
        case "chat":
            return message.chat.ByteSize() // _BYTES_A_TOKEN + 1
        case "prompt":
            return _prompt_tokens(message.prompt)
        case "embedding":
            return sum(_prompt_tokens(each) for each in message.embedding.inputs)
    return 0


def _prompt_tokens(prompt: PromptInput) -> int:
    if prompt.WhichOneof("prompt") == "tokens":
        return len(prompt.tokens.ids)
    return prompt.ByteSize() // _BYTES_A_TOKEN + 1


def _output_tokens(message: GenerateRequest, means: OutputMeans, done: int) -> int:
    if message.WhichOneof("input") in ("embedding", "inference"):
        return 0
    at_most = message.sampling.max_tokens if message.sampling.HasField("max_tokens") else None
    return max(1, means.expected(message.context.model, at_most) - done)
