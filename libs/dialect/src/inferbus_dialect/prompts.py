"""Raw prompts as OpenAI's older APIs take them: one text or several, or their tokens."""

from array import array
from typing import Annotated, Any

from inferbus.bus.v1.request_pb2 import PromptInput
from pydantic import Discriminator, Field, Tag, ValidatorFunctionWrapHandler, WrapValidator

from inferbus_dialect.schema import TEXT

MAX_PROMPTS = 2048

_TEXTS, _TOKENS, _TOKEN_LISTS = "<texts>", "<tokens>", "<token lists>"
# A token has about four characters in most texts; only a limit's reservation hangs on it.
_CHARACTERS_PER_TOKEN = 4


def _tag(value: Any) -> str:
    if not isinstance(value, list):
        return TEXT
    if not value or isinstance(value[0], str):
        return _TEXTS
    return _TOKEN_LISTS if isinstance(value[0], list) else _TOKENS


def _at_once(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Hundreds of thousands of ids are looked at all at once; what is wrong with some, ``handler`` says."""
    if isinstance(value, list) and 0 < len(value) <= MAX_PROMPTS and all(map(_are_ids, value)):
        return value
    return value if _are_ids(value) else handler(value)


def _are_ids(value: Any) -> bool:
    if not isinstance(value, list) or set(map(type, value)) != {int}:
        return False
    try:
        array("I", value)
    except OverflowError:
        return False
    return True


PromptText = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
TokenList = Annotated[list[TokenId], Field(min_length=1)]
Prompt = Annotated[
    Annotated[PromptText, Tag(TEXT)]
    | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS), Tag(_TEXTS)]
    | Annotated[TokenList, Tag(_TOKENS)]
    | Annotated[list[TokenList], Field(min_length=1, max_length=MAX_PROMPTS), Tag(_TOKEN_LISTS)],
    Discriminator(_tag),
    WrapValidator(_at_once),
]
AnyPrompt = str | list[str] | list[int] | list[list[int]]


def prompt_inputs(prompt: AnyPrompt) -> list[PromptInput]:
    """One for each prompt."""
    if isinstance(prompt, str):
        return [PromptInput(text=prompt)]
    if isinstance(prompt[0], int):
        return [_of_ids(prompt)]
    return [PromptInput(text=one) if isinstance(one, str) else _of_ids(one) for one in prompt]


def _of_ids(ids: Any) -> PromptInput:
    made = PromptInput()
    made.tokens.ids.extend(ids)  # in its place: a copy of many is 10 ns a token
    return made


def token_estimate(inputs: list[PromptInput]) -> int:
    return sum(len(one.text) // _CHARACTERS_PER_TOKEN + len(one.tokens.ids) for one in inputs)
