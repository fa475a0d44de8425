"""Multiples below zero, for a library that knows none.

llama.cpp's copy of LLGuidance writes ``multipleOf`` without a sign: where only negative numbers are left, it finds
nothing after the minus and goes on with free text. The few that a schema allows are named one by one instead.
"""

import math
from fractions import Fraction
from typing import Any

MAX_NAMED = 1_000
_LARGEST = 2**63
VALUES = ("const", "enum", "default", "examples")
"""Keywords whose values are data: nothing in them is a schema."""
NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords under which the caller's own names stand, each with a schema."""
_NUMBER = ("type", "multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "title", "description",
           "default", "examples", "$comment")  # fmt: skip


def multiples_named(schema: Any) -> Any:
    """``schema`` with negative multiples as ``enum``. Raises ValueError, in the caller's words, for too many."""
    if isinstance(schema, list):
        return [multiples_named(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if _only_negative(schema):
        return {"enum": _named(schema)}
    return {name: _inner(name, one) for name, one in schema.items()}


def _inner(name: str, value: Any) -> Any:
    if name in NAMES and isinstance(value, dict):
        return {inner: multiples_named(one) for inner, one in value.items()}
    return value if name in VALUES else multiples_named(value)


def _only_negative(schema: dict[str, Any]) -> bool:
    if _fraction(schema.get("multipleOf")) is None:
        return False
    most, below = _fraction(schema.get("maximum")), _fraction(schema.get("exclusiveMaximum"))
    return (most is not None and most < 0) or (below is not None and below <= 0)


def _named(schema: dict[str, Any]) -> list[int | float]:
    step = _fraction(schema["multipleOf"])
    lows = [one for name in ("minimum", "exclusiveMinimum") if (one := _fraction(schema.get(name))) is not None]
    highs = [one for name in ("maximum", "exclusiveMaximum") if (one := _fraction(schema.get(name))) is not None]
    if step is None or step <= 0 or not lows or schema.get("type") not in ("integer", "number"):
        raise ValueError("'multipleOf' below zero needs a type, 'integer' or 'number', and a 'minimum'.")
    if schema.keys() - set(_NUMBER):
        raise ValueError("'multipleOf' below zero stands with bounds only; leave it or the other keywords out.")
    if max(map(abs, (*lows, *highs))) > _LARGEST:
        raise ValueError("'multipleOf' below zero has bounds that are too far away; narrow them.")
    first, last = math.ceil(max(lows) / step), math.floor(min(highs) / step)
    if last - first >= MAX_NAMED:
        raise ValueError(f"'multipleOf' below zero allows more than {MAX_NAMED} numbers; narrow the bounds.")
    outside = {_fraction(schema.get("exclusiveMinimum")), _fraction(schema.get("exclusiveMaximum"))}
    values = [step * times for times in range(first, last + 1) if step * times not in outside]
    if schema["type"] == "integer":
        values = [value for value in values if value.denominator == 1]
    return [int(value) if value.denominator == 1 else float(value) for value in values]


def _fraction(value: Any) -> Fraction | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return Fraction(str(value)) if -math.inf < value < math.inf else None
