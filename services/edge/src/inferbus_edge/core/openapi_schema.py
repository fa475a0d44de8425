"""JSON schemas of the API's document: those of requests out of the pydantic models that check them, those of the
operator's messages out of their protobuf descriptors, and small words to write those of answers by hand."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

Schema = dict[str, Any]

REF = "#/components/schemas/"
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}
ANYTHING: Schema = {}
UNIX: Schema = {"type": "integer", "minimum": 0, "description": "Unix seconds."}
LABELS: Schema = {"type": "object", "additionalProperties": TEXT}

# --- written by hand --------------------------------------------------------------------------------------------------


def ref(name: str) -> Schema:
    return {"$ref": REF + name}


def record(description: str = "", optional: Sequence[str] = (), /, **fields: Schema) -> Schema:
    """An object with these fields and no others; all are there but the ``optional`` ones. A field whose name is none
    in Python, or is a parameter here, has an underscore after it."""
    properties = {name.removesuffix("_"): schema for name, schema in fields.items()}
    shown: Schema = {"type": "object"} | ({"description": description} if description else {})
    required = [name for name in properties if name not in optional]
    return {**shown, "properties": properties, "required": required, "additionalProperties": False}


def const(value: str) -> Schema:
    return {"type": "string", "const": value}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def any_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


def nullable(schema: Schema) -> Schema:
    return any_of(schema, NULL)


def told(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def event(data: Schema) -> Schema:
    """One server-sent event whose data is JSON text of the schema ``data``, or OpenAI's mark of the end."""
    said = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    return {
        "type": "object",
        "properties": {
            "id": told({"type": "string", "pattern": "^[0-9a-f-]{36}:[0-9]+$"}, "For Last-Event-ID."),
            "event": TEXT,
            "data": any_of(const("[DONE]"), said),
        },
        "required": ["data"],
    }


def listing(item: str) -> Schema:
    """A page of OpenAI's lists."""
    return record(
        object=const("list"),
        data=many(ref(item)),
        first_id=told(nullable(TEXT), "Null in an empty page."),
        last_id=told(nullable(TEXT), "What the next page's 'after' is."),
        has_more=FLAG,
    )


# --- of pydantic's models ---------------------------------------------------------------------------------------------


def of_models(prefix: str, models: Mapping[str, type[BaseModel]]) -> dict[str, Schema]:
    """Components: ``models`` by the names given, what they are made of with ``prefix`` before its own name."""
    found, shared = models_json_schema(
        [(model, "validation") for model in models.values()], ref_template=REF + prefix + "{model}"
    )
    names = {found[model, "validation"]["$ref"]: REF + name for name, model in models.items()}
    components = {prefix + name: schema for name, schema in shared.get("$defs", {}).items()}
    renamed = {old.removeprefix(REF): new.removeprefix(REF) for old, new in names.items()}
    plain = {renamed.get(name, name): _plain(schema, names) for name, schema in components.items()}
    for schema in plain.values():
        _tell_apart(schema, plain)
    return plain


def _plain(value: Any, names: Mapping[str, str]) -> Any:
    """Without pydantic's titles, and without the defaults that only say that nothing is the default."""
    if isinstance(value, list):
        return [_plain(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    shown: Schema = {}
    for name, one in value.items():
        if name == "properties":
            shown[name] = {field: _plain(schema, names) for field, schema in one.items()}
        elif name == "$ref":
            shown[name] = names.get(one, one)
        elif not (name == "title" or (name == "default" and one is None)):
            shown[name] = _plain(one, names)
    return shown


def _tell_apart(value: Any, components: Mapping[str, Schema]) -> None:
    """The first member of a union takes every kind that is not known, so as to refuse it by name: shown are, of each
    member's kinds, those that no other member has by itself."""
    for union in _unions(value):
        members = [components[one["$ref"].removeprefix(REF)] for one in union if "$ref" in one]
        for field in ("type", "role"):
            kinds = [member.get("properties", {}).get(field, {}) for member in members]
            fixed = {kind["const"] for kind in kinds if "const" in kind}
            fixed |= {kind["enum"][0] for kind in kinds if len(kind.get("enum", ())) == 1}
            for kind in kinds:
                left = [one for one in kind.get("enum", ()) if one not in fixed]
                if len(kind.get("enum", ())) > 1 and left:
                    kind["enum"] = left


def _unions(value: Any) -> Iterator[list[Schema]]:
    if isinstance(value, dict):
        if isinstance(value.get("oneOf"), list):
            yield value["oneOf"]
        for one in value.values():
            yield from _unions(one)
    elif isinstance(value, list):
        for one in value:
            yield from _unions(one)


# --- of protobuf's messages -------------------------------------------------------------------------------------------

_KINDS: dict[int, Schema] = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.CPPTYPE_INT64: told({"type": "string", "pattern": "^-?[0-9]+$"}, "A 64-bit number."),
    FieldDescriptor.CPPTYPE_UINT64: told({"type": "string", "pattern": "^[0-9]+$"}, "A 64-bit number."),
    FieldDescriptor.CPPTYPE_DOUBLE: any_of(NUMBER, one_of("NaN", "Infinity", "-Infinity")),
    FieldDescriptor.CPPTYPE_FLOAT: any_of(NUMBER, one_of("NaN", "Infinity", "-Infinity")),
    FieldDescriptor.CPPTYPE_BOOL: FLAG,
    FieldDescriptor.CPPTYPE_STRING: TEXT,
}
_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?s$"},
}


def of_messages(*descriptors: Descriptor) -> dict[str, Schema]:
    """Components: these messages in protobuf's JSON, and what they are made of. A field with its zero value is left
    out, so none is required."""
    components: dict[str, Schema] = {}
    waiting = list(descriptors)
    while waiting:
        one = waiting.pop()
        if one.name in components or one.full_name in _WELL_KNOWN:
            continue
        components[one.name] = {
            "type": "object",
            "properties": {field.name: _field(field) for field in one.fields},
            "additionalProperties": False,
        }
        waiting += [field.message_type for field in one.fields if field.message_type is not None]
    return {
        name: schema
        for name, schema in components.items()
        if not name.endswith("Entry")  # maps are shown in place
    }


def _field(field: FieldDescriptor) -> Schema:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return {"type": "object", "additionalProperties": _single(kind.fields_by_name["value"])}
    return many(_single(field)) if field.is_repeated else _single(field)


def _single(field: FieldDescriptor) -> Schema:
    if field.message_type is not None:
        return _WELL_KNOWN.get(field.message_type.full_name) or ref(field.message_type.name)
    if field.enum_type is not None:
        return one_of(*(value.name for value in field.enum_type.values))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return told(TEXT, "Base64.")
    return _KINDS[field.cpp_type]
