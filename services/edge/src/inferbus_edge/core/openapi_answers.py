"""Answers of the chat, completions, embeddings, models and tokenize APIs, as JSON schemas."""

from inferbus_edge.core.openapi_schema import (
    ANYTHING,
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
    many,
    nullable,
    one_of,
    record,
    ref,
    told,
)

_BYTES = many({"type": "integer", "minimum": 0, "maximum": 255})
_CALLED = record(name=TEXT, arguments=told(TEXT, "JSON text."))
_FINISH = one_of("stop", "length", "tool_calls")
_TIER = one_of("default", "flex", "priority", "auto")
_TEXT_CALL = record(id=TEXT, type=const("function"), function=_CALLED)
_LOGPROBS = nullable(record(content=many(ref("TokenLogprob")), refusal=NULL))
_DELTA = record(
    "What is new; its keys depend on what it is.",
    ("role", "content", "refusal", "reasoning_content", "tool_calls"),
    role=const("assistant"),
    content=TEXT,
    refusal=NULL,
    reasoning_content=told(TEXT, "Of a model that reasons."),
    tool_calls=many(
        record(
            "",
            ("id", "type"),
            index=WHOLE,
            id=TEXT,
            type=const("function"),
            function=record("", ("name",), name=TEXT, arguments=TEXT),
        )
    ),
)

CHAT: dict[str, Schema] = {
    "Usage": record(
        "",
        ("completion_tokens_details",),
        prompt_tokens=WHOLE,
        completion_tokens=WHOLE,
        total_tokens=WHOLE,
        prompt_tokens_details=record(cached_tokens=told(WHOLE, "Of prompt_tokens: found in the prefix cache.")),
        completion_tokens_details=record(reasoning_tokens=WHOLE),
    ),
    "TokenLogprob": record(
        "",
        (),
        token=TEXT,
        bytes=told(_BYTES, "The token itself: a part of a character has no text."),
        logprob=NUMBER,
        top_logprobs=many(record(token=TEXT, bytes=_BYTES, logprob=NUMBER)),
    ),
    "ChatCompletion": record(
        "",
        ("service_tier", "metadata"),
        id=TEXT,
        object=const("chat.completion"),
        created=UNIX,
        model=TEXT,
        system_fingerprint=told(TEXT, "The revision of the model that answered."),
        service_tier=_TIER,
        choices=many(ref("ChatChoice")),
        usage=ref("Usage"),
        metadata=LABELS,
    ),
    "ChatChoice": record(
        index=WHOLE,
        message=record(
            "",
            ("reasoning_content", "tool_calls"),
            role=const("assistant"),
            content=nullable(TEXT),
            refusal=NULL,
            reasoning_content=told(TEXT, "Of a model that reasons."),
            tool_calls=many(_TEXT_CALL),
        ),
        logprobs=_LOGPROBS,
        finish_reason=_FINISH,
    ),
    "ChatCompletionChunk": record(
        "One event of a stream; after the last one comes 'data: [DONE]'.",
        ("service_tier", "usage"),
        id=TEXT,
        object=const("chat.completion.chunk"),
        created=UNIX,
        model=TEXT,
        system_fingerprint=TEXT,
        service_tier=_TIER,
        choices=many(
            record("", ("logprobs",), index=WHOLE, delta=_DELTA, logprobs=_LOGPROBS, finish_reason=nullable(_FINISH))
        ),
        usage=told(nullable(ref("Usage")), "With stream_options.include_usage: in the last chunk, null before it."),
    ),
    "ChatStreamEvent": any_of(ref("ChatCompletionChunk"), ref("Error")),
    "ChatCompletionDeleted": record(object=const("chat.completion.deleted"), id=TEXT, deleted=FLAG),
    "ChatStoredMessages": record(
        object=const("list"),
        data=told(many({"type": "object"}), "The messages as they were asked, each with an id."),
        first_id=nullable(TEXT),
        last_id=nullable(TEXT),
        has_more=FLAG,
    ),
}

COMPLETIONS: dict[str, Schema] = {
    "Completion": record(
        "A stream's events have this form, too; after the last one comes 'data: [DONE]'.",
        ("usage", "system_fingerprint"),
        id=TEXT,
        object=const("text_completion"),
        created=UNIX,
        model=TEXT,
        system_fingerprint=TEXT,
        choices=many(
            record(
                text=TEXT,
                index=WHOLE,
                logprobs=nullable(
                    record(
                        tokens=many(TEXT),
                        token_logprobs=many(NUMBER),
                        top_logprobs=nullable(many({"type": "object", "additionalProperties": NUMBER})),
                        text_offset=many(WHOLE),
                    )
                ),
                finish_reason=nullable(one_of("stop", "length")),
            )
        ),
        usage=nullable(ref("Usage")),
    ),
    "CompletionStreamEvent": any_of(ref("Completion"), ref("Error")),
}

EMBEDDINGS: dict[str, Schema] = {
    "EmbeddingList": record(
        object=const("list"),
        data=many(
            record(
                object=const("embedding"),
                index=WHOLE,
                embedding=any_of(many(NUMBER), told(TEXT, "Base64 of float32, little-endian.")),
            )
        ),
        model=TEXT,
        usage=record(prompt_tokens=WHOLE, total_tokens=WHOLE),
    )
}

MODELS: dict[str, Schema] = {
    "Model": record(
        id=TEXT,
        object=const("model"),
        created=UNIX,
        owned_by=TEXT,
        capabilities=told(many(TEXT), "What it can do: chat, completions, embeddings, inference, tools, …"),
    ),
    "ModelList": record(object=const("list"), data=many(ref("Model"))),
}

TOKENIZE: dict[str, Schema] = {
    "Tokens": record(
        count=WHOLE,
        max_model_len=told(WHOLE, "The model's context, in tokens."),
        tokens=many(WHOLE),
        token_strs=told(nullable(many(TEXT)), "With return_token_strs."),
    ),
    "Prompt": record(prompt=TEXT),
}

ERRORS: dict[str, Schema] = {
    "Error": record(
        "",
        (),
        error=record(
            message=told(TEXT, "For people: what is wrong and what to do."),
            type=one_of("invalid_request_error", "permission_error", "rate_limit_error", "server_error"),
            param=told(nullable(TEXT), "The parameter at fault."),
            code=told(nullable(TEXT), "For programs: stable."),
        ),
    ),
    "AnthropicError": record(
        type=const("error"),
        error=record(
            type=one_of(
                "invalid_request_error",
                "authentication_error",
                "permission_error",
                "not_found_error",
                "rate_limit_error",
                "overloaded_error",
                "timeout_error",
                "api_error",
            ),
            message=TEXT,
            details=record("", ("param",), error_code=told(TEXT, "For programs: stable."), param=TEXT),
        ),
        request_id=nullable(TEXT),
    ),
    "Health": record(status=one_of("alive", "ready")),
    "Document": told({"type": "object"}, "This document."),
    "Anything": ANYTHING,
    "AnyAnswer": any_of(
        *(
            ref(name)
            for name in ("ChatCompletion", "Completion", "EmbeddingList", "InferenceAnswer", "Response", "Message")
        )
    ),
    "AnyStreamEvent": any_of(
        *(
            ref(name)
            for name in ("ChatStreamEvent", "CompletionStreamEvent", "ResponseStreamEvent", "MessageStreamEvent")
        )
    ),
}

_SAID = record(type=const("text"), text=TEXT)
_THOUGHT = record(type=const("thinking"), thinking=TEXT, signature=TEXT)
_USED = record(type=const("tool_use"), id=TEXT, name=TEXT, input={"type": "object"})
_STOP = one_of("end_turn", "max_tokens", "model_context_window_exceeded", "stop_sequence", "tool_use")
_ENDED = {"stop_reason": _STOP, "stop_sequence": nullable(TEXT)}
_AT = {"index": WHOLE}


def _event(kind: str, /, **fields: Schema) -> Schema:
    return record(type=const(kind), **fields)


MESSAGES: dict[str, Schema] = {
    "MessageUsage": record(
        "All input is the sum of the three input counts.",
        ("service_tier",),
        input_tokens=WHOLE,
        cache_creation_input_tokens=WHOLE,
        cache_read_input_tokens=WHOLE,
        output_tokens=WHOLE,
        output_tokens_details=record(thinking_tokens=WHOLE),
        service_tier=const("standard"),
    ),
    "MessageBlock": any_of(_SAID, _THOUGHT, _USED),
    "Message": record(
        id=TEXT,
        type=const("message"),
        role=const("assistant"),
        model=TEXT,
        content=many(ref("MessageBlock")),
        stop_reason=nullable(_STOP),
        stop_sequence=nullable(TEXT),
        usage=ref("MessageUsage"),
    ),
    "MessageStreamEvent": any_of(
        _event("message_start", message=ref("Message")),
        _event("content_block_start", **_AT, content_block=ref("MessageBlock")),
        _event(
            "content_block_delta",
            **_AT,
            delta=any_of(
                record(type=const("text_delta"), text=TEXT),
                record(type=const("thinking_delta"), thinking=TEXT),
                record(type=const("input_json_delta"), partial_json=TEXT),
            ),
        ),
        _event("content_block_stop", **_AT),
        _event(
            "message_delta", delta=record(stop_reason=_STOP, stop_sequence=nullable(TEXT)), usage=ref("MessageUsage")
        ),
        _event("message_stop"),
        ref("AnthropicError"),
    ),
    "MessageTokens": record(input_tokens=WHOLE),
}
