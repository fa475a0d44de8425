"""One real stack with traffic, and the system's Chromium in front of its console."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2 as httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.console.browsing import visit
from tests.console.in_node import Js, batch_modules, found_node
from tests.harness.local import Stack, running

MODEL = "synthetic"
_OPTIONS = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP *.console.test 127.0.0.1"]
# Its own bound is 5 s.
expect.set_options(timeout=30_000)
Visit = Callable[..., AbstractAsyncContextManager[Page]]


@dataclass(frozen=True, slots=True)
class Keys:
    """Secrets. ``tenant``: of the administrator of the tenant "acme", whose requests ``caller`` makes."""

    admin: str
    tenant: str
    caller: str


@pytest_asyncio.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "2ms"}
    async with running(tmp_path_factory.mktemp("console") / "home", MODEL, variables=variables) as started:
        yield started


@pytest_asyncio.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("chromium is missing (Debian: apt-get install chromium)")
    async with async_playwright() as playwright:
        # Root, as in most containers, has no sandbox. Domains of tenants lead here.
        launched = await playwright.chromium.launch(executable_path=found, args=_OPTIONS)
        yield launched
        await launched.close()


@pytest_asyncio.fixture(scope="session")
async def keys(stack: Stack) -> Keys:
    """Tenants "acme" and "globex" and their keys."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stack.admin_key}"}, timeout=60) as http:
        for tenant, name in (("acme", "Acme Ltd."), ("globex", "Globex")):
            made = await http.post(f"{stack.root_url}/inferbus/v1/tenants", json={"tenant_id": tenant, "name": name})
            made.raise_for_status()
    tenant = await stack.new_key(tenant_id="acme", project_id="web", scopes=["tenant_admin"], name="Ann")
    return Keys(stack.admin_key, tenant, await stack.new_key(tenant_id="acme", project_id="web"))


@pytest_asyncio.fixture(scope="session")
async def traffic(stack: Stack, keys: Keys) -> int:
    """Answered requests of two projects and two end users of "acme", and of "globex"; returns how many of acme's there
    are once all of them are in the tables."""
    other = await stack.new_key(tenant_id="acme", project_id="search")
    foreign = await stack.new_key(tenant_id="globex", project_id="secret-project")
    asked = [(keys.caller, "ann"), (keys.caller, "bob"), (other, "bob"), (keys.caller, "ann"), (foreign, "eve")]
    async with httpx.AsyncClient(timeout=60) as http:
        await asyncio.gather(*(_chat(http, stack, key, user) for key, user in asked))
        async with asyncio.timeout(60):
            while await _counted(http, stack) < len(asked):
                await asyncio.sleep(0.1)
    return len(asked) - 1


@pytest.fixture
def console(browser: Browser, stack: Stack) -> Visit:
    """:func:`visit` of the first edge's console: ``async with console(key, width=390, dark=True) as page``, then
    ``await page.goto(f"{stack.root_url}/console/#/usage")``."""
    return partial(visit, browser, stack.root_url)


@pytest.fixture(scope="session")
def js(tmp_path_factory: pytest.TempPathFactory) -> Js:
    """:func:`batch_modules`."""
    node = found_node()
    if node is None:
        pytest.skip("node is missing: make install-dev")
    return batch_modules(node, tmp_path_factory.mktemp("js"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    return tmp_path_factory.mktemp("pictures")


async def _chat(http: httpx.AsyncClient, stack: Stack, key: str, user: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 16, "user": user}
    headers = {"Authorization": f"Bearer {key}", "x-inferbus-tags": f"team={user}"}
    (await http.post(stack.chat_url, json=body, headers=headers)).raise_for_status()


async def _counted(http: httpx.AsyncClient, stack: Stack) -> int:
    found = await http.get(
        f"{stack.root_url}/inferbus/v1/usage/query", headers={"Authorization": f"Bearer {stack.admin_key}"}
    )
    found.raise_for_status()
    return sum(int(row["requests"]) for row in found.json().get("rows", []))
