"""Each line of docs/billing.md's "Who pays when", on one stack: what happens to the client, and the whole row that
bills it. All of them run at once; at the end the audit is clean.

A case is named in the table by its name in brackets. What a case cannot say exactly it says as a relation: of what was
cut off, the tokens of the row are those on the log, and no fewer than its client got."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.faults.paying import answers, batches, deaths, door, others, queue
from tests.faults.paying.cases import CASES, VARIABLES
from tests.harness.asking import audited
from tests.harness.local import running
from tests.harness.paying import world_of

MODULES = (answers, queue, deaths, door, others, batches)


@pytest_asyncio.fixture(scope="module")
async def cases(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, asyncio.Future[None]]]:
    """All of them, running."""
    home = tmp_path_factory.mktemp("rows") / "home"
    async with running(home, "synthetic", variables=VARIABLES) as stack, world_of(stack) as world:
        acting = {name: asyncio.ensure_future(act(world)) for name, act in CASES.items()}
        yield acting
        await asyncio.gather(*acting.values(), return_exceptions=True)
        await audited(stack)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", CASES)
async def test_who_pays(cases: dict[str, asyncio.Future[None]], name: str) -> None:
    await cases[name]
