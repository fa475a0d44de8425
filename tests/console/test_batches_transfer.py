"""Files of batches up and down: in parts, cut off, too large, as the browser's disk or memory takes them."""

import re
from pathlib import Path

import pytest
from playwright.async_api import Route, expect

from tests.console.batching import NO_PICKER, Team, lines, opened, team_of
from tests.console.conftest import Keys, Visit
from tests.harness.local import Stack

# A file of the browser's own disk in place of the one that somebody would choose: it is written to in the same way.
OWN_DISK = (
    "window.showSaveFilePicker = async ({ suggestedName }) => {"
    " const root = await navigator.storage.getDirectory();"
    " return await root.getFileHandle(suggestedName, { create: true }); }"
)
WRITTEN = (
    "async (name) => { const root = await navigator.storage.getDirectory();"
    " return (await (await root.getFileHandle(name)).getFile()).text(); }"
)
# Of parts that are small enough for a test.
SEND = """async ([key, text, whole, part]) => {
  const { createApi } = await import("/console/lib/api.js");
  const { uploadFile } = await import("/console/lib/batches_upload.js");
  const told = [];
  const options = { onProgress: (sent) => told.push(sent), signal: new AbortController().signal, whole, part };
  const made = await uploadFile(createApi(key, () => {}), new File([text], "in.jsonl"), options);
  return [made, told];
}"""


@pytest.fixture
async def team(stack: Stack, keys: Keys) -> Team:
    return await team_of(stack)


# --- up ---------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
@pytest.mark.parametrize("whole", [0, 1 << 30])
async def test_a_file_comes_as_it_is_whole_or_in_parts(console: Visit, stack: Stack, team: Team, whole: int) -> None:
    data = lines(5000)
    asked: list[str] = []
    async with console(team.key) as page:
        page.on("request", lambda request: asked.append(request.url.removeprefix(stack.root_url)))
        await opened(page, stack)
        made, told = await page.evaluate(SEND, [team.key, data.decode(), whole, 100_000])
    assert (made["filename"], made["bytes"], made["purpose"]) == ("in.jsonl", len(data), "batch")
    assert await team.content(made["id"]) == data
    assert told == sorted(told)
    assert told[-1] == len(data)
    parts = [url for url in asked if url.endswith("/parts")]
    assert len(parts) == (0 if whole else -(-len(data) // 100_000))


@pytest.mark.timeout(180)
async def test_a_part_that_is_lost_is_sent_again(console: Visit, stack: Stack, team: Team) -> None:
    data, tries = lines(2000), 0

    async def lost(route: Route) -> None:
        nonlocal tries
        tries += 1
        if tries == 2:
            await route.fulfill(status=503, body="{}", headers={"Retry-After": "1"})
        else:
            await route.continue_()

    async with console(team.key, expected=(503,)) as page:
        await opened(page, stack)
        await page.route("**/parts", lost)
        made, _ = await page.evaluate(SEND, [team.key, data.decode(), 0, len(data) // 2 + 1])
    assert tries == 3
    assert await team.content(made["id"]) == data


@pytest.mark.timeout(180)
async def test_one_that_is_taken_back_leaves_nothing(console: Visit, stack: Stack, team: Team, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(100))
    async with console(team.key) as page:
        await opened(page, stack, "/new")
        await page.route("**/v1/files", lambda route: None)  # it hangs
        await page.get_by_label("Input").set_input_files(tmp_path / "in.jsonl")
        await page.get_by_role("button", name="Create batch").click()
        await expect(page.get_by_role("progressbar", name="Sending")).to_be_visible()
        await page.get_by_role("button", name="Cancel sending").click()
        await expect(page.get_by_text("Nothing was sent.")).to_be_visible()
        await page.unroute("**/v1/files")
        await page.get_by_role("button", name="Create batch").click()
        await page.wait_for_url(re.compile(r"#/batches/batch_\w+$"))
    assert len((await team.get("/v1/files?purpose=batch"))["data"]) == 1


@pytest.mark.timeout(180)
async def test_pressed_again_after_a_lost_answer_there_is_one_batch(
    console: Visit, stack: Stack, team: Team, tmp_path: Path
) -> None:
    (tmp_path / "in.jsonl").write_bytes(lines(3))
    lost = 0

    async def answered(route: Route) -> None:
        nonlocal lost
        if route.request.method == "POST" and lost == 0:
            lost = (await route.fetch()).status
            await route.fulfill(status=503, body="{}")
        else:
            await route.continue_()

    async with console(team.key, expected=(503,)) as page:
        await opened(page, stack, "/new")
        await page.route("**/v1/batches", answered)
        await page.get_by_label("Input").set_input_files(tmp_path / "in.jsonl")
        await page.get_by_role("button", name="Create batch").click()
        await expect(page.get_by_role("alert")).to_contain_text("status 503")
        await page.get_by_role("button", name="Create batch").click()
        await page.wait_for_url(re.compile(r"#/batches/batch_\w+$"))
    assert lost == 200
    assert len((await team.get("/v1/batches"))["data"]) == 1
    assert len((await team.get("/v1/files?purpose=batch"))["data"]) == 1


@pytest.mark.timeout(180)
async def test_what_is_wrong_with_it_is_said_before_it_is_sent(
    console: Visit, stack: Stack, team: Team, tmp_path: Path
) -> None:
    (tmp_path / "list.jsonl").write_text('[{"custom_id": "1"}]\n')
    (tmp_path / "empty.jsonl").write_text("")
    async with console(team.key) as page:
        await opened(page, stack, "/new")
        await page.get_by_role("button", name="Create batch").click()
        await expect(page.get_by_role("alert")).to_have_text("Choose a file first.")
        await page.get_by_label("Input").set_input_files(tmp_path / "list.jsonl")
        await expect(page.locator("#batch-file")).to_contain_text("This is a JSON list")
        await page.get_by_label("Input").set_input_files(tmp_path / "empty.jsonl")
        await expect(page.locator("#batch-file")).to_contain_text("This file is empty.")
        await page.evaluate(
            "(line) => { const given = new DataTransfer(); given.items.add(new File([line], 'dropped.jsonl'));"
            " document.querySelector('.drop').dispatchEvent(new DragEvent('drop', { dataTransfer: given })); }",
            lines(1).decode(),
        )
        await expect(page.locator("#batch-file")).to_contain_text("dropped.jsonl")
        await page.get_by_label("To be done within").fill("15")
        await page.get_by_label("Unit of the time").select_option("d")
        await page.get_by_role("button", name="Create batch").click()
        await expect(page.get_by_role("alert")).to_contain_text("14 days")
    assert (await team.get("/v1/files"))["data"] == []


# --- down -------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
async def test_it_is_written_as_it_comes_and_goes_on_where_it_was_cut(console: Visit, stack: Stack, team: Team) -> None:
    data = lines(3000)
    file_id = await team.put(data, "questions.jsonl")
    ranges: list[str] = []

    async def cut(route: Route) -> None:
        ranges.append(route.request.headers.get("range", ""))
        if len(ranges) == 1:
            await route.fulfill(status=200, body=data[:1000])
        elif len(ranges) == 2:
            await route.fulfill(status=503, body="{}")
        else:
            await route.continue_()

    async with console(team.key, expected=(503,)) as page:
        await page.add_init_script(OWN_DISK)
        await page.route(f"**/v1/files/{file_id}/content", cut)
        await opened(page, stack, "/files")
        await page.get_by_role("button", name="Download questions.jsonl").click()
        await expect(page.get_by_text("questions.jsonl is there.")).to_be_visible()
        assert await page.evaluate(WRITTEN, "questions.jsonl") == data.decode()
    assert ranges == ["", "bytes=1000-", "bytes=1000-"]


@pytest.mark.timeout(180)
async def test_one_that_is_refused_or_taken_back_writes_nothing(console: Visit, stack: Stack, team: Team) -> None:
    file_id = await team.put(lines(10), "questions.jsonl")
    async with console(team.key, expected=(404,)) as page:
        await page.add_init_script(OWN_DISK)
        await opened(page, stack, "/files")
        await page.route("**/content", lambda route: None)
        await page.get_by_role("button", name="Download questions.jsonl").click()
        await page.get_by_role("button", name="Cancel fetching").click()
        await expect(page.get_by_role("progressbar")).to_have_count(0)
        await page.unroute("**/content")
        async with team.http() as http:
            (await http.delete(f"/v1/files/{file_id}")).raise_for_status()
        await page.get_by_role("button", name="Download questions.jsonl").click()
        await expect(page.get_by_role("alert")).to_contain_text("There is no file")
        assert await page.evaluate(WRITTEN, "questions.jsonl") == ""
        # He was asked where to, and changed his mind.
        await page.evaluate(
            "window.showSaveFilePicker = async () => { throw new DOMException('no', 'AbortError'); }; 0"
        )
        await page.get_by_role("button", name="Try again").click()
        await expect(page.get_by_role("alert")).to_have_count(0)


@pytest.mark.timeout(180)
async def test_one_too_large_for_memory_is_not_begun_and_the_command_is_said(
    console: Visit, stack: Stack, team: Team
) -> None:
    file_id = await team.put(lines(10), "questions.jsonl")
    told = await team.get(f"/v1/files/{file_id}")
    begun: list[str] = []
    async with console(team.key) as page:
        await page.add_init_script(NO_PICKER)
        page.on("request", lambda request: begun.append(request.url) if "/content" in request.url else None)
        await page.route(f"**/v1/files/{file_id}", lambda route: route.fulfill(json={**told, "bytes": 300 << 20}))
        await opened(page, stack, "/files")
        await page.get_by_role("button", name="Download questions.jsonl").click()
        await expect(page.get_by_role("alert")).to_contain_text("hold all of the file in memory")
        await expect(page.locator("pre.command")).to_contain_text(f"{stack.root_url}/v1/files/{file_id}/content")
    assert begun == []
