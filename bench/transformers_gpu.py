"""Thousands of tokens a second of a real GPU: a worker and its bus, beside the bare engine in the same run.

    python -m bench.transformers_gpu --shape llama-3.2-1b --concurrent 64,256

Both sides load the same random weights of a real model's shape, and answer the same closed loop of prompts of random
ids, greedily, round by round in turn. The platform is nats-server with durable frames and a worker; this process hands
out work and reads the frames as an edge does. No edge, scheduler, meter or ClickHouse runs. The bare side is the same
library with the same settings and nothing around it. Needs PyTorch, transformers (make transformers) and both sides'
models in memory at once; ``--shape tiny`` runs on a CPU.
"""

import argparse
import asyncio
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.frames import FrameReader
from inferbus_bus.publish import Publisher
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.ids import uuid7
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer
from inferbus_worker.config import Config, TransformersConfig
from inferbus_worker.engines.transformers_files import read
from inferbus_worker.engines.transformers_process import child_settings

from bench import transformers_shapes
from bench.measure import cpu_seconds, keep, machine, percentile, table
from bench.transformers_bare import Bare, Loop, prompts

WORKER, EDGE = "worker-bench", "edge-bench"


class Platform:
    """nats-server, a worker, and this process in the place of scheduler and edge."""

    async def start(self, stack: AsyncExitStack, folder: Path, variables: dict[str, str]) -> None:
        self.nats = await stack.enter_async_context(NatsServer(folder / "nats"))
        async with connect(BusConfig(self.nats.url, "admin")) as admin:
            await ensure_streams(admin)
        bus = await stack.enter_async_context(connect(BusConfig(self.nats.url, "bench")))
        self._publisher = Publisher(bus)
        await self._publisher.start()
        self._reader = FrameReader(bus, edge=EDGE, on_frame=self._take)
        await self._reader.start()
        stack.push_async_callback(self._reader.stop)
        ready = folder / "worker.json"
        environ = {
            f"INFERBUS_WORKER_{name}": value
            for name, value in (variables | {"NATS_URL": self.nats.url, "READY_FILE": str(ready)}).items()
        }
        self.worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inferbus_worker", env=os.environ | environ
        )
        stack.push_async_callback(self._end)
        while not ready.exists():
            assert self.worker.returncode is None, "the worker did not start"
            await asyncio.sleep(0.1)

    async def _end(self) -> None:
        self.worker.terminate()
        await self.worker.wait()

    async def round(self, told: dict[str, Any]) -> dict[str, Any]:
        asked = prompts(told["total"], told["prompt"], told["vocabulary"], told["seed"])
        self._numbers: dict[bytes, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failed = ""

        def ask(number: int) -> None:
            request = GenerateRequest(
                request_id=uuid7(clock.now_us() // 1000, os.urandom(10)), edge=EDGE,
                accepted_time=clock.timestamp(clock.now_us()),
            )  # fmt: skip
            request.context.tenant_id, request.context.model = "bench", "bench"
            request.prompt.tokens.ids.extend(asked[number])
            request.sampling.temperature, request.sampling.max_tokens = 0.0, told["tokens"]
            self._numbers[request.request_id] = number
            work = Work(request=request, worker=WORKER, placed_time=clock.timestamp(clock.now_us()))
            task = asyncio.create_task(self._publisher.publish(work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        before = self._cpu()
        self._loop = Loop(ask, told["concurrent"], told["total"])
        while not self._loop.done.is_set():
            assert not self._failed, self._failed
            await asyncio.sleep(0.01)
        used = {name: seconds - before[name] for name, seconds in self._cpu().items()}
        return self._loop.result() | {"cpu": used}

    def _take(self, frame: Frame, _: int) -> None:
        for at in range(len(frame.first_index)):
            count = frame.token_count[at] if frame.token_count else 1
            self._loop.got(self._numbers[frame.request_ids[16 * at : 16 * at + 16]], count)
        for close in frame.closes:
            if close.HasField("error"):
                self._failed = str(close.error)
            self._loop.end()

    def _cpu(self) -> dict[str, float]:
        child = psutil.Process(self.worker.pid).children()[0]
        return {
            "worker": cpu_seconds(self.worker.pid, children=False),
            "broker": cpu_seconds(self.nats.pid),
            "engine": cpu_seconds(child.pid),
            "reader": time.process_time(),
        }


async def run(shape: str, levels: list[int], rounds: int, each: int, prompt: int, tokens: int, section: Any) -> str:
    vocabulary = transformers_shapes.SHAPES[shape]["vocab_size"]
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = transformers_shapes.write(folder / "model", shape)
        settings = {"model_path": model, "random_weights": True, "samples": False, **section}
        most = max(levels)
        settings["kv_tokens"] = settings.get("kv_tokens") or max(2048, int(1.25 * most * (prompt + tokens + 256)))
        config = Config(name=WORKER, engine="transformers", capacity=most, transformers=TransformersConfig(**settings))
        variables = {"NAME": WORKER, "ENGINE": "transformers", "CAPACITY": str(most)}
        variables |= {f"TRANSFORMERS__{key.upper()}": str(value) for key, value in settings.items()}
        async with AsyncExitStack() as stack:
            platform, alone = Platform(), Bare()
            await platform.start(stack, folder, variables)
            await alone.start(child_settings(config, read(config.transformers)))
            stack.push_async_callback(alone.stop)
            rows = []
            for level in levels:
                told = {"concurrent": level, "prompt": prompt, "tokens": tokens, "vocabulary": vocabulary, "seed": 0}
                for side in (alone, platform):  # kernels are chosen, and graphs captured, at each size once
                    await side.round(told | {"total": level, "tokens": min(tokens, 16)})
                told["total"] = each * level
                found: dict[Any, list[dict[str, Any]]] = {alone: [], platform: []}
                for number in range(rounds):
                    for side in (alone, platform) if number % 2 == 0 else (platform, alone):
                        result = await side.round(told | {"seed": number})
                        assert result["tokens"] == told["total"] * tokens, "both sides do the same work"
                        found[side].append(result)
                rows.append(_row(level, found[alone], found[platform]))
            about = ", ".join(f"{key} {value}" for key, value in alone.about.items())
    columns = [
        "concurrent", "bare tokens/s", "platform tokens/s", "platform / bare", "TTFT p50 bare, ms", "TTFT p50, ms",
        "TTFT p99 bare, ms", "TTFT p99, ms", "worker CPU, µs/token", "broker CPU, µs/token", "reader CPU, µs/token",
    ]  # fmt: skip
    title = f"{shape}, random weights, {prompt} tokens in, {tokens} out, {rounds} rounds a side ({about})"
    return table(title, columns, rows)


def _row(level: int, bare: list[dict[str, Any]], ours: list[dict[str, Any]]) -> list[str]:
    def speed(some: list[dict[str, Any]]) -> float:
        return median(one["tokens"] / one["seconds"] for one in some)

    def ttft(some: list[dict[str, Any]], share: float) -> str:
        return f"{1000 * percentile([one for round_ in some for one in round_['ttft']], share):.1f}"

    def cpu(name: str) -> str:
        return f"{1e6 * sum(one['cpu'][name] for one in ours) / sum(one['tokens'] for one in ours):.1f}"

    return [
        str(level), f"{speed(bare):.0f}", f"{speed(ours):.0f}", f"{speed(ours) / speed(bare):.3f}", ttft(bare, 0.5),
        ttft(ours, 0.5), ttft(bare, 0.99), ttft(ours, 0.99), cpu("worker"), cpu("broker"), cpu("reader"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(transformers_shapes.SHAPES), default="llama-3.2-1b")
    parser.add_argument("--concurrent", default="16,64,256", help="generations at once, several by commas")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, in turn")
    parser.add_argument("--each", type=int, default=3, help="generations one after the other, in each place of a round")
    parser.add_argument("--prompt", type=int, default=128, help="tokens in")
    parser.add_argument("--tokens", type=int, default=256, help="tokens out")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE", help="of the engine's section")
    parser.add_argument("--keep", action="store_true", help="write the table under results/")
    options = parser.parse_args()
    section = dict(one.split("=", 1) for one in options.set)
    levels = [int(one) for one in options.concurrent.split(",")]
    text = asyncio.run(
        run(options.shape, levels, options.rounds, options.each, options.prompt, options.tokens, section)
    )
    print(machine())
    print(text)
    if options.keep:
        print("kept in", keep("transformers", text))


if __name__ == "__main__":
    main()
