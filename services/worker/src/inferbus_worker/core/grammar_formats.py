"""String formats, held to what validators and readers take them for.

The grammar library follows the RFCs' syntax alone: an address or a fraction of a second may go on for ever, which a hot
model does until its tokens are used up, and the year 0000 is a date, which Python's and most other calendars refuse.
"""

from typing import Any

from inferbus_worker.core.grammar_numbers import NAMES, VALUES

_NOT_YEAR_0 = "^(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-"
_DATED = ("date", "date-time")
# RFC 5321 (address), RFC 1035 (name), nanoseconds and an offset; the others as long as anybody writes them.
_LONGEST = {"email": 254, "hostname": 253, "date-time": 35, "time": 24, "duration": 64, "uri": 2048}


def formats_held(schema: Any) -> Any:
    """``schema`` with lengths for formats that have none, and dates that exist. Raises ValueError, in the caller's
    words, where something stands in the way."""
    if isinstance(schema, list):
        return [formats_held(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    held = {name: _inner(name, one) for name, one in schema.items()}
    name = schema.get("format")
    if not isinstance(name, str):
        return held
    if name in _LONGEST and "maxLength" not in schema:
        held["maxLength"] = max(_LONGEST[name], _number(schema.get("minLength")))
    if name in _DATED:
        if "pattern" not in schema:
            held["pattern"] = _NOT_YEAR_0
        else:
            others = held.get("allOf", [])
            if not isinstance(others, list):
                raise ValueError("'allOf' must be an array.")
            held["allOf"] = [*others, {"pattern": _NOT_YEAR_0}]
    return held


def _inner(name: str, value: Any) -> Any:
    if name in NAMES and isinstance(value, dict):  # its keys are the caller's names, not keywords
        return {inner: formats_held(one) for inner, one in value.items()}
    return value if name in VALUES else formats_held(value)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
