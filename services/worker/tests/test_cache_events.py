"""What a worker tells schedulers of its KV cache, as one of them hears it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.control_pb2 import CacheEvents
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_contracts.prefixes import hashes_of, prefix_of
from inferbus_stack.nats import NatsServer
from inferbus_worker.cache_events import CacheTeller
from inferbus_worker.core.prefix_cache import PrefixCache


class Listener:
    """A scheduler that hears one worker. ``news``: how often it was told all, had missed nothing, and learned by it."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self.heard: list[CacheEvents] = []
        self.known: set[int] = set()
        self.news = 0
        self._moved = asyncio.Event()

    def take(self, events: CacheEvents) -> None:
        if events.worker != self.worker:
            return
        self.heard.append(events)
        before = set(self.known)
        if events.all:
            self.known.clear()
        self.known |= set(hashes_of(events.stored))
        self.known -= set(hashes_of(events.removed))
        last = self.heard[-2] if len(self.heard) > 1 else CacheEvents()
        if events.all and (events.boot, events.sequence) == (last.boot, last.sequence + 1):
            self.news += self.known != before
        self._moved.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self._moved.clear()
                await self._moved.wait()


@pytest.fixture
async def listening(bus: Bus) -> AsyncIterator[Callable[[str], Any]]:
    stops = []

    async def listen(worker: str) -> Listener:
        listener = Listener(worker)
        stops.append(await bus.subscribe(CacheEvents, listener.take))
        await bus.nc.flush()
        return listener

    yield listen
    for stop in stops:
        await stop()


async def test_all_is_told_first_then_what_changes(bus: Bus, listening: Any) -> None:
    listener, prefixes, boots = await listening("changing"), PrefixCache(100), [7]
    prefixes.hold("before", (1, 2))
    task = asyncio.create_task(CacheTeller(bus, "changing", lambda: boots[-1], prefixes).run())
    await listener.until(lambda: listener.known == {1, 2})
    prefixes.hold("one", (2, 3))
    await listener.until(lambda: listener.known == {1, 2, 3})
    prefixes.drop("before")
    await listener.until(lambda: listener.known == {2, 3})
    assert [(one.boot, one.sequence) for one in listener.heard] == [(7, at + 1) for at in range(len(listener.heard))]
    assert listener.heard[0].all
    boots.append(9)
    await listener.until(lambda: listener.heard[-1].boot == 9)
    assert (listener.heard[-1].sequence, listener.heard[-1].all, listener.known) == (1, True, {2, 3})
    task.cancel()


async def test_all_is_no_news_to_who_has_missed_nothing(
    bus: Bus, listening: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferbus_worker.cache_events._ALL_SECONDS", 0.0)
    listener, prefixes = await listening("often"), PrefixCache(100)
    task = asyncio.create_task(CacheTeller(bus, "often", lambda: 1, prefixes).run())
    for number in range(5):
        prefixes.hold("place", (number, number + 1))
        await listener.until(lambda held={number, number + 1}: listener.known == held)
    assert sum(one.all for one in listener.heard) >= 5
    assert listener.news == 0
    task.cancel()


async def test_after_the_broker_was_away_all_is_told_again(tmp_path: Path) -> None:
    async with (
        NatsServer(tmp_path / "nats") as server,
        connect(BusConfig(server.url, "worker")) as bus,
        connect(BusConfig(server.url, "scheduler")) as other,
    ):
        listener, prefixes = Listener("w"), PrefixCache(100)
        await other.subscribe(CacheEvents, listener.take)
        await other.nc.flush()
        task = asyncio.create_task(CacheTeller(bus, "w", lambda: 1, prefixes).run())
        await listener.until(lambda: listener.heard)
        await server.kill()
        prefixes.hold("one", (1, 2))
        async with asyncio.timeout(30):
            while bus.connected:
                await asyncio.sleep(0.01)
        await server.restart()
        await listener.until(lambda: listener.known == {1, 2})
        sequences = [one.sequence for one in listener.heard]
        assert sequences == sorted(set(sequences)), "who misses one sees the gap"
        assert any(one.all for one in listener.heard[1:])
        task.cancel()


async def test_a_worker_tells_what_it_has_read(edge: Any, new_worker: Callable[..., Any], listening: Any) -> None:
    worker = new_worker(SYNTHETIC__KV_BLOCKS="64", CONTEXT_LENGTH="1024")
    listener = await listening(worker.name)
    await worker.start()
    await listener.until(lambda: listener.heard)
    assert (listener.heard[0].sequence, listener.heard[0].all) == (1, True)

    def question(text: str) -> Any:
        request = edge.request(f"{text} " + "and so on and on " * 60)
        request.cache_salt = b"acme"
        request.prefix = prefix_of(request)
        return request

    first, again = question("one"), question("one")
    await edge.closed(await edge.place(worker.name, first))
    await listener.until(lambda: listener.known == set(hashes_of(first.prefix)))
    closed = await edge.place(worker.name, again)
    await edge.closed(closed)
    assert closed.close.usage.cached_input_tokens > 200
    others = [question(f"number {number}") for number in range(6)]
    for other in others:
        await edge.closed(await edge.place(worker.name, other))
    newest = set(hashes_of(others[-1].prefix))
    await listener.until(lambda: newest <= listener.known and len(listener.known) <= 16)
    assert {one.boot for one in listener.heard} == {await edge.incarnation(worker.name)}
    assert [one.sequence for one in listener.heard] == list(range(1, len(listener.heard) + 1))
