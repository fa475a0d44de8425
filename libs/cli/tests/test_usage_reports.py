"""``inferbus usage``, ``cost`` and ``margin`` against a real stack: sums by what is asked for, and files."""

import csv
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner
from inferbus_cli.__main__ import cli

from .conftest import RunningStack, until


@pytest.fixture(scope="module")
def used(stack: RunningStack) -> dict[str, Any]:
    """Three calls of one end user with a tag that no other test has; what they used in all."""
    tokens = {"input": 0, "output": 0}
    content = stack.content
    with openai.OpenAI(base_url=content["base_url"], api_key=content["api_key"], max_retries=0) as client:
        for _ in range(3):
            made = client.chat.completions.create(
                model="synthetic", messages=[{"role": "user", "content": "report"}], max_tokens=4, user="grace",
                extra_headers={"x-inferbus-tags": "team=reports"},
            )  # fmt: skip
            assert made.usage is not None
            tokens["input"] += made.usage.prompt_tokens
            tokens["output"] += made.usage.completion_tokens
    until(lambda: _requests(stack) == 3, 20)
    return tokens


def _requests(stack: RunningStack) -> int:
    rows = stack.json("usage", "--tag", "team=reports").get("rows", [])
    return sum(int(row["requests"]) for row in rows)


def test_usage_by_what_is_asked_for(stack: RunningStack, used: dict[str, Any]) -> None:
    (row,) = stack.json("usage", "--user", "grace", "--by", "user,tags,operation", "--bucket", "month")["rows"]
    assert row["group"] == {"end_user": "grace", "tags": {"team": "reports"}, "operation": "OPERATION_CHAT"}
    assert (int(row["input_tokens"]), int(row["output_tokens"])) == (used["input"], used["output"])
    text = stack.run("usage", "--user", "grace", "--by", "user,tags", "--bucket", "day").stdout
    assert "grace" in text
    assert "team=reports" in text
    assert "day (UTC)" in text
    assert "Nothing was used" in stack.run("usage", "--user", "nobody").stdout


def test_line_items_add_up_to_the_cost(stack: RunningStack, used: dict[str, Any]) -> None:
    asked = ("cost", "--tag", "team=reports", "--by", "project")
    (whole,) = stack.json(*asked)["rows"]
    lines = stack.json(*asked, "--line-items")["rows"]
    assert sum(Decimal(line["amount"]) for line in lines) == Decimal(whole["amount"]) > 0
    quantities = {line["line_item"]: int(line.get("quantity", 0)) for line in lines}
    assert quantities["synthetic, output_tokens"] == used["output"]
    assert f"{whole['amount']} USD" in stack.run(*asked).stdout
    assert "synthetic, output_tokens" in stack.run(*asked, "--line-items").stdout
    assert "Nothing was charged" in stack.run("cost", "--until", "2001-01-01").stdout


def test_an_export_is_csv_or_a_file(stack: RunningStack, used: dict[str, Any], tmp_path: Path) -> None:
    asked = ("usage", "--tag", "team=reports", "--bucket", "month")
    (line,) = csv.DictReader(io.StringIO(stack.run(*asked, "--csv").stdout))
    assert (line["end_user"], line["requests"], line["output_tokens"]) == ("grace", "3", str(used["output"]))
    (whole,) = stack.json("cost", "--tag", "team=reports", "--by", "project")["rows"]
    assert Decimal(line["charge"]) == Decimal(whole["amount"])
    file = tmp_path / "usage.parquet"
    stack.run(*asked, "--parquet", str(file))
    assert file.read_bytes()[:4] == file.read_bytes()[-4:] == b"PAR1"
    assert [one.name for one in tmp_path.iterdir()] == ["usage.parquet"]


def test_margin_says_what_is_known(stack: RunningStack, used: dict[str, Any]) -> None:
    rows = stack.json("margin")["rows"]
    assert {row["worker"] for row in rows} <= {"worker-0", "worker-1"}
    # Of one that had nothing to do the busy ones are left out.
    assert all(row["gpu_hours"] >= row.get("busy_gpu_hours", 0.0) for row in rows)
    assert all("gpu_cost" not in row and "energy_joules" not in row for row in rows)
    assert any(float(row["busy"].removesuffix("s")) > 0 for row in rows)
    assert "watched" in stack.json("margin")
    text = stack.run("margin").stdout
    assert "GPU h" in text
    assert "No meter watched" not in text
    before = stack.run("margin", "--since", "2020-01-01", "--until", "2020-01-02").stdout
    assert "No meter watched for 24.00 h" in before
    assert "synthetic" in text


def test_what_does_not_go_together_is_refused() -> None:
    for options in (("--csv", "--json"), ("--csv", "--by", "model"), ("--by", "colour"), ("--bucket", "week")):
        done = CliRunner().invoke(cli, ["usage", *options, "--url", "http://127.0.0.1:9", "--key", "x"])
        assert done.exit_code == 2
        assert "Error: " in done.output
