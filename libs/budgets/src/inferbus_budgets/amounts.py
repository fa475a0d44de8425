"""What a call may cost at most, what it has cost, and how much of a budget an edge asks for. Pure.

A bound must hold whatever the engine does, so it counts bytes where tokens are not known: a token stands for a byte at
least, and what a chat template adds is allowed for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.bus.v1.request_pb2 import ChatInput, GenerateRequest, PromptInput
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.ids import choice_of, unix_ms_of
from inferbus_contracts.operations import operation_of
from inferbus_dialect.errors import QUOTA
from inferbus_dialect.plan import Plan
from inferbus_rating import PriceBook, Rate, Scope, cost, is_answered, most
from inferbus_rating.book import DEFAULT_MODEL
from inferbus_runtime.errors import InferBusError, unavailable

ZERO = Decimal(0)
# What templates put around a message, around all of them, and around a prompt, in tokens.
_AROUND_MESSAGE, _AROUND_CHAT, _AROUND_PROMPT = 32, 2048, 16
# JSON that a template writes anew, with spaces and line ends of its own.
_REWRITTEN = 4
# Of a model that does not say how long its context is, for a request without max_tokens: not a bound, see billing.md.
_UNKNOWN_OUTPUT = 32_768
# An edge asks for what its calls need and for what it spent lately, but no more than this part of what is left: what
# one edge holds is not there for the others.
_SHARE = Decimal(8)
_AHEAD = 8
_MENDED = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Bound:
    """Of one choice. ``input_tokens``: that it bears."""

    input_tokens: int
    output_tokens: int


def bounds_of(plan: Plan, model: ModelRecord) -> tuple[Bound, ...]:
    """Of each choice, if ``model`` answers it."""
    context = model.context_length
    return tuple(
        Bound(0 if one.input_counted_elsewhere else _input(one, context), _output(one, context))
        for one in plan.requests
    )


def rate_of(book: PriceBook, key: KeyRecord, plan: Plan, model: ModelRecord, accepted_us: int) -> Rate:
    """The price that the call will be charged with if ``model`` answers."""
    first = plan.requests[0]
    scope = Scope(key.tenant_id, key.project_id, model.name or plan.model, model.revision)
    return book.rate_at(scope, operation_of(first), first.priority_class, accepted_us)


def is_readable(book: PriceBook, key: KeyRecord, model: str) -> bool:
    """Whether no record that may be the price of such a call is malformed: then the rate is the one that was meant."""
    return not any(
        record.tenant_id in ("", key.tenant_id)
        and record.project_id in ("", key.project_id)
        and record.model in ("", DEFAULT_MODEL, model)
        for record, _ in book.faults
    )


def most_of(rate: Rate, bounds: Sequence[Bound]) -> tuple[Decimal, ...]:
    """What each choice of a call can cost at most."""
    return tuple(
        most(rate, bound.input_tokens, bound.output_tokens, first_choice=number == 0)
        for number, bound in enumerate(bounds)
    )


def most_of_any(answers: Iterable[Sequence[Decimal]]) -> Decimal:
    """What the call can cost at most, by :func:`most_of` of each model that may answer: each choice may be answered by
    another one of them."""
    return sum((max(choice) for choice in zip(*answers, strict=True)), ZERO)


def charge_of(book: PriceBook, close: Close, context: RequestContext) -> Decimal:
    """What a request has cost: as the meter works it out."""
    accepted_us = unix_ms_of(close.request_id) * 1000
    if close.HasField("accepted_time"):
        accepted_us = close.accepted_time.ToMicroseconds()
    scope = Scope(context.tenant_id, context.project_id, context.model, context.revision)
    rate = book.rate_at(scope, close.operation, close.priority_class, accepted_us)
    return cost(
        close.usage,
        rate,
        first_choice=choice_of(close.request_id) == 0,
        answered=is_answered(close.finish_reason),
    )


def wanted(waiting: Decimal, need: Decimal, lately: Decimal, left: Decimal) -> Decimal:
    """How much more an edge asks for: for the calls that wait, the last of which needs ``need``, and for those to come,
    as far as it spent much ``lately``. Whole calls: a rest that covers none helps nobody."""
    ahead = min(max(need * _AHEAD, lately), left / _SHARE)
    return max(waiting, ahead // need * need)


def exhausted(scope: str, *, reserved: bool) -> InferBusError:
    """``reserved``: by requests that are running; without them there would be room."""
    why = (
        "what is left of it is reserved for requests that are running; wait for them, or set a lower max_tokens"
        if reserved
        else "add credits or ask your operator to raise it"
    )
    message = f"You exceeded your current quota: the budget of this {scope} does not cover the request; {why}."
    return InferBusError(ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, QUOTA, message)


def unreadable() -> InferBusError:
    message = (
        "The price of this model cannot be read, and so its budget not be kept; ask your operator to mend the price."
    )
    return unavailable("price_unreadable", message, retry_after=_MENDED)


def other_currency(scope: str, currency: str) -> InferBusError:
    message = (
        f"The budget of this {scope} is in {currency}, and the price of this model is not; choose another model or ask "
        "your operator for a budget in its currency."
    )
    return InferBusError(ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, QUOTA, message)


def _input(request: GenerateRequest, context: int) -> int:
    kind = request.WhichOneof("input")
    if kind == "embedding":
        return sum(_within(_prompt(one), context) for one in request.embedding.inputs)
    if kind == "chat":
        return _within(_chat(request.chat), context)
    return _within(_prompt(request.prompt), context) if kind == "prompt" else 0


def _prompt(prompt: PromptInput) -> int:
    return len(prompt.text.encode()) + len(prompt.tokens.ids) + _AROUND_PROMPT


def _chat(chat: ChatInput) -> int:
    # The size on the wire is that of all its texts in UTF-8, and a few bytes more.
    said = sum(one.ByteSize() + _AROUND_MESSAGE for one in chat.messages)
    calls = sum(call.ByteSize() for one in chat.messages for call in one.tool_calls)
    tools = sum(one.ByteSize() + _AROUND_MESSAGE for one in chat.tools)
    return said + _REWRITTEN * (calls + tools) + _AROUND_CHAT


def _output(request: GenerateRequest, context: int) -> int:
    if request.WhichOneof("input") not in ("chat", "prompt"):
        return 0
    if request.sampling.HasField("max_tokens"):
        return _within(request.sampling.max_tokens, context)
    return context or _UNKNOWN_OUTPUT


def _within(tokens: int, context: int) -> int:
    return min(tokens, context) if context else tokens
