"""The door: keys, routes, health, and OpenAI's error body for whatever goes wrong."""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

PATH = "/v1/chat/completions"


async def error_of(response: Any) -> tuple[int, str]:
    """(status, code) of an answer that has OpenAI's error body."""
    assert response.headers["Content-Type"].startswith("application/json")
    assert len(response.headers["x-request-id"]) == 36
    body = await response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return response.status, body["error"]["code"]


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"), ("", "missing_api_key"), ("Bearer", "missing_api_key"),
        ("Basic abc", "missing_api_key"), ("Bearer wrong", "invalid_api_key"),
        ("Bearer ib-" + "a" * 43, "invalid_api_key"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"), [("POST", PATH), ("GET", "/v1/models"), ("GET", "/v1/models/m"), ("GET", "/inferbus/v1/keys")]
)
async def test_without_a_valid_key_nothing_is_served(
    http: Any, header: str | None, code: str, method: str, path: str
) -> None:
    skip = ["Authorization"]
    headers = {} if header is None else {"Authorization": header}
    async with type(http)(str(http._base_url), skip_auto_headers=skip) as bare:
        assert await error_of(await bare.request(method, path, headers=headers)) == (401, code)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"), (b"{", 400, "invalid_json"), (b"\xff\xfe", 400, "invalid_json"),
        (b"[]", 400, "invalid_type"), (b'{"model": "x"}', 400, "missing_required_parameter"),
        (b'{"model": "none", "messages": [{"role": "user", "content": "x"}]}', 404, "model_not_found"),
        (b'{"model": "x", "messages": [], "zzz": 1}', 400, "invalid_value"),
        (b" " * 100_001, 413, "body_too_large"),
    ],
)  # fmt: skip
async def test_a_bad_body(http: Any, body: bytes, status: int, code: str) -> None:
    assert await error_of(await http.post(PATH, data=body)) == (status, code)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"), ("GET", "/v1", 404, "unknown_url"),
        ("POST", "/v1/nothing", 404, "unknown_url"),
        ("GET", PATH, 405, "method_not_allowed"), ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"), ("GET", "/v1/models/", 404, "unknown_url"),
        ("GET", "/v1/models/none", 404, "model_not_found"), ("PATCH", PATH, 405, "method_not_allowed"),
    ],
)  # fmt: skip
async def test_a_wrong_url_or_method(http: Any, method: str, path: str, status: int, code: str) -> None:
    assert await error_of(await http.request(method, path)) == (status, code)


RAW = {
    "no HTTP": (b"GARBAGE\r\n\r\n", 400),
    "a bad header": (b"GET / HTTP/1.1\r\nHost: x\r\nBad Header\r\n\r\n", 400),
    "a bad length": (b"POST /v1/models HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n", 400),
    "a huge header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 400),
    "a path of broken bytes": (b"GET /v1/models/\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a model of broken bytes": (b"GET /v1/models/%ff HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer KEY\r\n\r\n", 404),
    "a key of broken bytes": (b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\n\r\n", 401),
    "a parameter of broken bytes": (
        b"GET /inferbus/v1/usage?\xff=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ADMIN\r\n\r\n", 400,
    ),
    "an odd expectation": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: magic\r\n\r\n", 417),
}  # fmt: skip


@pytest.mark.parametrize("case", RAW)
async def test_broken_bytes_get_the_same_body(edge: Any, case: str, rig: Any) -> None:
    sent, status = RAW[case]
    sent = sent.replace(b"KEY", rig.API_KEY.encode()).replace(b"ADMIN", rig.ADMIN_KEY.encode())
    address = urlsplit(edge.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(sent)
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
        body = json.loads(await reader.readuntil(b"}}"))
    writer.close()
    assert head.startswith(b"HTTP/1.1 %d" % status) or head.startswith(b"HTTP/1.0 %d" % status)
    assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_a_broken_chunked_body_is_a_bad_request(edge: Any, rig: Any) -> None:
    address = urlsplit(edge.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rig.API_KEY}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    writer.write(head.encode() + b"5\r\nhello\r\nZZ\r\n")
    async with asyncio.timeout(5):
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"400"
    writer.close()


async def test_a_body_that_does_not_arrive_is_refused(nats_server: Any, rig: Any, tmp_path: Any) -> None:
    async with rig.run_edge(nats_server, tmp_path, BODY_TIMEOUT="200ms") as edge:
        address = urlsplit(edge.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rig.API_KEY}\r\nContent-Length: 10\r\n\r\n"
        writer.write(head.encode() + b"half")
        async with asyncio.timeout(5):
            assert (await reader.readuntil(b"\r\n")).split()[1] == b"408"
        writer.close()


async def test_expect_100_continue(edge: Any, rig: Any) -> None:
    address = urlsplit(edge.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {rig.API_KEY}\r\nContent-Length: 2\r\n"
    writer.write(head.encode() + b"Expect: 100-continue\r\n\r\n")
    async with asyncio.timeout(5):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readuntil(b"\r\n")).split()[1] == b"400"
    writer.close()


async def test_models(http: Any, model: str, worker: Any) -> None:
    listed = await (await http.get("/v1/models")).json()
    assert listed["object"] == "list"
    (one,) = [one for one in listed["data"] if one["id"] == model]
    assert (one["object"], one["owned_by"]) == ("model", "acme")
    slashed = f"acme/{model}"
    await worker.serve(slashed, http)
    for path in (f"/v1/models/{slashed}", f"/v1/models/acme%2F{model}"):
        assert (await (await http.get(path)).json())["id"] == slashed


async def test_health_and_metrics(edge: Any, http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post(PATH, json=rig.chat(model, stream=True)))
    await worker.answer(model, ["a", "b", "c"])
    await (await call).read()
    async with type(http)(edge.url) as bare:  # probes have no key
        assert (await bare.get("/healthz")).status == 200
        assert (await bare.head("/healthz")).status == 200
        assert await (await bare.get("/readyz")).json() == {"status": "ready"}
        text = await (await bare.get("/metrics")).text()
    assert (
        f'gen_ai_server_time_to_first_token_seconds_count{{error_type="",gen_ai_request_model="{model}"}} 1.0' in text
    )
    assert f'gen_ai_server_time_per_output_token_seconds_count{{error_type="",gen_ai_request_model="{model}"}}' in text
    assert f'gen_ai_client_token_usage_sum{{gen_ai_request_model="{model}",gen_ai_token_type="output"}} 3.0' in text
    assert f'inferbus_http_requests_total{{route="{PATH}",status="200"}}' in text
    assert "inferbus_streams_active" in text


async def test_no_prompt_and_no_key_in_the_log(edge: Any, http: Any, worker: Any, model: str, rig: Any) -> None:
    secret = "swordfish-prompt"
    body = rig.chat(model, messages=[{"role": "user", "content": secret}])
    call = asyncio.create_task(http.post(PATH, json=body))
    request = await worker.take(model)
    worker.step((request, 0, "swordfish-completion"))
    worker.step((request, 5, "swordfish-completion"))  # a gap is logged loudly
    assert (await call).status == 500
    await http.post(PATH, json={**body, "temperature": secret})
    log = edge.log.read_text()
    assert "tokens are missing" in log
    assert "swordfish" not in log
    assert rig.API_KEY not in log
