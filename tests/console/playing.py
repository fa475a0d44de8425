"""The playground in a browser: what its tests do with it, and what they see."""

import asyncio
import re
from decimal import Decimal
from typing import Any

import httpx2 as httpx
from playwright.async_api import Locator, Page, expect

from tests.harness.local import Stack


async def opened(page: Page, stack: Stack, query: str = "") -> None:
    await page.goto(f"{stack.root_url}/console/play{query}")
    await expect(page.get_by_label("Message")).to_be_focused()


async def ask(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Control+Enter")


def column(page: Page, number: int) -> Locator:
    """From 1 on."""
    return page.locator(".play-column").nth(number - 1)


async def state_is(page: Page, number: int, state: str, timeout: float = 90_000) -> None:
    await expect(column(page, number).locator(".badge")).to_have_text(state, timeout=timeout)


async def fact(page: Page, number: int, name: str) -> str:
    shown = await column(page, number).locator(f".is-{name} dd").first.text_content()
    return str(shown).replace("\u202f", " ")


async def note(page: Page, number: int, name: str) -> str:
    return str(await column(page, number).locator(f".is-{name} .play-note").text_content())


async def answer(page: Page, number: int) -> str:
    """The last one."""
    return await column(page, number).locator(".play-answer").last.inner_text()


async def cost(page: Page, number: int) -> Decimal:
    """In USD."""
    (amount,) = re.findall(r"^([\d.]+) USD$", await fact(page, number, "cost"))
    return Decimal(amount)


async def on_the_log(stack: Stack, request_id: str) -> dict[str, Any]:
    """The request's timeline once its end and its charge are stored."""
    headers = {"Authorization": f"Bearer {stack.admin_key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http, asyncio.timeout(120):
        while True:
            found = await http.get(f"{stack.root_url}/inferbus/v1/requests/{request_id}")
            if found.status_code == 200 and "charge" in found.json():
                told: dict[str, Any] = found.json()
                return told
            await asyncio.sleep(0.2)
