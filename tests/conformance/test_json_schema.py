"""Structured output at temperature 1: 200 schemas of growing difficulty, and 50 that are refused."""

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import jsonschema
import openai
import pytest

from tests.conformance import schemas
from tests.conformance.clients import MODEL, openai_client
from tests.harness.local import Stack

CONCURRENCY = 8
MAX_TOKENS = 900
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(z|[+-]([01]\d|2[0-3]):[0-5]\d)", re.ASCII | re.I)
FORMATS = jsonschema.FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))


@FORMATS.checks("time")
def _is_time(value: Any) -> bool:
    return not isinstance(value, str) or _TIME.fullmatch(value) is not None


@FORMATS.checks("date-time", raises=ValueError)
def _is_date_time(value: Any) -> bool:
    if not isinstance(value, str):
        return True
    day, _, time = value.replace("t", "T").partition("T")
    return datetime.strptime(day, "%Y-%m-%d") is not None and _TIME.fullmatch(time) is not None  # noqa: DTZ007


def fault_in(text: str, schema: dict[str, Any]) -> str:
    """What somebody else's validator says against the answer; empty: nothing."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"no JSON: {error}"
    faults = jsonschema.Draft202012Validator(schema, format_checker=FORMATS).iter_errors(value)
    return "; ".join(f"{fault.json_path}: {fault.message}" for fault in faults)


async def answered(client: openai.AsyncOpenAI, case: schemas.Case) -> str:
    """How the answer to one schema is wrong; empty: it is right. Every other one is streamed."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Give a short example."}],
        "temperature": 1,
        "seed": case.number,
        "max_completion_tokens": MAX_TOKENS,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": f"case_{case.number}", "schema": case.schema, "strict": case.strict},
        },
    }
    if case.number % 2:
        text, finish = "", None
        async for chunk in await client.chat.completions.create(**body, stream=True):
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
    else:
        answer = await client.chat.completions.create(**body)
        text, finish = answer.choices[0].message.content or "", answer.choices[0].finish_reason
    if finish != "stop":
        return f"ended by {finish} after {text[:2000]}"
    fault = fault_in(text, case.schema)
    return f"{fault} in {text[:1000]}" if fault else ""


async def wrong_answers(client: openai.AsyncOpenAI, numbers: Iterable[int]) -> list[str]:
    gate = asyncio.Semaphore(CONCURRENCY)
    client = client.with_options(timeout=600)  # they share the machine's cores

    async def one(number: int) -> str:
        case = schemas.case(number)
        async with gate:
            fault = await answered(client, case)
        return fault and f"schema {number} ({json.dumps(case.schema, ensure_ascii=False)}): {fault}"

    return [fault for fault in await asyncio.gather(*map(one, numbers)) if fault]


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([0, 50, 100, 150], id="4"),  # a minute; the hardest take many
        pytest.param(range(schemas.COUNT), id="200", marks=pytest.mark.soak),
    ],
)
@pytest.mark.timeout(1200)
async def test_every_answer_at_temperature_1_parses_and_validates(
    client: openai.AsyncOpenAI, numbers: Sequence[int]
) -> None:
    faults = await wrong_answers(client, numbers)
    assert not faults, "\n".join(faults)


async def test_50_bad_schemas_are_50_clear_errors_and_the_worker_serves_on(
    stack: Stack, client: openai.AsyncOpenAI
) -> None:
    formats = list(schemas.bad_formats())
    assert len(formats) == 50
    worker = stack.pids["worker-0"]
    messages = [{"role": "user", "content": "x"}]
    # No model is asked: the edge at the other side of a dead end says so as well.
    async with openai_client(stack, 1) as other:
        for number, (wrong, bad, param) in enumerate(formats):
            with pytest.raises(openai.BadRequestError) as error:
                await (other if number % 2 else client).chat.completions.create(
                    model=MODEL, messages=messages, response_format=bad, max_completion_tokens=20
                )
            body: Any = error.value.body
            assert (body["param"] or "").startswith(param), (wrong, body)
            assert len(body["message"]) > 20, (wrong, body)
    assert not await wrong_answers(client, [0])
    assert stack.pids["worker-0"] == worker


async def test_a_hostile_schema_is_followed_or_refused_and_costs_nobody_else_his_answer(
    stack: Stack, client: openai.AsyncOpenAI
) -> None:
    worker = stack.pids["worker-0"]

    async def hostile(wrong: str) -> None:
        schema, beginning = schemas.HOSTILE[wrong]
        form = {"type": "json_schema", "json_schema": {"name": "hostile", "schema": schema}}
        try:
            answer = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "x"}], response_format=form, max_completion_tokens=8
            )
        except openai.BadRequestError as error:
            body: Any = error.body
        else:
            assert re.fullmatch(beginning, answer.choices[0].message.content or "", re.DOTALL), (wrong, answer)
            return
        assert (body["param"] or "").startswith("response_format"), (wrong, body)
        assert len(body["message"]) < 400, (wrong, body)
        assert "<state>" not in body["message"], (wrong, body)

    async def honest() -> str:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Count to ten."}], temperature=0, max_completion_tokens=8
        )
        return answer.choices[0].message.content or ""

    expected = await honest()
    _, others = await asyncio.gather(
        asyncio.gather(*map(hostile, schemas.HOSTILE)), asyncio.gather(*(honest() for _ in range(3)))
    )
    assert others == [expected] * 3
    assert stack.pids["worker-0"] == worker
