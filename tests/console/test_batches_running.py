"""The pages about batches while one of them runs: on a stack that takes its time and little else."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.console.batching import NO_PICKER, Team, lines, looks, opened, state, team_of
from tests.console.browsing import WIDTHS, picture, unreadable, visit
from tests.harness.local import Stack, running

# At most so many lines at once, of so many tokens: minutes of it, and next to no work.
CAPACITY, LINES, TOKENS = 4, 500, 40


@pytest_asyncio.fixture(scope="module")
async def slow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "100ms", "INFERBUS_WORKER_CAPACITY": str(CAPACITY)}
    home = tmp_path_factory.mktemp("batches") / "home"
    async with running(home, "synthetic", variables=variables) as started:
        yield started


@pytest.fixture
async def team(slow: Stack) -> Team:
    return await team_of(slow, "default")


@pytest.mark.timeout(240)
async def test_a_running_one_is_cancelled_after_a_question(browser: Browser, slow: Stack, team: Team) -> None:
    batch_id = await team.submit(lines(LINES, TOKENS))
    asked = []
    async with visit(browser, slow.root_url, team.key) as page:
        await page.add_init_script(NO_PICKER)
        await opened(page, slow, f"/{batch_id}")
        await expect(state(page)).to_have_text("running", timeout=60_000)
        await expect(page.get_by_text("Output and errors are there when it has ended.")).to_be_visible()
        page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss())[1])
        button = page.get_by_role("button", name="Cancel this batch")
        await button.click()
        (question,) = asked
        assert batch_id in question
        assert (await team.get(f"/v1/batches/{batch_id}"))["status"] == "in_progress"
        page.once("dialog", lambda dialog: dialog.accept())
        await button.click()
        await expect(state(page)).to_have_text("cancelled", timeout=120_000)
        await expect(button).to_be_hidden()
        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Download errors").click()
        assert b"batch_cancelled" in Path(await (await waiting.value).path()).read_bytes()


@pytest.mark.timeout(240)
async def test_what_runs_is_followed_while_the_tab_is_seen(browser: Browser, slow: Stack, team: Team) -> None:
    batch_id = await team.submit(lines(LINES, TOKENS))
    async with visit(browser, slow.root_url, team.key, expected=(503,)) as page:
        asked = looks(page)
        await page.clock.install()
        await opened(page, slow)
        link = page.get_by_role("link", name=batch_id)
        await link.focus()
        for _ in range(3):
            async with page.expect_response(re.compile(r"/v1/batches\?limit")):
                await page.clock.run_for(4000)
        await expect(link).to_be_focused()  # who goes by keyboard is not thrown out by an answer
        await page.evaluate(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        before = len(asked)
        await page.clock.run_for(120_000)
        assert len(asked) <= before + 1  # one may have been on its way
        async with page.expect_response(re.compile(r"/v1/batches\?limit")):
            await page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        # What fails meanwhile is said, and the list stays.
        await page.route("**/v1/batches?limit*", lambda route: route.fulfill(status=503, body="{}"))
        await page.clock.run_for(4000)
        await expect(page.get_by_text("Not as of now")).to_be_visible()
        await expect(link).to_be_visible()
        await page.unroute("**/v1/batches?limit*")
        await page.clock.run_for(40_000)
        await expect(page.get_by_text("Not as of now")).to_have_count(0)
    await team.cancel(batch_id)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
async def test_the_pages_can_be_read(
    browser: Browser, slow: Stack, shown: tuple[Team, str, str], pictures: Path, width: int, dark: bool
) -> None:
    team, running, failed = shown
    async with visit(browser, slow.root_url, team.key, width=width, dark=dark) as page:
        for name, path in (
            ("list", ""),
            ("new", "/new"),
            ("files", "/files"),
            ("running", f"/{running}"),
            ("failed", f"/{failed}"),
        ):
            await opened(page, slow, path)
            await expect(page.locator(".panel").first).to_be_visible()
            assert await unreadable(page) == []
            await picture(page, pictures, f"batches_{name}_{width}_{'dark' if dark else 'light'}")


@pytest.fixture(scope="module")
async def shown(slow: Stack) -> AsyncIterator[tuple[Team, str, str]]:
    """A team with a batch that runs and one that failed, and the two."""
    team = await team_of(slow, "default")
    failed = await team.submit(b"oh\n" * 5)
    await team.ended(failed)
    running = await team.submit(lines(LINES, TOKENS), metadata={"name": "nightly", "team": "search"})
    yield team, running, failed
    await team.cancel(running)
