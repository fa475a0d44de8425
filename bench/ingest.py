"""(d) Tokens a second that one meter process gets from the log into ClickHouse."""

import asyncio
import json
import random
import signal
from time import perf_counter

from inferbus.bus.v1.frame_pb2 import Close, Frame
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_bus.connection import BusConfig
from inferbus_bus.frames import FramePublisher
from inferbus_contracts.ids import uuid7
from inferbus_runtime import clock

from bench.local import running
from bench.measure import cpu_seconds, table
from tests.harness.local import Stack

LENGTH = 128


async def publish(stack: Stack, tokens: int, wide: int) -> None:
    """Frames of ``wide`` one-token deltas, 128 tokens a request, as a worker with that many streams makes them."""
    config = BusConfig(stack.content["nats_url"], "admin", stack.content["nats_seed"])
    publisher = FramePublisher(config, worker=f"bench-{wide}", boot=clock.now_us(), max_unacked=512)
    await publisher.start()
    source = random.Random(1)
    context = RequestContext(tenant_id="bench", project_id="p", key_id="k", model="synthetic", revision="r")
    now = clock.now_us()
    for round_number in range(tokens // (wide * LENGTH)):
        ids = [uuid7(now // 1000, source.randbytes(10)) for _ in range(wide)]
        for index in range(LENGTH):
            now += 20_000
            frame = Frame(edge="bench", time_us=now, contexts=[context], request_ids=b"".join(ids))
            frame.first_index.extend([index] * wide)
            frame.gap_us.extend(source.choices(range(19_000, 21_000), k=wide))
            frame.text_size.extend([5] * wide)
            frame.token_id.extend(source.choices(range(49_152), k=wide))
            frame.text = b"word " * wide
            if index == LENGTH - 1:
                frame.closes.extend(
                    Close(
                        request_id=request_id, attempt=1, finish_reason=FinishReason.FINISH_REASON_LENGTH,
                        usage=Usage(input_tokens=10, output_tokens=LENGTH), engine="synthetic",
                        accepted_time=clock.timestamp(now - LENGTH * 20_000),
                        started_time=clock.timestamp(now - LENGTH * 20_000),
                        first_token_time=clock.timestamp(now - (LENGTH - 1) * 20_000),
                        last_token_time=clock.timestamp(now), end_time=clock.timestamp(now),
                    )
                    for request_id in ids
                )  # fmt: skip
            publisher.publish(frame)
            await publisher.room()
        if round_number % 10 == 0:
            await asyncio.sleep(0)
    await publisher.stop(60)


async def stored(stack: Stack, wide: int) -> int:
    import clickhouse_connect

    where = stack.content["clickhouse"]
    host, port = where["url"].removeprefix("http://").split(":")
    client = await clickhouse_connect.get_async_client(
        host=host, port=int(port), username=where["user"], password=where["password"], database=where["database"]
    )
    try:
        result = await client.query(
            "SELECT count() FROM token_events WHERE tenant_id = 'bench' AND worker = {w:String}",
            parameters={"w": f"bench-{wide}"},
        )
        return int(result.result_rows[0][0])
    finally:
        await client.close()


async def run(tokens: int = 3_000_000) -> str:
    rows = []
    async with running("synthetic") as stack:
        for wide in (64, 256):
            count = tokens // (wide * LENGTH) * wide * LENGTH
            meter = stack.pids["meter"]
            # Held back while the log fills, so that what is timed is the meter and not the publisher.
            import os

            os.kill(meter, signal.SIGSTOP)
            await publish(stack, tokens, wide)
            cpu = {name: cpu_seconds(stack.pids[name]) for name in ("meter", "clickhouse", "nats")}
            os.kill(meter, signal.SIGCONT)
            start = perf_counter()
            while await stored(stack, wide) < count:
                await asyncio.sleep(0.1)
                if perf_counter() - start > 300:
                    raise TimeoutError(json.dumps({"stored": await stored(stack, wide), "of": count}))
            wall = perf_counter() - start
            used = {name: cpu_seconds(stack.pids[name]) - before for name, before in cpu.items()}
            parts = " · ".join(f"{name} {seconds * 1e6 / count:.2f}" for name, seconds in used.items())
            rows.append([wide, f"{count:,}", f"{wall:.1f}", f"{count / wall:,.0f}", parts])
    return table(
        "(d) One meter process, TOKENS into ClickHouse",
        ["deltas a frame", "tokens", "seconds", "tokens/s", "CPU us per token by process"],
        rows,
    )
