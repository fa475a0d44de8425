"""Streams that run while something is done to the platform: each must say what it says undisturbed."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2 as httpx

from tests.harness.asking import audited
from tests.harness.local import Stack
from tests.harness.streams import Form, Told, open_http, told


class Load:
    """``streams`` clients that ask one after the other, each for as long as it is told to; every answer is checked."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient, forms: list[Form], expected: list[str]) -> None:
        self.answers: list[Told] = []
        self._stack, self._http = stack, http
        self._forms, self._expected = forms, expected
        self._ending = asyncio.Event()

    async def run(self, streams: int) -> None:
        await asyncio.gather(*(self._client(number) for number in range(streams)))

    def end(self) -> None:
        self._ending.set()

    async def _client(self, number: int) -> None:
        while not self._ending.is_set():
            which = number % len(self._forms)
            answer = await told(self._http, self._stack.edge_urls, self._stack.api_key, self._forms[which])
            assert answer.refusals == []
            assert self._forms[which].read(answer.data) == self._expected[which]
            self.answers.append(answer)


async def undisturbed(stack: Stack, http: httpx.AsyncClient, forms: list[Form]) -> list[str]:
    return [form.read((await told(http, stack.edge_urls, stack.api_key, form)).data) for form in forms]


@asynccontextmanager
async def loaded(stack: Stack, forms: list[Form], streams: int) -> AsyncIterator[Load]:
    """Streams run inside the context; at its end they finish, and the audit is clean."""
    async with open_http() as http:
        load = Load(stack, http, forms, await undisturbed(stack, http, forms))
        running_load = asyncio.create_task(load.run(streams))
        try:
            await asyncio.sleep(1)
            yield load
        finally:
            load.end()
        await running_load
    await audited(stack)


def gaps(load: Load, deeds: list[tuple[str, float]]) -> dict[str, list[tuple[float, int]]]:
    """By kind of deed: the silence of each stream that ran then, above what is usual, and its length until then."""
    found: dict[str, list[tuple[float, int]]] = {}
    for kind, moment in deeds:
        for answer in load.answers:
            if answer.events and answer.events[0][0] < moment < answer.events[-1][0]:
                silence, before = answer.gap_at(moment)
                if silence > 0.2:
                    found.setdefault(kind, []).append((silence, before))
    return found


def report(found: dict[str, list[tuple[float, int]]]) -> None:
    """For the long runs: one line a kind of deed."""
    for kind, silences in found.items():
        times = sorted(silence for silence, _ in silences)
        at = {f"p{part}_s": round(times[min(len(times) - 1, len(times) * part // 100)], 3) for part in (50, 99)}
        by_length = sorted((before, round(silence, 3)) for silence, before in silences)
        some = by_length[:: max(1, len(by_length) // 8)]
        print(
            json.dumps({"kind": kind, "streams": len(times), **at, "longest_s": round(times[-1], 3), "by_tokens": some})
        )
