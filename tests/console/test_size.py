"""The sizing page: what it shows is what the API works out, it follows each change, and everything has its formula."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from inferbus_runtime.clock import now
from playwright.async_api import Locator, Page, expect

from tests.console.browsing import WIDTHS, picture, unreadable
from tests.console.conftest import Keys, Visit
from tests.harness.local import Stack

PRICES = "api_in=0.6&api_out=0.6&requests=20000000"
CONFIG = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


async def opened(page: Page, stack: Stack, query: str = "") -> None:
    await page.goto(f"{stack.root_url}/console/#/size{'?' if query else ''}{query}")
    await expect(page.get_by_role("heading", name="Sizing")).to_be_visible()
    await settled(page)


async def settled(page: Page) -> None:
    await expect(page.locator("[aria-busy]")).to_have_count(0)
    await expect(page.get_by_role("status")).to_have_count(0)


async def changed(page: Page, field: Locator, value: str) -> None:
    """Type it, and wait for what it makes of the page."""
    async with page.expect_response(lambda answer: "/sizing" in answer.url and answer.request.method == "POST"):
        await field.fill(value)
    await settled(page)


def panel(page: Page, title: str) -> Locator:
    return page.locator(".panel", has=page.get_by_role("heading", name=title, exact=True))


def figure(page: Page, title: str) -> Locator:
    return page.locator("details.stat", has=page.get_by_text(title, exact=True))


async def told(stack: Stack, key: str, body: dict[str, Any]) -> dict[str, Any]:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        answer = await http.post(f"{stack.root_url}/inferbus/v1/sizing", json=body)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


@pytest.mark.parametrize("width", WIDTHS)
async def test_the_page(console: Visit, stack: Stack, keys: Keys, pictures: Path, width: int) -> None:
    async with console(keys.admin, width=width) as page:
        await opened(page, stack, f"gpu=h100&concurrency=64&ttft=500&itl=50&{PRICES}")
        await expect(page.get_by_role("heading", name="H100 SXM 80 GB")).to_be_visible()
        await expect(page.get_by_text("TP4, weights FP8")).to_be_visible()
        await expect(page.locator(".plot-figure canvas")).to_be_visible()
        await figure(page, "TTFT, mean").locator("summary").click()
        assert await unreadable(page) == []
        await page.evaluate("scrollTo(0, 0)")
        await picture(page, pictures, f"size_{width}_light")
        await page.get_by_role("button", name="Dark colours").click()
        await expect(page.get_by_role("button", name="Light colours")).to_be_visible()
        assert await unreadable(page) == []
        await picture(page, pictures, f"size_{width}_dark")


async def test_figures_are_the_apis_and_open_their_formula_and_source(console: Visit, stack: Stack, keys: Keys) -> None:
    body = {"model": "llama-3.1-70b", "precision": "fp8", "gpu": "h200"}
    figures = (await told(stack, keys.tenant, body))["plans"][0]["figures"]
    async with console(keys.tenant) as page:
        await opened(page, stack, "gpu=h200")
        await expect(page.locator("details.stat")).to_have_count(len(figures))
        for said in figures.values():
            one = figure(page, said["title"])
            await expect(one.locator(".sizing-formula")).to_be_hidden()
            await one.locator("summary").click()
            await expect(one.locator(".sizing-formula")).to_have_text(f"= {said['formula']}")
            await expect(one.locator(".stat-note")).to_have_text(f"From {said['source']}")
        weights = await figure(page, "weights").locator(".stat-value").text_content()
        assert weights is not None
        assert weights.replace("\u202f", " ") == "72.7 GB"
        assert await unreadable(page) == []


async def test_it_follows_each_change_and_keeps_it_in_the_address(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, "gpu=h100")
        few = await figure(page, "GPUs").locator(".stat-value").text_content()
        await changed(page, page.get_by_label("At once"), "2000")
        many = await figure(page, "GPUs").locator(".stat-value").text_content()
        assert int(str(many)) > int(str(few))
        assert "concurrency=2000" in page.url
        async with page.expect_response(lambda answer: "/sizing" in answer.url):
            await page.locator("select[name=model]").select_option("deepseek-r1")
        await settled(page)
        await expect(figure(page, "active for a token")).to_be_visible()
        assert "model=deepseek-r1" in page.url
        await page.reload()
        await settled(page)
        await expect(page.get_by_label("At once")).to_have_value("2000")
        await expect(page.locator("select[name=model]")).to_have_value("deepseek-r1")


async def test_an_open_figure_stays_open_and_a_gpu_is_chosen_by_keyboard(
    console: Visit, stack: Stack, keys: Keys
) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, "gpu=h100")
        await figure(page, "ITL, mean").locator("summary").focus()
        await page.keyboard.press("Enter")
        await expect(figure(page, "ITL, mean").locator(".sizing-formula")).to_be_visible()
        button = panel(page, "GPUs").get_by_role("button", name="H200 SXM 141 GB")
        await button.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("heading", name="H200 SXM 141 GB")).to_be_visible()
        assert "gpu=h200" in page.url
        await expect(button).to_be_focused()
        await expect(button).to_have_attribute("aria-pressed", "true")
        await expect(figure(page, "ITL, mean").locator(".sizing-formula")).to_be_visible()


async def test_a_price_of_ones_own_is_of_the_gpu_that_is_shown(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, "gpu=h100&price=10")
        gpus = int(str(await figure(page, "GPUs").locator(".stat-value").text_content()))
        cost = figure(page, "cost, hour")
        await expect(cost.locator(".stat-value")).to_have_text(f"${gpus * 10:.2f}")
        await cost.locator("summary").click()
        await expect(cost.locator(".stat-note")).to_have_text("From as given")


async def test_the_crossover_is_drawn_where_there_are_prices(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, "gpu=h100&concurrency=64")
        await expect(page.locator(".plot-figure canvas")).to_have_count(0)
        await changed(page, page.get_by_label("API, $/M input"), "0.6")
        await changed(page, page.get_by_label("API, $/M output"), "0.6")
        await expect(page.locator(".plot-figure canvas")).to_be_visible()
        await expect(
            page.get_by_text(re.compile(r"From .* requests a month on the own GPUs are cheaper"))
        ).to_be_visible()
        await expect(figure(page, "crossover")).to_be_visible()
        await changed(page, page.get_by_label("API, $/M input"), "0.001")
        await changed(page, page.get_by_label("API, $/M output"), "0.001")
        await expect(page.get_by_text("The API is cheaper at any load")).to_be_visible()
        await expect(figure(page, "crossover").locator(".stat-value")).to_have_text("never")


async def test_a_config_of_ones_own(console: Visit, stack: Stack, keys: Keys, pictures: Path, tmp_path: Path) -> None:
    async with console(keys.tenant, width=390, dark=True, expected=(400,)) as page:
        await opened(page, stack, "model=config&gpu=l4")
        await expect(page.get_by_text("Paste a model's config.json")).to_be_visible()
        await page.get_by_label("config.json of the model").fill("{")
        await expect(page.get_by_role("alert")).to_contain_text("is no JSON")
        await page.get_by_label("config.json of the model").fill("{}")
        await expect(page.get_by_role("alert")).to_contain_text("num_hidden_layers")
        path = tmp_path / "config.json"
        path.write_text(json.dumps(CONFIG))
        await page.get_by_label("or its file").set_input_files(path)
        await expect(page.get_by_role("heading", name="L4 24 GB")).to_be_visible()
        await settled(page)
        parameters = await figure(page, "parameters").locator(".stat-value").text_content()
        assert str(parameters).replace("\u202f", " ") == "8.03 B"
        assert "hidden_size" not in page.url
        assert await unreadable(page) == []
        await page.evaluate("scrollTo(0, 0)")
        await picture(page, pictures, "size_config")


async def test_what_does_not_fit_says_what_would(console: Visit, stack: Stack, keys: Keys, pictures: Path) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, "model=llama-3.1-405b&precision=fp32&gpu=t4")
        await expect(page.get_by_role("alert")).to_contain_text("What would fit: ")
        await expect(panel(page, "GPUs").get_by_text("no", exact=True).first).to_be_visible()
        assert await unreadable(page) == []
        await picture(page, pictures, "size_misfit")


async def test_a_wrong_wish_is_told_and_can_be_mended(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin, expected=(400,)) as page:
        await opened(page, stack, "input=9000")
        await expect(page.get_by_role("alert")).to_contain_text("input_tokens must be from 1 to 8,192")
        await changed(page, page.get_by_label("Prompt, tokens"), "2000")
        await expect(page.get_by_role("alert")).to_have_count(0)
        await expect(page.locator("details.stat").first).to_be_visible()


async def test_what_is_worked_out_stands_beside_what_was_measured_here(
    console: Visit, stack: Stack, keys: Keys, traffic: int, pictures: Path
) -> None:
    """Of a tenant its own requests: their lengths can be sized for, and the figures are the log's."""
    headers = {"Authorization": f"Bearer {keys.tenant}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        asked = {"measure": "ttft", "model": "synthetic", "start": (now() - timedelta(days=1)).isoformat()}
        rows = (await http.get(f"{stack.root_url}/v1/organization/analytics", params=asked)).json()["rows"]
    measured = f"{1000 * rows[0]['numbers']['p50']:.3g}"
    async with console(keys.tenant) as page:
        await opened(page, stack, "gpu=h100")
        here = panel(page, "Measured here, in the last day")
        await expect(here.get_by_text("Choose a model to compare with.")).to_be_visible()
        await here.get_by_label("Model that is served").select_option("synthetic")
        load = re.compile(rf"{traffic} requests of [0-9,]+ tokens in and 16 out")
        await expect(here.get_by_text(load)).to_be_visible()
        line = here.get_by_role("row", name="TTFT, p50").get_by_role("cell")
        expected = await figure(page, "TTFT, mean").locator(".stat-value").text_content()
        assert await line.nth(1).text_content() == expected
        assert str(await line.nth(2).text_content()).startswith(measured)
        async with page.expect_response(lambda answer: "/sizing" in answer.url and answer.request.method == "POST"):
            await here.get_by_role("button", name="Size for this load").click()
        await settled(page)
        await expect(page.get_by_label("Answer, tokens")).to_have_value("16")
        assert "measured=synthetic" in page.url
        assert "output=16" in page.url
        assert await unreadable(page) == []
        await here.scroll_into_view_if_needed()
        await picture(page, pictures, "size_measured")
        await page.reload()
        await settled(page)
        await expect(here.get_by_text("under way when one was")).to_be_visible()
