"""A plan that is being accepted, as messages for the bus."""

from typing import Any

from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_contracts.ids import choice_id
from inferbus_contracts.prefixes import prefix_of

from inferbus_dialect.capture import is_captured
from inferbus_dialect.labels import labels_of
from inferbus_dialect.plan import Plan


def reply_of(plan: Plan, model: ModelRecord, accepted_us: int, hold: float) -> dict[str, Any]:
    """The reply description that travels with the request. ``reasoning``: the model's text may hold its thoughts;
    ``hold``: what its client asked for, also for when it comes back."""
    reply = {"reasoning": "reasoning" in model.capabilities, **plan.reply}
    if reply["reasoning"]:
        reply["plain"] = False
    if hold:
        reply["hold"] = hold
    return {**reply, "model": plan.model, "created": accepted_us // 1_000_000}


def messages_of(
    plan: Plan, key: KeyRecord, first: bytes, edge: str, accepted_us: int, expire_us: int, reply: bytes
) -> list[GenerateRequest]:
    """One message for each choice. Times are Unix microseconds."""
    context = RequestContext(tenant_id=key.tenant_id, project_id=key.project_id, key_id=key.key_id, model=plan.model)
    context.captured = is_captured(first, plan.capture_rate)
    labels = labels_of(plan.end_user, plan.tags)
    messages: list[GenerateRequest] = []
    for choice, asked in enumerate(plan.requests):
        message = GenerateRequest()
        message.CopyFrom(asked)
        message.request_id = choice_id(first, choice)
        message.context.CopyFrom(context)
        message.edge = edge
        message.accepted_time.FromMicroseconds(accepted_us)
        message.expire_time.FromMicroseconds(expire_us)
        message.cache_salt = key.tenant_id.encode()
        message.reply = reply
        if labels is not None:
            message.labels.CopyFrom(labels)
        # All choices of a prompt read the same, and comparing costs a hundredth of hashing.
        again = bool(messages) and _reads_the_same(message, messages[-1])
        message.prefix = messages[-1].prefix if again else prefix_of(message)
        messages.append(message)
    return messages


def _reads_the_same(one: GenerateRequest, other: GenerateRequest) -> bool:
    return one.chat == other.chat and one.prompt == other.prompt
