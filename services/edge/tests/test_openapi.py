"""The API's document: whole, true to what checks the requests and to what makes the answers; and its page."""

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import inferbus_edge
import pytest
from inferbus.bus.v1.frame_pb2 import Alternative, Close, TokenLogprob
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_dialect.completions import parse_completion_request
from inferbus_dialect.embeddings import parse_embedding_request
from inferbus_dialect.errors import internal
from inferbus_dialect.openai import parse_chat_request
from inferbus_dialect.responses_items import items_of
from inferbus_dialect.responses_plan import plan_responses
from inferbus_dialect.responses_schema import InputTokensRequest, parse_responses_request
from inferbus_dialect.schema import parse
from inferbus_edge.core import openapi
from inferbus_edge.core.forms import form_of
from inferbus_edge.core.inference_v2_request import parse_json
from inferbus_edge.core.messages_schema import CountRequest, MessageRequest
from inferbus_edge.core.openapi_operations import Operation
from inferbus_edge.core.openapi_schema import REF
from inferbus_edge.core.tokenize_schema import parse_detokenize, parse_tokenize
from inferbus_edge.routes.openapi import DOCUMENT_PATH, PAGE_PATH, policy
from inferbus_runtime.errors import InferBusError
from jsonschema import Draft202012Validator

DOCUMENT = openapi.document([(one.method, one.path) for one in openapi.OPERATIONS], "1.2.3")
SCHEMAS = DOCUMENT["components"]["schemas"]
DOCS = Path(__file__).parents[3] / "docs" / "api.md"
FIRST = bytes(range(16))

_PARSERS: dict[str, Callable[[bytes], Any]] = {
    "ChatCompletionRequest": parse_chat_request,
    "CompletionRequest": parse_completion_request,
    "EmbeddingRequest": parse_embedding_request,
    "InferenceRequest": parse_json,
    "ResponseRequest": parse_responses_request,
    "ResponseInputTokensRequest": lambda body: parse(InputTokensRequest, body),
    "MessageRequest": lambda body: parse(MessageRequest, body),
    "MessageCountRequest": lambda body: parse(CountRequest, body),
    "TokenizeRequest": parse_tokenize,
    "TokenizePrompt": parse_tokenize,
    "TokenizeChat": parse_tokenize,
    "DetokenizeRequest": parse_detokenize,
}
_LEAST: dict[str, dict[str, Any]] = {
    one.body: one.example for one in openapi.OPERATIONS if one.body in _PARSERS and one.example
} | {
    "TokenizePrompt": {"model": "m", "prompt": "x"},
    "TokenizeChat": {"model": "m", "messages": [{"role": "user", "content": "x"}]},
}


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"{REF}{name}", "components": {"schemas": SCHEMAS}})


def check(name: str, value: Any) -> None:
    faults = [f"{one.json_path}: {one.message}" for one in validator(name).iter_errors(value)]
    assert faults == [], json.dumps(value)[:500]


# --- whole ------------------------------------------------------------------------------------------------------------


def parts(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(one)


def test_every_schema_is_one() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_every_reference_leads_somewhere() -> None:
    for part in parts(DOCUMENT):
        if isinstance(part.get("$ref"), str):
            kind, name = part["$ref"].removeprefix("#/components/").split("/")
            assert name in DOCUMENT["components"][kind]


def test_operations_are_told_apart() -> None:
    assert len({one.name for one in openapi.OPERATIONS}) == len(openapi.OPERATIONS)
    assert {one.group for one in openapi.OPERATIONS} == {one["name"] for one in DOCUMENT["tags"]}


@pytest.mark.parametrize("operation", openapi.OPERATIONS, ids=lambda one: one.name)
def test_parameters_in_a_path_are_the_paths(operation: Operation) -> None:
    named = {one.name for one in operation.parameters if one.place == "path"}
    assert named == set(re.findall(r"{(\w+)}", operation.path))


def test_what_is_not_described_is_shown_bare() -> None:
    paths = openapi.document([("GET", "/nowhere"), ("GET", "/v1/models/"), ("GET", "/v1/organization/")], "1")["paths"]
    assert list(paths) == ["/v1/models/{model}", "/nowhere"]
    assert "operationId" not in paths["/nowhere"]["get"]
    assert paths["/v1/models/{model}"]["get"]["operationId"]


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _LEAST)
def test_examples_are_taken_by_who_checks_them(name: str) -> None:
    check(name, _LEAST[name])
    _PARSERS[name](json.dumps(_LEAST[name]).encode())


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name in _LEAST for field in SCHEMAS[name].get("properties", ())]
)
def test_a_parameter_is_refused_if_and_only_if_the_document_says_so(name: str, field: str) -> None:
    schema = SCHEMAS[name]["properties"][field]
    if "x-refused" not in schema:
        assert not schema["description"].lower().startswith("refused")
        return
    for neutral in schema["enum"]:
        _PARSERS[name](json.dumps({**_LEAST[name], field: neutral}).encode())
    with pytest.raises(InferBusError) as refused:
        _PARSERS[name](json.dumps({**_LEAST[name], field: {"asked": "for"}}).encode())
    assert (refused.value.reason, refused.value.param) == ("unsupported_parameter", field)


@pytest.mark.parametrize("name", sorted(_LEAST))
def test_every_parameter_says_what_it_does(name: str) -> None:
    fields = SCHEMAS[name].get("properties", {})
    assert [field for field, schema in fields.items() if not {"description", "x-refused"} & schema.keys()] == []


# --- answers ----------------------------------------------------------------------------------------------------------

_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
_TOKEN = TokenLogprob(text="é".encode()[:1], logprob=-0.5, top=[Alternative(text=b"a", logprob=-float("inf"))])
_HEAD = {"n": 1, "model": "m", "created": 1}
_REPLIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": (
        "ChatCompletion",
        "ChatStreamEvent",
        {
            **_HEAD, "api": "chat", "tools": True, "reasoning": True, "logprobs": True, "include_usage": True,
            "continuous_usage": True, "metadata": {"a": "b"}, "service_tier": "flex", "stored": True,
        },
    ),
    "completions": (
        "Completion",
        "CompletionStreamEvent",
        {
            **_HEAD, "api": "completions", "per_prompt": 1, "kept": 1, "logprobs": 1, "include_usage": True,
            "continuous_usage": True, "echo": ["x"],
        },
    ),
    "messages": (
        "Message",
        "MessageStreamEvent",
        {**_HEAD, "api": "messages", "max_tokens": 9, "stops": [], "tools": True, "reasoning": True},
    ),
}  # fmt: skip


def said(api: str, reply: dict[str, Any], *, stream: bool, fails: bool = False) -> tuple[list[Any], bytes]:
    """(data of the events, body) of an answer with all that there is: reasoning, text, calls, log-probabilities."""
    form = form_of(FIRST, reply, stream=stream)
    events = [*form.open(0, "rev")]
    for text in ("<think>hm</think>", "Hello", " there", _CALL[:20], _CALL[20:]):
        events += form.delta(0, text, 1, [_TOKEN])
    if fails:
        events += form.fail(internal())
    else:
        usage = Usage(input_tokens=5, cached_input_tokens=2, output_tokens=5, reasoning_tokens=1)
        events += form.close(0, "rev", Close(finish_reason=FinishReason.FINISH_REASON_STOP, usage=usage))
        events += form.finish()
    texts = [line[6:] for line in b"".join(events).split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(text) for text in texts if text != b"[DONE]"], b"" if fails else form.body()


def replies() -> list[Any]:
    request = parse_responses_request(b'{"model": "m", "input": "x", "tools": [{"type": "function", "name": "f"}]}')
    plan = plan_responses(request, items_of(request.input), [])
    reply = {**plan.reply, "reasoning": True, "logprobs": True, "model": "m", "created": 1}
    families = {**_REPLIES, "responses": ("Response", "ResponseStreamEvent", reply)}
    return [pytest.param(api, *family, id=api) for api, family in families.items()]


@pytest.mark.parametrize(("api", "body", "event", "reply"), replies())
def test_answers_are_what_the_document_says(api: str, body: str, event: str, reply: dict[str, Any]) -> None:
    events, _ = said(api, reply, stream=True)
    assert len(events) > 5
    for one in events:
        check(event, one)
    _, answer = said(api, {**reply, "stored": False}, stream=False)
    check(body, json.loads(answer))


@pytest.mark.parametrize(("api", "body", "event", "reply"), replies())
def test_a_stream_that_fails_does_so_as_the_document_says(
    api: str, body: str, event: str, reply: dict[str, Any]
) -> None:
    events, _ = said(api, reply, stream=True, fails=True)
    for one in events:
        check(event, one)


# --- errors -----------------------------------------------------------------------------------------------------------


def reasons(source: str) -> Iterator[str]:
    """What a module gives as the reason of an InferBusError."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        places = {"InferBusError": 1, "unavailable": 0, "conflict": 1, "_unauthenticated": 1}
        given = [one.value for one in node.keywords if one.arg == "reason"] + node.args[places.get(name, 99) :][:1]
        yield from (one.value for one in given if isinstance(one, ast.Constant) and isinstance(one.value, str))


def test_every_code_is_in_the_docs() -> None:
    sources = Path(inferbus_edge.__path__[0]).rglob("*.py")
    found = {reason for path in sources for reason in reasons(path.read_text())}
    assert len(found) > 40
    assert {reason for reason in found if f"`{reason}`" not in DOCS.read_text()} == set()


# --- served -----------------------------------------------------------------------------------------------------------


async def test_document_and_page_need_no_key(edge: Any, rig: ModuleType) -> None:
    async with aiohttp.ClientSession(edge.url) as bare:
        document = await (await bare.get(DOCUMENT_PATH)).json()
        page = await bare.get(PAGE_PATH)
        text = await page.text()
    assert {(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs} == {
        (one.method, one.path) for one in openapi.OPERATIONS
    }
    assert page.headers["Content-Security-Policy"] == policy(text)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "http:" not in text
    assert "https:" not in text


def test_the_pages_policy_lets_nothing_else_run() -> None:
    strict = policy("<style>a{}</style><script>1</script>")
    assert "unsafe" not in strict
    assert "default-src 'none'" in strict
    assert strict.count("'sha256-") == 2
    assert policy("<script>1</script>") != policy("<script>2</script>")


# --- numbers that nobody can write back -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["-9223372036854775809", "18446744073709551616", "9" * 5000])
@pytest.mark.parametrize("name", ["ChatCompletionRequest", "ResponseRequest", "MessageRequest", "TokenizeChat"])
def test_a_whole_number_beyond_64_bits_is_refused_wherever_it_stands(name: str, number: str) -> None:
    body = json.dumps({**_LEAST[name], "tools": [{"any": ["\\", 0]}]}).replace("0]", f"{number}]").encode()
    with pytest.raises(InferBusError, match="longer than 64 bits"):
        _PARSERS[name](body)


@pytest.mark.parametrize("number", ["-9223372036854775808", "18446744073709551615", "0." + "1" * 40, "1e" + "0" * 30])
def test_other_long_numbers_are_taken(number: str) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "9" * 30, "parameters": {"a": 0}}}
    body = json.dumps({**_LEAST["ChatCompletionRequest"], "tools": [tool]}).replace(": 0}", f": {number}}}").encode()
    parse_chat_request(body)
