"""What the output must look like, as a grammar of LLGuidance in its Lark dialect.

Schemas are written into it as JSON and expressions escaped, so nothing that a caller sends can become grammar. JSON has
exactly the white space of Python's ``json.dumps``: a hot model could otherwise spend its tokens on blanks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferbus_contracts.schema_bounds import excess_of, expression_excess
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.grammar_formats import formats_held
from inferbus_worker.core.grammar_numbers import multiples_named
from inferbus_worker.engine import Chat, Constraint, ConstraintKind, Generation, Tool, ToolMode

MAX_SOURCE = 128 * 1024
MAX_DEPTH = 64
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_ANY_SPACING = {"whitespace_flexible": True}
# Of an output that we only follow: whoever makes it has its own.
_ANY_SPACING = {"whitespace_flexible": True}
_HEADER = "%llguidance {}\n"
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
# Keywords with which a schema may say its type without the word.
_TYPING = ("type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const")


@dataclass(frozen=True, slots=True)
class Part:
    """A schema or expression of the caller as a grammar by itself; ``param`` is where it was sent."""

    text: str
    param: str
    what: str


@dataclass(frozen=True, slots=True)
class Grammar:
    """``parts``: what of it the caller sent, to find out which of them is at fault."""

    text: str
    parts: tuple[Part, ...]


def grammar_of_constraint(constraint: Constraint, *, any_space: bool = False) -> Grammar:
    """Of a constraint alone. ``any_space``: JSON has whatever white space it likes, for an engine that has a grammar of
    its own. Raises InferBusError ``invalid_schema`` as :func:`grammar_of`."""
    form = _form(constraint, _ANY_SPACING if any_space else _SPACING)
    part = Part(f"{_HEADER}start: {form}\n", "response_format", "The schema")
    return Grammar(part.text, (part,))


def grammar_of(generation: Generation, *, flexible_space: bool = False) -> Grammar | None:
    """None: any text. Raises InferBusError ``invalid_schema`` for a source that is no JSON schema, or asks too much.
    ``flexible_space``: JSON may have white space wherever JSON allows it.

    An answer that must be a call has no text, so that a constraint says nothing about it.
    """
    source = generation.input
    must_call = isinstance(source, Chat) and source.tool_mode is ToolMode.REQUIRED
    spacing = _ANY_SPACING if flexible_space else _SPACING
    form = _form(generation.constraint, spacing) if generation.constraint is not None and not must_call else None
    parts = [Part(f"{_HEADER}start: {form}\n", "response_format", "The schema")] if form is not None else []
    if not isinstance(source, Chat) or not source.tools or source.tool_mode is ToolMode.NONE:
        return Grammar(parts[0].text, tuple(parts)) if parts else None
    tools = [tool for tool in source.tools if source.tool_name in ("", tool.name)]
    schemas = [_parameters(tool, spacing) for tool in tools]
    parts += [
        Part(f"{_HEADER}start: {schema}\n", "tools", f"The parameters of '{tool.name[:64]}'")
        for tool, schema in zip(tools, schemas, strict=True)
    ]
    more = f'("\\n" "{_OPEN}" body)*' if source.parallel_tool_calls else ""
    calls = f'"{_OPEN}" body {more}'
    if source.tool_mode is ToolMode.REQUIRED:
        rules = f"start: {calls}\n"
    elif form is not None:
        rules = f"start: text | {calls}\ntext: {form}\n"
    else:
        # The lazy one ends as soon as the text holds the beginning of a call: from there on only a call is possible.
        rules = f"start: text | head body {more}\nhead[lazy]: /(?s:.*){_OPEN}/\ntext: /(?s:.*)/\n"
    return Grammar(_HEADER + rules + _bodies(tools, schemas), tuple(parts))


def _bodies(tools: Sequence[Tool], schemas: Sequence[str]) -> str:
    """A call after its opening tag: name first, so that a reader knows it before the arguments come."""
    names = " | ".join(f"body{number}" for number in range(len(tools)))
    rules = [f"body: {names}\n"]
    for number, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
        before = f'\n{{"name": {json.dumps(tool.name)}, "arguments": '
        rules.append(f'body{number}: {json.dumps(before)} {schema} "}}\\n{_CLOSE}"\n')
    return "".join(rules)


def _form(constraint: Constraint, spacing: dict[str, Any] = _SPACING) -> str:
    match constraint.kind:
        case ConstraintKind.REGEX:
            _bounded(constraint.source, "response_format")
            if excess := expression_excess(constraint.source):
                raise _excessive(excess, "response_format")
            return f"/{_escaped(constraint.source)}/"
        case ConstraintKind.JSON_OBJECT:
            return _json_rule({"type": "object"}, spacing)
        case ConstraintKind.JSON_SCHEMA:
            return _json_rule(_schema(constraint.source, "response_format"), spacing)


def _parameters(tool: Tool, spacing: dict[str, Any]) -> str:
    """Arguments are an object, also where the schema does not say so."""
    if not tool.parameters:
        return _json_rule({"type": "object", "properties": {}, "additionalProperties": False}, spacing)
    schema = _schema(tool.parameters, "tools")
    if not any(keyword in schema for keyword in _TYPING):
        schema["type"] = "object"
    return _json_rule(schema, spacing)


def _json_rule(schema: dict[str, Any], spacing: dict[str, Any] = _SPACING) -> str:
    return "%json " + json.dumps(schema | {"x-guidance": spacing})


def _schema(source: str, param: str) -> dict[str, Any]:
    _bounded(source, param)
    try:
        schema = json.loads(source, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise invalid_schema("The schema is not valid JSON.", param) from error
    if not isinstance(schema, dict):
        raise invalid_schema("The schema must be a JSON object.", param)
    if _deeper(schema, MAX_DEPTH):
        raise invalid_schema(f"The schema is nested deeper than {MAX_DEPTH} levels.", param)
    if (excess := excess_of(schema)) is not None:
        raise _excessive(excess.said, param)
    try:
        named: dict[str, Any] = formats_held(multiples_named(schema))
    except ValueError as error:
        raise _excessive(str(error), param) from error
    return named


def _excessive(excess: str, param: str) -> InferBusError:
    return invalid_schema(f"The schema cannot be enforced: {excess.removesuffix('.')}.", param)


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _bounded(source: str, param: str) -> None:
    if len(source) > MAX_SOURCE:
        raise invalid_schema(f"It is longer than {MAX_SOURCE} characters.", param)


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inner)


def _escaped(expression: str) -> str:
    """Between slashes and on one line; escapes that are there stay as they are."""
    out: list[str] = []
    characters = iter(expression)
    for character in characters:
        if character == "\\":
            character += next(characters, "")
        out.append(_BETWEEN_SLASHES.get(character, character))
    return "".join(out) or "(?:)"  # two slashes alone would be a comment


_BETWEEN_SLASHES = {"/": "\\/", "\n": "\\n", "\r": "\\r", "\\\n": "\\n", "\\\r": "\\r"}


def invalid_schema(message: str, param: str) -> InferBusError:
    return invalid(message, param=param, reason="invalid_schema")
