"""The commands about tenants, projects, keys and their changes, against a real stack."""

import json
from pathlib import Path

import pytest

from .conftest import RunningStack, until


def works(stack: RunningStack, secret: str) -> bool:
    remote = ("--url", stack.content["base_url"], "--key", secret)
    return stack.run("models", *remote, check=False).exit_code == 0


def test_a_tenant_from_its_making_to_its_archive(stack: RunningStack) -> None:
    stack.run("tenants", "create", "globex", "--name", "Globex", "--requests-per-minute", "600", "--hold", "30s")
    made = stack.json("keys", "create", "--tenant", "globex")
    until(lambda: works(stack, made["secret"]), 30)
    shown = stack.run("tenants", "list").stdout
    assert "Globex" in shown
    assert "600 requests/min" in shown
    changed = stack.json("tenants", "update", "globex", "--requests-per-minute", "none", "--tokens-per-minute", "1000")
    assert changed["tenant"]["limits"] == {"tokens_per_minute": "1000"}
    assert changed["tenant"]["hold"] == "30s"
    assert stack.json("tenants", "update", "globex", "--weight", "3")["tenant"]["weight"] == 3
    stack.run("tenants", "archive", "globex")
    until(lambda: not works(stack, made["secret"]), 30)
    stack.run("tenants", "restore", "globex")
    until(lambda: works(stack, made["secret"]), 30)


def test_the_first_tenants_are_there(stack: RunningStack) -> None:
    assert {"default", "operator"} <= {tenant["tenant_id"] for tenant in stack.json("tenants", "list")["tenants"]}
    assert [one["id"] for one in stack.json("projects", "list", "--tenant", "operator")] == ["default"]


def test_a_project_and_a_service_account_in_it(stack: RunningStack) -> None:
    project = stack.run("projects", "create", "Shop").stdout.strip()
    stack.run("projects", "rename", project, "Store")
    assert "weight 4" in stack.run("projects", "weigh", project, "4").stdout
    stack.run("projects", "limit", project, "--requests-per-minute", "60")
    assert "Store" in stack.run("projects", "list").stdout
    account = stack.json("service-accounts", "create", "Robot", "--project", project, "--expires", "1h")
    secret = account["api_key"]["value"]
    until(lambda: works(stack, secret), 30)
    assert "Robot" in stack.run("service-accounts", "list", "--project", project).stdout
    stack.run("service-accounts", "delete", account["id"], "--project", project)
    until(lambda: not works(stack, secret), 30)
    stack.run("projects", "archive", project)
    assert project not in {one["id"] for one in stack.json("projects", "list")}
    assert project in {one["id"] for one in stack.json("projects", "list", "--archived")}

    log = stack.json("audit-log", "--project", project)
    assert [entry["type"] for entry in log] == [
        "project.archived", "service_account.deleted", "api_key.deleted", "api_key.created",
        "service_account.created", "rate_limit.updated", "project.updated", "project.updated", "project.created",
    ]  # fmt: skip
    shown = stack.run("audit-log", "--target-id", account["id"], "--since", "1h").stdout
    assert "service_account.deleted" in shown
    assert "project.created" not in shown
    assert secret not in stack.run("audit-log", "--json").stdout


def test_a_key_with_settings_is_changed_and_rotated(stack: RunningStack) -> None:
    settings = ("--models", "synthetic, other", "--expires", "30d", "--requests-per-minute", "60")
    made = stack.json("keys", "create", "--name", "short", *settings)
    key = made["key"]
    assert (key["models"], key["limits"]) == (["synthetic", "other"], {"requests_per_minute": 60})
    changed = stack.json(
        "keys", "update", key["key_id"], "--models", "none", "--expires", "none", "--concurrent-requests", "4"
    )["key"]
    assert "models" not in changed
    assert "expire_time" not in changed
    assert changed["limits"] == {"requests_per_minute": 60, "concurrent_requests": 4}
    until(lambda: works(stack, made["secret"]), 30)

    second = stack.run("keys", "rotate", key["key_id"], "--overlap", "1h").stdout.strip()
    until(lambda: works(stack, second), 30)
    assert works(stack, made["secret"])
    third = stack.json("keys", "rotate", key["key_id"])["secret"]
    until(lambda: works(stack, third) and not works(stack, second) and not works(stack, made["secret"]), 30)
    listed = [one for one in stack.json("keys", "list", "--project", "default")["keys"] if one.get("name") == "short"]
    assert [one["key_id"] for one in listed] == [key["key_id"]]


def test_a_tenant_s_own_administrator(stack: RunningStack) -> None:
    secret = stack.json("keys", "create", "--tenant", "initech", "--scope", "tenant_admin")["secret"]
    remote = ("--url", stack.content["base_url"], "--key", secret)
    until(lambda: stack.run("projects", "list", *remote, check=False).exit_code == 0, 30)
    project = stack.run("projects", "create", "Web", *remote).stdout.strip()
    assert project in {one["id"] for one in json.loads(stack.run("projects", "list", "--json", *remote).stdout)}
    for command in (("tenants", "list"), ("keys", "list")):
        refused = stack.run(*command, *remote, check=False)
        assert refused.exit_code == 2
        assert "insufficient_scope" in refused.stderr
    refused = stack.run("projects", "list", "--tenant", "default", *remote, check=False)
    assert "mismatched_organization" in refused.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("keys", "create", "--expires", "soon"), ("keys", "create", "--requests-per-minute", "0"),
        ("keys", "update", "key_x"), ("tenants", "update", "default"), ("projects", "limit", "default"),
        ("tenants", "create", "a/b"), ("projects", "archive", "default"), ("keys", "rotate", "key_none"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_words(stack: RunningStack, command: tuple[str, ...]) -> None:
    refused = stack.run(*command, check=False)
    assert refused.exit_code == 2
    assert "Error: " in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_brand_from_its_making_to_its_end(stack: RunningStack, tmp_path: Path) -> None:
    logo = tmp_path / "logo.svg"
    logo.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    stack.run("tenants", "create", "hooli")
    refused = stack.run("tenants", "brand", "set", "hooli", "--domain", "ai.hooli.example", check=False)
    assert "a new brand needs --name" in refused.output
    named = ("--name", "Hooli", "--domain", "ai.hooli.example", "--logo", str(logo), "--accent-light", "#0b6e4f")
    assert "Hooli at ai.hooli.example" in stack.run("tenants", "brand", "set", "hooli", *named).stdout
    changed = stack.json("tenants", "brand", "set", "hooli", "--accent-light", "none", "--name", "Hooli AI")["brand"]
    assert (changed["display_name"], changed["domain"]) == ("Hooli AI", "ai.hooli.example")
    assert "accent_light" not in changed
    assert changed["logo_type"] == "image/svg+xml"
    assert "Hooli AI" in stack.run("tenants", "brand", "list").stdout
    assert "the house's own" in stack.run("tenants", "brand", "show", "hooli").stdout
    stack.run("tenants", "brand", "delete", "hooli")
    assert stack.json("tenants", "brand", "list") == {}
