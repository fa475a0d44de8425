"""Every query of docs/sql.md, asked as the analyst on a stack that has served a few requests."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio

from tests.harness.local import Stack, running

TEXT = (Path(__file__).parents[2] / "docs" / "sql.md").read_text()
QUERIES = re.findall(r"^```sql\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
# These look for faults, so a right answer is none.
FINDS_FAULTS = ("cost != recomputed", "billed != stored")
# These look for what a few good requests do not have.
MAY_BE_EMPTY = ("gap_us > 1000000", "toUUID(")
BODY = {"model": "synthetic", "messages": [{"role": "user", "content": "count these words"}]}


@pytest_asyncio.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """A stack on the timing model after twelve whole requests and one that its client left."""
    home = tmp_path_factory.mktemp("docs") / "home"
    async with running(home, "synthetic", variables={"INFERBUS_WORKER_SYNTHETIC__ITL": "5ms"}) as stack:
        async with openai.AsyncOpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0) as client:
            chat = client.chat.completions
            await asyncio.gather(*(chat.create(**BODY, max_tokens=20) for _ in range(12)))
            stream = await chat.create(**BODY, max_tokens=4000, stream=True)
            await anext(aiter(stream))
            await stream.close()
        code, out = await stack.cli("audit")  # waits until all of it is in the tables
        assert code == 0, out
        yield stack


async def ask(stack: Stack, query: str) -> list[dict[str, str]]:
    code, out = await stack.cli("sql", "--format", "JSONEachRow", query)
    assert code == 0, out
    return [json.loads(line) for line in out.splitlines()]


def test_the_page_has_its_queries() -> None:
    assert len(QUERIES) >= 10


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: " ".join(query.split())[:60])
async def test_a_query_of_the_page_runs_as_the_analyst(served: Stack, query: str) -> None:
    rows = await ask(served, query)
    if any(mark in query for mark in FINDS_FAULTS):
        assert rows == []
    elif not any(mark in query for mark in MAY_BE_EMPTY):
        assert rows


async def test_the_page_names_every_column_and_table(served: Stack) -> None:
    for table in ("bills", "tokens"):
        section = TEXT[TEXT.index(f"**`{table}`**") :].split("\n\n")[0]
        named = set(re.findall(r"`(\w+)`", section))
        columns = {row["name"] for row in await ask(served, f"DESCRIBE TABLE {table}")}
        assert columns <= named, columns - named
    tables = {row["name"] for row in await ask(served, "SHOW TABLES")}
    # What fills a rollup is nothing to ask.
    assert {name for name in tables if f"`{name}`" not in TEXT and "_from_" not in name} == set()
