"""``inferbus analytics`` against a real stack: what was asked of it is in its tables, and in --json."""

from typing import Any

import openai
import pytest
from click.testing import CliRunner
from inferbus_cli.__main__ import cli
from inferbus_cli.commands.analytics import _MEASURES

from .conftest import RunningStack, until


@pytest.fixture(scope="module")
def used(stack: RunningStack) -> int:
    """Calls that have ended, and are in the store."""
    content = stack.content
    with openai.OpenAI(base_url=content["base_url"], api_key=content["api_key"], max_retries=0) as client:
        for _ in range(2):
            client.chat.completions.create(
                model="synthetic", messages=[{"role": "user", "content": "analytics"}], max_tokens=6
            )  # fmt: skip
    until(lambda: _ended(stack) >= 2, 20)
    return _ended(stack)


def _ended(stack: RunningStack) -> int:
    rows = stack.json("analytics", "requests", "--since", "1d", "--model", "synthetic").get("rows", [])
    return int(sum(row["numbers"]["requests"] for row in rows))


@pytest.mark.parametrize("measure", _MEASURES)
def test_every_measure_has_an_answer(stack: RunningStack, used: int, measure: str) -> None:
    text = stack.run("analytics", measure, "--since", "1d", "--by", "model,worker", "--groups", "5").stdout
    if measure in ("interruptions", "energy", "errors", "stalls"):
        assert text
    else:
        assert "synthetic" in text


def test_a_table_by_time_and_group(stack: RunningStack, used: int) -> None:
    text = stack.run("analytics", "requests", "--since", "2h", "--step", "1h", "--by", "class").stdout
    assert "from (UTC)" in text
    assert "interactive" in text
    rows = stack.json("analytics", "requests", "--since", "2h", "--step", "1h", "--by", "class")["rows"]
    assert {row["group"]["priority_class"] for row in rows} <= {
        "PRIORITY_CLASS_INTERACTIVE", "PRIORITY_CLASS_BACKGROUND", "PRIORITY_CLASS_BATCH",
    }  # fmt: skip


def test_latency_is_all_of_them_but_what_a_token_does_not_know(stack: RunningStack, used: int) -> None:
    found: dict[str, Any] = stack.json("analytics", "latency", "--since", "1d")
    assert set(found) == {"ttft", "itl", "tpot", "e2e", "queue"}
    for answer in found.values():
        numbers = answer["rows"][0]["numbers"]
        assert numbers["p50"] <= numbers["p95"] <= numbers["p99"]
    assert "itl" not in stack.json("analytics", "latency", "--since", "1d", "--class", "interactive")


def test_what_makes_no_sense_is_refused_in_words(stack: RunningStack) -> None:
    done = stack.run("analytics", "ttft", "--since", "30d", "--step", "1m", check=False)
    assert done.exit_code == 2
    assert "Ask for a step of" in done.output
    assert "There is nothing" in stack.run("analytics", "ttft", "--tenant", "nobody").stdout
    for options in (("nothing",), ("ttft", "--by", "colour"), ("ttft", "--class", "first")):
        refused = CliRunner().invoke(cli, ["analytics", *options, "--url", "http://127.0.0.1:9", "--key", "x"])
        assert refused.exit_code == 2
        assert "Error: " in refused.output
