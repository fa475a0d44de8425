"""The pages about batches: from a file to its answers, and what is seen of all of them."""

import csv
import io
import re
from pathlib import Path

import httpx2 as httpx
import pytest
from playwright.async_api import Page, expect

from tests.console.batching import CHAT, NO_PICKER, Team, custom_ids, lines, looks, opened, state, team_of
from tests.console.browsing import picture, unreadable
from tests.console.conftest import Keys, Visit
from tests.harness.local import Stack


@pytest.fixture
async def team(stack: Stack, keys: Keys) -> Team:
    return await team_of(stack)


async def figure(page: Page, label: str) -> str:
    shown = page.locator(".stat", has=page.get_by_text(label, exact=True)).locator(".stat-value")
    return str(await shown.text_content())


@pytest.mark.timeout(240)
async def test_a_batch_from_its_file_to_its_answers(
    console: Visit, stack: Stack, team: Team, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "questions.jsonl").write_bytes(lines(40))
    async with console(team.key) as page:
        await page.add_init_script(NO_PICKER)
        await opened(page, stack, "/new")
        await page.get_by_label("Input").set_input_files(tmp_path / "questions.jsonl")
        await expect(page.get_by_text("questions.jsonl,")).to_contain_text("that of its first line")
        await page.get_by_role("button", name="Add metadata").click()
        await page.get_by_label("Metadata 1, name").fill("team")
        await page.get_by_label("Metadata 1, value").fill("search")
        await page.get_by_label("To be done within").fill("90")
        await page.get_by_label("Unit of the time").select_option("m")
        await picture(page, pictures, "batches_new_filled")
        await page.get_by_role("button", name="Create batch").click()
        await page.wait_for_url(re.compile(r"#/batches/batch_\w+$"))
        await expect(state(page)).to_have_text("completed", timeout=120_000)  # it follows by itself
        assert await figure(page, "Answered") == "40"
        assert await figure(page, "With an error") == "0"
        await expect(page.locator(".facts")).to_contain_text(["90m", "search"])
        await expect(page.get_by_role("progressbar", name="Progress")).to_have_attribute("aria-valuenow", "100")
        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Download output").click()
        assert custom_ids(Path(await (await waiting.value).path()).read_bytes()) == custom_ids(lines(40))
        await expect(page.get_by_role("button", name="Download errors")).to_have_count(0)
        await picture(page, pictures, "batches_one_completed")
    (made,) = (await team.get("/v1/batches"))["data"]
    assert (made["completion_window"], made["metadata"], made["endpoint"]) == ("90m", {"team": "search"}, CHAT)


@pytest.mark.timeout(240)
async def test_faults_are_told_by_line_and_can_be_taken_along(console: Visit, stack: Stack, team: Team) -> None:
    data = lines(2) + b"oh\n" + lines(1) + b'{"custom_id": "<b>x</b>", "method": "POST", "url": "/v1/x", "body": {}}\n'
    batch = await team.ended(await team.submit(data))
    async with console(team.key) as page:
        await opened(page, stack, f"/{batch['id']}")
        await expect(state(page)).to_have_text("failed")
        rows = page.locator("table", has_text="Faults by line").locator("tbody tr")
        assert await rows.locator("td:first-child").all_text_contents() == ["3", "4", "5"]
        assert await rows.locator("td:nth-child(2)").all_text_contents() == [
            one["code"] for one in batch["errors"]["data"]
        ]
        await expect(page.get_by_text("3 faults; nothing has run")).to_be_visible()
        await expect(page.get_by_text("It has no results")).to_be_visible()
        await expect(page.get_by_role("button", name="Cancel this batch")).to_be_hidden()
        async with page.expect_download() as waiting:
            await page.get_by_role("button", name="Export CSV").click()
        saved = list(csv.DictReader(io.StringIO(Path(await (await waiting.value).path()).read_text())))
        assert [(row["line"], row["message"]) for row in saved] == [
            (str(one["line"]), one["message"]) for one in batch["errors"]["data"]
        ]
        assert await page.locator("b").count() == 0


@pytest.mark.timeout(240)
async def test_the_list_is_the_projects_with_more_on_demand(console: Visit, stack: Stack, team: Team) -> None:
    file_id = await team.put(lines(1))
    async with team.http() as http:
        for number in range(23):
            body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"}
            body |= {"metadata": {"name": f"<i>run {number}</i>"}}
            (await http.post("/v1/batches", json=body)).raise_for_status()
    listed = (await team.get("/v1/batches?limit=100"))["data"]
    for one in listed:
        await team.ended(one["id"])
    other = await team_of(stack)
    async with console(team.key) as page:
        asked = looks(page)
        await page.clock.install()
        await opened(page, stack)
        names = page.locator("tbody td:nth-child(2)")
        await expect(names).to_have_count(20)
        await page.get_by_role("button", name="More").click()
        await expect(names).to_have_count(23)
        assert await names.all_text_contents() == [one["id"] for one in listed]
        await expect(page.get_by_role("button", name="More")).to_be_hidden()
        assert (await page.locator("tbody td:nth-child(3)").first.text_content()) == "<i>run 22</i>"
        assert len(asked) == 2
        await page.clock.run_for(120_000)  # nothing runs: nothing is asked
        assert len(asked) == 2
    async with console(other.key) as page:
        await opened(page, stack)
        await expect(page.get_by_text("There is no batch in this project yet.")).to_be_visible()


@pytest.mark.timeout(240)
async def test_a_file_is_used_again_and_deleted_after_a_question(console: Visit, stack: Stack, team: Team) -> None:
    kept, gone = await team.put(lines(3), "kept <i>.jsonl"), await team.put(lines(1), "gone.jsonl")
    async with console(team.key) as page:
        await opened(page, stack, "/files")
        await expect(page.locator("tbody tr")).to_have_count(2)
        page.once("dialog", lambda dialog: dialog.dismiss())
        await page.get_by_role("button", name="Delete gone.jsonl").click()
        await expect(page.locator("tbody tr")).to_have_count(2)
        page.once("dialog", lambda dialog: dialog.accept())
        await page.get_by_role("button", name="Delete gone.jsonl").click()
        await expect(page.get_by_text("gone.jsonl is deleted.")).to_be_visible()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.get_by_role("link", name="New batch of kept <i>.jsonl").click()
        await expect(page.get_by_text("kept <i>.jsonl,")).to_contain_text("sent before")
        await page.get_by_role("button", name="Create batch").click()
        await page.wait_for_url(re.compile(r"#/batches/batch_\w+$"))
    assert [one["id"] for one in (await team.get("/v1/files?purpose=batch"))["data"]] == [kept]
    async with team.http() as http:
        assert (await http.get(f"/v1/files/{gone}")).status_code == 404
    (made,) = (await team.get("/v1/batches"))["data"]
    assert made["input_file_id"] == kept
    await team.ended(made["id"])


@pytest.mark.timeout(240)
async def test_without_the_scope_it_is_said_what_to_do(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.tenant) as page:
        await opened(page, stack)
        await expect(page.get_by_text("Sign in with a key that has it")).to_be_visible()
        assert await unreadable(page) == []


async def test_of_no_such_batch_the_api_is_quoted(console: Visit, stack: Stack, team: Team) -> None:
    async with console(team.key, expected=(404,)) as page:
        await opened(page, stack, "/batch_none")
        await expect(page.get_by_role("alert")).to_contain_text("There is no batch 'batch_none'.")
    async with httpx.AsyncClient(base_url=stack.root_url, timeout=60) as http:
        assert (await http.get("/v1/batches")).status_code == 401
