"""The console in a real browser, watched: what it asks for, what it complains about, whether one can read it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, ConsoleMessage, Page, Request, Response

WIDTHS = (390, 1440)
_HEIGHT = 900
_READABLE = (Path(__file__).parent / "readable.js").read_text()


@asynccontextmanager
async def visit(
    browser: Browser, root: str, key: str = "", *, width: int = 1440, dark: bool = False,
    expected: tuple[int, ...] = (), away: bool = False,
) -> AsyncIterator[Page]:  # fmt: skip
    """A window of a browser that knows nothing yet; with a ``key`` somebody has signed in with it. ``root``: of an
    edge. At the end there must have been no complaint, no failed and no external request; ``expected``: statuses of
    answers that may be errors; ``away``: the edge may be gone for a while."""
    context = await browser.new_context(
        viewport={"width": width, "height": _HEIGHT}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    faults: list[str] = []
    page = await context.new_page()
    page.set_default_timeout(30_000)

    def complained(message: ConsoleMessage) -> None:
        known = any(f"status of {status}" in message.text for status in expected) or (away and "net::" in message.text)
        if message.type in ("error", "warning") and not known:
            faults.append(f"{message.type}: {message.text}")

    def answered(response: Response) -> None:
        if response.status >= 400 and response.status not in expected:
            faults.append(f"{response.status} {response.url}")

    def asked(request: Request) -> None:
        if not request.url.startswith((f"{root}/", "data:", "blob:")):
            faults.append(f"asked elsewhere: {request.url[:200]}")

    def broke_off(request: Request) -> None:
        # A page that is left takes back what it has asked for.
        if "ERR_ABORTED" not in (request.failure or "") and not away:
            faults.append(f"failed: {request.url} {request.failure}")

    page.on("console", complained)
    page.on("pageerror", lambda error: faults.append(f"exception: {error}"))
    page.on("response", answered)
    page.on("request", asked)
    page.on("requestfailed", broke_off)
    if key:
        await page.add_init_script(
            f"sessionStorage.getItem('inferbus.key') ?? sessionStorage.setItem('inferbus.key', '{key}')"
        )
    try:
        yield page
    finally:
        await context.close()
    assert faults == []


async def unreadable(page: Page) -> list[str]:
    """What somebody could not read or use on what is shown now."""
    faults: list[str] = await page.evaluate(_READABLE)
    return faults


async def picture(page: Page, folder: Path, name: str) -> None:
    """The whole page as NAME.png, to be looked at."""
    await page.screenshot(path=folder / f"{name}.png", full_page=True)
