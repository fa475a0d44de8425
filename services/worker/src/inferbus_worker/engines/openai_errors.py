"""What went wrong with a request, and who is told what.

RefusedError            the request is at fault: the tenant is told, in our words, and it is not sent again
TooLongError            the same, unless a smaller limit of tokens helps
UpstreamError
    BUSY                the upstream has no room: again after its ``Retry-After``, within the budget
    BROKEN              it failed, or broke off: again, going on where it was
    GONE                no connection: as BROKEN, once it is known not to be dead
    DENIED              it does not know our key or our model: the operator's matter, nothing helps here

What the upstream wrote goes into ``diagnostic``, which is the log's: no tenant sees a word or an address of it.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import Any

import orjson
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.engine import Chat, Embed, Generation

_MAX_SHOWN = 500
# Parameters that a tenant knows by these names, too.
_PARAMS = frozenset(
    {"messages", "prompt", "input", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "tools"}
    | {"frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs"}
    | {"tool_choice", "response_format", "reasoning_effort", "parallel_tool_calls"}
)
_CONTEXT = re.compile(
    r"context.{0,20}(length|size|window)|maximum (context|sequence|input|prompt)|max_(model|seq|num_tokens|input)"
    r"|tokens.{0,30}context|context.{0,30}tokens|model context"
    r"|too (long|many tokens)|exceed.{0,40}tokens|input_tokens",
    re.IGNORECASE,
)
_CONTEXT_CODES = ("context_length_exceeded", "exceed_context_size_error", "string_above_max_length")
_LIMIT = re.compile(r"max_(completion_)?tokens", re.IGNORECASE)
_FILTER = re.compile(r"content_(filter|policy)", re.IGNORECASE)
_FORM = re.compile(r"schema|grammar|response_format|guided|structured", re.IGNORECASE)


class RefusedError(Exception):
    def __init__(self, error: InferBusError) -> None:
        super().__init__(str(error))
        self.error = error


class TooLongError(Exception):
    """Input and output together are more than the context, or the output more than it may be: with a smaller
    ``max_tokens`` it may pass. ``refusal``: what is said if not."""

    def __init__(self, refusal: InferBusError) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class Kind(Enum):
    BUSY = auto()
    BROKEN = auto()
    GONE = auto()
    DENIED = auto()


class UpstreamError(Exception):
    """``after``: seconds that the upstream asks us to wait. ``status``: its answer, 0 if there was none."""

    def __init__(self, kind: Kind, diagnostic: str, *, status: int = 0, after: float | None = None) -> None:
        super().__init__(diagnostic)
        self.kind = kind
        self.status = status
        self.after = after

    def to_tenant(self) -> InferBusError:
        """How a generation ends that is not tried again."""
        wait = timedelta(seconds=1 if self.after is None else max(1.0, self.after))
        if self.kind is Kind.BUSY:
            message = "The model is busy; retry later."
            exhausted = self.status == 429
            class_ = ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED if exhausted else ErrorClass.ERROR_CLASS_UNAVAILABLE
            return InferBusError(class_, "model_busy", message, retry_after=wait, diagnostic=str(self))
        if self.kind is Kind.DENIED:
            return model_unavailable(timedelta(seconds=30), str(self))
        return engine_failed(str(self))


def failure_of(status: int, headers: Mapping[str, str], body: bytes, generation: Generation, now: float) -> Exception:
    """RefusedError, TooLongError or UpstreamError, by an answer that is no 200. ``now``: Unix seconds."""
    return _failure(status, headers, _error_of(body), generation, now)


def failure_in_stream(status: int, body: Any, generation: Generation) -> Exception:
    """The same for an error that came as an event."""
    return _failure(status, {}, _error_object(body, b""), generation, 0.0)


def _failure(
    status: int, headers: Mapping[str, str], error: dict[str, Any], generation: Generation, now: float
) -> Exception:
    said = f"status {status}: {error.get('type') or ''} {error.get('code') or ''} {error.get('message') or ''}"
    diagnostic = said[:_MAX_SHOWN]
    if status in (401, 403, 404, 405):
        return UpstreamError(Kind.DENIED, diagnostic, status=status)
    if status in (408, 409, 425, 429) or (status == 503 and "retry-after" in headers):
        return UpstreamError(Kind.BUSY, diagnostic, status=status, after=_retry_after(headers, now))
    if status >= 500 or status < 400:
        return UpstreamError(Kind.BROKEN, diagnostic, status=status)
    return _refusal(error, diagnostic, generation)


def _refusal(error: dict[str, Any], diagnostic: str, generation: Generation) -> Exception:
    codes = (str(error.get("code")), str(error.get("type")))
    message = str(error.get("message") or "")
    source = generation.input
    where = "messages" if isinstance(source, Chat) else "input" if isinstance(source, Embed) else "prompt"
    if any(code in _CONTEXT_CODES for code in codes) or _CONTEXT.search(message):
        what = {"messages": "The messages are", "input": "An input is", "prompt": "The prompt is"}[where]
        refusal = invalid(f"{what} longer than the model's context.", param=where, reason="context_length_exceeded")
        refusal.diagnostic = diagnostic
        return TooLongError(refusal)
    if any(map(_FILTER.search, (*codes, message))):
        refusal = content_filtered(where)
    elif (param := _param(error)) in _PARAMS:
        refusal = invalid(f"The model does not accept this value of '{param}'.", param=param)
    elif generation.constraint is not None and _FORM.search(message):
        refusal = invalid("The model cannot hold its output to this schema; send a simpler one.",
                          param="response_format", reason="invalid_schema")  # fmt: skip
    else:
        refusal = invalid("The model does not accept this request.")
    refusal.diagnostic = diagnostic
    return TooLongError(refusal) if _LIMIT.search(f"{_param(error)} {message}") else RefusedError(refusal)


def _param(error: dict[str, Any]) -> str:
    """vLLM writes "body.seed"."""
    return str(error.get("param") or "").removeprefix("body.")


def _error_of(body: bytes) -> dict[str, Any]:
    try:
        return _error_object(orjson.loads(body), body)
    except orjson.JSONDecodeError:
        return {"message": body.decode(errors="replace")}


def _error_object(value: Any, body: bytes) -> dict[str, Any]:
    """OpenAI's form, or that of older servers, where the error is the whole object, a text, or a "detail"."""
    if not isinstance(value, dict):
        return {"message": body.decode(errors="replace")}
    inner = value.get("error")
    if isinstance(inner, dict):
        return inner
    return {**value, "message": inner or value.get("message") or value.get("detail")}


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds, by the header that OpenAI sends (in milliseconds) or the standard one (in seconds, or a date)."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
        said = headers.get("retry-after")
        if said is None:
            return None
        if said.replace(".", "", 1).isdigit():
            return float(said)
        return max(0.0, parsedate_to_datetime(said).timestamp() - now)
    except (ValueError, TypeError):
        return None


def model_unavailable(wait: timedelta, diagnostic: str) -> InferBusError:
    message = "The model cannot be reached at present; retry later."
    return unavailable("model_unavailable", message, retry_after=wait, diagnostic=diagnostic)


def content_filtered(param: str = "") -> InferBusError:
    return invalid("The model's content filter ended this request.", param=param, reason="content_filter")
