"""The commands against a real stack."""

import json
import uuid
from pathlib import Path

import clickhouse_connect
import openai
import pytest

from .conftest import Launch, RunningStack, until


def test_chat_streams_and_shows_figures(stack: RunningStack) -> None:
    done = stack.run("chat", "hello", "--max-tokens", "8")
    assert done.stdout.strip()
    assert "8 out (cut at the token limit)" in done.stderr
    assert "tokens/s" in done.stderr


def test_chat_for_scripts(stack: RunningStack) -> None:
    answer = stack.json("chat", "hello", "--max-tokens", "8", "--system", "be brief", "--seed", "7")
    assert answer["output_tokens"] == 8
    assert answer["finish_reason"] == "length"
    assert 0 < answer["ttft_seconds"] <= answer["e2e_seconds"]


def test_chat_in_turns(stack: RunningStack) -> None:
    done = stack.run("chat", "--max-tokens", "3", stdin="hello\n\nand again\n")
    assert done.stderr.count("tokens/s") == 2


def test_models_lists_what_is_served(stack: RunningStack) -> None:
    assert "synthetic" in stack.run("models").stdout
    assert [model["id"] for model in stack.json("models")] == ["synthetic"]


def test_a_key_lives_from_create_to_revoke(stack: RunningStack) -> None:
    made = stack.json("keys", "create", "--tenant", "acme", "--project", "web", "--name", "test")
    key_id, url = made["key"]["key_id"], stack.content["base_url"]
    remote = ("--url", url, "--key", made["secret"])
    until(lambda: stack.run("models", *remote, check=False).exit_code == 0, 30)
    listed = next(key for key in stack.json("keys", "list")["keys"] if key["key_id"] == key_id)
    assert (listed["tenant_id"], listed["project_id"], listed["name"]) == ("acme", "web", "test")
    assert made["secret"] not in stack.run("keys", "list").stdout
    stack.run("keys", "revoke", key_id)
    until(lambda: stack.run("models", *remote, check=False).exit_code == 2, 30)


def test_a_plain_key_is_no_admin_key(stack: RunningStack) -> None:
    refused = stack.run("keys", "list", "--key", stack.content["api_key"], check=False)
    assert refused.exit_code == 2
    assert "Error: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_usage_names_tenant_project_model_and_cost(stack: RunningStack) -> None:
    stack.run("chat", "hello", "--max-tokens", "4")
    until(lambda: bool(stack.json("usage").get("rows")), 20)
    row = stack.json("usage", "--tenant", "default")["rows"][0]
    assert (row["tenant_id"], row["project_id"], row["model"]) == ("default", "default", "synthetic")
    assert float(row["cost"]) > 0
    assert "synthetic" in stack.run("usage", "--since", "1h").stdout
    assert "Nothing was used" in stack.run("usage", "--until", "2001-01-01").stdout


def test_top_once(stack: RunningStack) -> None:
    shown = stack.run("top", "--once").stdout
    for wanted in ("TTFT", "ITL", "P99", "worker-0", "worker-1", "active"):
        assert wanted in shown
    assert {worker["record"]["worker"] for worker in stack.json("top")["fleet"]["workers"]} == {"worker-0", "worker-1"}


def test_sql_as_the_analyst(stack: RunningStack) -> None:
    assert stack.run("sql", "select 6 * 7 as answer").stdout.split()[-1] == "42"
    assert stack.run("sql", "-", "--format", "CSV", stdin="select 1, 'x'").stdout == '1,"x"\n'
    assert stack.json("sql", "select 1 as a") == {"a": 1}
    assert stack.run("sql", "select 5 format TSV").stdout == "5\n"
    cut = stack.run("sql", "select number from numbers(10)", "--max-rows", "3")
    assert "More than 3 rows" in cut.stderr
    assert "[bold]" in stack.run("sql", "select '[bold]' as markup").stdout


@pytest.mark.parametrize(
    "query",
    ["select nope", "create table inferbus.t (x Int8) engine = Memory", "select * from file('/etc/passwd')"],
)
def test_sql_shows_clickhouse_s_refusal(stack: RunningStack, query: str) -> None:
    refused = stack.run("sql", query, check=False)
    assert refused.exit_code == 2
    assert "Code: " in refused.stderr


def test_sql_on_a_clickhouse_named_by_url(stack: RunningStack) -> None:
    url, analyst = stack.content["clickhouse"]["url"], stack.content["analyst"]
    login = ("--clickhouse-url", url, "--user", analyst["user"], "--password", analyst["password"])
    assert stack.run("sql", "select currentUser() as u", *login, "--format", "TSV").stdout.strip()
    wrong = stack.run("sql", "select 1", *login[:-1], "wrong", check=False)
    assert "Authentication failed" in wrong.stderr


def test_audit_is_clean_and_says_what_it_compared(stack: RunningStack) -> None:
    stack.run("chat", "hello", "--max-tokens", "4")
    done = stack.run("audit", "--since", "1h")
    assert "No difference in" in done.stdout
    events = [json.loads(line) for line in stack.run("audit", "--json").stdout.splitlines()]
    assert int(events[-1]["summary"]["requests"]) >= 1


def test_audit_names_a_difference_and_exits_with_1(launch: Launch, tmp_path: Path) -> None:
    """The one way to make the platform's books wrong: an admin who writes into them."""
    stack = launch(tmp_path / "stack")
    answer = stack.json("chat", "hello", "--max-tokens", "4")
    stack.run("audit")
    login = stack.content["clickhouse"]
    host, port = login["url"].removeprefix("http://").split(":")
    with clickhouse_connect.get_client(
        host=host, port=int(port), username=login["user"], password=login["password"], database=login["database"]
    ) as client:
        client.command("alter table requests update output_tokens = 5 where true settings mutations_sync = 2")
    found = stack.run("audit", check=False)
    assert found.exit_code == 1
    assert f"{uuid.UUID(answer['id'].removeprefix('chatcmpl-'))} output_tokens" in found.stdout
    assert "1 differences in 1 requests" in found.stdout
    assert stack.run("audit", "--json", check=False).exit_code == 1


def test_the_openai_sdk_needs_only_base_url_and_key(stack: RunningStack) -> None:
    content = stack.content
    with openai.OpenAI(base_url=content["base_url"], api_key=content["api_key"]) as client:
        answer = client.chat.completions.create(
            model="synthetic", messages=[{"role": "user", "content": "hello"}], max_tokens=5
        )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5


def test_an_error_of_the_edge_is_its_message(stack: RunningStack) -> None:
    refused = stack.run("chat", "hello", "--model", "gpt-9", check=False)
    assert refused.exit_code == 2
    assert "gpt-9" in refused.stderr
    assert refused.stderr.startswith("Error: ")


def test_without_a_stack_each_command_says_how_to_start_one(stack: RunningStack, tmp_path: Path) -> None:
    empty = str(tmp_path)
    for command in (["models"], ["usage"], ["audit"], ["sql", "select 1"]):
        refused = stack.run(*command, "--home", empty, check=False)
        assert refused.exit_code == 2
        assert f"inferbus up --home {empty}" in refused.stderr


def test_nobody_at_the_url_is_said_in_words(stack: RunningStack) -> None:
    refused = stack.run("models", "--url", "http://127.0.0.1:9", "--key", "x", check=False)
    assert refused.exit_code == 2
    assert "nobody answers at http://127.0.0.1:9" in refused.stderr
    assert "--key" in stack.run("models", "--url", "http://127.0.0.1:9", check=False).stderr
