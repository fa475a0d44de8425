"""Revisions of the real model under load: a good one comes to all requests, a broken one goes back by itself, and
nobody who asks notices either."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest
import pytest_asyncio
from inferbus_prepare.quantize import quantize
from inferbus_prepare.shipped import shipped_file

from tests.harness.asking import audited
from tests.harness.local import Stack, running

MODEL = "smollm2-135m-instruct"
REVISIONS, ROLLOUTS = "/inferbus/v1/revisions", "/inferbus/v1/rollouts"
# What a template that was broken in a build does: whatever is asked, it does not render.
BROKEN = "{{ raise_exception('a macro of another model') }}"
# A canary on two cores that two engines share, seen for seconds: bounds of its own, by which equal ones are equal.
POLICY = {"step_time": 3, "min_requests": 8, "max_slowdown": 3.0, "max_error_increase": 0.02, "patience": 300}


class Operator:
    """Speaks the operator's API."""

    def __init__(self, stack: Stack, http: httpx.AsyncClient) -> None:
        self._stack, self._http = stack, http

    async def ask(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._stack.admin_key}"}
        url = f"{self._stack.root_url}{path}"
        answer = await self._http.request(method, url, headers=headers, json=body or None)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def make(self, revision: str, derived_from: str = "", **settings: str) -> None:
        record = {"model": MODEL, "revision": revision, "engine": "llama_cpp", "settings": settings}
        record["derived_from"] = derived_from
        await self.ask("POST", REVISIONS, **record)

    async def start(self, revision: str, steps: Sequence[int] = (), **policy: Any) -> dict[str, Any]:
        body = {"model": MODEL, "revision": revision, "step_permille": [*steps], "policy": {**POLICY, **policy}}
        return (await self.ask("POST", ROLLOUTS, **body))["rollout"]

    async def stable(self) -> str:
        """What serves the model now, rolled out or not."""
        fleet = await self.ask("GET", "/inferbus/v1/fleet")
        found = [one["record"]["revision"] for one in fleet["workers"] if one["record"]["model"] == MODEL]
        return str(found[0])

    async def rollout(self) -> dict[str, Any]:
        return (await self.ask("GET", f"{ROLLOUTS}?model={MODEL}"))["rollouts"][0]["rollout"]

    async def ended(self, seconds: float) -> dict[str, Any]:
        """The rollout when nothing is tried any more."""
        async with asyncio.timeout(seconds):
            while "candidate_revision" in (record := await self.rollout()):
                await asyncio.sleep(0.2)
        return record


class Load:
    """Clients who ask, one question after the other. ``failed``: what went wrong for them."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client
        self.answered: list[str] = []
        self.failed: list[Exception] = []

    async def ask(self, number: int) -> None:
        turn = 0
        while True:
            turn += 1
            prompt = f"Client {number} asks for the {turn}th time: what is {number} plus {turn}?"
            try:
                answer = await self._client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=8, temperature=0
                )
            except openai.OpenAIError as error:
                self.failed.append(error)
            else:
                self.answered.append(answer.system_fingerprint or "")


@asynccontextmanager
async def loaded(stack: Stack, clients: int = 6) -> AsyncIterator[Load]:
    async with openai.AsyncOpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0, timeout=120) as client:
        load = Load(client)
        asking = [asyncio.create_task(load.ask(number)) for number in range(clients)]
        try:
            yield load
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


@pytest_asyncio.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running(tmp_path_factory.mktemp("rollouts") / "home", "llama_cpp", "--no-embeddings") as started:
        yield started


@pytest_asyncio.fixture
async def operator(stack: Stack) -> AsyncIterator[Operator]:
    async with httpx.AsyncClient(timeout=60) as http:
        yield Operator(stack, http)


async def rows_of(stack: Stack, query: str) -> list[dict[str, Any]]:
    store = stack.content["clickhouse"]
    headers = {"X-ClickHouse-User": store["user"], "X-ClickHouse-Key": store["password"]}
    async with httpx.AsyncClient(timeout=60) as http:
        asked = {"database": store["database"]}
        answer = await http.post(store["url"], params=asked, content=f"{query} FORMAT JSONEachRow", headers=headers)
        answer.raise_for_status()
    return [json.loads(line) for line in answer.text.splitlines()]


async def _by_revision(stack: Stack) -> dict[str, dict[str, Any]]:
    rows = await rows_of(
        stack,
        "SELECT revision, count() AS requests, quantile(0.99)(ttft_us) AS p99 "
        f"FROM bills WHERE model = '{MODEL}' GROUP BY revision",
    )
    return {row["revision"]: row for row in rows}


@pytest.mark.timeout(400)
async def test_a_broken_revision_is_taken_back_and_nobody_notices(
    stack: Stack, operator: Operator, tmp_path: Path
) -> None:
    template = tmp_path / "broken.jinja"
    template.write_text(BROKEN)
    await operator.make("broken", LLAMA_CPP__CHAT_TEMPLATE=str(template))
    async with loaded(stack) as load:
        # A twentieth of what six clients ask of two cores is a failure in ten seconds.
        before = (await operator.start("broken", [150, 1000], min_agreement=0))["stable_revision"]
        record = await operator.ended(200)
        await asyncio.sleep(2)
    event = record["events"][-1]
    assert (event["action"], event["reason"]) == ("rolled_back", "error_rate")
    warm = next(one for one in record["events"] if one["action"] == "warm")
    assert _seconds(event) - _seconds(warm) < 60, "within a minute of its first request"
    assert record["stable_revision"] == before
    assert not load.failed, load.failed[:3]
    assert set(load.answered) == {before}
    figure = next(one for one in event["figures"] if one["name"] == "error_rate")
    assert figure["candidate"] > 0.5
    assert figure["p_value"] < 0.01
    found = await rows_of(stack, "SELECT count() AS n FROM bills WHERE failed_revisions = 'broken'")
    assert int(found[0]["n"]) >= int(figure["candidate_samples"])


@pytest.mark.timeout(400)
async def test_weights_that_are_too_coarse_never_get_a_request(
    stack: Stack, operator: Operator, tmp_path: Path
) -> None:
    """Q4_0 where F32 was, under load. Nobody has validated it."""
    weights = tmp_path / "q4_0.gguf"
    await asyncio.to_thread(quantize, shipped_file(), weights, "q4_0")
    async with loaded(stack, clients=2) as load:
        before = await operator.stable()
        await operator.make("q4_0", derived_from=before, LLAMA_CPP__WEIGHTS=str(weights))
        await operator.start("q4_0")
        record = await operator.ended(200)
    event = record["events"][-1]
    assert (event["action"], event["reason"]) == ("rolled_back", "agreement")
    assert event["figures"][0]["candidate"] < event["figures"][0]["limit"] == 0.5
    assert record["stable_revision"] == before
    assert not load.failed, load.failed[:3]
    assert set(load.answered) == {before}


@pytest.mark.timeout(400)
async def test_a_good_revision_comes_to_all_requests(stack: Stack, operator: Operator) -> None:
    await operator.make("f16", LLAMA_CPP__PRECISION="f16")
    async with loaded(stack) as load:
        before = (await operator.start("f16", min_agreement=0.5))["stable_revision"]
        record = await operator.ended(300)
        at = len(load.answered)
        async with asyncio.timeout(60):
            while len(load.answered) < at + 20:
                await asyncio.sleep(0.1)
    assert not load.failed, load.failed[:3]
    assert record["stable_revision"] == "f16", record["events"][-1]
    assert record["step_permille"] == [50, 250, 1000]
    actions = [one["action"] for one in record["events"]]
    assert actions[-5:] == ["started", "warm", "advanced", "advanced", "promoted"]
    assert {before, "f16"} == set(load.answered)
    assert set(load.answered[-10:]) == {"f16"}
    shown = await _by_revision(stack)
    assert {before, "f16"} <= set(shown)
    assert all(row["p99"] > 0 for row in shown.values())
    code, said = await stack.cli("rollouts", "show", MODEL)
    assert (code, "promoted (judged)" in said) == (0, True)
    await audited(stack)


def _seconds(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["event_time"]).timestamp()
