"""(d) Tokens a second that meters get from the log into ClickHouse, and how soon a token is on a bill."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from time import perf_counter
from uuid import UUID

from clickhouse_connect import get_async_client
from clickhouse_connect.driver.asyncclient import AsyncClient
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


@asynccontextmanager
async def store(stack: Stack) -> AsyncIterator[AsyncClient]:
    where = stack.content["clickhouse"]
    host, port = where["url"].removeprefix("http://").split(":")
    client = await get_async_client(
        host=host, port=int(port), username=where["user"], password=where["password"], database=where["database"]
    )
    try:
        yield client
    finally:
        await client.close()


async def stored(client: AsyncClient, wide: int) -> int:
    result = await client.query(
        "SELECT count() FROM token_events WHERE tenant_id = 'bench' AND worker = {w:String}",
        parameters={"w": f"bench-{wide}"},
    )
    return int(result.result_rows[0][0])


def signal_all(pids: Iterable[int], which: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, which)


async def throughput(meters: int, wide: int, tokens: int) -> list[str | int]:
    """A stack of its own: the log of another measurement would be in its tables."""
    async with running("synthetic", "--meters", str(meters)) as stack, store(stack) as client:
        count = tokens // (wide * LENGTH) * wide * LENGTH
        pids = {name: pid for name, pid in stack.pids.items() if name.partition("-")[0] == "meter"}
        # Held back while the log fills, so that what is timed is the meters and not the publisher.
        signal_all(pids.values(), signal.SIGSTOP)
        await publish(stack, tokens, wide)
        watched = pids | {name: stack.pids[name] for name in ("clickhouse", "nats")}
        cpu = {name: cpu_seconds(pid) for name, pid in watched.items()}
        signal_all(pids.values(), signal.SIGCONT)
        start = perf_counter()
        while (now := await stored(client, wide)) < count:
            await asyncio.sleep(0.1)
            if perf_counter() - start > 300:
                raise TimeoutError(f"{now} of {count} stored")
        wall = perf_counter() - start
        used: dict[str, float] = {}
        for name, pid in watched.items():
            kind = name.partition("-")[0]
            used[kind] = used.get(kind, 0.0) + cpu_seconds(pid) - cpu[name]
        parts = " · ".join(f"{name} {seconds * 1e6 / count:.2f}" for name, seconds in used.items())
        return [
            meters,
            wide,
            f"{count:,}",
            f"{wall:.1f}",
            f"{count / wall:,.0f}",
            f"{count / used['meter']:,.0f}",
            parts,
        ]


async def freshness(meters: int, seconds: float, rate: int = 50) -> list[str | int]:
    """``rate`` requests a second of one token each, beside what else the stack does; from the publish until the view of
    bills has it, looked at every 20 ms."""
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}
    context = RequestContext(tenant_id="probe", project_id="p", key_id="k", model="synthetic", revision="r")

    async def send(publisher: FramePublisher) -> None:
        source = random.Random(2)
        for _ in range(int(seconds * rate)):
            now = clock.now_us()
            request_id = uuid7(now // 1000, source.randbytes(10))
            frame = Frame(edge="bench", time_us=now, contexts=[context], request_ids=request_id)
            frame.first_index.append(0)
            frame.gap_us.append(1000)
            frame.token_id.append(1)
            frame.closes.add(
                request_id=request_id, attempt=1, finish_reason=FinishReason.FINISH_REASON_STOP,
                usage=Usage(input_tokens=1, output_tokens=1), engine="synthetic", accepted_time=clock.timestamp(now),
                end_time=clock.timestamp(now),
            )  # fmt: skip
            publisher.publish(frame)
            sent[str(UUID(bytes=request_id))] = perf_counter()
            await asyncio.sleep(source.expovariate(rate))

    async with running("synthetic", "--meters", str(meters)) as stack, store(stack) as client:
        config = BusConfig(stack.content["nats_url"], "admin", stack.content["nats_seed"])
        publisher = FramePublisher(config, worker="bench-probe", boot=clock.now_us())
        await publisher.start()
        sending = asyncio.create_task(send(publisher))
        while not sending.done() or len(seen) < len(sent):
            asked = perf_counter()
            result = await client.query("SELECT toString(request_id) FROM bills WHERE tenant_id = 'probe'")
            for (request_id,) in result.result_rows:
                seen.setdefault(request_id, perf_counter())
            await asyncio.sleep(max(0.0, asked + 0.02 - perf_counter()))
        await publisher.stop(10)
    ages = sorted(seen[request_id] - begun for request_id, begun in sent.items())
    return [meters, len(ages), *(f"{ages[int(len(ages) * part)]:.2f}" for part in (0.5, 0.95, 0.99)), f"{ages[-1]:.2f}"]


async def run(tokens: int = 3_000_000, seconds: float = 30.0) -> str:
    rows = [await throughput(meters, wide, tokens) for meters in (1, 2) for wide in (64, 256)]
    speed = table(
        "(d) TOKENS into ClickHouse",
        ["meters", "deltas a frame", "tokens", "seconds", "tokens/s", "tokens/s and core of a meter",
         "CPU us per token by process"],
        rows,
    )  # fmt: skip
    ages = [await freshness(meters, seconds) for meters in (1, 2)]
    return f"{speed}\n" + table(
        "(d) From the log to the bill, seconds", ["meters", "requests", "p50", "p95", "p99", "longest"], ages
    )
