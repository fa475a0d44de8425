"""The request pages: a list to be searched, and one request as a timeline, also of one whose worker was killed."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import pytest_asyncio
from playwright.async_api import Page

from tests.console.browsing import WIDTHS, picture, unreadable
from tests.console.conftest import MODEL, Keys, Visit
from tests.harness.local import Stack

LENGTH = 2500


@pytest_asyncio.fixture(scope="session")
async def tenant(stack: Stack, keys: Keys) -> str:
    """The secret of an administrator of a tenant that no other test counts the requests of."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {keys.admin}"}, timeout=60) as http:
        made = await http.post(f"{stack.root_url}/inferbus/v1/tenants", json={"tenant_id": "initech"})
        made.raise_for_status()
    return await stack.new_key(tenant_id="initech", project_id="tps", scopes=["tenant_admin"])


@pytest_asyncio.fixture(scope="session")
async def interrupted(stack: Stack, keys: Keys, tenant: str, traffic: int) -> dict[str, Any]:
    """The operator's timeline of a request of that tenant whose worker was killed in its middle."""
    caller = await stack.new_key(tenant_id="initech", project_id="tps")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Go on"}], "max_tokens": LENGTH, "stream": True}
    headers = {"Authorization": f"Bearer {caller}"}
    async with httpx.AsyncClient(timeout=60, headers=headers) as http, asyncio.timeout(90):
        async with http.stream("POST", stack.chat_url, json=body) as answer:
            request_id = answer.headers["x-request-id"]
            parts = 0
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                parts += 1
                if parts == 40:
                    for name in [one for one in stack.pids if one.startswith("worker")]:
                        stack.kill(name)
        return await _ended(stack, request_id, keys.admin)


async def _ended(stack: Stack, request_id: str, key: str) -> dict[str, Any]:
    """Once its end, and what its edge says of it, are in the tables."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        while True:
            found = await http.get(f"{stack.root_url}/inferbus/v1/requests/{request_id}")
            shown: dict[str, Any] = found.json()
            if found.status_code == 200 and shown.get("deliveries") and "done_time" in shown.get("storage", {}):
                return shown
            await asyncio.sleep(0.2)


async def test_both_attempts_are_there_and_no_token_twice(interrupted: dict[str, Any]) -> None:
    assert [one["number"] for one in interrupted["attempts"]] == [1, 2]
    kept = []
    for one in interrupted["attempts"]:
        void = one.get("void", [0] * one["tokens"])
        first = one.get("first_index", 0)
        index = one.get("index", range(first, first + one["tokens"]))
        kept += [number for number, gone in zip(index, void, strict=True) if not gone]
    assert kept == list(range(LENGTH))
    kinds = [event["kind"].removeprefix("TIMELINE_KIND_") for event in interrupted["events"]]
    # Placed and started are those of the second attempt: a scheduler places each.
    wanted = ["ACCEPTED", "FIRST_TOKEN", "PLACED", "STARTED", "RESUMED", "LAST_TOKEN", "ENDED"]
    assert [kind for kind in kinds if kind in wanted] == wanted
    assert {"DELIVERED", "BILLED"} < set(kinds)
    assert interrupted["deliveries"][-1]["tokens"] == LENGTH
    lines = interrupted["charge"]["lines"]
    assert sum(Decimal(line["amount"]) for line in lines) == Decimal(interrupted["charge"]["amount"]) > 0


async def _open(page: Page, stack: Stack, address: str) -> None:
    await page.goto(f"{stack.root_url}/console/#/{address}")
    await page.reload()  # another hash alone loads nothing anew
    await page.locator("h1").first.wait_for()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
async def test_the_pages_can_be_read(
    console: Visit, stack: Stack, keys: Keys, traffic: int, interrupted: dict[str, Any], pictures: Path, width: int,
    dark: bool,
) -> None:  # fmt: skip
    name = f"{width}-{'dark' if dark else 'light'}"
    async with console(keys.admin, width=width, dark=dark) as page:
        await _open(page, stack, "requests")
        await page.locator("tbody tr td a").first.wait_for()
        assert await page.locator("tbody tr").count() >= traffic
        assert await unreadable(page) == []
        await picture(page, pictures, f"requests-{name}")
        await page.get_by_role("searchbox", name="Open a request").fill(interrupted["request"]["request_id"])
        await page.get_by_role("button", name="Open").click()
        await page.locator(".timeline-canvas").wait_for()
        text = await page.locator("#content").inner_text()
        for part in ("Resumed", "Stored and billed", "output tokens", "P99", "Delivered"):
            assert part in text
        assert await unreadable(page) == []
        await picture(page, pictures, f"request-{name}")


async def test_the_picture_can_be_zoomed_and_asked(
    console: Visit, stack: Stack, keys: Keys, interrupted: dict[str, Any], pictures: Path
) -> None:
    async with console(keys.admin) as page:
        await _open(page, stack, f"requests/{interrupted['request']['request_id']}")
        canvas = page.locator(".timeline-canvas")
        await canvas.scroll_into_view_if_needed()
        box = await canvas.bounding_box()
        assert box is not None

        async def said(part: float, lane: int) -> str:
            await page.mouse.move(box["x"] + 168 + part * (box["width"] - 178), box["y"] + (lane + 0.5) * 44)
            return await page.locator(".timeline-tip").inner_text()

        assert "Accepted" in await said(0.0, 0)
        for _ in range(4):
            await page.get_by_role("button", name="Zoom in").click()
        await page.get_by_role("button", name="Show the request", exact=True).click()
        await page.wait_for_function("document.querySelector('.timeline-canvas').height > 0")
        tokens = [text for part in range(1, 100, 3) if "Token" in (text := await said(part / 100, 2))]
        assert tokens
        await canvas.focus()
        for key in ("+", "+", "ArrowRight", "-", "0"):
            await page.keyboard.press(key)
        await picture(page, pictures, "request-hover")


async def test_a_tenant_sees_its_own_without_the_inside(
    console: Visit, stack: Stack, keys: Keys, tenant: str, interrupted: dict[str, Any]
) -> None:
    async with console(tenant, expected=(404,)) as page:
        await _open(page, stack, "requests")
        await page.locator("tbody tr td a").first.wait_for()
        assert await page.locator("tbody tr").count() == 1
        text = await page.locator("#content").inner_text()
        assert "worker" not in text.lower()
        assert "acme" not in text
        await _open(page, stack, f"requests/{interrupted['request']['request_id']}")
        await page.locator(".timeline-canvas").wait_for()
        text = await page.locator("#content").inner_text()
        assert "Resumed" in text
        for inside in ("worker-", "edge-", "meter-", "sequence"):
            assert inside not in text
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {keys.admin}"}, timeout=60) as http:
            foreign = await http.get(f"{stack.root_url}/inferbus/v1/requests", params={"tenant": "acme"})
        other = foreign.json()["requests"][0]["request_id"]
        await _open(page, stack, f"requests/{other}")
        await page.get_by_role("alert").wait_for()
        assert "Nothing is stored of a request" in await page.get_by_role("alert").inner_text()


async def test_a_hundred_thousand_tokens_open(
    console: Visit, stack: Stack, keys: Keys, interrupted: dict[str, Any]
) -> None:
    """The answer is a made one, as long as the edge may give it; what is measured is reading and drawing it."""
    count = 100_000
    shown = interrupted | {
        "attempts": [{
            "number": 1, "tokens": count, "offset_us": [30_000 + 20_000 * at for at in range(count)],
            "gap_us": [30_000] + [20_000 + (at % 977) * 10 for at in range(1, count)],
        }],
    }  # fmt: skip
    async with console(keys.admin) as page:
        await page.route("**/inferbus/v1/requests/*", lambda route: route.fulfill(json=shown))
        await _open(page, stack, "requests")
        spent = await page.evaluate(
            """async (id) => {
              const begun = performance.now();
              location.hash = `#/requests/${id}`;
              while (!document.querySelector(".histogram svg")) await new Promise(requestAnimationFrame);
              return performance.now() - begun;
            }""",
            interrupted["request"]["request_id"],
        )
        assert f"{count:,}" in await page.locator(".timeline-canvas").get_attribute("aria-label")
    print(f"{count:,} tokens were drawn after {spent:.0f} ms")
