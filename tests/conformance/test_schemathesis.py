"""The served OpenAPI document against the running edge: whatever is asked, no 500, and no answer outside of it."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2 as httpx
import pytest
import pytest_asyncio
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from inferbus_edge.core.openapi import OPERATIONS
from inferbus_edge.core.openapi_operations import Operation
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from urllib3 import HTTPResponse

from tests.harness.local import Stack, running

MODEL = "synthetic"
EXAMPLES, SOAK_EXAMPLES = 6, 100
_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    ignored_auth,
]
_ASKED = [
    pytest.param(one, mode, id=f"{one.method} {one.path} {mode.value}")
    for one in OPERATIONS
    # Where nothing is sent there is nothing that could be wrong.
    for mode in (
        [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if one.body or one.parameters else [GenerationMode.POSITIVE]
    )
]
_STREAMED = [one for one in OPERATIONS if one.events and one.example]
# Of what generates: where the bound of its output stands. A few tokens say as much as thousands.
_BOUNDS = {
    "ChatCompletion": "max_completion_tokens",
    "Completion": "max_tokens",
    "Response": "max_output_tokens",
    "Message": "max_tokens",
}
_HEADERS = {"OpenAI-Organization": "default", "x-inferbus-hold": "1"}


@pytest_asyncio.fixture(scope="module")
async def synthetic(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    many = {"INFERBUS_EDGE_MAX_CHANGES_PER_MINUTE": "1000000"}
    async with running(tmp_path_factory.mktemp("schemathesis") / "home", "synthetic", variables=many) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module")
async def document(synthetic: Stack) -> Any:
    async with httpx.AsyncClient(timeout=60) as http:
        return (await http.get(f"{synthetic.root_url}/openapi.json")).json()


@pytest_asyncio.fixture(scope="module")
async def there(synthetic: Stack) -> dict[str, str]:
    """What there is, by the names of path parameters, so that what is asked gets beyond a 404."""
    admin, asking = ({"Authorization": f"Bearer {key}"} for key in (synthetic.admin_key, synthetic.api_key))
    async with httpx.AsyncClient(base_url=synthetic.root_url, timeout=30) as http:

        async def make(path: str, headers: dict[str, str] = admin, **body: Any) -> Any:
            answer = await http.post(path, json=body, headers=headers)
            answer.raise_for_status()
            return answer.json()

        at = "/v1/organization"
        project = f"{at}/projects/{(await make(f'{at}/projects', name='schemathesis'))['id']}"
        user = (await make(f"{at}/users", email="ada@example.com"))["id"]
        await make(f"{project}/users", user_id=user, role="member")
        await make("/inferbus/v1/prices", rate_version="schemathesis", currency="USD", per_call="0")
        response = await make("/v1/responses", asking, model=MODEL, input="Hi", max_output_tokens=4)
        return {
            "project_id": project.rpartition("/")[2],
            "user_id": user,
            "account_id": (await make(f"{project}/service_accounts", name="robot"))["id"],
            "key_id": (await make(f"{project}/api_keys", name="key"))["id"],
            "admin_key_id": (await make(f"{at}/admin_api_keys", name="key"))["id"],
            "tenant_id": (await make("/inferbus/v1/tenants", tenant_id="schemathesis"))["tenant"]["tenant_id"],
            "rate_version": "schemathesis",
            "response_id": response["id"],
            "stream_id": response["id"].removeprefix("resp_"),
            "rate_limit_id": "rl-all",
            "model": MODEL,
        }


@pytest.mark.parametrize(("operation", "mode"), _ASKED)
async def test_answers_are_in_the_document(
    operation: Operation, mode: GenerationMode, synthetic: Stack, document: Any, there: dict[str, str]
) -> None:
    await asyncio.to_thread(_ask, operation, mode, synthetic, document, there, EXAMPLES)


@pytest.mark.soak
@pytest.mark.parametrize(("operation", "mode"), _ASKED)
async def test_answers_are_in_the_document_at_length(
    operation: Operation, mode: GenerationMode, synthetic: Stack, document: Any, there: dict[str, str]
) -> None:
    await asyncio.to_thread(_ask, operation, mode, synthetic, document, there, SOAK_EXAMPLES)


def _ask(
    operation: Operation, mode: GenerationMode, stack: Stack, document: Any, there: dict[str, str], examples: int
) -> None:
    secret = stack.api_key if operation.scope == "inference" else stack.admin_key
    described = schemathesis.openapi.from_dict(document)[operation.path][operation.method]
    with requests.Session() as session:
        if operation.scope:
            session.headers["Authorization"] = f"Bearer {secret}"

        @settings(
            max_examples=examples,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=described.as_strategy(generation_mode=mode))
        def asks(case: Case) -> None:
            if mode is GenerationMode.POSITIVE:
                _aim(case, operation, there)
            answer = case.call(base_url=stack.root_url, session=session, timeout=60)
            # A parameter of a query without a value is one that is not there, whatever its type.
            query = parse_qsl(urlsplit(answer.request.url).query, keep_blank_values=True)
            empty = any(value == "" for _, value in query)
            case.validate_response(answer, checks=_CHECKS if empty else [*_CHECKS, negative_data_rejection])

        asks()


def _aim(case: Case, operation: Operation, there: dict[str, str]) -> None:
    """What is asked about something: about what there is; of a model: of the one that is served, and not for long."""
    for name in case.path_parameters or {}:
        if operation.method != "DELETE" and not operation.path.endswith("/archive"):
            kind = "admin_key_id" if "admin_api_keys" in operation.path else name
            case.path_parameters[name] = there.get(kind, case.path_parameters[name])
    for name, value in _HEADERS.items():
        if name in (case.headers or {}):
            case.headers[name] = value
    if operation.scope == "inference" and case.headers:
        case.headers.pop("Last-Event-ID", None)
    body = case.body
    if not isinstance(body, dict):
        return
    body.update({name: there[name] for name in ("user_id", "tenant_id") if name in body and name in there})
    if "model" in body:
        body["model"] = MODEL
    if operation.answer in _BOUNDS:
        body.pop("max_tokens", None)
        body[_BOUNDS[operation.answer]] = 8
        if "messages" in body and len(body["messages"]) % 2:
            body["messages"] = [{"role": "user", "content": "Hi"}]  # of those that are drawn few make a conversation
        for name in {"n", "best_of"} & body.keys():
            body[name] = 2


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
@pytest.mark.parametrize("operation", _STREAMED, ids=lambda one: one.path)
async def test_the_documents_examples_are_answered_as_it_says(
    operation: Operation, stream: bool, synthetic: Stack, document: Any
) -> None:
    described = schemathesis.openapi.from_dict(document)[operation.path][operation.method]
    body = {**(operation.example or {}), "model": MODEL, _BOUNDS[operation.answer]: 8, "stream": stream}
    case = described.Case(body=body, media_type="application/json")
    headers = {"Authorization": f"Bearer {synthetic.api_key}"}
    answer = await asyncio.to_thread(case.call, base_url=synthetic.root_url, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"][0].startswith("text/event-stream" if stream else "application/json")
    case.validate_response(answer, checks=_CHECKS)


async def test_a_changed_event_is_seen(document: Any) -> None:
    """The check above can fail: it reads the events, not only the content type."""
    broken = json.loads(json.dumps(document))
    broken["components"]["schemas"]["ChatCompletionChunk"]["properties"]["created"] = {"type": "string"}
    described = schemathesis.openapi.from_dict(broken)["/v1/chat/completions"]["POST"]
    chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "r"}
    answer = requests.Response()
    answer.status_code, answer._content = 200, f"data: {json.dumps({**chunk, 'choices': []})}\n\n".encode()
    answer.headers["content-type"] = "text/event-stream"
    answer.request = requests.Request("POST", "http://localhost/").prepare()
    answer.raw = HTTPResponse(headers=answer.headers)
    case = described.Case(body={"model": "m", "messages": []}, media_type="application/json")
    with pytest.raises(FailureGroup):
        case.validate_response(answer, checks=[response_schema_conformance])


async def test_every_route_is_described(document: Any) -> None:
    """One that is served and not described has no operationId; the other way round it is missing."""
    served = {(verb.upper(), path) for path, verbs in document["paths"].items() for verb in verbs}
    assert served == {(one.method, one.path) for one in OPERATIONS}
    assert all("operationId" in one for verbs in document["paths"].values() for one in verbs.values()), json.dumps(
        [path for path, verbs in document["paths"].items() if any("operationId" not in one for one in verbs.values())]
    )
