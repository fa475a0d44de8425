"""How much a caller's JSON schema or expression may ask for: one set of bounds for both ends of the bus.

The edge refuses by it before anything is accepted; a worker, which does not trust whoever published, asks again.

An engine writes out counts of items, repeats in patterns and multiples of numbers before it makes a token, and the
tokens of everybody wait for it. Measured with llama.cpp: 35 µs a unit of ``maxItems``, 60 ms for ``multipleOf`` 9973
and 14 s for 1000003, 140 ms for the pattern ``a{10000}``. What is let in costs at most about 300 ms, once.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

MAX_COUNT, MAX_COUNTS = 1_000, 5_000
MAX_LENGTH = 2**31 - 1  # of a text: costs nothing, but larger ones are no numbers to the grammar library
MAX_MULTIPLE = 10_000
MAX_EXPRESSION, MAX_EXPRESSIONS = 2_000, 20_000
_RAW = 4  # characters as they are sent for one written out: escapes, classes
# A check takes 0.1 ms, and more than its share of time for these.
MAX_PROPERTIES, MAX_PATTERNS, MAX_ALL_OF = 500, 50, 64
# Of the whole schema: 0.2 ms each.
MAX_PARTS = 1_000

_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
_ALTERNATIVES = ("anyOf", "oneOf")
_LENGTHS = ("minLength", "maxLength")
# Beside a reference these change nothing; with anything else the library writes out what is referred to once more.
_NOTES = frozenset(("$ref", "$defs", "definitions", "$schema", "$id", "$comment", "title", "description", "default",
                    "examples", "deprecated", "readOnly", "writeOnly"))  # fmt: skip
# Possessive, and an unclosed class goes to the end: nothing is read twice, whatever it is.
_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+(?:\]|\\?\Z)|\{(\d+)(?:,(\d*))?\}|.", re.DOTALL)
# With it blanks and comments may stand inside a repeat.
_FREE_SPACING = re.compile(r"\(\?[A-Za-z]*x")
_LONGEST_NUMBER = 30


@dataclass(frozen=True, slots=True)
class Excess:
    """``place``: the path of the part at fault inside the schema, empty for the whole. ``keyword`` empty: several."""

    place: str
    keyword: str
    said: str


def excess_of(schema: dict[str, Any]) -> Excess | None:
    """The first thing in ``schema`` that is more than can be enforced, or None."""
    counts = expressions = combined = copies = multiples = properties = alternatives = 0
    common = Fraction(1)
    for place, part in _parts(schema):
        if (keyword := excessive_keyword(part)) is not None:
            return Excess(place, keyword, _said(keyword, part[keyword]))
        counts += sum(max(part[name], 0) for name in _COUNTS if _is_number(part.get(name)))
        expressions += sum(map(expression_size, _expressions(part)))
        if expressions > MAX_EXPRESSIONS:
            return Excess("", "", "its patterns are too large together; send fewer or shorter ones")
        properties += _count(part.get("properties"))
        alternatives += sum(_count(part.get(name)) for name in _ALTERNATIVES)
        if max(properties, alternatives) > MAX_PARTS:
            return Excess("", "", f"it has more than {MAX_PARTS} properties or alternatives together; send fewer")
        copies += _copies(part)
        all_of = part.get("allOf")
        combined += len(all_of) - 1 if isinstance(all_of, list) else 0
        if combined > MAX_ALL_OF:
            return Excess(place, "", f"more than {MAX_ALL_OF} schemas are combined by 'allOf'")
        if (multiple := _multiple(part)) is not None:
            multiples += multiple_cost(multiple)
            common = _common(common, multiple)
    if counts * (1 + copies) > MAX_COUNTS:
        return Excess("", "", f"minItems, maxItems, minProperties and maxProperties are more than {MAX_COUNTS} "
                              "together; lower some or leave them out")  # fmt: skip
    if max(multiples, multiple_cost(common)) > MAX_MULTIPLE:
        return Excess("", "", "its values of 'multipleOf' are too many together; send fewer or smaller ones")
    return None


def expression_excess(expression: str) -> str:
    """What of a regular expression is more than can be enforced, in words for the caller; empty: nothing."""
    if not _too_large(expression):
        return ""
    return f"written out it is longer than {MAX_EXPRESSION} characters, or it uses the flag 'x'; shorten it"


def excessive_keyword(part: dict[str, Any]) -> str | None:
    """The keyword of this one schema, those inside it aside, that asks for too much by itself."""
    for names, most in ((_COUNTS, MAX_COUNT), (_LENGTHS, MAX_LENGTH)):
        for name in names:
            if _is_number(part.get(name)) and part[name] > most:
                return name
    for name, most in (("properties", MAX_PROPERTIES), ("patternProperties", MAX_PATTERNS)):
        if isinstance(part.get(name), dict) and len(part[name]) > most:
            return name
    for name in ("patternProperties", "pattern"):
        if any(map(_too_large, _expressions({name: part.get(name)}))):
            return name
    multiple = _multiple(part)
    return "multipleOf" if multiple is not None and multiple_cost(multiple) > MAX_MULTIPLE else None


def _said(keyword: str, value: Any) -> str:
    if keyword in _COUNTS or keyword in _LENGTHS:
        most = MAX_COUNT if keyword in _COUNTS else MAX_LENGTH
        return f"'{keyword}' is more than {most}; lower it or leave it out"
    if isinstance(value, dict) and not any(map(_too_large, value)):
        most = MAX_PROPERTIES if keyword == "properties" else MAX_PATTERNS
        return f"there are more than {most} '{keyword}'"
    if keyword == "multipleOf":
        return f"'multipleOf' has too many digits to be enforced; send one of at most {MAX_MULTIPLE}"
    return (
        f"a pattern is longer, with its repeats written out, than {MAX_EXPRESSION} characters, or uses the flag 'x'; "
        "shorten it"
    )


def _too_large(expression: str) -> bool:
    if len(expression) > _RAW * MAX_EXPRESSION:  # not even looked at
        return True
    return expression_size(expression) > MAX_EXPRESSION or _FREE_SPACING.search(expression) is not None


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


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, object) of all objects in it, wherever they are: a reference may point at any of them."""
    rest: list[tuple[str, Any]] = [("", schema)]
    while rest:
        place, one = rest.pop()
        if isinstance(one, dict):
            yield place, one
            rest += [(f"{place}.{name}", inner) for name, inner in one.items() if isinstance(inner, dict | list)]
        elif isinstance(one, list):
            rest += [(f"{place}[{at}]", inner) for at, inner in enumerate(one) if isinstance(inner, dict | list)]


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


def _count(value: Any) -> int:
    return len(value) if isinstance(value, dict | list) else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
