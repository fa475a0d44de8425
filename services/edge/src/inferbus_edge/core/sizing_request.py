"""The body of a question about sizing, and what is wrong with it in the house's words."""

import orjson
from inferbus_runtime.errors import invalid
from inferbus_sizing import SizingError
from inferbus_sizing.objects import Asked, asked_of

MAX_BYTES = 256 << 10
"""Of a body. A config.json has a few KiB; those that list each layer's kind and scales have some tens."""


def question(body: bytes) -> Asked:
    """Raises InferBusError INVALID_ARGUMENT with the field that is wrong."""
    try:
        value = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError as error:
        raise invalid("The body is not valid JSON.", reason="invalid_json") from error
    if not isinstance(value, dict):
        raise invalid("The body must be a JSON object.", reason="invalid_type")
    try:
        return asked_of(value)
    except SizingError as error:
        raise invalid(f"{error}.", param=error.param) from error
