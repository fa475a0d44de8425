"""How much a schema or an expression may ask for. Work comes from the bus: a worker does not trust an edge.

The child writes out the counts of items and the multiples of numbers before it makes a token, and everybody's tokens
wait for it. Measured: 35 µs a unit of ``maxItems``, 1 µs of ``minItems``, 60 ms for ``multipleOf`` 9973 and 14 s for
1000003. What is let in costs at most about 200 ms, once.
"""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

MAX_COUNT, MAX_COUNTS = 1_000, 5_000
MAX_LENGTH = 2**31 - 1  # of a text: costs nothing, but larger ones are no numbers to the library
MAX_MULTIPLE = 10_000
MAX_EXPRESSION, MAX_EXPRESSIONS = 2_000, 20_000
MAX_PROPERTIES, MAX_PATTERNS, MAX_ALL_OF = 500, 50, 64

_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
_LENGTHS = ("minLength", "maxLength")
# Beside a reference these change nothing; with anything else the library writes out what is referred to once more.
_NOTES = frozenset(("$ref", "$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default",
                    "examples", "deprecated", "readOnly", "writeOnly"))  # fmt: skip
_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL)
# With it blanks and comments may stand inside a repeat.
_FREE_SPACING = re.compile(r"\(\?[A-Za-z]*x")
_LONGEST_NUMBER = 30


def schema_excess(schema: dict[str, Any]) -> str:
    """What of it is more than can be enforced, in words for the caller; empty: nothing."""
    counts = expressions = combined = copies = multiples = 0
    common = Fraction(1)
    for part in _parts(schema):
        if said := _part_excess(part):
            return said
        counts += sum(max(part[name], 0) for name in _COUNTS if _is_number(part.get(name)))
        expressions += sum(map(expression_size, _expressions(part)))
        all_of = part.get("allOf")
        combined += len(all_of) - 1 if isinstance(all_of, list) else 0
        copies += _copies(part)
        if (multiple := _multiple(part)) is not None:
            multiples += multiple_cost(multiple)
            common = _common(common, multiple)
    if counts * (1 + copies) > MAX_COUNTS:
        return f"minItems, maxItems, minProperties and maxProperties are more than {MAX_COUNTS} together; lower some."
    if expressions > MAX_EXPRESSIONS:
        return "its patterns are too large together; send fewer or shorter ones."
    if combined > MAX_ALL_OF:
        return f"more than {MAX_ALL_OF} schemas are combined by 'allOf'."
    if max(multiples, multiple_cost(common)) > MAX_MULTIPLE:
        return "its values of 'multipleOf' are too many together; send fewer or smaller ones."
    return ""


def expression_excess(expression: str) -> str:
    """As :func:`schema_excess`, of a regular expression."""
    if _FREE_SPACING.search(expression):
        return "an expression cannot use the flag 'x'; write it without."
    if expression_size(expression) > MAX_EXPRESSION:
        return f"an expression is longer, with its repeats written out, than {MAX_EXPRESSION} characters; shorten it."
    return ""


def expression_size(expression: str) -> int:
    """Characters or classes of it with ``{n}`` and ``{n,m}`` written out; about right for what is no expression."""
    sizes, last = [0], 0  # of each open group so far; of the piece that a repeat would repeat
    for found in _PIECE.finditer(expression):
        piece = found[0]
        if found[1] is not None:
            times = max(int(number.lstrip("0")[:9] or 0) for number in (found[1], found[2]) if number)
            sizes[-1] += last * max(times - 1, 0)
            last *= max(times, 1)
        elif piece == "(":
            sizes.append(0)
            last = 0
        elif piece == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif piece not in "*+?|^$":
            sizes[-1] += 1
            last = 1
    return sum(sizes)


def multiple_cost(multiple: Fraction) -> int:
    """Remainders that a number has to be followed by: the multiple without its decimal point."""
    places = 0
    while multiple.denominator != 1 and places < _LONGEST_NUMBER:
        multiple *= 10
        places += 1
    return math.ceil(multiple)


def _part_excess(part: dict[str, Any]) -> str:
    for names, most in ((_COUNTS, MAX_COUNT), (_LENGTHS, MAX_LENGTH)):
        for name in names:
            if _is_number(part.get(name)) and part[name] > most:
                return f"'{name}' is more than {most}; lower it or leave it out."
    for name, most in (("properties", MAX_PROPERTIES), ("patternProperties", MAX_PATTERNS)):
        if isinstance(part.get(name), dict) and len(part[name]) > most:
            return f"there are more than {most} '{name}'."
    return next(filter(None, map(expression_excess, _expressions(part))), "")


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in it, wherever: a reference may point at any of them."""
    rest = [value]
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            yield one
            rest += one.values()
        elif isinstance(one, list):
            rest += one


def _expressions(part: dict[str, Any]) -> list[str]:
    named = part.get("patternProperties")
    pattern = part.get("pattern")
    return [*(named if isinstance(named, dict) else ()), *([pattern] if isinstance(pattern, str) else ())]


def _copies(part: dict[str, Any]) -> int:
    """How often what it refers to is written out once more."""
    beside = isinstance(part.get("$ref"), str) and not part.keys() <= _NOTES
    all_of = part.get("allOf")
    members = [one for one in all_of if isinstance(one, dict) and "$ref" in one] if isinstance(all_of, list) else []
    return beside + len(members)


def _multiple(part: dict[str, Any]) -> Fraction | None:
    value = part.get("multipleOf")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return Fraction(str(value)) if 0 < value < math.inf else None


def _common(one: Fraction, other: Fraction) -> Fraction:
    return Fraction(math.lcm(one.numerator, other.numerator), math.gcd(one.denominator, other.denominator))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
