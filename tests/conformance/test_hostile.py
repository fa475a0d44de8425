"""Callers who look for a way around: limits, idempotency keys and the log hold for who leaves and comes back, too."""

import asyncio
import uuid
from typing import Any

import httpx2 as httpx
from inferbus.bus.v1.registry_pb2 import ResponseRecord
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.publish import Publisher
from inferbus_bus.store import Store

from tests.conformance.clients import MODEL, SECONDS
from tests.harness.local import Stack

BODY = {"model": "synthetic", "messages": [{"role": "user", "content": "go"}], "max_tokens": 1}
LONG = BODY | {"max_tokens": 100, "stream": True}  # two seconds
LONGER = LONG | {"max_tokens": 400}


def caller(key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=SECONDS)


def reason(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


async def left_after_its_first_event(
    http: httpx.AsyncClient, url: str, body: dict[str, Any] = LONG, **headers: str
) -> str:
    """The name of a stream whose client is gone."""
    async with http.stream("POST", f"{url}/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        await anext(answer.aiter_bytes())
        return answer.headers["x-inferbus-stream"]


async def test_who_leaves_and_lets_it_run_on_still_holds_a_place(fast_stack: Stack) -> None:
    key = await fast_stack.new_key(limits={"concurrent_requests": 1})
    url = fast_stack.base_url
    async with caller(key) as http:
        await left_after_its_first_event(http, url, LONGER, **{"x-inferbus-hold": "60"})
        refused = await http.post(f"{url}/chat/completions", json=BODY)
        assert (refused.status_code, reason(refused)) == (429, "rate_limit_exceeded")
        async with asyncio.timeout(60):
            while (await http.post(f"{url}/chat/completions", json=BODY)).status_code == 429:
                await asyncio.sleep(0.1)


async def test_what_ran_on_counts_its_tokens(fast_stack: Stack) -> None:
    key = await fast_stack.new_key(limits={"tokens_per_minute": 150})
    url = fast_stack.base_url
    async with caller(key) as http:
        name = await left_after_its_first_event(http, url, **{"x-inferbus-hold": "60"})
        whole = await http.get(f"{url}/streams/{name}", params={"stream": "false"})
        assert whole.json()["usage"]["completion_tokens"] == 100
        refused = await http.post(f"{url}/chat/completions", json=LONG)
        assert refused.status_code == 429


async def test_a_key_that_may_do_nothing_does_nothing(fast_stack: Stack) -> None:
    """Also not by sending one request many times at once under one idempotency key, or by coming back to old ones."""
    key = await fast_stack.new_key(limits={"requests_per_minute": 0})
    async with caller(key) as http:
        for _ in range(5):
            headers = {"Idempotency-Key": uuid.uuid4().hex}
            asked = [
                http.post(f"{url}/chat/completions", json=BODY, headers=headers)
                for url in fast_stack.edge_urls
                for _ in range(4)
            ]
            assert {answer.status_code for answer in await asyncio.gather(*asked)} == {429}
        assert (await http.get(f"{fast_stack.base_url}/streams/{uuid.uuid4()}")).status_code == 429
        assert (await http.get(f"{fast_stack.base_url}/responses/resp_{uuid.uuid4().hex}")).status_code in (404, 429)


async def test_equal_background_calls_at_once_are_one_generation(fast_stack: Stack) -> None:
    body = {"model": "synthetic", "input": "go", "max_output_tokens": 1, "background": True}
    async with caller(fast_stack.api_key) as http:

        async def twins() -> set[str]:
            headers = {"Idempotency-Key": uuid.uuid4().hex}
            asked = [http.post(f"{url}/responses", json=body, headers=headers) for url in fast_stack.edge_urls * 2]
            answers = [answer.json() for answer in await asyncio.gather(*asked)]
            assert not [answer for answer in answers if "id" not in answer]
            return {answer["id"] for answer in answers}

        for _ in range(25):
            assert len(await twins()) == 1


async def test_an_empty_idempotency_key_names_nothing(fast_stack: Stack) -> None:
    async with caller(fast_stack.api_key) as http:
        headers = {"Idempotency-Key": ""}
        first = await http.post(f"{fast_stack.base_url}/chat/completions", json=BODY, headers=headers)
        second = await http.post(f"{fast_stack.base_url}/chat/completions", json=BODY | {"seed": 1}, headers=headers)
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json()["id"] != second.json()["id"]


async def test_many_choices_of_a_long_input_are_refused_before_they_are_copied(fast_stack: Stack) -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "x" * 1_000_000}]
    async with caller(fast_stack.api_key) as http:
        refused = await http.post(
            f"{fast_stack.base_url}/chat/completions", json=BODY | {"messages": messages, "n": 128}
        )
        assert (refused.status_code, reason(refused)) == (400, "request_too_large")
        assert refused.json()["error"]["param"] == "n"


async def test_ids_that_nobody_made_are_asked_for_a_minute_at_most_so_often(fast_stack: Stack) -> None:
    key = await fast_stack.new_key(tenant_id=f"guesser-{uuid.uuid4().hex[:8]}")
    async with caller(key) as http:
        own = await http.post(f"{fast_stack.base_url}/chat/completions", json=BODY)
        name = own.headers["x-inferbus-stream"]
        guesses = [f"{name[:19]}{name[19:24]}{number:08x}{name[32:]}" for number in range(70)]
        statuses = [(await http.get(f"{fast_stack.base_url}/streams/{one}")).status_code for one in guesses]
        assert statuses[:60] == [404] * 60
        assert statuses[61:] == [429] * 9
    async with caller(fast_stack.api_key) as http:  # another tenant does not notice
        assert (await http.get(f"{fast_stack.base_url}/streams/{guesses[0]}")).status_code == 404


async def stored(stack: Stack, names: list[str]) -> list[str]:
    """Those whose answer is in the store, and not only on the log."""
    content = stack.content
    async with connect(BusConfig(content["nats_url"], "admin", content["nats_seed"])) as bus:
        store = Store(bus, "responses", ResponseRecord, Publisher(bus))
        found = {name: await store.get(f"default/default/{name.removeprefix('resp_')}") for name in names}
    return [name for name, one in found.items() if one is not None and one[0].body]


async def test_a_stored_stream_is_stored_although_its_client_has_gone(fast_stack: Stack) -> None:
    """It may close as soon as it has the last byte, and in background before the first token."""
    body = {"model": "synthetic", "input": "go", "max_output_tokens": 3, "stream": True}
    async with caller(fast_stack.api_key) as http:
        names = []
        for number in range(10):
            background = {"background": True} if number % 2 else {}
            async with http.stream("POST", f"{fast_stack.base_url}/responses", json=body | background) as answer:
                names.append("resp_" + answer.headers["x-inferbus-stream"].replace("-", ""))
                if not background:
                    await answer.aread()
    async with asyncio.timeout(60):
        while len(await stored(fast_stack, names)) < len(names):
            await asyncio.sleep(0.1)


async def test_what_failed_in_the_background_is_streamed_as_what_happened(stack: Stack) -> None:
    body = {"model": MODEL, "input": "word " * 9000, "background": True}
    async with caller(stack.api_key) as http:
        made = (await http.post(f"{stack.base_url}/responses", json=body)).json()
        async with asyncio.timeout(60):
            while (await http.get(f"{stack.base_url}/responses/{made['id']}")).json()["status"] != "failed":
                await asyncio.sleep(0.1)
        again = await http.get(f"{stack.base_url}/responses/{made['id']}", params={"stream": "true"})
        assert again.status_code == 200
        events = [line[7:] for line in again.text.splitlines() if line.startswith("event: ")]
        assert events[0] == "response.created"
        assert events[-1] == "response.failed"
