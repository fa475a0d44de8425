"""What an entry of the API's document is: one method of one path."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from inferbus_edge.core.openapi_schema import FLAG, TEXT, Schema, many, told

# What any request may be told before its route is found, or by a process that stops.
EVERYWHERE = (400, 408, 413, 417, 431, 500)
WITH_KEY = (*EVERYWHERE, 401, 403)
INFERENCE = (*WITH_KEY, 404, 409, 429, 499, 503, 504)


@dataclass(frozen=True, slots=True)
class Parameter:
    """``place``: path, query or header."""

    name: str
    place: str
    schema: Schema
    description: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path as it is documented.

    ``scope``: of the key, empty for none. ``body`` and ``answer``: names of components. ``events``: the component of a
    streamed event. ``errors``: statuses that it may have; ``error``: the component of their body.
    """

    method: str
    path: str
    group: str
    summary: str
    answer: str
    scope: str = ""
    description: str = ""
    body: str = ""
    body_required: bool = True
    body_content: str = "application/json"
    parameters: Sequence[Parameter] = ()
    status: int = 200
    content: str = "application/json"
    events: str = ""
    errors: Sequence[int] = WITH_KEY
    error: str = "Error"
    headers: Sequence[str] = field(default=("x-request-id",))
    example: Schema | None = None

    @property
    def name(self) -> str:
        """``POST /v1/chat/completions`` → ``post_v1_chat_completions``."""
        words = self.path.replace("{", "").replace("}", "").replace("/", "_").replace("-", "_")
        return f"{self.method.lower()}{words}"


def in_path(name: str, description: str, schema: Schema = TEXT) -> Parameter:
    return Parameter(name, "path", schema, description, required=True)


def in_query(name: str, schema: Schema, description: str = "") -> Parameter:
    return Parameter(name, "query", schema, description)


def texts(name: str, description: str) -> Parameter:
    return Parameter(f"{name}[]", "query", many(TEXT), description)


def whole(least: int, most: int, default: int | None = None) -> Schema:
    bounds: Schema = {"type": "integer", "minimum": least, "maximum": most}
    return bounds if default is None else {**bounds, "default": default}


LAST_EVENT_ID = Parameter(
    "Last-Event-ID",
    "header",
    TEXT,
    "The 'id:' of the last event that you have. The answer is then the rest of that stream, whatever the body says.",
)
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    {"type": "string", "maxLength": 255},
    "A retry under the same key joins the running answer, or gets the finished one; with another body it is a 409.",
)
HOLD = Parameter(
    "x-inferbus-hold",
    "header",
    {"type": "string", "pattern": "^[0-9]{1,9}$"},
    "Seconds that the generation goes on for you when the connection breaks.",
)
TAGS = Parameter(
    "x-inferbus-tags",
    "header",
    {"type": "string", "example": "team=search, env=prod"},
    "For your own reports of usage: up to 8, names of up to 32 characters, values of up to 64 bytes.",
)
CAPTURE = Parameter(
    "x-inferbus-capture",
    "header",
    {"type": "string", "enum": ["off"]},
    "Nothing of this request's text is kept, whatever your organization asked for.",
)
LIMIT = in_query("limit", whole(1, 100, 20), "Objects of one page.")
AFTER = in_query("after", TEXT, "The id of the last object of the page before.")
STREAM = told(FLAG, "Server-sent events.")
