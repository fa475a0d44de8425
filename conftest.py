"""Real parts that several rooms' tests share: one nats-server a session, one connection a test."""

import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from hypothesis import settings
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.streams import ensure_streams
from inferbus_stack.nats import NatsServer

# How long one example takes says nothing on a machine that others use, too.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
_names = itertools.count(1)


@pytest_asyncio.fixture(scope="session")
async def nats_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NatsServer]:
    """A real nats-server with all streams; shared, so tests use names (edges, workers, models) of their own."""
    async with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        async with connect(BusConfig(server.url, "admin")) as admin:
            await ensure_streams(admin)
        yield server


@pytest_asyncio.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """A connection under a name of its own."""
    async with connect(BusConfig(nats_server.url, f"test-{next(_names)}")) as connected:
        yield connected
