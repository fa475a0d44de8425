"""What docs/billing.md says of who pays for what, on a whole stack: the rows that bill it, and what edges say of it.
Then the tables emptied and made from the log again."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx
import pytest
import pytest_asyncio

from tests.harness.asking import audited
from tests.harness.local import Stack, running

TABLES = ("token_events", "requests", "latency_minutes", "latency_counts", "token_minutes", "request_minutes")


@pytest_asyncio.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    home = tmp_path_factory.mktemp("who-pays") / "home"
    async with running(home, "synthetic", "--edges", "2", variables={"INFERBUS_WORKER_SYNTHETIC__ITL": "10ms"}) as one:
        yield one


async def sql(stack: Stack, query: str) -> str:
    """As the store's admin."""
    store = stack.content["clickhouse"]
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(
            store["url"], content=query, params={"database": store["database"]}, auth=(store["user"], store["password"])
        )
    assert answer.status_code == 200, answer.text
    return answer.text


async def rows(stack: Stack, query: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await sql(stack, f"{query} FORMAT JSONEachRow")).splitlines()]


def asked(tokens: int, **fields: Any) -> dict[str, Any]:
    return {"model": "synthetic", "messages": [{"role": "user", "content": "go"}], "max_tokens": tokens, **fields}


class Caller:
    """A client with headers of its choice, which may leave."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient) -> None:
        self._stack = stack
        self._http = http

    async def whole(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        known = {"Authorization": f"Bearer {self._stack.api_key}", **headers}
        return await self._http.post(self._stack.chat_url, json=body, headers=known)

    async def part(self, body: dict[str, Any], **headers: str) -> tuple[str, str]:
        """Leaves after the first token: (request id, last event's id)."""
        known = {"Authorization": f"Bearer {self._stack.api_key}", **headers}
        body = {**body, "stream": True}
        async with self._http.stream("POST", self._stack.chat_url, json=body, headers=known) as answer:
            seen = ""
            async for line in answer.aiter_lines():
                if line.startswith("id: "):
                    seen = line.removeprefix("id: ")
                if line.startswith("data: ") and '"content"' in line:
                    break
            return answer.headers["x-request-id"], seen


@pytest_asyncio.fixture
async def caller(stack: Stack) -> AsyncIterator[Caller]:
    async with httpx.AsyncClient(timeout=60) as http:
        yield Caller(stack, http)


async def billed(stack: Stack, request_id: str) -> dict[str, Any]:
    """The one row of it, once it is there."""
    for _ in range(600):
        found = await rows(stack, f"SELECT * FROM charges WHERE request_id = '{request_id}'")
        if found:
            assert len(found) == 1
            return found[0]
        await asyncio.sleep(0.1)
    raise AssertionError(f"{request_id} was not billed")


async def delivered(stack: Stack, request_id: str, count: int = 1) -> list[tuple[str, int]]:
    for _ in range(600):
        found = await rows(
            stack, f"SELECT `end`, tokens FROM deliveries_once WHERE request_id = '{request_id}' ORDER BY ALL"
        )
        if len(found) >= count:
            return [(one["end"], int(one["tokens"])) for one in found]
        await asyncio.sleep(0.1)
    raise AssertionError(f"nobody said what was delivered of {request_id}")


async def test_a_whole_answer_is_billed_whole(stack: Stack, caller: Caller) -> None:
    answer = await caller.whole(asked(7))
    request_id, usage = answer.headers["x-request-id"], answer.json()["usage"]
    row = await billed(stack, request_id)
    assert (row["finish_reason"], row["error_reason"], int(row["output_tokens"])) == ("length", "", 7)
    assert int(row["input_tokens"]) == usage["prompt_tokens"] > 0
    assert float(row["charge"]) > 0
    assert await delivered(stack, request_id) == [("complete", 7)]


async def test_a_client_that_left_pays_for_what_was_generated(stack: Stack, caller: Caller) -> None:
    request_id, _ = await caller.part(asked(4000))
    row = await billed(stack, request_id)
    tokens = int(row["output_tokens"])
    assert (row["finish_reason"], row["error_reason"]) == ("cancelled", "")
    assert 0 < tokens < 4000
    assert float(row["charge"]) > 0
    ((end, reached),) = await delivered(stack, request_id)
    assert end == "client_gone"
    assert 0 < reached <= tokens


async def test_a_stream_that_is_resumed_at_another_edge_is_billed_once(stack: Stack, caller: Caller) -> None:
    hold = {"x-inferbus-hold": "30"}
    request_id, last = await caller.part(asked(600), **hold)
    other = f"{stack.edge_urls[1]}/chat/completions"
    headers = {"Authorization": f"Bearer {stack.api_key}", "Last-Event-ID": last, **hold}
    async with httpx.AsyncClient(timeout=60) as http:
        rest = await http.post(other, headers=headers)
    assert rest.text.rstrip().endswith("[DONE]")
    row = await billed(stack, request_id)
    assert (row["finish_reason"], int(row["output_tokens"])) == ("length", 600)
    ends = await delivered(stack, request_id, 2)
    assert [end for end, _ in ends] == ["client_gone", "complete"]
    assert ends[1][1] == 600


async def test_a_retry_under_one_idempotency_key_is_billed_once(stack: Stack, caller: Caller) -> None:
    key = {"Idempotency-Key": "who-pays-1"}
    first, again = await caller.whole(asked(5), **key), await caller.whole(asked(5), **key)
    assert first.json()["choices"] == again.json()["choices"]
    request_id = first.headers["x-request-id"]
    assert int((await billed(stack, request_id))["output_tokens"]) == 5
    assert await delivered(stack, request_id, 2) == [("complete", 5), ("complete", 5)]
    assert [one["request_id"] for one in await rows(stack, "SELECT request_id FROM bills WHERE output_tokens = 5")] == [
        request_id
    ]


async def test_of_several_choices_the_first_one_bears_the_input(stack: Stack, caller: Caller) -> None:
    answer = await caller.whole(asked(6, n=2))
    first = answer.headers["x-request-id"]
    second = first[:-1] + "1"
    one, two = await billed(stack, first), await billed(stack, second)
    assert (int(one["output_tokens"]), int(two["output_tokens"])) == (6, 6)
    assert int(one["input_tokens"]) == answer.json()["usage"]["prompt_tokens"]
    assert int(two["input_tokens"]) == 0


async def test_what_is_refused_at_the_door_has_no_row(stack: Stack, caller: Caller) -> None:
    before = await rows(stack, "SELECT count() AS n FROM bills")
    for body in (asked(5, model="nothing"), asked(0), asked(5, temperature=9)):
        assert (await caller.whole(body)).status_code in (400, 404)
    assert (await caller.whole(asked(5), Authorization="Bearer nobody")).status_code == 401
    await audited(stack)
    assert await rows(stack, "SELECT count() AS n FROM bills") == before


async def export(stack: Stack) -> str:
    """Of everything that is tokens or money, the bytes."""
    code, out = await stack.cli("usage", "--csv")
    assert code == 0, out
    texts = [out]
    for table in ("tokens", "charges"):
        texts.append(await sql(stack, f"SELECT * FROM {table} ORDER BY ALL FORMAT TabSeparated"))
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


async def all_minutes_over(stack: Stack) -> None:
    """A replay works out the sums of minutes that are over, by half a minute, and an audit looks at those only: what is
    open for one of them and over for the other one would differ."""
    query = "SELECT toUnixTimestamp(toStartOfMinute(max(end_time))) + 92 - toUnixTimestamp(now()) AS left FROM bills"
    (found,) = await rows(stack, query)
    await asyncio.sleep(max(0, int(found["left"])))


@pytest.mark.timeout(300)
async def test_tables_emptied_and_made_from_the_log_again_export_the_same_bytes(stack: Stack) -> None:
    """The last one: with all that the others have left on the log."""
    await all_minutes_over(stack)
    summary = await audited(stack)
    assert int(summary["requests"]) == 6
    before = await export(stack)
    for table in TABLES:
        await sql(stack, f"TRUNCATE TABLE {table} SYNC")
    assert await export(stack) != before
    code, out = await stack.cli("replay", "--dry-run", "--json")
    assert code == 0, out
    dry = json.loads(out.splitlines()[-1])["summary"]
    assert "requests_before" not in dry
    code, out = await stack.cli("replay", "--json")
    assert code == 0, out
    done = json.loads(out.splitlines()[-1])["summary"]
    assert {name: done.get(name) for name in ("tokens_after", "requests_after", "charges")} == {
        name: dry.get(name) for name in ("tokens_after", "requests_after", "charges")
    }
    assert await export(stack) == before
    assert int((await audited(stack))["requests"]) == int(summary["requests"])
    code, out = await stack.cli("replay")
    assert code == 0, out
    assert "All rows agree" in out
