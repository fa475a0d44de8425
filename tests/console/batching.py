"""Batches of a project of its own, made over HTTP, for the tests of their pages."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2 as httpx
from playwright.async_api import Locator, Page, Request, expect

from tests.harness.batches import chat_line
from tests.harness.local import Stack

ENDED = ("completed", "failed", "expired", "cancelled")
CHAT = "/v1/chat/completions"
# As in a browser that cannot write to the disk: it would ask where to, and nobody is there to answer.
NO_PICKER = "delete window.showSaveFilePicker"


def lines(count: int, tokens: int = 5) -> bytes:
    return b"".join(chat_line(f"line-{number}", "synthetic", tokens) for number in range(count))


@dataclass(frozen=True, slots=True)
class Team:
    """Who has a project. ``key``: may ask models and is the tenant's administrator."""

    stack: Stack
    key: str
    project: str

    def http(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.stack.root_url, headers={"Authorization": f"Bearer {self.key}"}, timeout=120
        )

    async def get(self, path: str) -> Any:
        async with self.http() as http:
            return (await http.get(path)).raise_for_status().json()

    async def put(self, data: bytes, filename: str = "in.jsonl") -> str:
        """The id of a new input."""
        async with self.http() as http:
            form = {"data": {"purpose": "batch"}, "files": {"file": (filename, data)}}
            return str((await http.post("/v1/files", **form)).raise_for_status().json()["id"])

    async def submit(self, data: bytes, **fields: Any) -> str:
        """The id of a new batch."""
        body = {"input_file_id": await self.put(data), "endpoint": CHAT, "completion_window": "24h", **fields}
        async with self.http() as http:
            return str((await http.post("/v1/batches", json=body)).raise_for_status().json()["id"])

    async def ended(self, batch_id: str) -> dict[str, Any]:
        async with asyncio.timeout(120):
            while True:
                batch: dict[str, Any] = await self.get(f"/v1/batches/{batch_id}")
                if batch["status"] in ENDED:
                    return batch
                await asyncio.sleep(0.1)

    async def cancel(self, batch_id: str) -> None:
        async with self.http() as http:
            (await http.post(f"/v1/batches/{batch_id}/cancel")).raise_for_status()

    async def content(self, file_id: str) -> bytes:
        async with self.http() as http:
            return (await http.get(f"/v1/files/{file_id}/content")).raise_for_status().content


async def team_of(stack: Stack, tenant_id: str = "umbrella") -> Team:
    """Of a new project. The tenant is made if there is none; it is not one whose requests other pages' tests count."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stack.admin_key}"}, timeout=60) as http:
        made = await http.post(f"{stack.root_url}/inferbus/v1/tenants", json={"tenant_id": tenant_id})
        if made.status_code != httpx.codes.CONFLICT:
            made.raise_for_status()
    project = f"team-{uuid4().hex[:8]}"
    scopes = ["inference", "tenant_admin"]
    return Team(stack, await stack.new_key(tenant_id=tenant_id, project_id=project, scopes=scopes), project)


def custom_ids(data: bytes | str) -> list[str]:
    return sorted(json.loads(line)["custom_id"] for line in data.splitlines())


async def opened(page: Page, stack: Stack, path: str = "") -> None:
    await page.goto(f"{stack.root_url}/console/#/batches{path}")
    await expect(page.get_by_role("heading", name="Batches", exact=True)).to_be_visible()
    await expect(page.get_by_text("Loading …")).to_have_count(0)


def state(page: Page) -> Locator:
    """Of the one batch that is shown."""
    return page.locator(".page-head .badge")


def looks(page: Page) -> list[str]:
    """Grows by the address of each look at batches."""
    asked: list[str] = []

    def note(request: Request) -> None:
        if "/v1/batches" in request.url:
            asked.append(request.url)

    page.on("request", note)
    return asked
