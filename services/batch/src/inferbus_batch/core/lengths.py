"""Whether an input fits a model's context, as far as that can be said without its tokenizer."""

from enum import Enum, auto

from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus_budgets.amounts import bounds_of
from inferbus_dialect.plan import Plan

from inferbus_batch.core.lines import Fault

# No token of a tokenizer that we know stands for more; the longest are rows of about 130 spaces (characters).
_LONGEST_TOKEN = 512
# What a model may put around a text, in tokens.
_AROUND = 16


class Length(Enum):
    FITS = auto()
    """Its bytes alone are fewer than the tokens that there is room for, and a token has a byte at least."""
    MAYBE = auto()
    OVER = auto()


def length_of(plan: Plan, context_length: int) -> Length:
    """Of the inputs of ``plan`` for a model of ``context_length`` tokens; 0: not known, and everything fits."""
    if not context_length:
        return Length.FITS
    # A text's answer needs room for one token.
    sizes = [(one, context_length) for one in _embedded(plan)] or [(_size(plan), context_length - 1)]
    found = {_length(least, most, room) for (least, most), room in sizes}
    if Length.OVER in found:
        return Length.OVER
    return Length.MAYBE if Length.MAYBE in found else Length.FITS


def too_long(number: int, context_length: int, tokens: int = 0) -> Fault:
    """``tokens`` 0: not counted."""
    what = f"has {tokens} tokens, which is" if tokens else "is"
    message = f"The input {what} more than the model's context of {context_length} tokens; shorten it."
    return Fault(number, "context_length_exceeded", message, "body")


def _length(least: int, most: int, room: int) -> Length:
    if least > room:
        return Length.OVER
    return Length.MAYBE if most > room else Length.FITS


def _embedded(plan: Plan) -> list[tuple[int, int]]:
    return [_prompt(len(one.tokens.ids), one.text) for one in plan.requests[0].embedding.inputs]


def _size(plan: Plan) -> tuple[int, int]:
    """The fewest and the most tokens that its input can be."""
    request = plan.requests[0]
    most = bounds_of(plan, ModelRecord())[0].input_tokens
    if request.WhichOneof("input") == "prompt":
        return _prompt(len(request.prompt.tokens.ids), request.prompt.text)
    return sum(len(one.content) for one in request.chat.messages) // _LONGEST_TOKEN, most


def _prompt(ids: int, text: str) -> tuple[int, int]:
    return (ids, ids) if ids else (len(text) // _LONGEST_TOKEN, len(text.encode()) + _AROUND)
