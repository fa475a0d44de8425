"""The operations that ask models: OpenAI's, Anthropic's, vLLM's, and what comes back after a break."""

from inferbus_edge.core.openapi_operations import (
    CAPTURE,
    EVERYWHERE,
    HOLD,
    IDEMPOTENCY_KEY,
    INFERENCE,
    LAST_EVENT_ID,
    TAGS,
    WITH_KEY,
    Operation,
    Parameter,
    in_path,
    in_query,
    whole,
)
from inferbus_edge.core.openapi_schema import FLAG, TEXT, Schema, one_of

_SCOPE = "inference"
_ASKING = (IDEMPOTENCY_KEY, HOLD, TAGS, CAPTURE, LAST_EVENT_ID)
_LIMITS = tuple(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens"))
_ANSWERED = ("x-request-id", "x-inferbus-stream", *_LIMITS)
_STORED = (*WITH_KEY, 404, 503)
_CHAT, _OLD, _VECTORS, _MODELS = "Chat", "Completions", "Embeddings", "Models"
_RESPONSES, _MESSAGES, _TOKENS, _STREAMS, _STATE = "Responses", "Messages", "Tokenize", "Streams", "Health and document"

_HI: Schema = {"model": "MODEL", "messages": [{"role": "user", "content": "Hello!"}]}
_STREAM_ID = in_path("stream_id", "What 'x-inferbus-stream' said.")
_COMPLETION_ID = in_path("completion_id", "The id of a chat completion that was asked with 'store'.")
_RESPONSE_ID = in_path("response_id", "The id of a stored response.")
_STARTING_AFTER = in_query("starting_after", whole(0, 10**12 - 1), "The number of the last event that you have.")
_INCLUDE = Parameter("include[]", "query", {"type": "array", "items": one_of("message.output_text.logprobs")})
_ORDER = in_query("order", one_of("asc", "desc"))
_PAGE = (in_query("limit", whole(1, 100, 20)), in_query("after", TEXT))


def _asking(path: str, group: str, summary: str, answer: str, body: str, example: Schema, **more: str) -> Operation:
    return Operation(
        "POST", path, group, summary, answer, scope=_SCOPE, body=body, parameters=_ASKING, errors=INFERENCE,
        headers=_ANSWERED, example=example, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def _tokens(path: str, summary: str, answer: str, body: str, example: Schema) -> Operation:
    return Operation("POST", path, _TOKENS, summary, answer, scope=_SCOPE, body=body, errors=INFERENCE, example=example)


def _stored(method: str, path: str, group: str, summary: str, answer: str, *parameters: Parameter) -> Operation:
    return Operation(method, path, group, summary, answer, scope=_SCOPE, parameters=parameters, errors=_STORED)


_TO_TOKENIZE: Schema = {"model": "MODEL", "prompt": "Hello!"}
_TO_DETOKENIZE: Schema = {"model": "MODEL", "tokens": [1, 2, 3]}

OPERATIONS: tuple[Operation, ...] = (
    _asking(
        "/v1/chat/completions", _CHAT, "Answer a conversation", "ChatCompletion", "ChatCompletionRequest", _HI,
        events="ChatStreamEvent",
    ),
    Operation(
        "GET", "/v1/chat/completions", _CHAT, "Refused: stored completions are not listed", "Error", scope=_SCOPE,
        status=405, errors=WITH_KEY,
    ),
    _stored("GET", "/v1/chat/completions/{completion_id}", _CHAT, "A stored answer", "ChatCompletion", _COMPLETION_ID),
    _stored(
        "DELETE", "/v1/chat/completions/{completion_id}", _CHAT, "Delete a stored answer", "ChatCompletionDeleted",
        _COMPLETION_ID,
    ),
    _stored(
        "GET", "/v1/chat/completions/{completion_id}/messages", _CHAT, "The messages of a stored answer's request",
        "ChatStoredMessages", _COMPLETION_ID, *_PAGE, _ORDER,
    ),
    _asking(
        "/v1/completions", _OLD, "Continue a text", "Completion", "CompletionRequest",
        {"model": "MODEL", "prompt": "Once upon a time"}, events="CompletionStreamEvent",
    ),
    _asking(
        "/v1/embeddings", _VECTORS, "Texts as vectors", "EmbeddingList", "EmbeddingRequest",
        {"model": "MODEL", "input": ["Hello!"]},
    ),
    _asking(
        "/v1/responses", _RESPONSES, "Make a response", "Response", "ResponseRequest",
        {"model": "MODEL", "input": "Hello!"}, events="ResponseStreamEvent",
    ),
    Operation(
        "GET", "/v1/responses/{response_id}", _RESPONSES, "A stored response as it is now, or its events", "Response",
        scope=_SCOPE, events="ResponseStreamEvent", errors=_STORED,
        parameters=(
            _RESPONSE_ID, in_query("stream", FLAG),
            in_query("starting_after", whole(0, 1 << 53), "With stream: the last sequence_number that you have."),
            _INCLUDE, in_query("include_obfuscation", {"type": "boolean", "const": False}), LAST_EVENT_ID,
        ),
    ),
    Operation(
        "POST", "/v1/responses/input_tokens", _RESPONSES, "The tokens of a response's input", "ResponseInputTokens",
        scope=_SCOPE, body="ResponseInputTokensRequest", errors=INFERENCE,
        example={"model": "MODEL", "input": "Hello!"},
    ),
    _stored("DELETE", "/v1/responses/{response_id}", _RESPONSES, "Delete a response", "ResponseDeleted", _RESPONSE_ID),
    _stored(
        "POST", "/v1/responses/{response_id}/cancel", _RESPONSES, "Cancel a background response", "Response",
        _RESPONSE_ID,
    ),
    _stored(
        "GET", "/v1/responses/{response_id}/input_items", _RESPONSES, "What a response was given",
        "ResponseInputItems", _RESPONSE_ID, *_PAGE, _ORDER, _INCLUDE,
    ),
    _asking(
        "/v1/messages", _MESSAGES, "Answer a conversation, in Anthropic's form", "Message", "MessageRequest",
        {**_HI, "max_tokens": 100}, events="MessageStreamEvent", error="AnthropicError",
    ),
    Operation(
        "POST", "/v1/messages/count_tokens", _MESSAGES, "The tokens of a conversation", "MessageTokens", scope=_SCOPE,
        body="MessageCountRequest", errors=INFERENCE, error="AnthropicError", example=_HI,
    ),
    *(_tokens(f"{at}/tokenize", "A text as tokens", "Tokens", "TokenizeRequest", _TO_TOKENIZE) for at in ("/v1", "")),
    *(
        _tokens(f"{at}/detokenize", "Tokens as a text", "Prompt", "DetokenizeRequest", _TO_DETOKENIZE)
        for at in ("/v1", "")
    ),
    Operation("GET", "/v1/models", _MODELS, "What this key may use", "ModelList", scope=_SCOPE),
    Operation(
        "GET", "/v1/models/{model}", _MODELS, "One model", "Model", scope=_SCOPE, errors=(*WITH_KEY, 404),
        parameters=(in_path("model", "Its name."),),
    ),
    Operation(
        "GET", "/v1/streams/{stream_id}", _STREAMS, "An answer again, from any event on", "AnyAnswer", scope=_SCOPE,
        description="Of any inference call, by the API that was asked; as one body with stream=false.",
        parameters=(_STREAM_ID, _STARTING_AFTER, in_query("stream", {**FLAG, "default": True}), LAST_EVENT_ID, HOLD),
        events="AnyStreamEvent", errors=INFERENCE, headers=("x-request-id", "x-inferbus-stream"),
    ),
    Operation("GET", "/healthz", _STATE, "Whether the process lives", "Health", errors=EVERYWHERE),
    Operation("GET", "/readyz", _STATE, "Whether it takes requests", "Health", errors=(*EVERYWHERE, 503)),
    Operation(
        "GET", "/metrics", _STATE, "Prometheus metrics", "Anything", content="text/plain", errors=EVERYWHERE
    ),
    Operation("GET", "/openapi.json", _STATE, "This document", "Document", errors=EVERYWHERE),
    Operation("GET", "/docs", _STATE, "This document as a page", "Anything", content="text/html", errors=EVERYWHERE),
)  # fmt: skip
