"""What /tokenize and /detokenize may be asked, and what they answer: vLLM's shapes, checked strictly."""

from collections.abc import Sequence
from typing import Annotated, Any

import orjson
from inferbus.worker.v1.worker_pb2 import TokenizeRequest, TokenizeResponse
from inferbus_dialect.chat_plan import plan_chat
from inferbus_dialect.openai import parse_chat_request
from inferbus_dialect.plan import Need, Plan
from inferbus_dialect.schema import STRICT, check_size, parse, refused
from pydantic import BaseModel, Field

_MAX_TOKEN_ID = (1 << 32) - 1
_REFUSED = "Refused (400 unsupported_parameter)."

Model = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, le=_MAX_TOKEN_ID)]


class TokenizePrompt(BaseModel):
    model_config = STRICT
    model: Model = Field(description="404 model_not_found if it is not served.")
    prompt: str = Field(description="The text.")
    add_special_tokens: bool | None = Field(
        None, description="False: none are added, such as one of the begin; those in the text stay. Default: true."
    )
    return_token_strs: bool | None = Field(None, description="Also say what each token stands for.")


class TokenizeChat(BaseModel):
    model_config = STRICT
    model: Model = Field(description="404 model_not_found if it is not served.")
    messages: list[Any] = Field(description="As in a chat completion.")
    tools: list[Any] | None = Field(None, description="As in a chat completion.")
    add_generation_prompt: bool | None = Field(
        None, description="End with the beginning of the assistant's turn. Default: true."
    )
    return_token_strs: bool | None = Field(None, description="Also say what each token stands for.")
    add_special_tokens: Annotated[Any, refused(False)] = Field(None, description="The template has them already.")
    continue_final_message: Annotated[Any, refused(False)] = Field(None, description=_REFUSED)
    chat_template: Annotated[Any, refused()] = Field(None, description=_REFUSED)
    chat_template_kwargs: Annotated[Any, refused({})] = Field(None, description=_REFUSED)
    mm_processor_kwargs: Annotated[Any, refused({})] = Field(None, description=_REFUSED)


class DetokenizeBody(BaseModel):
    model_config = STRICT
    model: Model = Field(description="404 model_not_found if it is not served.")
    tokens: list[TokenId] = Field(description="Ids of tokens.")


def parse_tokenize(body: bytes) -> tuple[Plan, TokenizeRequest, bool]:
    """(what the model must be and do, what to ask a worker, whether the tokens' texts are wanted).

    Raises InferBusError INVALID_ARGUMENT with the parameter at fault.
    """
    check_size(body)
    if _has_messages(body):
        return _of_chat(parse(TokenizeChat, body))
    asked = parse(TokenizePrompt, body)
    strings = bool(asked.return_token_strs)
    request = TokenizeRequest(
        text=asked.prompt,
        parse_special=True,
        add_special=asked.add_special_tokens is not False,
        return_pieces=strings,
    )
    return _plan(asked.model, ()), request, strings


def parse_detokenize(body: bytes) -> tuple[Plan, Sequence[int]]:
    """(what the model must be, token ids). Raises like :func:`parse_tokenize`."""
    asked = parse(DetokenizeBody, body)
    return _plan(asked.model, ()), asked.tokens


def tokens_body(answer: TokenizeResponse, *, strings: bool) -> bytes:
    """``strings``: with the tokens' texts; what is only a part of a character is shown as U+FFFD."""
    texts = [piece.decode(errors="replace") for piece in answer.piece] if strings else None
    return orjson.dumps(
        {
            "count": len(answer.token_id),
            "max_model_len": answer.context_length,
            "tokens": list(answer.token_id),
            "token_strs": texts,
        }
    )


def prompt_body(text: bytes) -> bytes:
    """``text``: UTF-8; parts of characters at its ends are shown as U+FFFD."""
    return orjson.dumps({"prompt": text.decode(errors="replace")})


def _of_chat(asked: TokenizeChat) -> tuple[Plan, TokenizeRequest, bool]:
    fields = {"model": asked.model, "messages": asked.messages, "tools": asked.tools}
    chat = plan_chat(parse_chat_request(orjson.dumps(fields)))
    strings = bool(asked.return_token_strs)
    request = TokenizeRequest(
        chat=chat.requests[0].chat,
        add_generation_prompt=asked.add_generation_prompt is not False,
        return_pieces=strings,
    )
    return _plan(asked.model, chat.needs), request, strings


def _has_messages(body: bytes) -> bool:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return False  # whichever schema it is read by will say so
    return isinstance(value, dict) and "messages" in value


def _plan(model: str, needs: tuple[Need, ...]) -> Plan:
    return Plan("tokenize", model, False, (), {"api": "tokenize", "n": 0}, needs)
