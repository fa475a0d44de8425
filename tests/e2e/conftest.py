"""One stack with the real default model for all end-to-end tests of a session."""

from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.harness.local import Stack, running


@pytest_asyncio.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running(tmp_path_factory.mktemp("e2e") / "home", "llama_cpp") as started:
        yield started


@pytest_asyncio.fixture(scope="session")
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0, timeout=120) as made:
        yield made
