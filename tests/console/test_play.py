"""The playground: a conversation with models side by side, live figures, and what happens when something breaks."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, Route, expect

from tests.console.browsing import WIDTHS, picture, unreadable, visit
from tests.console.conftest import Keys, Visit
from tests.console.playing import answer, ask, column, cost, fact, note, on_the_log, opened, state_is
from tests.harness.local import Stack, running

REAL = "smollm2-135m-instruct"
EVIL = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title='broken'\"> & <b>bold</b>\n\n```"


@pytest_asyncio.fixture(scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running(tmp_path_factory.mktemp("play") / "home", "llama_cpp") as started:
        yield started


@pytest_asyncio.fixture(scope="module")
async def slow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A token takes its time, so that something can happen meanwhile."""
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "50ms"}
    async with running(tmp_path_factory.mktemp("slow") / "home", "synthetic", variables=variables) as started:
        yield started


@pytest_asyncio.fixture(scope="module", name="keys")
async def keys_of_its_own(stack: Stack) -> Keys:
    """Of the tenant "hooli": what is played here is not in what other pages' tests count."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stack.admin_key}"}, timeout=60) as http:
        body = {"tenant_id": "hooli", "name": "Hooli"}
        (await http.post(f"{stack.root_url}/inferbus/v1/tenants", json=body)).raise_for_status()
    of = {"tenant_id": "hooli", "project_id": "play"}
    tenant = await stack.new_key(**of, scopes=["tenant_admin"], name="Peter")
    return Keys(stack.admin_key, tenant, await stack.new_key(**of))


# --- the real model ---------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_two_columns_of_the_real_model_and_what_they_cost(browser: Browser, real: Stack, pictures: Path) -> None:
    async with visit(browser, real.root_url, real.admin_key) as page:
        await opened(page, real, "?max_tokens=48&temperature=0&seed=7")
        assert page.url.startswith(f"{real.root_url}/console/#/play?")
        # The embedding model beside it writes nothing.
        assert await column(page, 1).locator("option").all_text_contents() == [REAL]
        await page.get_by_role("button", name="Add a model").click()
        await column(page, 2).get_by_role("button", name="Parameters").click()
        await page.get_by_label("Temperature, of this column").nth(1).fill("1.5")
        await page.get_by_label("System prompt").fill("You are a poet.")
        await ask(page, "Write about the sea.")
        seen = set()
        async with asyncio.timeout(120):
            while await column(page, 1).locator(".badge").text_content() in ("waiting", "streaming"):
                seen.add((await fact(page, 1, "output"), await fact(page, 1, "cost"), await note(page, 1, "cost")))
        live = {(int(tokens), amount) for tokens, amount, said in seen if said == "so far"}
        assert len(live) > 3  # it moved while one looked
        assert len({amount for _, amount in live}) > 3
        for number in (1, 2):
            await state_is(page, number, "done")
            assert await note(page, number, "cost") == "exact"
            assert re.fullmatch(r"[\d.]+ (ms|s)", await fact(page, number, "ttft"))
            assert float(await fact(page, number, "speed")) > 0
            assert await fact(page, number, "finish") in ("stop", "length")
            told = await on_the_log(real, await fact(page, number, "request"))
            assert Decimal(told["charge"]["amount"]) == await cost(page, number) > 0
            assert str(told["request"]["output_tokens"]) == await fact(page, number, "output")
            assert told["request"]["revision"] == await fact(page, number, "revision")
        assert await answer(page, 1) != await answer(page, 2)
        await picture(page, pictures, "play_real")
        # The conversation goes on, each column's with its own answer.
        first = int(await fact(page, 1, "input"))
        before = await answer(page, 1)
        await ask(page, "Shorter.")
        for number in (1, 2):
            await state_is(page, number, "done")
        assert int(await fact(page, 1, "input")) > first + len(before.split()) // 2
        await page.get_by_role("button", name="Run again").click()
        await state_is(page, 1, "done")
        await state_is(page, 2, "done")
        assert await column(page, 1).locator(".play-said").all_text_contents() == ["Write about the sea.", "Shorter."]
        assert await column(page, 1).locator(".play-answer").count() == 2
        await expect(page.get_by_text("Since the page was opened")).to_contain_text("6 asked")
        # The address leads to the same columns, and says nothing of what was written.
        assert "2.temperature=1.5" in page.url
        assert "sea" not in page.url
        assert "poet" not in page.url
        link = column(page, 2).locator(".is-request a")
        request_id = await link.text_content()
        await link.click()
        await expect(page.get_by_text(str(request_id)).first).to_be_visible()


# --- stop, leave, break -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
async def test_who_stops_one_is_not_asked_to_pay_for_the_rest(browser: Browser, slow: Stack) -> None:
    async with visit(browser, slow.root_url, slow.admin_key) as page:
        await opened(page, slow, "?models=synthetic,synthetic&max_tokens=100&1.max_tokens=2000")
        await ask(page, "Go on.")
        await state_is(page, 1, "streaming")
        await page.get_by_role("button", name="Stop column 1").click()
        await state_is(page, 1, "stopped")
        assert await note(page, 1, "cost") == "about"
        kept = await answer(page, 1)
        assert kept.startswith("this is synthetic")
        await state_is(page, 2, "done")
        assert await fact(page, 2, "output") == "100"
        stopped = await on_the_log(slow, await fact(page, 1, "request"))
        assert stopped["request"]["finish_reason"] == "FINISH_REASON_CANCELLED"
        # 1.5 s of tokens at the most came for nobody.
        assert int(stopped["request"]["output_tokens"]) < len(kept.split()) + 60
        assert await answer(page, 1) == kept


@pytest.mark.timeout(300)
async def test_who_leaves_the_page_takes_back_what_he_asked(browser: Browser, slow: Stack) -> None:
    async with visit(browser, slow.root_url, slow.admin_key) as page:
        await opened(page, slow, "?models=synthetic,synthetic&max_tokens=2000")
        await ask(page, "Go on.")
        await state_is(page, 1, "streaming")
        await state_is(page, 2, "streaming")
        names = [await fact(page, number, "request") for number in (1, 2)]
        await page.get_by_role("link", name="Batches").click()
        await expect(page.get_by_role("heading", name="Batches", exact=True)).to_be_visible()
        for name in names:
            told = await on_the_log(slow, name)
            assert told["request"]["finish_reason"] == "FINISH_REASON_CANCELLED"
            assert int(told["request"]["output_tokens"]) < 200


@pytest.mark.timeout(300)
async def test_an_edge_that_is_killed_does_not_break_an_answer(browser: Browser, slow: Stack, pictures: Path) -> None:
    async with visit(browser, slow.root_url, slow.admin_key, expected=(503,), away=True) as page:
        faults = []
        page.on("requestfailed", lambda request: faults.append(request.failure))
        page.on("console", lambda message: faults.append(message.text))
        await opened(page, slow, "?models=synthetic,synthetic&max_tokens=200&2.max_tokens=220")
        await ask(page, "Go on.")
        await state_is(page, 1, "streaming")
        await state_is(page, 2, "streaming")
        names = [await fact(page, number, "request") for number in (1, 2)]
        slow.kill("edge")
        for number in (1, 2):
            await expect(column(page, number).get_by_text("The connection broke")).to_be_visible()
            await expect(column(page, number).get_by_text(re.compile(r"it went on after event \d+\."))).to_be_visible()
        await picture(page, pictures, "play_resumed")
        for number, tokens in ((1, 200), (2, 220)):
            await state_is(page, number, "done", timeout=90_000)
            assert len((await answer(page, number)).split()) == tokens  # a token is a word: none lost, none twice
            assert await fact(page, number, "output") == str(tokens)
            told = await on_the_log(slow, names[number - 1])
            assert Decimal(told["charge"]["amount"]) == await cost(page, number)
        assert faults  # it did break


# --- errors -----------------------------------------------------------------------------------------------------------


async def test_what_one_column_is_refused_the_others_do_not_notice(
    console: Visit, stack: Stack, keys: Keys, pictures: Path
) -> None:
    query = "?models=synthetic,none-such,synthetic&max_tokens=8&3.temperature=9"
    async with console(keys.caller, expected=(404, 400)) as page:
        await opened(page, stack, query)
        await ask(page, "Hello")
        await state_is(page, 1, "done")
        await state_is(page, 2, "failed")
        await state_is(page, 3, "failed")
        refused = column(page, 2).get_by_role("alert")
        await expect(refused).to_contain_text("The model 'none-such' does not exist or is not served here.")
        await expect(refused).to_contain_text(await fact(page, 2, "request"))
        await expect(column(page, 3).get_by_role("alert")).to_contain_text("'temperature' should be less than or equal")
        assert await unreadable(page) == []
        await picture(page, pictures, "play_refused")
        await column(page, 3).get_by_role("button", name="Parameters").click()
        await page.get_by_label("Temperature, of this column").nth(2).fill("1")
        await column(page, 3).get_by_role("button", name="Try again").click()
        await state_is(page, 3, "done")
        # A key for inference has no page about requests to go to.
        assert await column(page, 1).locator(".is-request a").count() == 0
        # What cannot be read is not asked at all.
        await page.get_by_label("Seed", exact=True).fill("many")
        await ask(page, "Hello")
        await expect(column(page, 1).get_by_role("alert")).to_contain_text("Seed: a whole number")


async def test_a_limit_is_told_in_the_apis_words(console: Visit, stack: Stack, keys: Keys) -> None:
    secret = await stack.new_key(tenant_id="hooli", project_id="play", limits={"requests_per_minute": 1})
    async with console(secret, expected=(429,)) as page:
        await opened(page, stack, "?models=synthetic,synthetic&max_tokens=5")
        await ask(page, "Hello")
        refused = page.get_by_role("alert")
        await expect(refused).to_have_count(1)
        await expect(refused).to_contain_text("Rate limit reached")
        await expect(page.locator(".badge", has_text="done")).to_have_count(1)


async def test_a_model_that_writes_markup_has_written_text(console: Visit, stack: Stack, keys: Keys) -> None:
    async def fulfil(route: Route) -> None:
        chunks = [
            {"choices": [{"index": 0, "delta": {"content": EVIL[at : at + 9]}, "finish_reason": None}]}
            for at in range(0, len(EVIL), 9)
        ]
        lines = [
            f"id: 01a208aa-8aeb-71f3-9ebf-b01e2812a400:{n}\ndata: {json.dumps(c)}\n\n" for n, c in enumerate(chunks)
        ]
        headers = {"Content-Type": "text/event-stream", "x-request-id": "<b>x</b>"}
        await route.fulfill(body="".join([*lines, "data: [DONE]\n\n"]), headers=headers)

    async with console(keys.caller) as page:
        await page.route("**/v1/chat/completions", fulfil)
        await opened(page, stack, "?models=synthetic")
        await ask(page, EVIL)
        await state_is(page, 1, "done")
        assert (await answer(page, 1)).rstrip("\n") == EVIL.rstrip("\n")
        assert await column(page, 1).locator(".play-said").text_content() == EVIL
        assert await page.locator("main :is(b, img, script)").count() == 0
        assert "broken" not in await page.title()


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_an_administrator_enters_a_key_for_this_page_only(
    console: Visit, stack: Stack, keys: Keys, pictures: Path
) -> None:
    async with console(keys.tenant, expected=(401,)) as page:
        await page.goto(f"{stack.root_url}/console/play?models=synthetic&max_tokens=5")
        field = page.get_by_label("Key for inference")
        await expect(page.get_by_text("Your key has not the scope inference")).to_be_visible()
        assert await unreadable(page) == []
        await picture(page, pictures, "play_key")
        for wrong, said in ((keys.tenant, "has not the scope inference, either"), ("ib-none", "not valid")):
            await field.fill(wrong)
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("alert")).to_contain_text(said)
        await field.fill(keys.caller)
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("hooli · play")).to_be_visible()
        await ask(page, "Hello")
        await state_is(page, 1, "done")
        await expect(column(page, 1).locator(".is-request a")).to_have_count(1)  # its own tenant's
        assert keys.caller not in await page.evaluate("JSON.stringify([{...sessionStorage}, {...localStorage}])")
        assert keys.caller not in page.url
        await page.get_by_role("link", name="Batches").click()
        await page.get_by_role("link", name="Playground").click()
        await expect(field).to_have_value("")
        assert (await page.evaluate("sessionStorage.getItem('inferbus.key')")) == keys.tenant


async def test_a_call_is_taken_along_without_its_key(console: Visit, stack: Stack, keys: Keys, tmp_path: Path) -> None:
    async with console(keys.caller) as page:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await opened(page, stack, "?models=synthetic&max_tokens=6&seed=3&more=" + '{"top_k": 5}')
        await page.get_by_label("System prompt").fill("It's $HOME.")
        await ask(page, "Say \"hi\" 'twice'")
        await state_is(page, 1, "done")
        said = await answer(page, 1)
        taken = {}
        for name in ("curl", "Python"):
            await page.get_by_role("button", name=f"Copy column 1 as {name}").click()
            await expect(page.get_by_role("status").filter(has_text="in the clipboard")).to_have_count(1)
            taken[name] = await page.evaluate("navigator.clipboard.readText()")
        await page.get_by_role("button", name="Copy the answer of column 1").click()
        await expect(page.get_by_role("status").filter(has_text="The answer is in")).to_have_count(1)
        assert await page.evaluate("navigator.clipboard.readText()") == said
    assert keys.caller not in "".join(taken.values())
    (tmp_path / "call.py").write_text(taken["Python"])
    printed = await _run(keys.caller, sys.executable, str(tmp_path / "call.py"))
    assert printed.strip() == said.strip()
    events = (await _run(keys.caller, "bash", "-c", taken["curl"])).splitlines()
    chunks = [json.loads(line[6:]) for line in events if line.startswith("data: {")]
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == said


async def _run(key: str, *command: str) -> str:
    """What it prints; it must not fail."""
    environ = {**os.environ, "INFERBUS_KEY": key}
    process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0
    return out.decode()


# --- seen -------------------------------------------------------------------------------------------------------------


async def test_a_long_answer_is_followed_by_who_looks_at_its_end_only(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.caller) as page:
        await opened(page, stack, "?models=synthetic&max_tokens=1500")
        await ask(page, "Go on.")
        await state_is(page, 1, "streaming")
        talk = column(page, 1).get_by_role("log")
        await page.wait_for_function("() => document.querySelector('.play-talk').scrollTop > 60")
        assert await _from_its_end(talk) < 40
        await talk.evaluate("(box) => { box.scrollTop = 0; }")
        height = await talk.evaluate("(box) => box.scrollHeight")
        await page.wait_for_function(f"() => document.querySelector('.play-talk').scrollHeight > {height} + 60")
        assert await talk.evaluate("(box) => box.scrollTop") == 0
        await state_is(page, 1, "done")
        assert await talk.get_attribute("aria-live") == "off"
        await expect(page.get_by_role("status").filter(has_text="Column 1, synthetic: done")).to_have_count(1)
        await page.get_by_role("button", name="Clear").click()
        await expect(page.get_by_label("Message")).to_be_focused()
        await expect(page.locator(".play-talk")).to_be_empty()


async def _from_its_end(talk: Any) -> float:
    pixels: float = await talk.evaluate("(box) => box.scrollHeight - box.scrollTop - box.clientHeight")
    return pixels


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
async def test_the_page_can_be_read_while_it_streams_and_after(
    browser: Browser, slow: Stack, pictures: Path, width: int, dark: bool
) -> None:
    shade = "dark" if dark else "light"
    async with visit(browser, slow.root_url, slow.admin_key, width=width, dark=dark) as page:
        await opened(page, slow, "?models=synthetic,synthetic,synthetic,synthetic&max_tokens=60&2.top_p=0.5")
        assert await unreadable(page) == []
        await page.get_by_label("System prompt").fill("You are a timer.")
        await ask(page, "Say what you are,\nin two lines.")
        await state_is(page, 4, "streaming")
        await expect(column(page, 4).locator(".is-cost dd").first).to_contain_text("USD")
        await column(page, 2).get_by_role("button", name="Parameters").click()
        assert await unreadable(page) == []
        await picture(page, pictures, f"play_live_{width}_{shade}")
        await state_is(page, 4, "done")
        assert await unreadable(page) == []
        await expect(page.get_by_role("button", name="Add a model")).to_be_disabled()
        await page.get_by_role("button", name="Remove column 4").click()
        await expect(page.locator(".play-column")).to_have_count(3)
        assert "synthetic%2Csynthetic%2Csynthetic&" in page.url or "synthetic,synthetic,synthetic&" in page.url
        await page.reload()
        await expect(page.locator(".play-column")).to_have_count(3)
        await expect(page.get_by_role("button", name="Parameters: 1 of its own")).to_have_count(1)
        await picture(page, pictures, f"play_empty_{width}_{shade}")


async def test_by_keyboard_alone(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.caller) as page:
        await opened(page, stack, "?models=synthetic&max_tokens=5")
        await page.keyboard.press("Control+Enter")
        await expect(page.get_by_role("alert")).to_have_text("Write a message first.")
        await page.keyboard.type("Hello")
        await page.keyboard.press("Control+Enter")
        await state_is(page, 1, "done")
        await expect(page.get_by_label("Message")).to_be_focused()
        names = await _names_by_tab(page, 22)
        for wanted in ("Run", "Run again", "Clear", "Model of column 1", "Parameters", "Conversation of column 1"):
            assert wanted in names, names


async def _names_by_tab(page: Page, presses: int) -> list[str]:
    """What has the focus after each press of the tabulator."""
    names = []
    for _ in range(presses):
        await page.keyboard.press("Tab")
        names.append(
            await page.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()")
        )
    return names
