"""What all request schemas share: strict checking, and faults in the caller's words.

Each field is served, or a hint without an effect here (its description says so), or refused by name: nothing that a
caller asked for is silently ignored.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from inferbus_runtime.errors import InferBusError, invalid
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

_UNSUPPORTED, _INVALID = "unsupported_parameter", "invalid_value"
# A parameter name in an error is the caller's own text: enough of it to find it again.
_SHOWN_NAME = 64

MAX_DEPTH = 64
# Each costs the event loop about a microsecond, whatever is then said of it.
MAX_NODES = 50_000
# A tenth of that: OpenAI takes as many tokens in a request for embeddings, and they may come as numbers.
MAX_VALUES = 300_000
_STRINGS = re.compile(rb'"[^"]*"')
# Of a whole number that may be out of range. Those of a fraction or an exponent are no matter.
_AS_ZERO = bytes.maketrans(b"123456789", b"000000000")
_NINETEEN = b"0" * 19
_LONG_NUMBER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{19,}(?![0-9.eE])")
_LONGEST = 21
_PAIR = b"()"
_BRACKETS = bytes.maketrans(b"{[}]", b"(())")
_NO_BRACKETS = bytes(code for code in range(256) if code not in b"{[}]")

Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], body: bytes) -> Model:
    """The request in ``body``. Raises InferBusError INVALID_ARGUMENT with the parameter at fault, and nothing else."""
    check_size(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise refusal(error.errors(include_url=False)[0]) from None


def check_size(body: bytes) -> None:
    """Whether JSON may be looked at closely. Raises InferBusError INVALID_ARGUMENT as its parts do."""
    check_values(body)
    check_depth(body)
    check_numbers(body)


def check_values(body: bytes) -> None:
    """Raises InferBusError INVALID_ARGUMENT if lists and objects of JSON hold more than MAX_VALUES in all."""
    if body.count(b",") >= MAX_VALUES and _plain(body).count(b",") >= MAX_VALUES:
        raise invalid(f"The body has more than {MAX_VALUES} values.", reason="too_many_values")


def check_depth(body: bytes) -> None:
    """Raises InferBusError INVALID_ARGUMENT if JSON is nested deeper than MAX_DEPTH, or holds more than MAX_NODES
    objects and lists. What is no JSON is not judged."""
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return
    marks = _plain(body).translate(_BRACKETS, _NO_BRACKETS)
    if len(marks) > 2 * MAX_NODES:
        raise invalid(f"The body has more than {MAX_NODES} objects and lists.", reason="too_many_objects")
    for _ in range(MAX_DEPTH):
        marks = marks.replace(_PAIR, b"")  # the innermost of each nest
    if _PAIR in marks:
        raise invalid(f"The body is nested deeper than {MAX_DEPTH} levels.", reason="nested_too_deep")


def check_numbers(body: bytes) -> None:
    """Raises InferBusError INVALID_ARGUMENT for a whole number that 64 bits do not hold: no part of a request needs
    one, and what is written back (a tool's schema, an item) could not have it."""
    if _NINETEEN not in body.translate(_AS_ZERO):  # nearly always, and a hundred times as fast as looking closely
        return
    plain = _plain(body)
    for found in _LONG_NUMBER.findall(plain) if _NINETEEN in plain.translate(_AS_ZERO) else ():
        if len(found) > _LONGEST or not -(1 << 63) <= int(found) < 1 << 64:
            raise invalid("The body has a whole number that is longer than 64 bits.", reason="invalid_json")


def _plain(body: bytes) -> bytes:
    """``body`` without its strings. Escaped quotes go first: one by one they would take the expression 0.1 µs each."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 4 * MAX_VALUES:
        raise invalid(f"The body has more than {MAX_VALUES} values.", reason="too_many_values")
    return _STRINGS.sub(b"", plain)


def refused(*neutral: Any, advice: str = "leave it out") -> BeforeValidator:
    """For a parameter that is known and not served: null and the ``neutral`` values ask for nothing and are taken."""

    def check(value: Any) -> Any:
        # The type is compared as well: true is no 1.
        if value is None or any(type(value) is type(one) and value == one for one in neutral):
            return value
        raise PydanticCustomError(_UNSUPPORTED, "{advice}", {"advice": advice})

    return BeforeValidator(check, _shown({"enum": [None, *neutral], "x-refused": advice}))


def _shown(schema: dict[str, Any]) -> Any:
    """How the API's document shows what a validator takes."""
    return Annotated[Any, WithJsonSchema(schema)]


def bad_value(message: str) -> PydanticCustomError:
    """For a validator: ``message`` goes after the parameter's name."""
    return PydanticCustomError(_INVALID, "{advice}", {"advice": message})


def unsupported(param: str, message: str) -> InferBusError:
    return invalid(message, param=param, reason=_UNSUPPORTED)


# Tags name the member of a union that was meant. They stand in pydantic's error paths, and are no part of ours.
TEXT, LIST, OBJECT = "<text>", "<list>", "<object>"
_KEY = "[key]"  # pydantic's own, after the name of the key


def _shape(value: Any) -> str:
    if isinstance(value, list | tuple):
        return LIST
    return OBJECT if isinstance(value, dict | BaseModel) else TEXT


BY_SHAPE = Discriminator(_shape)
"""Chooses between members tagged TEXT, LIST and OBJECT by the JSON type of the value."""


def by_kind(*kinds: str, field: str = "type") -> Discriminator:
    """Chooses between members tagged ``<kind>`` by their ``field``; the first one if it is none of them, whose
    ``field`` then says so (see :func:`kind`)."""

    def tag(value: Any) -> str:
        found = value.get(field) if isinstance(value, dict) else getattr(value, field, None)
        return f"<{found}>" if found in kinds else f"<{kinds[0]}>"

    return Discriminator(tag)


def kind(served: tuple[str, ...], unserved: tuple[str, ...] = (), advice: str = "leave it out") -> BeforeValidator:
    """For the field that says what an object is: ``served`` are all there are here, ``unserved`` are known."""
    shown = "one of " * (len(served) > 1) + ", ".join(f"'{one}'" for one in served)

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in unserved:
            raise PydanticCustomError(_UNSUPPORTED, "{advice}", {"advice": advice, "value": value})
        if value not in served:
            raise bad_value(f"should be {shown}")
        return value

    return BeforeValidator(check, _shown({"type": "string", "enum": list(served)}))


def refusal(fault: Any) -> InferBusError:
    """One of pydantic's faults in a caller's words. The offending value is never repeated: it may be prompt text."""
    fault_kind, location = fault["type"], fault["loc"]
    param = path_of(location, whole=fault_kind == "extra_forbidden")
    if fault_kind == "json_invalid":
        return invalid(f"The body is not valid JSON ({fault['ctx']['error']}).", reason="invalid_json")
    if not location:
        return invalid("The body must be a JSON object.", reason="invalid_type")
    if fault_kind == "missing":
        return invalid(f"Missing required parameter: '{param}'.", param=param, reason="missing_required_parameter")
    if fault_kind == "extra_forbidden":
        return invalid(f"Unknown parameter: '{param}'.", param=param, reason="unknown_parameter")
    if fault_kind == _UNSUPPORTED:
        value = f" '{fault['ctx']['value']}'" if "value" in fault["ctx"] else ""
        return unsupported(param, f"'{param}'{value} is not supported; {fault['ctx']['advice']}.")
    if fault_kind == _INVALID:
        return invalid(f"'{param}' {fault['ctx']['advice']}.", param=param)
    text = fault["msg"].removeprefix("Input should").strip()
    reason = "invalid_type" if fault_kind.endswith("_type") else "invalid_value"
    message = f"'{param}' should {text}." if text != fault["msg"] else f"'{param}': {text}."
    return invalid(message, param=param, reason=reason)


def path_of(location: Sequence[int | str], *, whole: bool = False) -> str:
    """``("messages", 0, "content", "<list>", 1, "text")`` → ``messages[0].content[1].text``.

    ``whole``: the last step is a name, whatever it looks like.
    """
    path = ""
    last = len(location) - 1
    for at, step in enumerate(location):
        if isinstance(step, int):
            path += f"[{step}]"
        elif (whole and at == last) or not ((step.startswith("<") and step.endswith(">")) or step == _KEY):
            path += f".{step[:_SHOWN_NAME]}" if path else step[:_SHOWN_NAME]
    return path
