"""The bare engine of transformers_gpu: its library with nothing around it, in a process of its own, and the closed loop
that both sides answer."""

import asyncio
import json
import os
import random
import sys
import threading
import time
from typing import Any

from inferbus_worker.engines.transformers_batching import batching_of
from inferbus_worker.engines.transformers_weights import weights_of


def prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(300, vocabulary) for _ in range(length)] for _ in range(count)]


class Loop:
    """A closed loop: so many at once, the next when one has ended. ``ask(number)`` begins one."""

    def __init__(self, ask: Any, concurrent: int, total: int) -> None:
        self._ask = ask
        self._left = iter(range(concurrent, total))
        self._total = total
        self._first: dict[int, float] = {}
        self._asked: dict[int, float] = {}
        self.tokens = 0
        self.ended = 0
        self.done = threading.Event()
        self.started = time.perf_counter()
        for number in range(concurrent):
            self._begin(number)

    def _begin(self, number: int) -> None:
        self._asked[number] = time.perf_counter()
        self._ask(number)

    def got(self, number: int, tokens: int) -> None:
        self._first.setdefault(number, time.perf_counter())
        self.tokens += tokens

    def end(self) -> None:
        self.ended += 1
        if (following := next(self._left, None)) is not None:
            self._begin(following)
        elif self.ended == self._total:
            self.seconds = time.perf_counter() - self.started
            self.done.set()

    def result(self) -> dict[str, Any]:
        first = [self._first[number] - self._asked[number] for number in self._first]
        return {"seconds": self.seconds, "tokens": self.tokens, "ttft": first}


class BareRouter:
    """The library's results, counted where they are made."""

    def __init__(self) -> None:
        self.loop: Loop | None = None
        self.sent: dict[str, int] = {}

    def deliver_batch(self, outputs: list[Any]) -> None:
        for output in outputs:
            if output.error is not None:
                raise RuntimeError(output.error)
            count = len(output.generated_tokens)
            assert self.loop is not None
            self.loop.got(int(output.request_id), count - self.sent.get(output.request_id, 0))
            self.sent[output.request_id] = count
            if output.is_finished():
                del self.sent[output.request_id]
                self.loop.end()

    def deliver(self, output: Any) -> None:
        self.deliver_batch([output])

    def fail_and_deliver(self, state: Any, error: Exception) -> None:
        raise RuntimeError(f"{state.request_id} failed") from error


def main() -> None:
    """The other process: settings on the first line, then a round a line, and its result on a line."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    router = BareRouter()
    settings = json.loads(sys.stdin.readline())
    batching = batching_of(weights_of(settings), settings, router)
    batching.start()
    print(json.dumps(batching.about()), file=out, flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        asked = prompts(told["total"], told["prompt"], told["vocabulary"], told["seed"])

        def ask(number: int, asked: list[list[int]] = asked, told: dict[str, Any] = told) -> None:
            batching.add(number, told["tokens"], asked[number], {})

        router.loop = Loop(ask, told["concurrent"], told["total"])
        while not router.loop.done.wait(0.5):
            assert batching.is_running(), batching.trouble()
        print(json.dumps(router.loop.result()), file=out, flush=True)
    os._exit(0)


class Bare:
    async def start(self, settings: dict[str, Any]) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.transformers_bare", limit=1 << 24,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.about = await self._say(settings)

    async def _say(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        return json.loads(await self._process.stdout.readline() or b"{}") or sys.exit("the bare engine ended")

    async def round(self, told: dict[str, Any]) -> dict[str, Any]:
        return await self._say(told)

    async def stop(self) -> None:
        self._process.kill()
        await self._process.wait()


if __name__ == "__main__":
    main()
