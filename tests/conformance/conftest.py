"""One stack for the whole suite: two edges, the real models, and the customers' own clients in front of it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx2 as httpx
import openai
import pytest
import pytest_asyncio

from tests.conformance.clients import SECONDS, Caller, openai_client
from tests.harness.local import Stack, running


@pytest_asyncio.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running(tmp_path_factory.mktemp("conformance") / "home", "llama_cpp", "--edges", "2") as started:
        yield started


@pytest_asyncio.fixture(scope="session")
async def fast_stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Two edges in front of a timing model: for what is about many streams or requests, and not about a model."""
    home, variables = tmp_path_factory.mktemp("fast") / "home", {"INFERBUS_WORKER_SYNTHETIC__ITL": "20ms"}
    async with running(home, "synthetic", "--edges", "2", variables=variables) as started:
        yield started


@pytest_asyncio.fixture(scope="session")
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_client(stack) as made:
        yield made


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, stack: Stack, client: openai.AsyncOpenAI) -> Iterator[Caller]:
    """OpenAI's SDK, once sync and once async."""
    if request.param == "async":
        yield Caller(client)
        return
    with openai.OpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0, timeout=SECONDS) as made:
        yield Caller(made)


@pytest.fixture(params=["sync", "async"])
async def claude(request: pytest.FixtureRequest, stack: Stack) -> AsyncIterator[Caller]:
    """Anthropic's SDK, once sync and once async."""
    settings: dict[str, Any] = {
        "base_url": stack.root_url, "api_key": stack.api_key, "max_retries": 0, "timeout": SECONDS,
    }  # fmt: skip
    if request.param == "async":
        async with anthropic.AsyncAnthropic(**settings) as made:
            yield Caller(made)
    else:
        with anthropic.Anthropic(**settings) as made:
            yield Caller(made)


@pytest_asyncio.fixture(scope="session")
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """For what no SDK has; URLs are below the first edge's root."""
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    async with httpx.AsyncClient(base_url=stack.root_url, headers=headers, timeout=SECONDS) as made:
        yield made
