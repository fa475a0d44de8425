"""Callers' JSON schemas: whether the engine's grammar can enforce them, asked before anything is accepted."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from inferbus_contracts.schema_bounds import excess_of, excessive_keyword
from inferbus_runtime.errors import InferBusError, invalid
from llguidance import LLMatcher

MAX_SCHEMA_BYTES = 128 * 1024
INVALID_SCHEMA = "invalid_schema"

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "additionalItems", "not", "if", "then", "else", "contains",
           "propertyNames", "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
# Settings of the grammar library, which would weaken what is enforced.
_GUIDANCE = "x-guidance"
_UNIMPLEMENTED = re.compile(r"Unimplemented keys: (\[.*\])")
# What no grammar enforces.
_UNENFORCED = frozenset((
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
    "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties", "unevaluatedItems",
))  # fmt: skip
# Looking for the place of a fault: characters of schema that are checked again.
_MAX_SEARCH = 2 * MAX_SCHEMA_BYTES
_MAX_ROUNDS = 4
_CACHED_BYTES, _CACHED = 8 * 1024, 512
_SHOWN_FAULT = 200
_MAX_REFERENCES = 16


def schema_text(schema: Any, param: str, *, strict: bool = False) -> str:
    """``schema`` as JSON text that the engine can enforce.

    ``strict``: OpenAI's rules for strict schemas hold as well. Raises InferBusError INVALID_ARGUMENT
    ``invalid_schema`` naming the place; ``param`` names the schema.
    """
    return _once(_enforced, schema, param, strict)


def arguments_text(schema: Any, param: str, *, strict: bool = False) -> str:
    """The schema of a function's arguments, an object. Unless ``strict``, what no grammar can enforce is left to the
    model, as OpenAI does it: real tools have it. Raises as :func:`schema_text`."""
    return _once(_enforced_arguments, schema, param, strict)


Check = Callable[[str, str, bool], str]


def _once(check: Check, schema: Any, param: str, strict: bool) -> str:
    """An application sends the same schemas with every call: what was let in is remembered."""
    if not isinstance(schema, dict):
        raise _bad(param, "a schema is an object")
    text = _text(schema, param)
    return _checked(check, text, param, strict) if len(text) <= _CACHED_BYTES else check(text, param, strict)


@lru_cache(_CACHED)
def _checked(check: Check, text: str, param: str, strict: bool) -> str:
    return check(text, param, strict)


def _enforced(text: str, param: str, strict: bool) -> str:
    schema = json.loads(text)
    _check_size(schema, param)
    if strict:
        _check_strict(schema, param)
    enforced = _rewritten(schema, lambda one: _without_one_of(one, schema))
    fault = _fault(enforced)
    if fault:
        raise _bad(_place(enforced, param, fault), fault)
    return _text(enforced, param)


def _enforced_arguments(text: str, param: str, strict: bool) -> str:
    schema = json.loads(text)
    kind = schema.get("type", "object")
    if kind != "object" and kind != ["object"]:
        raise _bad(param, "the arguments of a function are an object: 'type' should be 'object'")
    schema["type"] = "object"
    if not strict:
        schema = _rewritten(schema, _without_excess)
    _check_size(schema, param)
    for _ in range(0 if strict else _MAX_ROUNDS):
        fault = _fault(schema)
        if not fault:
            return _text(schema, param)
        looser = _looser(schema, fault)
        if looser is None:
            break
        schema = looser
    return _enforced(_text(schema, param), param, strict)


def arguments_texts(functions: Iterable[tuple[Any, str, bool]]) -> list[str]:
    """:func:`arguments_text` of each (schema, param, strict); None as a schema is an empty text. All together are
    bounded as one is."""
    texts, left = [], MAX_SCHEMA_BYTES
    for schema, param, strict in functions:
        text = "" if schema is None else arguments_text(schema, param, strict=strict)
        left -= len(text)
        if left < 0:
            raise _bad(param, f"the schemas of all functions are longer than {MAX_SCHEMA_BYTES} characters")
        texts.append(text)
    return texts


def _check_size(schema: dict[str, Any], param: str) -> None:
    if _GUIDANCE in schema:
        raise _bad(param, f"'{_GUIDANCE}' is no keyword of JSON Schema")
    excess = excess_of(schema)
    if excess is not None:
        raise _bad(param + excess.place, excess.said)


def _text(schema: Any, param: str) -> str:
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        raise _bad(param, "a number in it is not finite") from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise _bad(param, f"it is longer than {MAX_SCHEMA_BYTES} characters")
    return text


def _bad(param: str, fault: str) -> InferBusError:
    fault = " ".join(fault.split())[:_SHOWN_FAULT]
    return invalid(f"Invalid schema: '{param}': {fault}.", param=param, reason=INVALID_SCHEMA)


def _fault(schema: Any) -> str:
    """What the grammar library says against it; empty if it can be enforced."""
    try:
        fault: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    except ValueError as error:
        return str(error)
    return fault


def _place(schema: dict[str, Any], param: str, fault: str) -> str:
    """The smallest part of ``schema`` that has the same fault by itself."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    place, part, left = param, schema, _MAX_SEARCH
    found = True
    while found:
        found = False
        for step, inner in _parts(part):
            if not isinstance(inner, dict):
                continue
            alone = {**shared, **inner}
            left -= len(json.dumps(alone))
            if left < 0:
                return place
            if _fault(alone) == fault:
                place, part, found = place + step, inner, True
                break
    return place


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path step, schema) of the schemas right inside ``schema``."""
    for name in _NAMED:
        inner = schema.get(name)
        if isinstance(inner, dict):
            yield from ((f".{name}.{key}", one) for key, one in inner.items())
    for name in (*_LISTED, *_SINGLE):
        inner = schema.get(name)
        if isinstance(inner, list):
            yield from ((f".{name}[{at}]", one) for at, one in enumerate(inner))
        elif isinstance(inner, dict):
            yield f".{name}", inner


def _rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """``schema`` with ``change`` applied to it and all schemas inside, the innermost first."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for name in _NAMED:
        if isinstance(schema.get(name), dict):
            out[name] = {key: _rewritten(one, change) for key, one in schema[name].items()}
    for name in (*_LISTED, *_SINGLE):
        inner = schema.get(name)
        if isinstance(inner, list):
            out[name] = [_rewritten(one, change) for one in inner]
        elif isinstance(inner, dict):
            out[name] = _rewritten(inner, change)
    return change(out)


# --- oneOf ------------------------------------------------------------------------------------------------------------


def _without_one_of(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """``oneOf`` is ``anyOf`` where no value fits two of the alternatives: a grammar knows only the latter."""
    options = schema.get("oneOf")
    if not isinstance(options, list) or "anyOf" in schema or not _disjoint(options, root):
        return schema
    return {("anyOf" if name == "oneOf" else name): value for name, value in schema.items()}


def _disjoint(options: list[Any], root: dict[str, Any]) -> bool:
    found = [_resolved(one, root) for one in options]
    if not all(isinstance(one, dict) for one in found):
        return False
    if _apart([_types(one) for one in found]):
        return True
    # Objects that are told apart by a required property with fixed values, as tagged unions are.
    shared = set.intersection(*(set(_required(one)) for one in found)) if found else set()
    return any(_apart([_fixed(_resolved(one["properties"].get(name), root)) for one in found]) for name in shared)


def _resolved(schema: Any, root: dict[str, Any]) -> Any:
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        schema = root
        for step in reference[2:].split("/"):
            schema = schema.get(step) if isinstance(schema, dict) else None
    return None


def _required(schema: dict[str, Any]) -> list[str]:
    names = schema.get("required")
    if schema.get("type") != "object" or not isinstance(names, list) or not isinstance(schema.get("properties"), dict):
        return []
    return [name for name in names if isinstance(name, str)]


def _types(schema: dict[str, Any]) -> frozenset[str] | None:
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not all(isinstance(kind, str) for kind in kinds):
        return None
    return frozenset("number" if kind == "integer" else kind for kind in kinds)


def _fixed(schema: Any) -> frozenset[str] | None:
    if not isinstance(schema, dict):
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return frozenset(map(json.dumps, values)) if isinstance(values, list) else None


def _apart(sets: list[frozenset[str] | None]) -> bool:
    known = [one for one in sets if one]
    return len(known) == len(sets) and len(frozenset().union(*known)) == sum(map(len, known))


# --- what a grammar cannot enforce ------------------------------------------------------------------------------------


def _looser(schema: dict[str, Any], fault: str) -> dict[str, Any] | None:
    """``schema`` without what ``fault`` is about; None if it is about something else."""
    found = _UNIMPLEMENTED.search(fault)
    if found is not None:
        dropped = _UNENFORCED | set(json.loads(found[1]))
    elif fault.startswith("Unknown format"):
        dropped = frozenset(("format",))
    elif fault.startswith("regex parse error"):
        dropped = frozenset(("pattern",))
    elif fault.startswith("oneOf"):
        return _changed(schema, _any_of)
    else:
        return None
    return _changed(schema, lambda one: {name: value for name, value in one.items() if name not in dropped})


_DROPPABLE = frozenset(("pattern", "multipleOf", "minItems", "maxItems", "minLength", "maxLength", "minProperties",
                        "maxProperties"))  # fmt: skip


def _without_excess(schema: dict[str, Any]) -> dict[str, Any]:
    while (name := excessive_keyword(schema)) in _DROPPABLE:
        schema = {other: value for other, value in schema.items() if other != name}
    return schema


def _changed(schema: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any] | None:
    changed: dict[str, Any] = _rewritten(schema, change)
    return None if changed == schema else changed


def _any_of(schema: dict[str, Any]) -> dict[str, Any]:
    if "oneOf" not in schema or "anyOf" in schema:
        return schema
    return {("anyOf" if name == "oneOf" else name): value for name, value in schema.items()}


# --- OpenAI's rules for strict schemas --------------------------------------------------------------------------------

_ADVICE = "or leave 'strict' out: the schema is enforced all the same"


def _check_strict(schema: dict[str, Any], param: str) -> None:
    if schema.get("type") != "object" or "anyOf" in schema:
        raise _bad(param, f"with 'strict', the root should be of type 'object' and have no 'anyOf'; {_ADVICE}")
    _check_strict_part(schema, param)


def _check_strict_part(schema: dict[str, Any], place: str) -> None:
    kind = schema.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind) or "properties" in schema:
        if schema.get("additionalProperties") is not False:
            raise _bad(place, f"with 'strict', 'additionalProperties' should be false; {_ADVICE}")
        required = schema.get("required")
        names = schema.get("properties")
        missing = [] if not isinstance(names, dict) else [
            name for name in names if not isinstance(required, list) or name not in required
        ]  # fmt: skip
        if missing:
            raise _bad(place, f"with 'strict', 'required' should name all properties, also '{missing[0]}'; {_ADVICE}")
    for step, inner in _parts(schema):
        if isinstance(inner, dict):
            _check_strict_part(inner, place + step)
