"""A key's limit of requests a minute, asked for at two edges at twice its rate: both together let the limit pass."""

import asyncio
import math
from collections import Counter

import httpx2 as httpx
import pytest

from tests.conformance.clients import SECONDS
from tests.harness.local import Stack

BODY = {"model": "synthetic", "messages": [{"role": "user", "content": "go"}], "max_tokens": 1}


async def offered(stack: Stack, key: str, per_second: float, seconds: float) -> Counter[int]:
    """How many requests got which status: sent at even times, whatever comes back, to each edge in turn."""
    statuses: Counter[int] = Counter()
    urls = stack.edge_urls
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(headers=headers, timeout=SECONDS) as http, asyncio.TaskGroup() as group:

        async def one(number: int) -> None:
            answer = await http.post(f"{urls[number % len(urls)]}/chat/completions", json=BODY)
            statuses[answer.status_code] += 1
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "rate_limit_exceeded"
                assert int(answer.headers["retry-after"]) >= 1
                assert int(answer.headers["x-ratelimit-limit-requests"]) > 0

        clock = asyncio.get_running_loop().time
        due = clock()
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, due - clock()))
            # What a machine that stood still has missed is not made up for at once.
            due = max(due + 1 / per_second, clock() - 0.2)
            group.create_task(one(number))
    return statuses


@pytest.mark.parametrize(
    ("per_minute", "minutes"),
    # Within the short one's time the minute does not pass, so that one limit's worth of requests gets through.
    [pytest.param(120, 0.25, id="short"), pytest.param(600, 3, id="soak", marks=pytest.mark.soak)],
)
@pytest.mark.timeout(400)
async def test_two_edges_hold_one_limit_together(fast_stack: Stack, per_minute: int, minutes: float) -> None:
    key = await fast_stack.new_key(limits={"requests_per_minute": per_minute})
    rate = 20.0  # twice 600 a minute; the short one's limit is reached in six seconds
    statuses = await offered(fast_stack, key, rate, minutes * 60)
    assert statuses.keys() == {200, 429}
    limit = per_minute * math.ceil(minutes)
    print(f"\n{statuses[200]} of {sum(statuses.values())} accepted, {limit} allowed")
    assert statuses[200] == pytest.approx(limit, rel=0.05)
