"""The page of deployments: what serves a model, what was decided by which figures, and every change by hand."""

import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import pytest_asyncio
from inferbus.bus.v1.revision_pb2 import (
    RevisionPin,
    RolloutFigure,
    RolloutRecord,
    RolloutState,
    RolloutStrategy,
    RolloutVerdict,
)
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry
from playwright.async_api import Dialog, Locator, Page, expect

from tests.console.browsing import WIDTHS, picture, unreadable
from tests.console.conftest import MODEL, Keys, Visit
from tests.harness.local import Stack

GOOD, BAD = RolloutVerdict.ROLLOUT_VERDICT_GOOD, RolloutVerdict.ROLLOUT_VERDICT_BAD
FIGURES = [
    RolloutFigure(
        name="error_rate", candidate=0.0, stable=0.0, candidate_samples=212, stable_samples=611, p_value=1.0,
        limit=0.01, verdict=GOOD,
    ),
    RolloutFigure(
        name="ttft", candidate=0.25, stable=0.1, candidate_samples=212, stable_samples=611, p_value=2e-7, limit=0.125,
        verdict=BAD,
    ),
]  # fmt: skip
VALIDATION = {
    "passed": True, "reference": "f16", "duration": "41s",
    "figures": [
        {"name": "greedy_agreement", "value": 0.97, "at_least": 0.9, "passed": True, "detail": "64 prompts"},
        {"name": "size_ratio", "value": 0.531, "detail": "files"},
    ],
}  # fmt: skip
Made = Callable[..., Awaitable[str]]


@pytest_asyncio.fixture
async def made(stack: Stack, keys: Keys) -> Made:
    """``await made("name")``: a model with the revision f16, which is the first to serve it, and q8, which is derived
    from it and was validated. No worker has either."""

    async def make(model: str) -> str:
        base = {"model": model, "engine": "synthetic"}
        await ask(stack, "POST", "revisions", {**base, "revision": "f16", "precision": "f16"})
        derived = {"revision": "q8", "precision": "q8_0", "derived_from": "f16", "validation": VALIDATION}
        await ask(stack, "POST", "revisions", {**base, **derived})
        await ask(stack, "POST", "rollouts", {"model": model, "revision": "f16"})
        return model

    return make


async def ask(stack: Stack, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {stack.admin_key}"}
    async with httpx.AsyncClient(headers=headers, timeout=60) as http:
        answer = await http.request(method, f"{stack.root_url}/inferbus/v1/{path}", json=body)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


async def rollout(stack: Stack, model: str) -> dict[str, Any]:
    found: dict[str, Any] = (await ask(stack, "GET", f"rollouts?model={model}"))["rollouts"][0]["rollout"]
    return found


async def put(stack: Stack, record: RolloutRecord) -> None:
    """As if schedulers had decided it."""
    config = BusConfig(stack.content["nats_url"], "console-tests", seed=stack.content["nats_seed"])
    async with connect(config) as bus:
        records = Registry(bus, "rollouts", RolloutRecord)
        await records.start()
        await records.put(record.model, record)
        await records.stop()


async def opened(page: Page, stack: Stack, model: str = "") -> None:
    page.on("dialog", _accepted)
    await page.goto(f"{stack.root_url}/console/#/deployments{'/' if model else ''}{model}")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Deployments")
    await expect(page.locator(".message.loading")).to_have_count(0)


async def _accepted(dialog: Dialog) -> None:
    await dialog.accept()


def panel(page: Page, title: str) -> Locator:
    return page.locator(".panel", has=page.get_by_role("heading", name=title, exact=True))


def state(page: Page, text: str) -> Locator:
    return page.locator(".page-head .badge", has_text=text)


def stat(page: Page, label: str) -> Locator:
    return page.locator(".stat", has=page.get_by_text(label, exact=True)).locator(".stat-value")


async def settled(record: Callable[[], Awaitable[bool]], page: Page, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not await record():
        assert time.monotonic() < end
        await page.wait_for_timeout(100)


def taken_back(model: str) -> RolloutRecord:
    record = RolloutRecord(
        model=model, stable_revision="f16", state=RolloutState.ROLLOUT_STATE_ROLLED_BACK,
        strategy=RolloutStrategy.ROLLOUT_STRATEGY_CANARY, step_permille=[50, 250, 1000],
        pins=[RevisionPin(tenant_id="acme", revision="f16")],
    )  # fmt: skip
    now = int(time.time())
    for ago, action, reason, weight, actor, figures in (
        (300, "started", "operator", 0, "key-of-ann", []),
        (240, "warm", "warm", 50, "", []),
        (120, "advanced", "judged", 250, "", FIGURES[:1]),
        (30, "rolled_back", "ttft", 250, "", FIGURES),
    ):
        event = record.events.add(
            action=action, reason=reason, weight_permille=weight, revision="q8", actor_key_id=actor, figures=figures,
            message="q8 is worse: ttft 0.25, allowed 0.125" if figures == FIGURES else f"q8 was {action}.",
        )  # fmt: skip
        event.event_time.FromSeconds(now - ago)
    record.step_time.FromSeconds(now - 30)
    record.create_time.FromSeconds(now - 300)
    record.update_time.FromSeconds(now - 30)
    return record


@pytest.mark.parametrize("width", WIDTHS)
async def test_what_was_decided_is_shown_with_its_figures(
    console: Visit, stack: Stack, made: Made, pictures: Path, width: int
) -> None:
    model = await made(f"told-{width}")
    await put(stack, taken_back(model))
    async with console(stack.admin_key, width=width) as page:
        await opened(page, stack, model)
        await expect(state(page, "rolled back")).to_be_visible()
        await expect(page.locator(".deploy-step")).to_have_text(
            ["5\u202f%done", "25\u202f%left here", "100\u202f%to come"]
        )
        events = page.locator(".deploy-history > li")
        await expect(events).to_have_count(4)
        await expect(events.first).to_contain_text("ttft · by rule")
        await expect(events.first).to_contain_text("q8 is worse: ttft 0.25, allowed 0.125")
        await expect(events.last).to_contain_text("operator · key-of-ann")
        await expect(events.first.get_by_role("row")).to_have_count(0)
        await events.first.locator("summary").click()
        slow = events.first.get_by_role("row", name="TTFT, median")
        await expect(slow.get_by_role("cell")).to_have_text(
            ["TTFT, median", "250\u202fms", "100\u202fms", "125\u202fms", "2.0e-7", "212 / 611", "bad"]
        )
        await panel(page, "Revisions").locator("summary", has_text="q8").click()
        bound = panel(page, "Revisions").get_by_role("row", name="greedy agreement")
        await expect(bound.get_by_role("cell")).to_have_text(
            ["greedy agreement", "0.97", "≥ 0.9", "passed", "64 prompts"]
        )
        await expect(panel(page, "Pins and shadow")).to_contain_text("acme to f16")
        # What is open stays so when the page asks anew.
        async with page.expect_response(lambda answer: answer.url.endswith("/rollouts")):
            pass
        await expect(slow).to_be_visible()
        assert await unreadable(page) == []
        await picture(page, pictures, f"deployments_{width}_light")
        await page.get_by_role("button", name="Dark colours").click()
        await expect(page.get_by_role("button", name="Light colours")).to_be_visible()
        assert await unreadable(page) == []
        await picture(page, pictures, f"deployments_{width}_dark")


@pytest.mark.parametrize("width", WIDTHS)
async def test_the_list(console: Visit, stack: Stack, made: Made, pictures: Path, width: int) -> None:
    model = await made(f"listed-{width}")
    await ask(stack, "POST", "rollouts", {"model": model, "revision": "q8"})
    async with console(stack.admin_key, width=width, dark=width == WIDTHS[0]) as page:
        await opened(page, stack)
        row = page.get_by_role("row", name=model)
        await expect(row).to_contain_text("warming")
        await expect(row).to_contain_text("q8 is to serve in the place of f16.")
        assert await unreadable(page) == []
        await picture(page, pictures, f"deployments_list_{width}")
        await page.get_by_role("link", name=model).click()
        await expect(stat(page, "Candidate")).to_have_text("q8")


async def test_a_rollout_is_begun_promoted_and_returned_by_hand(console: Visit, stack: Stack, made: Made) -> None:
    model = await made("by-hand")
    async with console(stack.admin_key) as page:
        await opened(page, stack, model)
        await expect(stat(page, "Stable")).to_have_text("f16")
        form = panel(page, "Deploy a revision")
        await expect(form.get_by_label("Revision")).to_have_value("q8")
        await form.get_by_label("Steps, %").fill("10, 50")
        await form.get_by_label("A step, s").fill("90")
        await form.get_by_label("Slower at most, %").fill("30")
        await form.get_by_role("button", name="Deploy").click()
        await expect(state(page, "warming")).to_be_visible()
        await expect(form.get_by_role("button", name="Deploy")).to_be_disabled()
        await expect(page.locator(".deploy-step strong")).to_have_text(["10\u202f%", "50\u202f%", "100\u202f%"])
        policy = (await rollout(stack, model))["policy"]
        assert policy == {"step_time": "90s", "max_slowdown": 0.3}
        await expect(page.get_by_role("button", name="Pause")).to_have_count(0)  # nothing runs yet

        await page.get_by_role("button", name="Promote").click()
        await expect(state(page, "promoted")).to_be_visible()
        await expect(stat(page, "Stable")).to_have_text("q8")
        assert (await rollout(stack, model))["stable_revision"] == "q8"
        await page.get_by_role("button", name="Return to f16").click()
        await expect(stat(page, "Stable")).to_have_text("f16")
        await expect(stat(page, "Before")).to_have_text("q8")
        events = (await rollout(stack, model))["events"]
        assert [one["action"] for one in events[-3:]] == ["started", "promoted", "returned"]
        assert all(one["actor_key_id"] for one in events)


async def test_blue_green_is_taken_back_by_hand_and_its_revision_retired(
    console: Visit, stack: Stack, made: Made
) -> None:
    model = await made("blue")
    async with console(stack.admin_key) as page:
        await opened(page, stack, model)
        form = panel(page, "Deploy a revision")
        await form.get_by_label("How").select_option("blue_green")
        await expect(form.get_by_label("Steps, %")).to_be_hidden()
        await form.get_by_role("button", name="Deploy").click()
        await expect(panel(page, "Blue-green")).to_be_visible()
        await page.get_by_role("button", name="Roll back").click()
        await expect(state(page, "rolled back")).to_be_visible()
        record = await rollout(stack, model)
        assert record["strategy"] == "ROLLOUT_STRATEGY_BLUE_GREEN"
        row = panel(page, "Revisions").get_by_role("row", name="q8")
        await row.get_by_role("button", name="Retire").click()
        await expect(row).to_contain_text("retired")
        await expect(form.get_by_role("button", name="Deploy")).to_be_disabled()


async def test_pins_and_a_shadow(console: Visit, stack: Stack, made: Made) -> None:
    model = await made("pinned")
    async with console(stack.admin_key) as page:
        await opened(page, stack, model)
        box = panel(page, "Pins and shadow")
        for tenant in ("acme", "globex"):
            await box.get_by_label("Tenant").fill(tenant)
            await box.get_by_label("Revision to pin it to").select_option("q8")
            await box.get_by_role("button", name="Pin", exact=True).click()
            await expect(box).to_contain_text(f"{tenant} to q8")
        await box.get_by_role("button", name="Unpin acme").click()
        await expect(box).not_to_contain_text("acme to q8")
        assert (await rollout(stack, model))["pins"] == [{"tenant_id": "globex", "revision": "q8"}]

        await box.get_by_label("Revision to shadow on").select_option("q8")
        await box.get_by_label("Part, %").fill("2.5")
        await box.get_by_role("button", name="Shadow", exact=True).click()
        await expect(box).to_contain_text("2.5\u202f% of the requests also run on q8.")
        assert (await rollout(stack, model))["shadow"] == {"revision": "q8", "permille": 25}
        await box.get_by_role("button", name="Stop the shadow").click()
        await expect(box).to_contain_text("Nothing is shadowed.")
        assert "shadow" not in await rollout(stack, model)


async def test_what_is_wrong_is_told_in_the_apis_words_and_nothing_is_done(
    console: Visit, stack: Stack, made: Made
) -> None:
    model = await made("wrong")
    async with console(stack.admin_key, expected=(409,)) as page:
        await opened(page, stack, model)
        form = panel(page, "Deploy a revision")
        await form.get_by_label("Steps, %").fill("5, much")
        await form.get_by_role("button", name="Deploy").click()
        await expect(page.get_by_role("alert")).to_contain_text("“5, much” are no steps")
        await form.get_by_label("Steps, %").fill("")
        # Somebody else was faster than what the page knows.
        await page.route("**/rollouts", lambda route: route.continue_() if route.request.method == "POST" else None)
        await ask(stack, "POST", "rollouts", {"model": model, "revision": "q8"})
        await form.get_by_role("button", name="Deploy").click()
        await expect(page.get_by_role("alert")).to_contain_text("`q8` is being rolled out: end that first.")
        assert len((await rollout(stack, model))["events"]) == 2


async def test_what_is_not_confirmed_is_not_done(console: Visit, stack: Stack, made: Made) -> None:
    model = await made("unsure")
    await ask(stack, "POST", "rollouts", {"model": model, "revision": "q8"})
    async with console(stack.admin_key) as page:
        await opened(page, stack, model)
        page.remove_listener("dialog", _accepted)
        asked: list[str] = []

        async def dismissed(dialog: Dialog) -> None:
            asked.append(dialog.message)
            await dialog.dismiss()

        page.on("dialog", dismissed)
        await page.get_by_role("button", name="Roll back").click()
        await expect(page.get_by_role("button", name="Roll back")).to_be_enabled()
        assert asked == ["Take q8 back now? f16 serves all requests; what runs ends well."]
        assert (await rollout(stack, model))["candidate_revision"] == "q8"


def running(model: str) -> RolloutRecord:
    """At a quarter of the requests, since now."""
    record = RolloutRecord(
        model=model, stable_revision="f16", candidate_revision="q8", state=RolloutState.ROLLOUT_STATE_RUNNING,
        strategy=RolloutStrategy.ROLLOUT_STRATEGY_CANARY, step_permille=[50, 250, 1000], weight_permille=250,
    )  # fmt: skip
    now = int(time.time())
    record.events.add(action="warm", reason="warm", revision="q8", weight_permille=250).event_time.FromSeconds(now)
    for moment in (record.step_time, record.create_time, record.update_time):
        moment.FromSeconds(now)
    return record


async def test_a_step_is_paused_and_gone_on_with_by_hand(console: Visit, stack: Stack, made: Made) -> None:
    model = await made("paused")
    async with console(stack.admin_key) as page:
        await put(stack, running(model))
        await opened(page, stack, model)
        await page.get_by_role("button", name="Pause").click()
        await expect(state(page, "paused")).to_be_visible()
        await expect(page.get_by_role("button", name="Pause")).to_have_count(0)
        assert (await rollout(stack, model))["state"] == "ROLLOUT_STATE_PAUSED"
        await page.get_by_role("button", name="Resume").click()
        await expect(state(page, "running")).to_be_visible()
        events = (await rollout(stack, model))["events"]
        assert [one["action"] for one in events] == ["warm", "paused", "resumed"]
        assert all(one["actor_key_id"] for one in events[1:])


async def test_what_is_kept_for_a_return_is_let_go_and_retired_then(console: Visit, stack: Stack, made: Made) -> None:
    model = await made("let-go")
    record = RolloutRecord(
        model=model, stable_revision="q8", previous_revision="f16", keep_previous=True, weight_permille=1000,
        state=RolloutState.ROLLOUT_STATE_PROMOTED, strategy=RolloutStrategy.ROLLOUT_STRATEGY_BLUE_GREEN,
    )  # fmt: skip
    record.step_time.FromSeconds(int(time.time()))
    async with console(stack.admin_key) as page:
        await put(stack, record)
        await opened(page, stack, model)
        before = page.locator(".stat", has=page.get_by_text("Before", exact=True))
        await expect(before).to_contain_text("its workers are kept")
        await page.get_by_role("button", name="Let f16 go").click()
        await expect(before).not_to_contain_text("its workers are kept")
        await expect(page.get_by_role("button", name="Let f16 go")).to_have_count(0)
        assert "keep_previous" not in await rollout(stack, model)
        row = panel(page, "Revisions").get_by_role("row", name=re.compile("^f16"))
        await row.get_by_role("button", name="Retire").click()
        await expect(row).to_contain_text("retired")


async def test_the_page_follows_what_the_schedulers_decide(console: Visit, stack: Stack, made: Made) -> None:
    """A candidate that runs without a worker is taken back by the rule: nobody presses anything."""
    model = await made("alone")
    async with console(stack.admin_key) as page:
        await put(stack, running(model))
        await opened(page, stack, model)
        await expect(state(page, "running")).to_be_visible()
        await expect(page.locator(".deploy-step[aria-current=step]")).to_contain_text("25\u202f%")
        await expect(page.get_by_role("button", name="Pause")).to_be_visible()
        await expect(panel(page, "Figures of this step")).to_be_visible()
        await expect(state(page, "rolled back")).to_be_visible(timeout=90_000)
        await expect(page.locator(".deploy-history > li").first).to_contain_text("no worker · by rule")


@pytest.mark.usefixtures("traffic")
async def test_latencies_by_revision_are_drawn(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.admin) as page:
        await opened(page, stack, MODEL)
        for title in ("Time to first token by revision", "Inter-token latency by revision"):
            plot = panel(page, title)
            await expect(plot.locator("canvas")).to_be_visible()
            await expect(plot.get_by_text("P95", exact=False).first).to_be_visible()
            await expect(plot.get_by_text("P99", exact=False).first).to_be_visible()


async def test_it_is_an_operators(console: Visit, stack: Stack, keys: Keys) -> None:
    async with console(keys.tenant) as page:
        await page.goto(f"{stack.root_url}/console/#/deployments")
        await expect(page.get_by_role("heading", name="Analytics")).to_be_visible()
        await expect(page.get_by_role("link", name="Deployments")).to_have_count(0)
