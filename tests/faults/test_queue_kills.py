"""Straight onto the queue, whoever dies: each single request has one result, and has run once."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from inferbus_bus.connection import BusConfig, connect

from tests.harness.asking import audited
from tests.harness.batches import Batches
from tests.harness.local import Stack, running
from tests.harness.queue import Client, client


async def stored_results(stack: Stack, prefix: str) -> dict[str, int]:
    """Messages on RESULTS by subject."""
    async with connect(BusConfig(stack.content["nats_url"], "admin", stack.content["nats_seed"])) as admin:
        asked: dict[str, Any] = {"subjects_filter": f"{prefix}.>"}
        return (await admin.api("STREAM.INFO.RESULTS", asked, timeout=30))["state"]["subjects"]


async def all_told(team: Client, names: list[str], timeout: float) -> None:
    """Also what was told while the broker, or the team, was away."""
    missing = set(names)
    async with asyncio.timeout(timeout):
        while missing:
            missing -= {subject.removeprefix(f"{team.prefix}.") for subject, _ in team.told}
            for name in list(missing):
                if await team.last(name) is not None:
                    missing.discard(name)
            await asyncio.sleep(1)


async def all_completed(stack: Stack) -> list[dict[str, Any]]:
    """All batches of the first key's project, once they have ended well."""
    headers = {"Authorization": f"Bearer {stack.api_key}"}
    async with httpx.AsyncClient() as http, asyncio.timeout(120):
        while True:
            found, more = list[dict[str, Any]](), True
            while more:
                query = {"limit": "100"} | ({"after": found[-1]["id"]} if found else {})
                listed = (await http.get(f"{stack.base_url}/batches", params=query, headers=headers)).json()
                found, more = found + listed["data"], listed["has_more"]
            if all(one["status"] == "completed" for one in found):
                return found
            await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("count", "kills"),
    [pytest.param(1000, 5, id="short"), pytest.param(10_000, 40, id="soak", marks=pytest.mark.soak)],
)
@pytest.mark.timeout(1800)
async def test_whoever_dies_each_single_request_is_answered_and_runs_once(
    tmp_path: Path, count: int, kills: int
) -> None:
    variables = {"INFERBUS_WORKER_SYNTHETIC__ITL": "50ms", "INFERBUS_WORKER_CAPACITY": "32"}
    names = [f"one-{number}" for number in range(count)]
    async with running(tmp_path / "home", "synthetic", variables=variables) as stack, client(stack) as team:

        async def send() -> None:
            for name in names:
                await team.single(name)
                await asyncio.sleep(0.005)

        source, sending = random.Random(11), asyncio.create_task(send())
        victims = ["batch", "nats", "scheduler", "batch", "edge"]
        for number in range(kills):
            await asyncio.sleep(source.uniform(0.5, 3.0))
            name = victims[number] if number < len(victims) else source.choice(victims)
            await stack.restarted(name, stack.kill(name), 120)
        await sending
        await all_told(team, names, 900)
        stored = await stored_results(stack, team.prefix)
        assert stored == {f"{team.prefix}.{name}": 1 for name in names}
        batches, listed = Batches(stack), await all_completed(stack)
        lines = [line["custom_id"] for one in listed for line in await batches.read(one["output_file_id"])]
        assert sorted(lines) == sorted(names)
        await audited(stack)
