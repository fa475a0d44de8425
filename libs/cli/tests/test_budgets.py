"""Budgets and credits by the command line, to a real stack: set, spent, refused, paid in."""

import json

import httpx2

from .conftest import RunningStack, until


def asks(stack: RunningStack, secret: str, *more: str) -> str:
    """Empty if it was answered, else what the command said."""
    remote = ("--url", stack.content["base_url"], "--key", secret)
    done = stack.run("chat", "hello", "--max-tokens", "4", *more, *remote, check=False)
    return "" if done.exit_code == 0 else done.stderr


def test_a_prepaid_tenant_is_served_for_what_it_paid_in(stack: RunningStack) -> None:
    secret = stack.json("keys", "create", "--tenant", "prepaid")["secret"]
    until(lambda: asks(stack, secret) == "", 30)
    set_ = stack.json("budgets", "set", "--tenant", "prepaid", "--period", "prepaid", "--hard", "--threshold", "0.5")
    assert set_["status"]["amount"] == "0"
    until(lambda: "insufficient_quota" in asks(stack, secret), 30)
    for _ in range(2):  # the second time does nothing
        stack.run("credits", "add", "order-1", "--tenant", "prepaid", "--amount", "5", "--note", "an order")
    assert len(stack.json("credits", "list", "--tenant", "prepaid")["credits"]) == 1
    until(lambda: asks(stack, secret) == "", 30)
    (shown,) = stack.json("budgets", "list", "--tenant", "prepaid")["budgets"]
    assert shown["amount"] == "5"
    assert "prepaid" in stack.run("budgets", "list").stdout
    assert "order-1" in stack.run("credits", "list").stdout

    refused = stack.run("credits", "add", "order-1", "--tenant", "prepaid", "--amount", "6", check=False)
    assert "credit_exists" in refused.stderr
    stack.run("budgets", "delete", "--tenant", "prepaid", "--period", "prepaid")
    assert "budget_not_found" in stack.run("budgets", "delete", "--tenant", "prepaid", check=False).stderr


def test_what_edges_spent_is_what_the_meter_charges(stack: RunningStack) -> None:
    secret = stack.json("keys", "create", "--tenant", "exact")["secret"]
    stack.run("budgets", "set", "--tenant", "exact", "--amount", "1000", "--hard")
    until(lambda: asks(stack, secret) == "", 30)
    assert [asks(stack, secret) for _ in range(3)] == ["", "", ""]

    def settled() -> bool:
        (row,) = stack.json("budgets", "list", "--tenant", "exact")["budgets"]
        usage = stack.json("usage", "--tenant", "exact").get("rows", [])
        # What an edge holds is what it spent to the last decimal, once it has given back the rest.
        return row["reserved"] == "0" and [one["cost"] for one in usage] == [row["spent"]] and row["spent"] != "0"

    until(settled, 60)


def test_a_tenant_sees_its_own_budgets_and_nothing_of_the_operator_s(stack: RunningStack) -> None:
    secret = stack.json("keys", "create", "--tenant", "seen", "--scope", "tenant_admin")["secret"]
    stack.json("keys", "create", "--tenant", "unseen")
    stack.run("budgets", "set", "--tenant", "seen", "--amount", "7.50", "--threshold", "0.8")
    stack.run("budgets", "set", "--tenant", "unseen", "--amount", "8")
    remote = ("--url", stack.content["base_url"], "--key", secret)
    refused = stack.run("budgets", "list", *remote, check=False)
    until(lambda: "insufficient_scope" in stack.run("budgets", "list", *remote, check=False).stderr, 30)
    assert refused.exit_code == 2
    own = httpx2.get(
        f"{stack.content['base_url']}/organization/budgets", headers={"Authorization": f"Bearer {secret}"}, timeout=60
    ).json()
    (budget,) = own["data"]
    assert (budget["object"], budget["amount"], budget["left"]) == ("organization.budget", "7.5", "7.5")
    assert "webhook" not in json.dumps(own)
    log = json.loads(stack.run("audit-log", "--json", *remote).stdout)
    assert [entry["type"] for entry in log if entry["type"].startswith("budget")] == ["budget.created"]


def test_setting_a_budget_again_changes_what_is_named_and_nothing_else(stack: RunningStack) -> None:
    stack.json("keys", "create", "--tenant", "again", "--project", "web")
    scope = ("budgets", "set", "--tenant", "again", "--project", "web", "--period", "day")
    stack.run(*scope, "--currency", "EUR", "--amount", "5", "--hard", "--threshold", "0.5")

    def shown() -> dict[str, object]:
        (one,) = stack.json("budgets", "list", "--tenant", "again")["budgets"]
        said = ("currency", "amount", "hard", "thresholds")
        return {name: value for name, value in one["budget"].items() if name in said}

    until(lambda: stack.json("budgets", "list", "--tenant", "again").get("budgets"), 30)
    stack.run(*scope, "--amount", "6")
    until(lambda: shown() == {"currency": "EUR", "amount": "6", "hard": True, "thresholds": ["0.5"]}, 30)
    stack.run(*scope, "--soft", "--no-thresholds")
    until(lambda: shown() == {"currency": "EUR", "amount": "6"}, 30)


def test_a_budget_or_credit_of_somebody_who_is_not_there_is_refused(stack: RunningStack) -> None:
    key = stack.json("keys", "create", "--tenant", "there")["key"]["key_id"]
    stack.json("keys", "create", "--tenant", "elsewhere")
    for scope in (
        ("--tenant", "nobody"), ("--tenant", "there", "--project", "nothing"),
        ("--tenant", "elsewhere", "--key-id", key), ("--tenant", "there", "--key-id", "key_none"),
    ):  # fmt: skip
        for command in (("budgets", "set"), ("credits", "add", "order-none")):
            refused = stack.run(*command, *scope, "--amount", "1", check=False)
            assert refused.exit_code == 2
            assert "_not_found" in refused.stderr
    stack.run("budgets", "set", "--tenant", "there", "--key-id", key, "--amount", "1")


def test_mistakes_are_said_in_words(stack: RunningStack) -> None:
    stack.json("keys", "create", "--tenant", "a")
    for command, word in (
        (("set", "--tenant", "a/b", "--amount", "1"), "tenant_not_found"),
        (("set", "--tenant", "a", "--amount", "much"), "amount"),
        (("set", "--tenant", "a", "--amount", "1", "--webhook", "http://127.0.0.1/"), "WEBHOOK_SECRET"),
    ):
        refused = stack.run("budgets", *command, check=False)
        assert refused.exit_code == 2
        assert word in refused.stderr
