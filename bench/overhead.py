"""(a) What the whole path adds to the bare engine: TTFT and total, at 1 and 16 streams.

Each request's own engine time is taken away from what its client saw. The worker measures it between the hand-over to
the engine and the engine's steps (``ttft_us - queue_us`` and ``e2e_us - queue_us`` of the table ``requests``), so the
engine's noise, which is a hundred times the platform's overhead, falls out request by request.
"""

import asyncio

import clickhouse_connect

from bench.load import Answer, closed_loop
from bench.local import running
from bench.measure import percentile, table
from tests.harness.local import Stack

PROMPT = "Tell me a short story about a lighthouse keeper and a cat. "


async def engine_times(stack: Stack, ids: list[str]) -> dict[str, tuple[float, float]]:
    """request id -> (TTFT, total) inside the engine, in seconds. Waits for the meter."""
    where = stack.content["clickhouse"]
    host, port = where["url"].removeprefix("http://").split(":")
    client = await clickhouse_connect.get_async_client(
        host=host, port=int(port), username=where["user"], password=where["password"], database=where["database"]
    )
    found: dict[str, tuple[float, float]] = {}
    for _ in range(40):
        result = await client.query(
            "SELECT toString(request_id), (ttft_us - queue_us) / 1e6, (e2e_us - queue_us) / 1e6 FROM requests "
            "WHERE request_id IN {ids:Array(UUID)}",
            parameters={"ids": ids},
        )
        found = {row[0]: (row[1], row[2]) for row in result.result_rows}
        if len(found) >= len(ids):
            break
        await asyncio.sleep(0.5)
    await client.close()
    return found


def row(name: str, concurrency: int, answers: list[Answer], engine: dict[str, tuple[float, float]]) -> list[object]:
    known = [answer for answer in answers if answer.request_id in engine]
    ttft = [(answer.ttft - engine[answer.request_id][0]) * 1000 for answer in known]
    total = [(answer.total - engine[answer.request_id][1]) * 1000 for answer in known]
    bare = [engine[answer.request_id][0] * 1000 for answer in known]
    return [
        name, concurrency, len(known), f"{percentile(bare, 0.5):.1f}",
        f"{percentile(ttft, 0.5):.2f} / {percentile(ttft, 0.99):.2f}",
        f"{percentile(total, 0.5):.2f} / {percentile(total, 0.99):.2f}",
    ]  # fmt: skip


async def run(seconds: float = 8.0) -> str:
    rows = []
    for engine, model, tokens in (("synthetic", "synthetic", 32), ("llama_cpp", "smollm2-135m-instruct", 16)):
        async with running(engine) as stack:
            body = {
                "model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": True,
                "max_tokens": tokens, "temperature": 0,
            }  # fmt: skip
            await closed_loop(stack.chat_url, stack.api_key, body, concurrency=2, seconds=1.5)
            for concurrency in (1, 16):
                answers = await closed_loop(
                    stack.chat_url, stack.api_key, body, concurrency=concurrency, seconds=seconds, spread=0.5
                )
                good = [answer for answer in answers if answer.status == 200]
                engine_side = await engine_times(stack, [answer.request_id for answer in good])
                rows.append(row(engine, concurrency, good, engine_side))
    return table(
        "(a) Overhead of the whole path over the bare engine",
        ["engine", "streams", "requests", "engine's own TTFT p50, ms", "TTFT added p50 / p99, ms",
         "total added p50 / p99, ms"],
        rows,
    )  # fmt: skip
