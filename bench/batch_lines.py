"""Lines a second of a batch of short lines, beside the bare engine that is given the same requests."""

import asyncio
import json
import subprocess
import sys
from datetime import timedelta
from time import perf_counter

from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage
from inferbus.bus.v1.request_pb2 import Sampling as WireSampling
from inferbus.worker.v1.worker_pb2 import GenerateRequest
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_runtime import rpc
from inferbus_worker.config import Config, SyntheticConfig
from inferbus_worker.engine import Chat, Generation, Message, Sampling
from inferbus_worker.engines.synthetic import Synthetic

from bench.local import running
from bench.measure import cpu_seconds, table
from tests.harness.batches import Batches, chat_line
from tests.harness.local import Stack

SLOTS, TOKENS = 64, 20
ITL = timedelta(milliseconds=5)
SETTINGS = {"INFERBUS_WORKER_CAPACITY": str(SLOTS), "INFERBUS_WORKER_SYNTHETIC__ITL": "5ms"}


async def bare(lines: int) -> float:
    """Seconds that the engine takes with nothing around it, its slots always full."""
    engine = Synthetic.from_config(
        Config(name="bench", engine="synthetic", capacity=SLOTS, synthetic=SyntheticConfig(itl=ITL))
    )
    await engine.start()
    todo = iter(range(lines))

    def submit() -> None:
        number = next(todo, None)
        if number is not None:
            key = number.to_bytes(16, "big")
            engine.submit(Generation(key, Chat((Message("user", "go"),)), Sampling(max_tokens=TOKENS)))

    start = perf_counter()
    for _ in range(SLOTS):
        submit()
    done = 0
    async for step in engine.steps():
        for _ in step.finished:
            done += 1
            submit()
        if done >= lines:
            break
    took = perf_counter() - start
    await engine.stop()
    return took


async def direct(stack: Stack, lines: int) -> float:
    """Seconds that the worker takes for calls of its Generate, as many at a time as it has slots."""
    token = (stack.home / "secrets" / "rpc-token").read_text().strip()
    request = GenerateRequest(
        chat=ChatInput(messages=[ChatMessage(role="user", content="go")]), sampling=WireSampling(max_tokens=TOKENS)
    )
    todo = iter(range(lines))
    async with rpc.channel(stack.content["services"]["worker-0"]["grpc"], token) as channel:
        worker = WorkerServiceStub(channel)

        async def client() -> None:
            for _ in todo:
                ended = False
                async for said in worker.Generate(request):
                    ended = bool(said.finish_reason)
                assert ended

        start = perf_counter()
        await asyncio.gather(*(client() for _ in range(SLOTS)))
        return perf_counter() - start


async def batch(lines: int) -> tuple[float, float, dict[str, float]]:
    """Seconds of the calls of Generate; of the batch, from the first line that may run to the end, files written; CPU
    seconds of each service during the batch."""
    async with running("synthetic", **SETTINGS) as stack:
        batches = Batches(stack)
        await batches.ended((await batches.submit(chat_line(str(n), "synthetic", TOKENS) for n in range(200))).job_id)
        called = await direct(stack, lines)
        before = {name: cpu_seconds(pid) for name, pid in stack.pids.items()}
        job = await batches.submit(chat_line(str(number), "synthetic", TOKENS) for number in range(lines))
        ended = await batches.ended(job.job_id, 600)
        assert ended.completed_line_count == lines
        cpu = {name: cpu_seconds(pid) - before[name] for name, pid in stack.pids.items() if name in before}
        took = (ended.end_time.ToMicroseconds() - ended.active_time.ToMicroseconds()) / 1e6
        return called, took, cpu


async def run(lines: int = 20_000) -> str:
    # In a process of its own: whoever submits the batch must not be measured with the engine.
    said = subprocess.run(
        [sys.executable, "-m", "bench.batch_lines", str(lines)], capture_output=True, text=True, check=True
    )
    alone = float(json.loads(said.stdout))
    called, took, cpu = await batch(lines)
    each = ", ".join(f"{name} {1e6 * seconds / lines:.0f}" for name, seconds in sorted(cpu.items()) if seconds > 0.05)
    rows = [
        ("bare engine", f"{alone:.1f}", f"{lines / alone:.0f}"),
        ("worker's Generate, client beside it", f"{called:.1f}", f"{lines / called:.0f}"),
        ("as a batch", f"{took:.1f}", f"{lines / took:.0f}"),
    ]
    return "\n".join((
        "## Lines a second of a batch",
        "",
        f"{lines} lines of {TOKENS} tokens on one synthetic worker with {SLOTS} slots and steps of 5 ms; from the "
        "moment at which lines may run until both files are there.",
        "",
        table("", ("", "seconds", "lines a second"), rows),
        f"{alone / took:.2f} of the bare engine, {called / took:.2f} of the worker's Generate. CPU microseconds a "
        f"line of the batch: {each}.",
    ))  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(asyncio.run(bare(int(sys.argv[1])))))
