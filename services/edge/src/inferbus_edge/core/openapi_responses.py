"""Answers of the Responses API, as JSON schemas: the response, its items, the events of its stream."""

from inferbus_edge.core.openapi_schema import (
    FLAG,
    LABELS,
    NULL,
    NUMBER,
    TEXT,
    UNIX,
    WHOLE,
    Schema,
    any_of,
    const,
    listing,
    many,
    nullable,
    one_of,
    record,
    ref,
    told,
)

_STATUS = one_of("in_progress", "completed", "incomplete")
_OUTPUT_TEXT = record(
    type=const("output_text"), text=TEXT, annotations=many({"type": "object"}), logprobs=many(ref("TokenLogprob"))
)
_REASONING_TEXT = record(type=const("reasoning_text"), text=TEXT)
_ITEM = {"item_id": TEXT, "output_index": WHOLE}
_PART = {**_ITEM, "content_index": WHOLE}


def _event(kind: str, /, **fields: Schema) -> Schema:
    return record(type=const(kind), sequence_number=WHOLE, **fields)


_OF_RESPONSE = ("created", "queued", "in_progress", "completed", "incomplete", "failed")
_USAGE = record(
    input_tokens=WHOLE,
    input_tokens_details=record(cached_tokens=WHOLE, cache_write_tokens=WHOLE),
    output_tokens=WHOLE,
    output_tokens_details=record(reasoning_tokens=WHOLE),
    total_tokens=WHOLE,
)
_ASKED: dict[str, Schema] = {
    "background": FLAG,
    "instructions": nullable(TEXT),
    "max_output_tokens": nullable(WHOLE),
    "max_tool_calls": nullable(WHOLE),
    "metadata": LABELS,
    "parallel_tool_calls": FLAG,
    "previous_response_id": nullable(TEXT),
    "prompt_cache_key": nullable(TEXT),
    "prompt_cache_retention": nullable(TEXT),
    "reasoning": record(effort=nullable(TEXT), summary=NULL),
    "safety_identifier": nullable(TEXT),
    "service_tier": TEXT,
    "store": FLAG,
    "temperature": nullable(NUMBER),
    "text": {"type": "object"},
    "tool_choice": any_of(TEXT, {"type": "object"}),
    "tools": many({"type": "object"}),
    "top_logprobs": WHOLE,
    "top_p": nullable(NUMBER),
    "truncation": TEXT,
    "user": nullable(TEXT),
}

RESPONSES: dict[str, Schema] = {
    "Response": record(
        id=TEXT,
        object=const("response"),
        created_at=UNIX,
        status=one_of("queued", "in_progress", "completed", "incomplete", "failed", "cancelled"),
        completed_at=nullable(UNIX),
        error=nullable(record(code=one_of("server_error", "rate_limit_exceeded", "invalid_prompt"), message=TEXT)),
        incomplete_details=nullable(record(reason=const("max_output_tokens"))),
        model=TEXT,
        output=many(ref("ResponseOutputItem")),
        usage=nullable(_USAGE),
        **_ASKED,
    ),
    "ResponseOutputItem": any_of(
        record(id=TEXT, type=const("message"), role=const("assistant"), status=_STATUS, content=many(_OUTPUT_TEXT)),
        record(
            id=TEXT,
            type=const("function_call"),
            status=_STATUS,
            call_id=TEXT,
            name=TEXT,
            arguments=told(TEXT, "JSON text."),
        ),
        record(
            id=TEXT,
            type=const("reasoning"),
            status=_STATUS,
            summary=many({"type": "object"}),
            content=many(_REASONING_TEXT),
        ),
    ),
    "ResponseInputItem": {
        "type": "object",
        "properties": {
            "id": TEXT,
            "type": one_of("message", "function_call", "function_call_output", "reasoning"),
        },
        "required": ["id", "type"],
    },
    "ResponseInputItems": listing("ResponseInputItem"),
    "ResponseInputTokens": record(object=const("response.input_tokens"), input_tokens=WHOLE),
    "ResponseDeleted": record(id=TEXT, object=const("response"), deleted=FLAG),
    "ResponseStreamEvent": any_of(
        *(_event(f"response.{name}", response=ref("Response")) for name in _OF_RESPONSE),
        *(
            _event(f"response.output_item.{what}", output_index=WHOLE, item=ref("ResponseOutputItem"))
            for what in ("added", "done")
        ),
        *(
            _event(f"response.content_part.{what}", **_PART, part=any_of(_OUTPUT_TEXT, _REASONING_TEXT))
            for what in ("added", "done")
        ),
        _event("response.output_text.delta", **_PART, delta=TEXT, logprobs=many(ref("TokenLogprob"))),
        _event("response.output_text.done", **_PART, text=TEXT, logprobs=many(ref("TokenLogprob"))),
        _event("response.function_call_arguments.delta", **_ITEM, delta=TEXT),
        _event("response.function_call_arguments.done", **_ITEM, name=TEXT, arguments=TEXT),
        _event("response.reasoning_text.delta", **_PART, delta=TEXT),
        _event("response.reasoning_text.done", **_PART, text=TEXT),
        _event("error", code=TEXT, message=TEXT, param=nullable(TEXT)),
    ),
}
