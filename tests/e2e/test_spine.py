"""One token, end to end, with the SDK that customers use and the model that ships."""

import asyncio
import json
import os
from pathlib import Path
from urllib.request import urlopen

import httpx2 as httpx
import openai
import pytest

from tests.harness.local import Stack

MODEL = "smollm2-135m-instruct"


def ask(number: int, **more):
    prompt = f"Count up from {number} in words."
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 24,
        "temperature": 0,
        **more,
    }


async def streamed(client: openai.AsyncOpenAI, **body) -> tuple[str, openai.types.CompletionUsage | None, str | None]:
    text, usage, finish = "", None, None
    stream = await client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True})
    async for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
    return text, usage, finish


def files_that_say(folder: Path, texts: tuple[str, ...], suffixes: tuple[str, ...]) -> list[Path]:
    """Those under ``folder`` with one of ``texts``. A database merges its files while one looks: what was in one that
    is gone is in another one, so that one looks again."""
    while True:
        found, gone = [], False
        for inside, _, names in os.walk(folder):
            for path in (Path(inside, name) for name in names if name.endswith(suffixes)):
                try:
                    held = path.read_bytes()
                except FileNotFoundError:
                    gone = True
                    continue
                if any(text.encode() in held for text in texts):
                    found.append(path)
        if found or not gone:
            return found


async def sql(stack: Stack, query: str) -> list[dict]:
    code, out = await stack.cli("sql", "--format", "JSONEachRow", query)
    assert code == 0, out
    return [json.loads(line) for line in out.splitlines() if line]


async def test_32_at_once_stream_what_the_unary_answer_says(client: openai.AsyncOpenAI) -> None:
    async def both(number: int) -> None:
        body = ask(number, seed=7)
        unary, (text, usage, finish) = await asyncio.gather(
            client.chat.completions.create(**body), streamed(client, **body)
        )
        assert text == unary.choices[0].message.content
        assert finish == unary.choices[0].finish_reason
        assert usage.completion_tokens == unary.usage.completion_tokens
        assert usage.prompt_tokens == unary.usage.prompt_tokens

    await asyncio.gather(*(both(number) for number in range(32)))


async def test_max_tokens_is_counted_in_the_models_own_tokens(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**ask(1, max_tokens=9))
    assert answer.usage.completion_tokens == 9
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 9
    longer = await client.chat.completions.create(**ask(1, max_tokens=10))
    assert longer.choices[0].message.content.startswith(answer.choices[0].message.content)


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(client: openai.AsyncOpenAI) -> None:
    whole = (await client.chat.completions.create(**ask(3, max_tokens=32))).choices[0].message.content
    stop = whole[len(whole) // 2 :][:4]
    cut = await client.chat.completions.create(**ask(3, max_tokens=32, stop=[stop]))
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


async def test_every_error_has_openais_body(stack: Stack, client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.chat.completions.create(**{**ask(1), "model": "no-such-model"})
    assert unknown.value.body["code"] == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(**{**ask(1), "temperature": 9})
    assert bad.value.body["param"] == "temperature"
    with pytest.raises(openai.AuthenticationError) as wrong:
        await client.with_options(api_key="ib-wrong").chat.completions.create(**ask(1))
    assert wrong.value.body["code"] == "invalid_api_key"
    async with httpx.AsyncClient(timeout=60) as http:
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        for answer, status in (
            (await http.post(stack.chat_url, content=b"{", headers=headers), 400),
            (await http.get(stack.chat_url, headers=headers), 405),
            (await http.get(f"{stack.base_url}/nothing", headers=headers), 404),
        ):
            assert answer.status_code == status
            assert {"message", "type", "param", "code"} <= set(answer.json()["error"])


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    assert MODEL in [model.id async for model in client.models.list()]


async def test_a_request_stands_in_clickhouse_as_usage_cost_and_latency(
    stack: Stack, client: openai.AsyncOpenAI
) -> None:
    answer = await client.chat.completions.create(**ask(5))
    request_id = answer.id.removeprefix("chatcmpl-")
    rows: list[dict] = []
    for _ in range(100):
        rows = await sql(
            stack, f"SELECT * FROM requests WHERE replaceAll(toString(request_id), '-', '') = '{request_id}'"
        )
        if rows:
            break
        await asyncio.sleep(0.2)
    (row,) = rows
    assert int(row["input_tokens"]) == answer.usage.prompt_tokens
    assert int(row["output_tokens"]) == answer.usage.completion_tokens
    assert 0 < int(row["queue_us"]) <= int(row["ttft_us"]) <= int(row["e2e_us"])
    assert float(row["cost"]) > 0
    tokens = await sql(
        stack, f"SELECT `index` FROM tokens WHERE replaceAll(toString(request_id), '-', '') = '{request_id}' ORDER BY 1"
    )
    assert [int(token["index"]) for token in tokens] == list(range(answer.usage.completion_tokens))


async def test_prompt_and_answer_are_in_no_table_log_or_trace(stack: Stack, client: openai.AsyncOpenAI) -> None:
    secret, person = "xyzzy-plugh-4711", "person-plugh-0815"
    call = {"id": "call_1", "type": "function", "function": {"name": "note", "arguments": json.dumps({"n": secret})}}
    tool = {"name": "note", "description": secret, "parameters": {"type": "object", "properties": {secret: {}}}}
    answer = await client.chat.completions.create(
        model=MODEL, max_tokens=12, metadata={"note": secret}, safety_identifier=person,
        messages=[
            {"role": "system", "content": secret}, {"role": "user", "content": f"Repeat: {secret}"},
            {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "call_1", "content": secret},
        ],
        tools=[{"type": "function", "function": tool}], tool_choice="none", stop=[secret],
        extra_headers={"Idempotency-Key": secret, "x-inferbus-tags": f"who={person}"},
    )  # fmt: skip
    named: list[dict] = []
    for _ in range(100):
        named = await sql(stack, f"SELECT count() AS n FROM bills WHERE end_user = '{person}'")
        if int(named[0]["n"]):
            break
        await asyncio.sleep(0.2)
    assert int(named[0]["n"]) == 1
    assert files_that_say(stack.home, (secret, person), (".log", ".json", ".txt")) == []
    async with httpx.AsyncClient(timeout=60) as http:
        shown = (await http.get(stack.base_url.removesuffix("/v1") + "/metrics")).text
    assert (secret in shown, person in shown) == (False, False)
    assert files_that_say(stack.home / "clickhouse", (secret,), (".bin",)) == []
    # The analyst may not name the one table with text; nobody asked for any, so it is empty.
    query = "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'inferbus' ORDER BY name"
    tables = [row["name"] for row in await sql(stack, query)]
    assert {"requests", "token_events", "deliveries", "ingest_batches", "invoices", "captures"} <= set(tables)
    # Views that add to a table hold nothing themselves; states of digests have no text.
    looked_at = [one for one in tables if one not in ("captures", "latency_minutes") and "_from_" not in one]
    said = "countIf(position(toString(tuple(*)), '{}') > 0)"
    counted = f"{said.format(secret)} AS texts, {said.format(person)} AS names"
    rows = await sql(stack, " UNION ALL ".join(f"SELECT '{one}' AS name, {counted} FROM `{one}`" for one in looked_at))
    assert [row["name"] for row in rows if int(row["texts"])] == []
    holders = {row["name"] for row in rows if int(row["names"])}
    assert holders == {"requests", "bills", "charges"}
    assert answer.usage.completion_tokens <= 12


async def test_the_analyst_reads_every_table_and_can_do_nothing_else(stack: Stack) -> None:
    for table in (
        "token_events",
        "requests",
        "ingest_batches",
        "tokens",
        "bills",
        "usage_by_hour",
        "usage_by_day",
        "latency_minutes",
    ):
        code, out = await stack.cli("sql", f"SELECT count() FROM {table}")
        assert code == 0, out
    for query in (
        "INSERT INTO requests (tenant_id) VALUES ('x')",
        "DROP TABLE requests",
        "CREATE TABLE t (x Int8) ENGINE = Memory",
        "SELECT * FROM file('/etc/passwd', 'LineAsString')",
        "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
        "ALTER TABLE requests DELETE WHERE 1",
    ):
        code, out = await stack.cli("sql", query)
        assert code != 0, (query, out)


async def test_a_client_that_leaves_ends_its_generation(stack: Stack, client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(**ask(1, max_tokens=2000, stop=None), stream=True)
    request_id = None
    async for chunk in stream:
        request_id = chunk.id.removeprefix("chatcmpl-")
        break
    await stream.close()
    rows: list[dict] = []
    for _ in range(100):
        rows = await sql(
            stack,
            "SELECT finish_reason, output_tokens FROM requests "
            f"WHERE replaceAll(toString(request_id), '-', '') = '{request_id}'",
        )
        if rows:
            break
        await asyncio.sleep(0.2)
    assert rows[0]["finish_reason"] == "cancelled"
    assert int(rows[0]["output_tokens"]) < 100


async def test_keys_usage_top_and_audit_on_the_command_line(stack: Stack, client: openai.AsyncOpenAI) -> None:
    code, out = await stack.cli("keys", "create", "--json", "--tenant", "acme", "--project", "web", "--name", "ci")
    assert code == 0, out
    made = json.loads(out)
    secret = made["secret"]
    mine = client.with_options(api_key=secret)
    for _ in range(300):  # the other edges hear of a key by their watch
        try:
            await mine.chat.completions.create(**ask(2, max_tokens=5))
            break
        except openai.AuthenticationError:
            await asyncio.sleep(0.1)
    for _ in range(100):
        code, out = await stack.cli("usage", "--json")
        assert code == 0, out
        if "acme" in out:
            break
        await asyncio.sleep(0.2)
    assert "acme" in out
    code, out = await stack.cli("top", "--once")
    assert code == 0, out
    key_id = made["key"]["key_id"]
    code, out = await stack.cli("keys", "revoke", key_id)
    assert code == 0, out

    async def refused() -> bool:
        try:
            await mine.chat.completions.create(**ask(2, max_tokens=5))
        except openai.AuthenticationError:
            return True
        return False

    for _ in range(300):
        if await refused():
            break
        await asyncio.sleep(0.1)
    assert await refused()
    code, out = await stack.cli("audit")
    assert code == 0, out


async def test_health_and_metrics_are_served(stack: Stack) -> None:
    root = stack.base_url.removesuffix("/v1")
    for path in ("/healthz", "/readyz", "/metrics"):
        with await asyncio.to_thread(urlopen, root + path) as answer:
            body = answer.read().decode()
            assert answer.status == 200
    assert "gen_ai_server_time_to_first_token_seconds" in body
