"""Forms and tools that several tests ask for, and schemas that no engine may take."""

import json
from typing import Any

from inferbus_worker.engine import Chat, Constraint, ConstraintKind, Message, Tool

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = Tool(
    "get_weather",
    "Weather of a city",
    json.dumps({"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}),
)


def schema(value: Any) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def with_tools(content: str = "What is the weather in Rome?", **more: Any) -> Chat:
    return Chat((Message("user", content),), (WEATHER,), **more)


BAD_SCHEMAS: list[str] = [
    "{", "", "[]", "null", "42", '"string"', "{'type': 'object'}", '{"type": "object",}', '{"a": NaN}', "[" * 5000,
    *(json.dumps(value) for value in (
        {"type": "frog"}, {"type": 5}, {"type": ["string", "frog"]}, {"type": {}}, {"$ref": "#/$defs/none"},
        {"$ref": "http://example.com/schema"}, {"$ref": 7}, {"not": {"type": "string"}}, {"if": {"type": "string"}},
        {"type": "array", "uniqueItems": True}, {"type": "string", "pattern": "["},
        {"type": "string", "pattern": "(?=x)"},
        {"type": "string", "pattern": "(?!x)y"}, {"type": "string", "pattern": "(a)\\1"},
        {"type": "string", "pattern": 5},
        {"type": "string", "format": "no-such-format"}, {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "integer", "minimum": "low"}, {"type": "string", "minLength": 5, "maxLength": 2},
        {"type": "string", "minLength": -1}, {"type": "string", "minLength": "long"}, {"type": "array", "items": 5},
        {"type": "array", "minItems": 3, "maxItems": 1}, {"type": "array", "minItems": "x"},
        {"type": "array", "contains": {}},
        {"type": "object", "properties": []}, {"type": "object", "properties": {"a": 5}},
        {"type": "object", "required": "a"},
        {"type": "object", "required": [5]}, {"type": "object", "dependentRequired": {"a": ["b"]}},
        {"type": "object", "propertyNames": {"maxLength": 3}}, {"type": "object", "dependentSchemas": {"a": {}}},
        {"type": "object", "unevaluatedProperties": False}, {"anyOf": []}, {"anyOf": {}}, {"anyOf": [{"type": "frog"}]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]}, {"enum": []}, {"enum": "a"},
        {"enum": [5], "type": "string"},
        {"const": 5, "type": "string"}, {"type": "integer", "minimum": -(10**30), "maximum": 10**30},
        {"type": "object", "properties": {"a": False}, "required": ["a"]},
        {"type": "number", "multipleOf": 0}, {"type": "array", "prefixItems": 5},
        {"type": "object", "patternProperties": {"[": {"type": "string"}}},
    )),
]  # fmt: skip
