"""Structured output and calls, as the engine's guided decoding is asked for them.

With llguidance it takes our grammar as it is: its EBNF guide is that library's Lark dialect. With xgrammar it takes a
schema or an expression, and calls that may be as a structural tag; calls that must be it cannot express.

Each grammar is compiled here first: one that does not compile stops the loop that steps all generations in versions
before 1.2 (pull request 9078).
"""

import json
from typing import Any

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.grammar import Grammar, grammar_of
from inferbus_worker.engine import Chat, Constraint, ConstraintKind, Generation, Tool, ToolMode

_MARK = "<tool_call>"
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


def grammar_for(generation: Generation, backend: str, *, tags: bool) -> Grammar | None:
    """None: any text. ``tags``: the version has structural tags. Raises InferBusError for what the backend cannot."""
    grammar = grammar_of(generation)
    if grammar is None or backend == "llguidance":
        return grammar
    if calls_may_be(generation):
        if backend == "none" or not tags:
            raise _unsupported("This model does not support 'tools'.", "tools")
        if generation.constraint is not None:
            raise _unsupported("This model does not support 'response_format' and 'tools' together.", "response_format")
    return grammar


def guide(generation: Generation, grammar: Grammar, backend: str) -> dict[str, Any]:
    """The one field of GuidedDecodingParams that says it."""
    if backend == "llguidance":
        return {"grammar": grammar.text}
    if calls_may_be(generation):
        return {"structural_tag": _tags(generation.input)}
    assert generation.constraint is not None  # noqa: S101  (else there is no grammar, or calls must be)
    return _form(generation.constraint)


def calls_may_be(generation: Generation) -> bool:
    source = generation.input
    return isinstance(source, Chat) and bool(source.tools) and source.tool_mode is not ToolMode.NONE


def still_free(generation: Generation, text: str) -> bool:
    """Whether after ``text`` all is possible that was possible before it: an answer that may call and has not begun to.

    Then it goes on under its grammar's beginning, like one that has said nothing yet.
    """
    source = generation.input
    if not isinstance(source, Chat) or generation.constraint is not None or source.tool_mode is not ToolMode.AUTO:
        return False
    begun = any(text.endswith(_MARK[:size]) for size in range(1, len(_MARK)))
    return not begun and _MARK not in text


def _form(constraint: Constraint) -> dict[str, Any]:
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return {"json_object": True}
        case ConstraintKind.JSON_SCHEMA:
            return {"json": constraint.source}
        case ConstraintKind.REGEX:
            return {"regex": constraint.source}


def _tags(source: Any) -> str:
    """xgrammar's form for text in which each beginning of a call becomes a whole one."""
    tools = [tool for tool in source.tools if source.tool_name in ("", tool.name)]
    tags = [{"begin": _begin(tool), "content": _content(tool), "end": "}\n</tool_call>"} for tool in tools]
    form = {
        "type": "triggered_tags",
        "triggers": [_MARK],
        "tags": tags,
        "stop_after_first": not source.parallel_tool_calls,
    }
    return json.dumps({"type": "structural_tag", "format": form})


def _begin(tool: Tool) -> str:
    return f'{_MARK}\n{{"name": {json.dumps(tool.name)}, "arguments": '


def _content(tool: Tool) -> dict[str, Any]:
    schema = json.loads(tool.parameters) if tool.parameters else _ANY_OBJECT | {"additionalProperties": False}
    return {"type": "json_schema", "json_schema": schema}


def _unsupported(message: str, param: str) -> InferBusError:
    return invalid(message, param=param, reason="unsupported_parameter")
