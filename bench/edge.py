"""What one edge process does: unary requests a second, what it adds between tokens, memory of a silent stream.

The load generator runs on core 0 with nothing else pinned there; everything that is measured runs on core 1.
"""

import asyncio
import os
import sys

import clickhouse_connect
import psutil
from inferbus_stack.nats import free_port

from bench.cost import ITL, LOAD_CORE, MEASURED_CORE, STREAM, UNARY, listening, settled, window
from bench.load import Answer, closed_loop, connect, request_bytes
from bench.local import running
from bench.measure import percentile, pin, table
from tests.harness.local import Stack

_SAMPLE = 400


async def unary(seconds: float) -> str:
    """One edge, and a bare aiohttp handler that parses the same body and answers at once."""
    rows = []
    async with running(
        "synthetic", INFERBUS_WORKER_SYNTHETIC__ITL="1ms", INFERBUS_WORKER_SYNTHETIC__PREFILL="0s"
    ) as stack:
        pids = await settled(stack)
        for concurrency in (16, 64):
            found = await window(pids, stack.chat_url, stack.api_key, UNARY, concurrency, seconds, 0)
            rows.append(_rate("edge (of the whole path)", concurrency, found.requests, found.wall, found.cpu["edge"]))
    port = free_port()
    bare = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.proxy", "upstream", str(port), str(ITL))
    try:
        await listening(port)
        pin([bare.pid], MEASURED_CORE)
        for concurrency in (16, 64):
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            found = await window({"bare": bare.pid}, url, "-", UNARY, concurrency, seconds, 0)
            rows.append(_rate("bare aiohttp handler", concurrency, found.requests, found.wall, found.cpu["bare"]))
    finally:
        bare.terminate()
        await bare.wait()
    return table(
        "Unary requests, one process",
        ["process", "concurrent", "requests/s measured", "CPU ms a request", "requests/s that its CPU time allows"],
        rows,
    )


def _rate(name: str, concurrency: int, requests: int, wall: float, cpu: float) -> list[object]:
    return [
        name, concurrency, f"{requests / wall:,.0f}", f"{cpu / requests * 1000:.3f}", f"{requests / cpu:,.0f}",
    ]  # fmt: skip


async def engine_gaps(stack: Stack, ids: list[str]) -> dict[str, list[float]]:
    """request id -> seconds between its tokens when the engine made them. Waits for the meter."""
    where = stack.content["clickhouse"]
    host, port = where["url"].removeprefix("http://").split(":")
    client = await clickhouse_connect.get_async_client(
        host=host, port=int(port), username=where["user"], password=where["password"], database=where["database"]
    )
    found: dict[str, list[float]] = {}
    for _ in range(40):
        result = await client.query(
            "SELECT toString(request_id), arrayMap(x -> x.2 / 1e6, arraySort(groupArray((index, gap_us)))) "
            "FROM token_events WHERE request_id IN {ids:Array(UUID)} AND index > 0 GROUP BY request_id",
            parameters={"ids": ids},
        )
        found = {row[0]: list(row[1]) for row in result.result_rows}
        if len(found) >= len(ids):
            break
        await asyncio.sleep(0.5)
    await client.close()
    return found


async def gaps(levels: tuple[int, ...], seconds: float) -> str:
    rows = []
    async with running("synthetic", INFERBUS_WORKER_SYNTHETIC__ITL=f"{ITL}s", INFERBUS_WORKER_CAPACITY="1200") as stack:
        await settled(stack)
        for streams in levels:
            answers = await closed_loop(
                stack.chat_url, stack.api_key, STREAM, concurrency=streams, seconds=seconds, spread=128 * ITL
            )
            rows.append(await _added(stack, streams, answers))
    return table(
        f"Time between tokens, one every {ITL * 1000:g} ms and stream: at the client, at the engine",
        ["streams", "tokens compared", "client p50 / p99 ms", "engine p50 / p99 ms", "added per gap p50 / p99 ms"],
        rows,
    )


async def _added(stack: Stack, streams: int, answers: list[Answer]) -> list[object]:
    """Gap by gap; streams in which two tokens came in one piece have no gap for each token and are left out."""
    good = [one for one in answers if one.status == 200 and len(one.gaps) == STREAM["max_tokens"] - 1][:_SAMPLE]
    made = await engine_gaps(stack, [one.request_id for one in good])
    pairs = [(seen, said) for one in good for seen, said in zip(one.gaps, made.get(one.request_id, []), strict=False)]
    client, engine = [seen * 1000 for seen, _ in pairs], [said * 1000 for _, said in pairs]
    added = [(seen - said) * 1000 for seen, said in pairs]
    return [streams, len(pairs), *(_percentiles(one) for one in (client, engine, added))]


def _percentiles(values: list[float]) -> str:
    return f"{percentile(values, 0.5):.2f} / {percentile(values, 0.99):.2f}"


async def memory(streams: int) -> str:
    """Streams that have had their first token and wait for the second for a long time."""
    async with running(
        "synthetic", INFERBUS_WORKER_SYNTHETIC__ITL="20s", INFERBUS_WORKER_SYNTHETIC__PREFILL="0s",
        INFERBUS_WORKER_CAPACITY=str(streams + 100),
    ) as stack:  # fmt: skip
        edge = psutil.Process(stack.pids["edge"])
        request = request_bytes(stack.chat_url, stack.api_key, STREAM)
        connections = [await connect(stack.chat_url) for _ in range(64)]
        warm = [connection.ask(request) for connection in connections]
        await _first_tokens(connections)
        before = edge.memory_info().rss
        more = [await connect(stack.chat_url) for _ in range(streams)]
        warm += [connection.ask(request) for connection in more]
        await _first_tokens(more)
        grown = edge.memory_info().rss - before
        for connection in (*connections, *more):
            connection.transport.close()  # type: ignore[union-attr]
        await asyncio.gather(*warm, return_exceptions=True)
    return table(
        "Memory of a silent stream at the edge",
        ["streams", "edge before, MiB", "grown by, MiB", "KiB a stream"],
        [[streams, f"{before / 2**20:.0f}", f"{grown / 2**20:.1f}", f"{grown / 1024 / streams:.1f}"]],
    )


async def _first_tokens(connections: list) -> None:
    async with asyncio.timeout(60):
        while any(not getattr(one, "first", 0.0) for one in connections):
            await asyncio.sleep(0.1)


async def run(seconds: float = 6.0, levels: tuple[int, ...] = (64, 256, 1000), streams: int = 1000) -> str:
    psutil.Process(os.getpid()).cpu_affinity(LOAD_CORE)
    try:
        parts = [await unary(seconds / 2), await gaps(levels, seconds)]
    finally:
        psutil.Process(os.getpid()).cpu_affinity(list(range(psutil.cpu_count() or 1)))
    return "\n".join([*parts, await memory(streams)])
