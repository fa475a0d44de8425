"""The API's own description, OpenAPI 3.1, made of the types that serve it."""

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from inferbus_dialect.completions import CompletionRequest
from inferbus_dialect.embeddings import EmbeddingRequest
from inferbus_dialect.openai import ChatRequest
from inferbus_dialect.responses_schema import InputTokensRequest, ResponsesRequest
from pydantic import BaseModel

from inferbus_edge.core import (
    openapi_analytics,
    openapi_batches,
    openapi_brands,
    openapi_budgets,
    openapi_deployments,
    openapi_inference,
    openapi_inference_v2,
    openapi_invoices,
    openapi_operator,
    openapi_organization,
    openapi_prices,
    openapi_privacy,
    openapi_requests,
    openapi_rollouts,
    openapi_sizing,
    openapi_usage,
)
from inferbus_edge.core.inference_v2_request import InferenceRequest
from inferbus_edge.core.messages_schema import CountRequest, MessageRequest
from inferbus_edge.core.openapi_answers import CHAT, COMPLETIONS, EMBEDDINGS, ERRORS, MESSAGES, MODELS, TOKENIZE
from inferbus_edge.core.openapi_operations import Operation, Parameter
from inferbus_edge.core.openapi_responses import RESPONSES
from inferbus_edge.core.openapi_schema import TEXT, Schema, any_of, event, of_models, ref, told
from inferbus_edge.core.tokenize_schema import DetokenizeBody, TokenizeChat, TokenizePrompt

OPERATIONS: tuple[Operation, ...] = (
    *openapi_inference.OPERATIONS,
    *openapi_inference_v2.OPERATIONS,
    *openapi_batches.OPERATIONS,
    *openapi_organization.OPERATIONS,
    *openapi_operator.OPERATIONS,
    *openapi_brands.OPERATIONS,
    *openapi_deployments.OPERATIONS,
    *openapi_rollouts.OPERATIONS,
    *openapi_prices.OPERATIONS,
    *openapi_budgets.OPERATIONS,
    *openapi_usage.OPERATIONS,
    *openapi_requests.OPERATIONS,
    *openapi_analytics.OPERATIONS,
    *openapi_sizing.OPERATIONS,
    *openapi_invoices.OPERATIONS,
    *openapi_privacy.OPERATIONS,
)
# A prefix route takes what is left of a path.
_TAILS = {
    ("GET", "/v1/models/"): ("/v1/models/{model}",),
    **{
        (method, "/v2/models/"): tuple(
            one.path
            for one in openapi_inference_v2.OPERATIONS
            if one.method == method and one.path.startswith("/v2/models/")
        )
        for method in ("GET", "POST")
    },
}
# Answer 404 for what OpenAI, or a Triton, has there and InferBus has not: there is nothing to call. /console leads to
# /console/.
_NOT_CALLED = frozenset(("/v1/organization/", "/v2/", "/console"))

_INTRODUCTION = (
    "InferBus serves AI models by the APIs that applications speak already: OpenAI's, Anthropic's, vLLM's, KServe's. A "
    "parameter is served, or taken without effect, or refused by its name: nothing is silently ignored. Every event of "
    "a stream has an id, and any edge gives the rest after it."
)
_GROUPS = {
    "Chat": "OpenAI's chat completions.",
    "Responses": "OpenAI's responses: stored, chained, in the background, resumed.",
    "Completions": "OpenAI's older completions.",
    "Embeddings": "Texts as vectors.",
    "Inference": "The Open Inference Protocol (KServe, Triton): models of vision, tables, speech.",
    "Messages": "Anthropic's messages. Keys go into 'x-api-key' or 'Authorization'.",
    "Tokenize": "vLLM's tokenize and detokenize.",
    "Models": "What is served.",
    "Streams": "Answers after a break.",
    "Files and batches": "OpenAI's files, uploads and batches: many requests as lines of a file.",
    "Organization": "OpenAI's administration API: a tenant's projects, keys, users, limits, audit log.",
    "Operator": "The administration of all tenants, in protobuf's JSON: a field with its zero value is left out.",
    "Sizing": "Which GPUs a model needs, how fast it will be there, what that costs.",
    "Health and document": "Without a key.",
}
_HEADERS: dict[str, Schema] = {
    "x-request-id": told(TEXT, "The request's id, in logs, traces and SQL as well."),
    "x-inferbus-stream": told(TEXT, "The answer's name, for GET /v1/streams/{stream_id}."),
    "retry-after": told({"type": "string", "pattern": "^[0-9]+$"}, "Seconds."),
    "x-ratelimit-limit-requests": told(TEXT, "A minute; of the limit that has least left. Absent without a limit."),
    "x-ratelimit-limit-tokens": told(TEXT, "A minute. Absent without a limit."),
    "x-ratelimit-remaining-requests": told(TEXT, "What is left of it."),
    "x-ratelimit-remaining-tokens": told(TEXT, "What is left of it."),
    "x-ratelimit-reset-requests": told(TEXT, "Until all of it is there again, as 8.64s or 1m0.5s."),
    "x-ratelimit-reset-tokens": told(TEXT, "Until all of it is there again."),
}
_ON_ERROR = {429: ("retry-after",), 503: ("retry-after",)}
_NAMES = {499: "Client Closed Request", 417: "Expectation Failed"}


def document(served: Iterable[tuple[str, str]], version: str) -> Schema:
    """OpenAPI of the routes ``served``: (method, path) as the server has them. One that is not described here is shown
    without a description."""
    described = {(one.method, one.path): one for one in OPERATIONS}
    paths: dict[str, Schema] = {}
    for method, path in served:
        if path in _NOT_CALLED:
            continue
        for name in _TAILS.get((method, path), (path,)):
            operation = described.get((method, name))
            shown = {"responses": {"default": {"description": ""}}} if operation is None else _operation(operation)
            paths.setdefault(name, {})[method.lower()] = shown
    order = {operation.path: at for at, operation in reversed(list(enumerate(OPERATIONS)))}
    return {
        "openapi": "3.1.0",
        "info": {"title": "InferBus", "version": version, "description": _INTRODUCTION},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in _GROUPS.items()],
        "paths": dict(sorted(paths.items(), key=lambda item: order.get(item[0], len(order)))),
        "components": {
            "schemas": schemas(),
            "headers": {name: {"schema": _bare(schema), **_described(schema)} for name, schema in _HEADERS.items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer <key>"},
                "header": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "As Anthropic's.",
                },
            },
        },
    }


def schemas() -> dict[str, Schema]:
    """All components, by name. Raises ValueError if two families have one name for two things."""
    texts: dict[str, type[BaseModel]] = {
        "TokenizePrompt": TokenizePrompt,
        "TokenizeChat": TokenizeChat,
        "DetokenizeRequest": DetokenizeBody,
    }
    tokenize = of_models("Tokenize", texts)
    families: tuple[Mapping[str, Schema], ...] = (
        of_models("Chat", {"ChatCompletionRequest": ChatRequest}),
        of_models("Completion", {"CompletionRequest": CompletionRequest}),
        of_models("Embedding", {"EmbeddingRequest": EmbeddingRequest}),
        of_models("Inference", {"InferenceRequest": InferenceRequest}),
        of_models(
            "Response", {"ResponseRequest": ResponsesRequest, "ResponseInputTokensRequest": InputTokensRequest}
        ),
        of_models("Message", {"MessageRequest": MessageRequest, "MessageCountRequest": CountRequest}),
        {**tokenize, "TokenizeRequest": any_of(ref("TokenizePrompt"), ref("TokenizeChat"))},
        CHAT, COMPLETIONS, EMBEDDINGS, MODELS, TOKENIZE, ERRORS, RESPONSES, MESSAGES,
        openapi_inference_v2.SCHEMAS,
        openapi_organization.BODIES, openapi_organization.OBJECTS, openapi_operator.SCHEMAS,
        openapi_deployments.SCHEMAS,
        openapi_rollouts.SCHEMAS,
        openapi_prices.SCHEMAS,
        openapi_batches.SCHEMAS,
        openapi_brands.SCHEMAS,
        openapi_budgets.SCHEMAS,
        openapi_usage.SCHEMAS,
        openapi_requests.SCHEMAS,
        openapi_analytics.SCHEMAS,
        openapi_sizing.SCHEMAS,
        openapi_invoices.SCHEMAS,
        openapi_privacy.SCHEMAS,
    )  # fmt: skip
    components: dict[str, Schema] = {}
    for family in families:
        # A message that is a part of answers of two families is the same in both.
        twice = {name for name in components.keys() & family.keys() if components[name] != family[name]}
        if twice:
            raise ValueError(f"two schemas of the API's document have one name: {', '.join(sorted(twice))}")
        components.update(family)
    return components


def _operation(operation: Operation) -> Schema:
    errors = sorted({*operation.errors, 405} - {operation.status})
    answers = {str(operation.status): _answer(operation)} | {str(one): _error(operation, one) for one in errors}
    shown: Schema = {
        "operationId": operation.name,
        "tags": [operation.group],
        "summary": operation.summary,
        **({"description": operation.description} if operation.description else {}),
        "parameters": [_parameter(one) for one in operation.parameters],
        "responses": answers,
        "security": [{"bearer": []}, {"header": []}] if operation.scope else [],
    }
    if operation.scope:
        shown["x-scope"] = operation.scope
    if operation.body:
        media: Schema = {"schema": ref(operation.body)}
        if operation.example is not None:
            media["example"] = operation.example
        shown["requestBody"] = {"required": operation.body_required, "content": {operation.body_content: media}}
    return shown


def _answer(operation: Operation) -> Schema:
    content: dict[str, Any] = {operation.content: {"schema": ref(operation.answer)}}
    if operation.events:
        content["text/event-stream"] = {"schema": event(ref(operation.events))}
    return {
        "description": HTTPStatus(operation.status).phrase,
        "headers": _headers(operation.headers),
        "content": content,
    }


def _error(operation: Operation, status: int) -> Schema:
    names = ("x-request-id", *_ON_ERROR.get(status, ()))
    return {
        "description": _NAMES.get(status) or HTTPStatus(status).phrase,
        "headers": _headers(names),
        "content": {"application/json": {"schema": ref(operation.error)}},
    }


def _headers(names: Iterable[str]) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _parameter(parameter: Parameter) -> Schema:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "schema": parameter.schema,
        **({"description": parameter.description} if parameter.description else {}),
    }


def _bare(schema: Schema) -> Schema:
    return {name: value for name, value in schema.items() if name != "description"}


def _described(schema: Schema) -> Schema:
    return {"description": schema["description"]} if "description" in schema else {}
