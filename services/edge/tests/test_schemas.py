"""Callers' JSON schemas: what can be enforced is taken, anything else is refused with its place."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus_dialect.embeddings import parse_embedding_request
from inferbus_dialect.schema import MAX_DEPTH, MAX_VALUES, check_depth, check_size
from inferbus_dialect.schemas_json import MAX_SCHEMA_BYTES, arguments_text, arguments_texts, schema_text
from inferbus_edge.core.tokenize_schema import parse_detokenize, parse_tokenize
from inferbus_runtime.errors import InferBusError
from jsonschema import Draft202012Validator
from llguidance import LLMatcher

WORDS = st.sampled_from(
    ["type", "object", "string", "properties", "items", "required", "$ref", "#/$defs/a", "$defs", "a", "anyOf", "oneOf",
     "enum", "const", "pattern", "minimum", "format", "additionalProperties", "x-guidance", "[", "%"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


def fault(schema: Any, **options: Any) -> InferBusError:
    with pytest.raises(InferBusError) as caught:
        schema_text(schema, "schema", **options)
    assert caught.value.reason == "invalid_schema"
    return caught.value


@given(JSON)
@settings(max_examples=300)
def test_anything_is_enforceable_or_refused(schema: object) -> None:
    for check in (schema_text, arguments_text):
        try:
            text = check(schema, "schema")
        except InferBusError as error:
            right = error.reason == "invalid_schema" and error.param.startswith("schema")
        else:
            right = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text)) == ""
        assert right


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "strin"}, "schema"),
        ({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "strin"}}}}, ".properties.a.items"),
        ({"$defs": {"x": {"type": 5}}, "type": "array", "items": {"$ref": "#/$defs/x"}}, "schema.$defs.x"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, ".properties.a"),
        ({"$ref": "https://example.com/schema"}, "schema"),
        ({"anyOf": [{"type": "string"}, {"type": "string", "pattern": "(?=a)"}]}, ".anyOf[1]"),
        ({"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 1}}, "required": ["n"]},
         "schema"),
        ({"type": "string", "format": "shoe-size"}, "schema"),
        ({"type": "array", "uniqueItems": True}, "schema"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "schema"),
        ({"x-guidance": {"lenient": True}}, "schema"),
        ({"properties": {"a": {"properties": {str(at): {} for at in range(501)}}}}, "schema.properties.a"),
        ({"patternProperties": {f"^a{at}x": {} for at in range(51)}}, "schema"), ({"allOf": [{}] * 66}, "schema"),
        ({"properties": {"a": {"type": "array", "minItems": 10**8}}}, "schema.properties.a"),
        ({"items": {"maxItems": 1001}}, "schema.items"), ({"minProperties": 10**6}, "schema"),
        ({"prefixItems": [{"type": "array", "maxItems": 1000}] * 6}, "schema"),
        ({"$defs": {"a": {"maxItems": 1000}}, "prefixItems": [{"$ref": "#/$defs/a", "minItems": 1}] * 5}, "schema"),
        ({"hidden": {"minItems": 10**8}, "$ref": "#/hidden"}, "schema.hidden"),
        ({"type": "string", "maxLength": 2**31}, "schema"), ({"type": "string", "pattern": "^a{1000000}$"}, "schema"),
        ({"type": "string", "pattern": "((a{100}){100}){100}"}, "schema"),
        ({"type": "string", "pattern": "(?x)a{ 1000000 }"}, "schema"),
        ({"patternProperties": {"a{9999}": {}}}, "schema"),
        ({"prefixItems": [{"type": "string", "pattern": "[a-z]{1900}"}] * 11}, "schema"),
        ({"anyOf": [{"type": "integer", "multipleOf": 1_000_003}]}, "schema.anyOf[0]"),
        ({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]}, "schema"),
        ({"enum": []}, "schema"), ([], "schema"), ("object", "schema"), (None, "schema"),
        ({"minimum": float("nan")}, "schema"), ({"description": "x" * MAX_SCHEMA_BYTES}, "schema"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused_with_its_place(schema: object, place: str) -> None:
    assert fault(schema).param.endswith(place)


@given(st.sampled_from(["minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"]),
       st.integers(0, 2**33))  # fmt: skip
def test_a_bound_is_served_or_refused_by_its_name(keyword: str, value: int) -> None:
    kind = {"I": "array", "P": "object", "L": "string"}[keyword[3]]
    schema = {"type": kind, keyword: value}
    most = 2**31 - 1 if kind == "string" else 1000
    if value <= most:
        assert json.loads(schema_text(schema, "schema")) == schema
        return
    error = fault(schema)
    assert f"'{keyword}'" in error.message
    assert str(most) in error.message


def test_bounds_of_arguments_that_are_too_large_are_left_to_the_model() -> None:
    inner = {
        "type": "array",
        "items": {"type": "string", "maxLength": 2**40, "pattern": "^a{5000}$"},
        "maxItems": 10**6,
    }
    schema = {"type": "object", "properties": {"a": inner, "n": {"type": "integer", "multipleOf": 10**9, "minimum": 0}}}
    properties = json.loads(arguments_text(schema, "p"))["properties"]
    assert properties["a"] == {"type": "array", "items": {"type": "string"}}
    assert properties["n"] == {"type": "integer", "minimum": 0}
    strict = {**schema, "required": ["a", "n"], "additionalProperties": False}
    with pytest.raises(InferBusError) as caught:
        arguments_text(strict, "p", strict=True)
    assert caught.value.param.startswith("p.properties.")


def test_the_schema_comes_out_as_it_was() -> None:
    schema = {"type": "object", "properties": {"ä": {"enum": ["\u2028", 1.5, None]}}, "additionalProperties": False}
    assert json.loads(schema_text(schema, "schema")) == schema


TAGGED = {
    "$defs": {
        name: {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]}
        for name in ("cat", "dog")
    },
    "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}],
}


def test_alternatives_that_exclude_each_other_are_served() -> None:
    for schema in (TAGGED, {"oneOf": [{"type": "string"}, {"type": ["integer", "null"]}]}):
        enforced = json.loads(schema_text(schema, "schema"))
        assert "oneOf" not in enforced
        assert enforced["anyOf"] == schema["oneOf"]


@given(st.lists(st.sampled_from(["string", "integer", "number", "null", "boolean"]), min_size=1, max_size=3), JSON)
def test_one_of_is_only_rewritten_where_it_means_the_same(kinds: list[str], value: object) -> None:
    schema = {"oneOf": [{"type": kind} for kind in kinds]}
    try:
        enforced = json.loads(schema_text(schema, "schema"))
    except InferBusError:
        return
    if value != value or "inf" in repr(value) or "nan" in repr(value):
        return
    assert Draft202012Validator(enforced).is_valid(value) == Draft202012Validator(schema).is_valid(value)


STRICT = {
    "type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"type": "array"}, "schema"), ({"anyOf": [{}]}, "schema"), ({"additionalProperties": True}, "schema"),
        ({"required": []}, "schema"),
        ({"properties": {"a": {"type": "object"}}}, "schema.properties.a"),
        ({"properties": {"a": {"anyOf": [{"properties": {}}]}}}, "schema.properties.a.anyOf[0]"),
        ({"$defs": {"b": {"type": ["object", "null"]}}}, "schema.$defs.b"),
    ],
)  # fmt: skip
def test_the_rules_of_strict_schemas(change: dict[str, Any], place: str) -> None:
    schema_text(STRICT, "schema", strict=True)
    error = fault({**STRICT, **change}, strict=True)
    assert error.param == place
    assert "strict" in error.message


def test_arguments_are_an_object() -> None:
    assert json.loads(arguments_text({}, "p")) == {"type": "object"}
    for schema in ({"type": "string"}, {"type": ["object", "null"]}, []):
        with pytest.raises(InferBusError):
            arguments_text(schema, "p")


def test_the_schemas_of_all_functions_are_bounded_together() -> None:
    large = {"type": "object", "description": "x" * (MAX_SCHEMA_BYTES // 3)}
    assert arguments_texts([(None, "a", False), ({}, "b", False)]) == ["", '{"type":"object"}']
    arguments_texts([(large, "a", False)] * 2)
    with pytest.raises(InferBusError) as caught:
        arguments_texts([(large, name, False) for name in "abc"])
    assert (caught.value.param, caught.value.reason) == ("c", "invalid_schema")


def test_what_no_grammar_enforces_is_left_to_the_model_in_arguments() -> None:
    schema = {
        "type": "object",
        "properties": {
            "not": {"type": "array", "uniqueItems": True, "items": {"type": "string", "format": "shoe-size"}},
            "one": {"oneOf": [{"type": "integer"}, {"type": "number", "not": {"const": 1}}]},
            "pattern": {"type": "string", "pattern": "(?=a)b", "minLength": 1},
        },
        "required": ["not"],
    }
    properties = json.loads(arguments_text(schema, "p"))["properties"]
    assert properties["not"] == {"type": "array", "items": {"type": "string"}}
    assert properties["one"] == {"anyOf": [{"type": "integer"}, {"type": "number"}]}
    assert properties["pattern"] == {"type": "string", "minLength": 1}
    with pytest.raises(InferBusError):
        arguments_text({**schema, "additionalProperties": False, "required": list(properties)}, "p", strict=True)
    with pytest.raises(InferBusError) as caught:
        arguments_text({"properties": {"a": {"type": "strin"}}}, "p")
    assert caught.value.param == "p.properties.a"


@given(st.integers(1, 3 * MAX_DEPTH), st.text(max_size=20))
def test_depth(depth: int, text: str) -> None:
    value: object = text
    for level in range(depth):
        value = [value] if level % 3 else {text: value}
    body = json.dumps([value, {"x": "[{" * 200}]).encode()
    if depth < MAX_DEPTH:
        check_depth(body)
    else:
        with pytest.raises(InferBusError, match="nested"):
            check_depth(body)


def test_many_values() -> None:
    most = [1] * MAX_VALUES
    for value in (most, {"text": "," * 2 * MAX_VALUES, "quoted": ['\\",'] * 1000}):
        check_size(json.dumps(value).encode())
    for value in ([*most, 1], ['\\",', *most], {"a": [most, [1, "x"]]}, [""] * (MAX_VALUES + 1)):
        with pytest.raises(InferBusError) as caught:
            check_size(json.dumps(value).encode())
        assert caught.value.reason == "too_many_values"
    for read in (parse_embedding_request, parse_tokenize, parse_detokenize):
        with pytest.raises(InferBusError) as caught:
            read(json.dumps({"model": "m", "messages": [], "input": [1] * (MAX_VALUES + 1)}).encode())
        assert caught.value.reason == "too_many_values"


def test_looking_at_the_size_of_a_body_is_in_proportion_to_reading_it() -> None:
    """What made the expression for strings slow: each escaped quote, and each empty string, was a step of its own."""
    size = 4 << 20
    bodies = [b"[" + b'"",' * (size // 3) + b"1]", b"[" * 65 + b'"' + b'\\",' * (size // 3) + b'"' + b"]" * 65]
    for body in bodies:
        looking, reading = [], []
        for _ in range(5):
            began = time.perf_counter()
            with pytest.raises(InferBusError):
                check_size(body)
            looked = time.perf_counter()
            json.loads(body)
            looking.append(looked - began)
            reading.append(time.perf_counter() - looked)
        assert min(looking) < 6 * min(reading)


@given(st.binary(max_size=300) | st.text('[]{}\\"a', max_size=64).map(str.encode))
def test_what_is_no_json_is_left_to_the_parser(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        check_depth(body)
    check_depth(b"[" * 10_000 + body.replace(b"]", b"").replace(b"}", b""))
