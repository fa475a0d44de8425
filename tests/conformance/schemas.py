"""200 JSON schemas of growing difficulty, always the same ones, and 50 that are bad. Every one of the 200 is bounded,
so that an answer ends by itself: strings, arrays and numbers have limits, and so has the depth."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

COUNT = 200
_PER_LEVEL = 20  # ten levels
_NAMES = (
    "name", "count", "colour", "size", "is_open", "straße", "名前", "prénom", "ключ", "x-y", "with space", 'quo"te',
    "back\\slash", "a/b", "tilde~0", "ümläut", "🌊", "naïve", "$dollar", "id", "kind", "state", "line\nbreak", "été",
)  # fmt: skip
_WORDS = ("red", "green", "grün", "青", "naïve", 'sa"id', "back\\", "🌍", "", "a b", "null", "0", "tab\there", "ё", "é")
_PATTERNS = (
    "^[A-Z]{2}-[0-9]{3}$", "^(red|green|blue)[0-9]?$", "^[a-f0-9]{8}$", "^v[0-9]{1,2}\\.[0-9]{1,2}$", "^[äöü]{1,3}$",
    "^[a-z]{2,6}@[a-z]{2,6}\\.(com|org)$", "^\\+[1-9][0-9]{6,9}$", "^(yes|no|maybe)$", "^[一-龥]{1,3}$", "^$|^x$",
)  # fmt: skip
_FORMATS = ("date", "date-time", "time", "uuid", "ipv4", "ipv6", "email")

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """``schema`` number ``number``; ``strict``: it keeps OpenAI's rules for strict schemas."""

    number: int
    schema: Schema
    strict: bool


def case(number: int) -> Case:
    """The schema of a number from 0 to COUNT - 1; the higher, the harder."""
    level = number // _PER_LEVEL
    source = Random(f"schema {number}")
    family = _FAMILIES[number % len(_FAMILIES)]
    return Case(number, family(source, level), family not in (_optional, _combined) and level % 2 == 0)


# --- leaves -----------------------------------------------------------------------------------------------------------


def _integer(source: Random) -> Schema:
    low = source.randint(-1000, 1000)
    high = low + source.randint(1, 500)
    return source.choice(
        (
            {"type": "integer", "minimum": low, "maximum": high},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 1},
            {"type": "integer", "minimum": 0, "maximum": 1000, "multipleOf": source.choice((2, 5, 25))},
        )
    )


def _number(source: Random) -> Schema:
    low = source.randint(-50, 50)
    return {"type": "number", "minimum": low, "maximum": low + source.randint(1, 99), "multipleOf": 0.25}


def _string(source: Random) -> Schema:
    least = source.randint(0, 6)
    return {"type": "string", "minLength": least, "maxLength": least + source.randint(0, 18)}


def _leaf(source: Random, level: int) -> Schema:
    """Harder kinds join in with the level."""
    kinds: tuple[Callable[[], Schema], ...] = (
        lambda: {"type": "boolean"},
        lambda: {"enum": source.sample(_WORDS, source.randint(1, 5))},
        lambda: _integer(source),
        lambda: _string(source),
        lambda: {"type": "null"},
        lambda: {"const": source.choice((*_WORDS, 7, -1.5, True, None, ["a", 1], {"k": "v"}))},
        lambda: _number(source),
        lambda: {"type": "string", "pattern": source.choice(_PATTERNS)},
        lambda: {"type": "string", "format": source.choice(_FORMATS)},
        lambda: {"type": ["integer", "null"], "minimum": 0, "maximum": 99},
        lambda: {"anyOf": [_integer(source), {"type": "string", "maxLength": 8}, {"type": "null"}]},
        lambda: {"enum": [1, "1", None, True, 2.5, "ein langer Satz mit Leerzeichen, und Komma"]},
    )
    return source.choice(kinds[: 3 + level])()


def _object(source: Random, parts: list[Schema], optional: int = 0) -> Schema:
    names = source.sample(_NAMES, len(parts))
    return {
        "type": "object",
        "properties": dict(zip(names, parts, strict=True)),
        "required": names[optional:],
        "additionalProperties": False,
    }


# --- families: each takes (source, level) and gives one schema --------------------------------------------------------


def _flat(source: Random, level: int) -> Schema:
    return _object(source, [_leaf(source, level) for _ in range(2 + level)])


def _nested(source: Random, level: int) -> Schema:
    schema = _object(source, [_leaf(source, level)])
    for _ in range(1 + level):
        schema = _object(source, [_leaf(source, level), schema])
    return schema


def _array(source: Random, level: int) -> Schema:
    least = source.randint(0, 2)
    items = (
        _object(source, [_leaf(source, level) for _ in range(1 + level // 3)]) if level > 2 else _leaf(source, level)
    )
    many = {"type": "array", "items": items, "minItems": least, "maxItems": least + 1 + level // 3}
    return _object(source, [many, _leaf(source, level)])


def _tuple(source: Random, level: int) -> Schema:
    parts = [_leaf(source, level) for _ in range(2 + level // 2)]
    fixed = {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts), "maxItems": len(parts)}
    return _object(source, [fixed])


def _optional(source: Random, level: int) -> Schema:
    return _object(source, [_leaf(source, level) for _ in range(3 + level // 2)], optional=1 + level // 4)


def _referenced(source: Random, level: int) -> Schema:
    """A chain of definitions, each used by the one before it; the last is a leaf."""
    depth = 1 + level // 2
    definitions = {f"part{at}": _object(source, [_leaf(source, level), {"$ref": f"#/$defs/part{at + 1}"}])
                   for at in range(depth)}  # fmt: skip
    definitions[f"part{depth}"] = _leaf(source, level)
    root = _object(source, [{"$ref": "#/$defs/part0"}, {"$ref": f"#/$defs/part{depth}"}])
    return {**root, "$defs": definitions}


def _alternatives(source: Random, level: int) -> Schema:
    """A tagged union inside an object, as applications write it."""
    kinds = source.sample(("circle", "quadrat", "三角", "line", "point"), 2 + level // 4)
    options = []
    for kind in kinds:
        option = _object(source, [_leaf(source, level) for _ in range(1 + level // 4)])
        option["properties"] = {"type": {"const": kind}, **option["properties"]}
        option["required"] = ["type", *option["required"]]
        options.append(option)
    return _object(source, [{"anyOf": options}, _leaf(source, level)])


def _recursive(source: Random, level: int) -> Schema:
    """A tree whose definition names the one below it, which may be absent at each height and must be at the last.

    A definition that names itself has no last: at temperature 1 a small model repeats it to the end of its tokens.
    """
    height = 2 + level // 2
    leaf = _leaf(source, level // 2)
    definitions: Schema = {"tree0": {"type": "null"}}
    for at in range(1, height + 1):
        tree = _object(source, [leaf])
        tree["properties"]["child"] = {"anyOf": [{"type": "null"}, {"$ref": f"#/$defs/tree{at - 1}"}]}
        tree["required"] = [*tree["required"], "child"]
        definitions[f"tree{at}"] = tree
    return {**_object(source, [{"$ref": f"#/$defs/tree{height}"}]), "$defs": definitions}


def _combined(source: Random, level: int) -> Schema:
    """allOf of what an object must have, each named by reference."""
    first, second = source.sample(_NAMES[:12], 2)
    definitions = {
        "first": {"type": "object", "properties": {first: _leaf(source, level)}, "required": [first]},
        "second": {"type": "object", "properties": {second: _leaf(source, level)}, "required": [second]},
    }
    both = {
        "allOf": [{"$ref": "#/$defs/first"}, {"$ref": "#/$defs/second"}],
        "properties": {first: True, second: True},
        "additionalProperties": False,
    }
    return {**_object(source, [both, _leaf(source, level)]), "$defs": definitions}


def _everything(source: Random, level: int) -> Schema:
    parts = [_leaf(source, level), _array(source, level // 2), _nested(source, level // 3)]
    if level > 4:
        parts.append(_alternatives(source, level // 2))
    return _object(source, parts)


_FAMILIES = (
    _flat, _nested, _array, _tuple, _optional, _referenced, _alternatives, _recursive, _combined, _everything,
)  # fmt: skip


# --- what no server should take ---------------------------------------------------------------------------------------


def _deep(levels: int) -> Schema:
    schema: Schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def _property(schema: Any) -> Schema:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}


_BAD_SCHEMAS: dict[str, Any] = {
    "a list": [],
    "a text": "object",
    "a number": 7,
    "no such type": {"type": "strin"},
    "a type that is a number": {"type": 5},
    "no type left": _property({"type": []}),
    "properties as a list": {"type": "object", "properties": []},
    "a property that is a number": {"type": "object", "properties": {"a": 5}},
    "required as a text": {"type": "object", "properties": {"a": {}}, "required": "a"},
    "required and forbidden": {"type": "object", "required": ["a"], "additionalProperties": False},
    "required and impossible": _property(False),
    "additionalProperties as a text": {"type": "object", "additionalProperties": "no"},
    "items as a number": _property({"type": "array", "items": 5}),
    "no alternatives": _property({"anyOf": []}),
    "alternatives as an object": _property({"anyOf": {"type": "integer"}}),
    "alternatives that overlap, exactly one": _property({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
    "an empty enum": _property({"enum": []}),
    "an enum as a text": _property({"enum": "red"}),
    "a const of another type": _property({"const": 1, "type": "string"}),
    "minimum above maximum": _property({"type": "integer", "minimum": 5, "maximum": 3}),
    "nothing between the bounds": _property({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 4}),
    "a minimum that is a text": _property({"type": "integer", "minimum": "low"}),
    "a multiple of nothing": _property({"type": "integer", "multipleOf": 0}),
    "no multiple in the range": _property({"type": "integer", "minimum": 1, "maximum": 3, "multipleOf": 7}),
    "minLength above maxLength": _property({"type": "string", "minLength": 5, "maxLength": 3}),
    "a negative length": _property({"type": "string", "maxLength": -1}),
    "a length that is a text": _property({"type": "string", "minLength": "3"}),
    "minItems above maxItems": _property({"type": "array", "minItems": 4, "maxItems": 2}),
    "a negative count": _property({"type": "array", "minItems": -1}),
    "a pattern that is no expression": _property({"type": "string", "pattern": "("}),
    "a pattern that is a number": _property({"type": "string", "pattern": 7}),
    "a pattern that looks ahead": _property({"type": "string", "pattern": "(?=a)b"}),
    "a pattern that looks back": _property({"type": "string", "pattern": "(a)\\1"}),
    "a pattern against the format": _property({"type": "string", "pattern": "^a$", "format": "date"}),
    "no such format": _property({"type": "string", "format": "nonsense"}),
    "a format that is a number": _property({"type": "string", "format": 7}),
    "a reference to nothing": _property({"$ref": "#/$defs/none"}),
    "a reference to another host": _property({"$ref": "http://schemas.example/one.json"}),
    "a reference that is a number": _property({"$ref": 5}),
    "a dynamic reference": _property({"$dynamicRef": "#a"}),
    "not": _property({"not": {"type": "string"}}),
    "if and then": _property({"if": {"type": "string"}, "then": {"minLength": 2}}),
    "contains": _property({"type": "array", "contains": {"type": "integer"}}),
    "uniqueItems": _property({"type": "array", "uniqueItems": True, "items": {"type": "integer"}}),
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "nested too deep": _deep(200),
}


def bad_formats() -> Iterator[tuple[str, Any, str]]:
    """(what is wrong, response_format, the parameter that the error must name or begin with), 50 of them."""
    place = "response_format.json_schema"
    for wrong, schema in _BAD_SCHEMAS.items():
        # What is nested too deep is refused before it is known what it belongs to.
        param = "" if wrong == "nested too deep" else f"{place}.schema"
        yield wrong, {"type": "json_schema", "json_schema": {"name": "bad", "schema": schema}}, param
    good: Schema = _property({"type": "integer"})
    yield "no name", {"type": "json_schema", "json_schema": {"schema": good}}, f"{place}.name"
    loose = {**good, "required": []}
    strict = {"name": "loose", "strict": True, "schema": loose}
    yield "strict, and a property not required", {"type": "json_schema", "json_schema": strict}, f"{place}.schema"
    yield "no schema at all", {"type": "json_schema"}, place


# --- what passes for a schema and is more than a grammar can be -------------------------------------------------------


def _hostile() -> dict[str, tuple[Schema, str]]:
    endless = {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}}
    many = {f"p{at}": {"type": "integer"} for at in range(1000)}
    pairs = [{"anyOf": [_property({"enum": [one, two]}) for two in range(30)]} for one in range(30)]
    return {
        "a pattern of a million": ({"type": "string", "pattern": "^a{1000000}$"}, '"a*'),
        "a pattern with many ways": ({"type": "string", "pattern": "^(a?){500}a{500}(b|c)*$"}, '"a*'),
        "a text of millions": ({"type": "string", "minLength": 3_000_000}, r'"([^"\\]|\\.)*'),
        "a hundred million items": (
            {"type": "array", "minItems": 100_000_000, "items": {"type": "null"}},
            r"\[[nul, ]*",
        ),
        "a reference to itself": ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ""),
        "a tree without an end": ({"$defs": endless, "$ref": "#/$defs/a"}, r"\{.*"),
        "five thousand choices": ({"enum": [f"choice number {at}" for at in range(5000)]}, r'"choice number \d+"?'),
        "a thousand properties": ({"type": "object", "properties": many, "additionalProperties": False}, r"\{.*"),
        "a multiple of a million": ({"type": "integer", "multipleOf": 1_000_003}, r"\d*"),
        "counts where only a reference looks": ({"hidden": {"minItems": 10**8}, "$ref": "#/hidden"}, ""),
        "multiples below zero without an end": ({"type": "integer", "multipleOf": 5, "maximum": -10}, r"-\d*"),
        "alternatives of alternatives": ({"anyOf": pairs}, r'\{"a": \d+\}'),
    }


# By what is hostile: the schema, and an expression for whatever an answer to it may begin with.
HOSTILE = _hostile()
