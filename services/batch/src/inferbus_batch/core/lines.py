"""One line of a batch's input, in the form that OpenAI publishes for it:

``{"custom_id": "…", "method": "POST", "url": "/v1/chat/completions", "body": {…}}``
"""

from dataclasses import dataclass

import orjson
from inferbus_dialect.chat_plan import plan_chat
from inferbus_dialect.completions import parse_completion_request, plan_completion
from inferbus_dialect.embeddings import parse_embedding_request, plan_embeddings
from inferbus_dialect.openai import parse_chat_request
from inferbus_dialect.plan import Plan
from inferbus_dialect.responses_items import items_of
from inferbus_dialect.responses_plan import plan_responses
from inferbus_dialect.responses_schema import parse_responses_request
from inferbus_dialect.schema import check_size, unsupported
from inferbus_runtime.errors import InferBusError

MAX_LINE_BYTES = 4 << 20
"""As the body of a request of the API may have by default; what it becomes must fit into a message of the broker."""
MAX_CUSTOM_ID = 512
_FIELDS = frozenset({"custom_id", "method", "url", "body"})
_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
ENDPOINTS = frozenset(_ENDPOINTS)
_SHOWN = 64


@dataclass(frozen=True, slots=True)
class Fault:
    """``line``: from 1; 0: the file as a whole. ``param``: the member at fault, in the line's own schema."""

    line: int
    code: str
    message: str
    param: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """``body``: JSON."""

    custom_id: str
    body: bytes


def read_line(number: int, raw: bytes, endpoint: str) -> Line | Fault:
    """What line ``number`` (``raw``: without its end) says, or what is wrong with its form. The body is not judged."""
    if len(raw) > MAX_LINE_BYTES:
        return Fault(number, "line_too_long", f"The line has {len(raw)} bytes; the most is {MAX_LINE_BYTES}.")
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return Fault(number, "invalid_encoding", f"The line is not UTF-8 (byte {error.start + 1} of it).")
    if b"\0" in raw:
        return Fault(number, "invalid_json_line", f"The line has a NUL byte (byte {raw.index(0) + 1} of it).")
    try:
        check_size(raw)
        said = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return Fault(number, "invalid_json_line", f"The line is not valid JSON ({error.msg}, byte {error.pos + 1}).")
    except InferBusError as error:
        return Fault(number, error.reason, error.message.replace("The body", "The line"))
    if not isinstance(said, dict):
        return Fault(number, "invalid_json_line", "The line must be a JSON object.")
    return _line(number, said, endpoint)


def plan_line(number: int, body: bytes, endpoint: str) -> Plan | Fault:
    """What the body of line ``number`` asks, or the first thing that is wrong with it."""
    try:
        plan = _plan(body, endpoint)
    except InferBusError as error:
        return Fault(number, error.reason, error.message, f"body.{error.param}" if error.param else "body")
    if plan.stream:
        return Fault(number, "unsupported_parameter", "A line cannot be streamed; leave it out.", "body.stream")
    if plan.detached:
        message = "A line runs in the background as it is; leave it out."
        return Fault(number, "unsupported_parameter", message, "body.background")
    return plan


def _line(number: int, said: dict[str, object], endpoint: str) -> Line | Fault:
    for name in said.keys() - _FIELDS:
        shown = name[:_SHOWN]
        return Fault(number, "unknown_parameter", f"Unknown member: '{shown}'.", shown)
    for name in ("custom_id", "method", "url", "body"):
        if name not in said:
            return Fault(number, "missing_required_parameter", f"Missing required member: '{name}'.", name)
    custom_id, body = said["custom_id"], said["body"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        message = f"'custom_id' should be a string of 1 to {MAX_CUSTOM_ID} characters."
        return Fault(number, "invalid_custom_id", message, "custom_id")
    if said["method"] != "POST":
        return Fault(number, "invalid_method", "'method' should be 'POST'.", "method")
    if said["url"] != endpoint:
        return Fault(number, "mismatched_endpoint", f"'url' should be the batch's endpoint, '{endpoint}'.", "url")
    if not isinstance(body, dict):
        return Fault(number, "invalid_type", "'body' should be an object.", "body")
    return Line(custom_id, orjson.dumps(body))


def _plan(body: bytes, endpoint: str) -> Plan:
    match endpoint:
        case "/v1/chat/completions":
            return plan_chat(parse_chat_request(body))
        case "/v1/completions":
            return plan_completion(parse_completion_request(body))
        case "/v1/embeddings":
            return plan_embeddings(parse_embedding_request(body))
        case "/v1/responses":
            request = parse_responses_request(body)
            items = items_of(request.input)
            if request.previous_response_id is not None:
                raise unsupported("previous_response_id", "A line stands alone; give it what was said before.")
            if any(item["type"] == "item_reference" for item in items):
                raise unsupported("input", "A line stands alone; put the items themselves where it refers to others.")
            return plan_responses(request, items)
    raise ValueError(f"no such endpoint: {endpoint}")
