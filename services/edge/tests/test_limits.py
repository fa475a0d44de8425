"""Limits over edges that share a real bus."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.control_pb2 import Spend
from inferbus.bus.v1.registry_pb2 import KeyRecord, Limits, ProjectRecord, TenantRecord
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_dialect.errors import error_object, http_status, retry_after_seconds
from inferbus_edge.limits import RateLimitError, RateLimits
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer

_names = itertools.count(1)
NO_PROJECT, NO_TENANT = ProjectRecord(), TenantRecord()


class Told(Bus):
    """Another use of a connection, which knows how often it said something and when it heard whom."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus.config, bus.nc)
        self.said = 0
        self.heard: dict[str, list[float]] = defaultdict(list)

    def send(self, message: Any) -> None:
        super().send(message)
        self.said += self.connected

    async def subscribe(
        self, message_type: type[Any], callback: Callable[[Any], None], to: Any = None
    ) -> Callable[[], Awaitable[None]]:
        def heard(message: Any) -> None:
            at = clock.monotonic()
            callback(message)
            self.heard[message.edge].append(at)

        return await super().subscribe(message_type, heard, to)


@dataclass
class Running:
    name: str
    bus: Told
    limits: RateLimits
    spreading: asyncio.Task[None]

    async def die(self) -> None:
        """It says nothing any more."""
        self.spreading.cancel()
        with suppress(asyncio.CancelledError):
            await self.spreading

    def admits(self, key: KeyRecord, tokens: int = 1) -> bool:
        try:
            self.limits.admit(key, NO_PROJECT, NO_TENANT, tokens)
        except RateLimitError:
            return False
        return True


@asynccontextmanager
async def edge(nats: NatsServer) -> AsyncIterator[Running]:
    name = f"limits-edge-{next(_names)}"
    async with connect(BusConfig(nats.url, name)) as bus:
        told = Told(bus)
        limits = RateLimits(told, edge=name)
        await limits.start()
        await bus.nc.flush()  # from here on it hears all that is said
        running = Running(name, told, limits, asyncio.create_task(limits.run()))
        yield running
        await running.die()


def key_with(**limits: int) -> KeyRecord:
    return KeyRecord(
        key_id=f"key_{next(_names)}", tenant_id=f"t{next(_names)}", project_id="web", limits=Limits(**limits)
    )


def requests_left(running: Running, key: KeyRecord) -> int:
    """Asked so that it is always refused: nothing is spent."""
    asking = KeyRecord()
    asking.CopyFrom(key)
    asking.limits.tokens_per_minute = 0
    with pytest.raises(RateLimitError) as caught:
        running.limits.admit(asking, NO_PROJECT, NO_TENANT, 1)
    return int(caught.value.headers["x-ratelimit-remaining-requests"])


async def until_refused(running: Running, key: KeyRecord, seconds: float = 30.0) -> RateLimitError:
    """The refusal, once it comes, of a key without a limit on requests: asking spends no tokens and ends at once."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                running.limits.admit(key, NO_PROJECT, NO_TENANT, 0).settle(0)
            except RateLimitError as error:
                return error
            await asyncio.sleep(0.02)


async def test_two_edges_hold_a_limit_together(nats_server: NatsServer) -> None:
    """Each edge alone would let all pass. What they pass over is at most what the other accepted within a second: in
    60 rounds, which take no less. A broker that stands still holds up the rounds as well."""
    limit, key = 150, key_with(requests_per_minute=150)
    accepted: list[tuple[int, int]] = []
    async with edge(nats_server) as one, edge(nats_server) as two:
        for at in range(140):
            async with asyncio.timeout(30):
                while any(len(it.bus.heard[by.name]) < by.bus.said for it, by in ((one, two), (two, one))):
                    await asyncio.sleep(0.001)
            for number, running in enumerate((one, two)):
                if running.admits(key):
                    accepted.append((at, number))
            await asyncio.sleep(0.015)
    last, at_edge = accepted[-1]
    unheard = [who for then, who in accepted if who != at_edge and then > last - 60]
    assert limit <= len(accepted) <= limit + len(unheard) < 280


async def test_a_new_edge_learns_the_last_minute_and_running_requests(nats_server: NatsServer) -> None:
    key, busy = key_with(tokens_per_minute=1000), key_with(concurrent_requests=1)
    async with edge(nats_server) as old:
        old.limits.admit(key, NO_PROJECT, NO_TENANT, 1000)
        old.limits.admit(busy, NO_PROJECT, NO_TENANT, 1)
        await asyncio.sleep(0.3)  # said before the new one listens
        async with edge(nats_server) as new:
            assert "tokens per min (TPM): Limit 1000, Used 1000" in (await until_refused(new, key)).message
            assert "concurrent requests: Limit 1, Used 1" in (await until_refused(new, busy)).message


async def test_a_request_that_ends_makes_room_at_the_other_edge(nats_server: NatsServer) -> None:
    key = key_with(concurrent_requests=1)
    async with edge(nats_server) as one, edge(nats_server) as two:
        ticket = one.limits.admit(key, NO_PROJECT, NO_TENANT, 10)
        await until_refused(two, key)
        ticket.settle(5)
        async with asyncio.timeout(30):
            while not two.admits(key):
                await asyncio.sleep(0.02)


async def test_requests_of_an_edge_that_fell_silent_do_not_count_for_ever(nats_server: NatsServer) -> None:
    key = key_with(concurrent_requests=1)
    async with edge(nats_server) as one, edge(nats_server) as two:
        one.limits.admit(key, NO_PROJECT, NO_TENANT, 10)
        await until_refused(two, key)
        await one.die()
        async with asyncio.timeout(30):
            while not two.admits(key):
                await asyncio.sleep(0.05)
        assert clock.monotonic() - two.bus.heard[one.name][-1] >= 2.0


async def test_without_limits_nothing_is_counted_and_nothing_said(nats_server: NatsServer) -> None:
    free = KeyRecord(key_id="free", tenant_id="t", project_id="p", limits=Limits())
    limited = key_with(requests_per_minute=10)
    heard: list[Spend] = []
    async with edge(nats_server) as running, connect(BusConfig(nats_server.url, "limits-listener")) as bus:
        await bus.subscribe(Spend, heard.append)
        await bus.nc.flush()
        tickets = [running.limits.admit(free, NO_PROJECT, NO_TENANT, 10**9) for _ in range(1000)]
        assert tickets[0].headers() == {}
        tickets[0].settle(5)
        running.limits.admit(limited, NO_PROJECT, NO_TENANT, 1)
        async with asyncio.timeout(30):
            while not any(spend.edge == running.name for spend in heard):
                await asyncio.sleep(0.02)
    mine = [spend for spend in heard if spend.edge == running.name]  # other tests' edges may still be there
    assert {one.scope for spend in mine for one in spend.scopes} == {f"key:{limited.key_id}"}


async def test_a_ticket_tells_what_is_left_and_settles_once(nats_server: NatsServer) -> None:
    key = key_with(requests_per_minute=10, tokens_per_minute=1000, concurrent_requests=2)
    project = ProjectRecord(project_id="web", limits=Limits(requests_per_minute=3))
    tenant = TenantRecord(tenant_id=key.tenant_id, limits=Limits(tokens_per_minute=100_000))
    async with edge(nats_server) as running:
        ticket = running.limits.admit(key, project, tenant, 600)
        told = ticket.headers()
        assert told.pop("x-ratelimit-reset-requests").startswith("1m")
        assert told.pop("x-ratelimit-reset-tokens").startswith("1m")
        assert told == {
            "x-ratelimit-limit-requests": "3", "x-ratelimit-remaining-requests": "2",
            "x-ratelimit-limit-tokens": "1000", "x-ratelimit-remaining-tokens": "400",
        }  # fmt: skip
        with pytest.raises(RateLimitError):
            running.limits.admit(key, project, tenant, 401)
        ticket.settle(150)
        ticket.settle(0)
        assert ticket.headers()["x-ratelimit-remaining-tokens"] == "850"
        assert ticket.headers()["x-ratelimit-remaining-requests"] == "2"
        # Two at once, not three: settling twice freed one place only.
        running.limits.admit(key, project, tenant, 1)
        running.limits.admit(key, project, tenant, 1)
        with pytest.raises(RateLimitError, match="concurrent"):
            running.limits.admit(key, NO_PROJECT, tenant, 1)


async def test_a_refusal_in_openai_s_words(nats_server: NatsServer) -> None:
    key = key_with(requests_per_minute=1)
    async with edge(nats_server) as running:
        assert running.admits(key)
        with pytest.raises(RateLimitError) as caught:
            running.limits.admit(key, NO_PROJECT, NO_TENANT, 1)
        error = caught.value
        assert http_status(error) == 429
        assert error_object(error)["error"]["type"] == "rate_limit_error"
        assert error_object(error)["error"]["code"] == "rate_limit_exceeded"
        assert "this API key on requests per min (RPM): Limit 1, Used 1, Requested 1." in error.message
        assert 55 <= (retry_after_seconds(error) or 0) <= 61
        assert error.headers["x-ratelimit-remaining-requests"] == "0"
        none = key_with(tokens_per_minute=0)
        with pytest.raises(RateLimitError) as caught:
            running.limits.admit(none, NO_PROJECT, NO_TENANT, 0)
        assert retry_after_seconds(caught.value) == 60


async def test_what_was_spent_while_the_bus_was_away_is_known_when_it_is_back(tmp_path: Path) -> None:
    key = key_with(requests_per_minute=5)
    async with NatsServer(tmp_path) as server, edge(server) as one, edge(server) as two:
        assert one.admits(key)
        await server.kill()
        for _ in range(4):
            assert one.admits(key)
        assert not one.admits(key)
        await asyncio.sleep(0.3)  # what was said meanwhile is lost
        assert requests_left(two, key) >= 4
        await server.restart()
        async with asyncio.timeout(30):
            while requests_left(two, key):
                await asyncio.sleep(0.05)
