"""The typed errors of OpenAI's SDK, and what its users rely on when something fails."""

import asyncio

import httpx2 as httpx
import openai
import pytest

from tests.conformance.clients import MODEL, Caller, openai_client
from tests.harness.local import Stack
from tests.harness.standing import standing_still

CREATE = "chat.completions.create"
BODY = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Count."}],
    "max_completion_tokens": 4,
    "temperature": 0,
}


async def test_bad_request(sdk: Caller) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        await sdk.one(CREATE, **{**BODY, "temperature": 9})
    assert (error.value.param, error.value.type) == ("temperature", "invalid_request_error")
    assert error.value.request_id
    with pytest.raises(openai.BadRequestError):
        await sdk.events(CREATE, **{**BODY, "temperature": 9})


async def test_authentication(stack: Stack, sdk: Caller) -> None:
    for wrong in ("ib-wrong", "x", stack.api_key[:-1] + ("A" if stack.api_key[-1] != "A" else "B")):
        with pytest.raises(openai.AuthenticationError):
            await Caller(sdk.client.with_options(api_key=wrong)).one(CREATE, **BODY)


async def test_permission(stack: Stack) -> None:
    secret = await stack.new_key(scopes=["tenant_admin"])
    async with openai_client(stack, api_key=secret) as admin:
        with pytest.raises(openai.PermissionDeniedError) as error:
            await admin.chat.completions.create(**BODY)
    assert error.value.code == "insufficient_scope"


async def test_not_found(sdk: Caller) -> None:
    with pytest.raises(openai.NotFoundError) as error:
        await sdk.one(CREATE, **{**BODY, "model": "no-such-model"})
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


async def test_conflict_and_what_an_idempotency_key_is_for(stack: Stack, sdk: Caller) -> None:
    headers = {"Idempotency-Key": f"conflict-{type(sdk.client).__name__}"}
    first = await sdk.one(CREATE, **BODY, extra_headers=headers)
    again = await sdk.one(CREATE, **BODY, extra_headers=headers)
    assert again == first
    async with openai_client(stack, 1) as other:
        assert await other.chat.completions.create(**BODY, extra_headers=headers) == first
    with pytest.raises(openai.ConflictError) as error:
        await sdk.one(CREATE, **{**BODY, "max_completion_tokens": 5}, extra_headers=headers)
    assert error.value.code == "idempotency_key_reused"


async def test_retries_at_once_join_one_generation(stack: Stack) -> None:
    headers = {"Idempotency-Key": "joined"}
    body = {**BODY, "max_completion_tokens": 24, "temperature": 1}

    async def streamed(edge: int) -> tuple[str, str]:
        async with openai_client(stack, edge) as one:
            stream = await one.chat.completions.create(**body, stream=True, extra_headers=headers)
            chunks = [chunk async for chunk in stream]
            return chunks[0].id, "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    answers = await asyncio.gather(*(streamed(number % 2) for number in range(6)))
    assert len(set(answers)) == 1
    assert answers[0][1]


async def test_rate_limit(stack: Stack, http: httpx.AsyncClient) -> None:
    secret = await stack.new_key(limits={"requests_per_minute": 2})
    async with openai_client(stack, api_key=secret) as limited:
        raw = await limited.chat.completions.with_raw_response.create(**BODY)
        assert raw.headers["x-ratelimit-limit-requests"] == "2"
        assert raw.headers["x-ratelimit-remaining-requests"] == "1"
        await limited.chat.completions.create(**BODY)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError) as error:
                await limited.chat.completions.create(**BODY, stream=stream)
            assert error.value.code == "rate_limit_exceeded"
            # A minute at most, and the second in which the first request was counted.
            assert 0 < int(error.value.response.headers["retry-after"]) <= 61
            assert error.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    one = await stack.new_key(limits={"concurrent_requests": 1})
    async with openai_client(stack, api_key=one) as limited:
        body = {**BODY, "max_completion_tokens": 2000}
        stream = await limited.chat.completions.create(**body, stream=True)
        await anext(aiter(stream))
        with pytest.raises(openai.RateLimitError):
            await limited.chat.completions.create(**BODY)
        await stream.close()
        async with asyncio.timeout(30):
            while True:
                try:
                    await limited.chat.completions.create(**BODY)
                    break
                except openai.RateLimitError:
                    await asyncio.sleep(0.1)


async def test_a_server_error_while_the_bus_is_away_and_the_sdks_own_retries_get_through(stack: Stack) -> None:
    """The broker is stopped, not killed, so that nobody starts it again before a request was tried."""
    async with openai_client(stack) as once, openai_client(stack, max_retries=5) as stubborn:
        expected = (await stubborn.chat.completions.create(**BODY)).choices[0].message.content
        with standing_still(stack.pids["nats"]):
            answering = asyncio.create_task(stubborn.chat.completions.create(**BODY))
            with pytest.raises(openai.InternalServerError) as error:
                await once.chat.completions.create(**BODY)
        assert (await answering).choices[0].message.content == expected
    assert error.value.status_code == 503
    assert error.value.code == "bus_unavailable"
    assert int(error.value.response.headers["retry-after"]) >= 1
