"""Prices and re-rating by the command, on a real stack."""

from .conftest import RunningStack, until


def test_a_price_is_set_charged_and_the_past_re_rated(stack: RunningStack) -> None:
    secret = stack.json("keys", "create", "--tenant", "priced", "--project", "web")["secret"]
    stack.run("chat", "hello", "--max-tokens", "4", "--url", stack.content["base_url"], "--key", secret)
    until(lambda: bool(stack.json("usage", "--tenant", "priced").get("rows")), 20)
    assert "synthetic-1" in stack.run("prices", "list").stdout
    of_it = ("--tenant", "priced", "--model", "synthetic")
    before = stack.json("prices", "rate", *of_it)
    assert before["rate"]["rate_version"] == "synthetic-1"

    amounts = ("--currency", "USD", "--per-call", "0.25", "--tier", "1_000:0.5")
    stack.run("prices", "set", "priced-1", *of_it, *amounts, "--from", "2020-06-01")
    stack.run("prices", "set", "priced-2", *of_it, *amounts, "--from", "2099-01-01")
    shown = stack.run("prices", "rate", *of_it).stdout
    assert "priced-1" in shown
    assert "synthetic-1" in shown  # over which it goes
    assert "priced / " not in stack.run("prices", "show", "priced-1").stdout
    assert "times 0.5  above 1,000 tokens" in stack.run("prices", "show", "priced-1").stdout
    twice = stack.run("prices", "set", "priced-1", *amounts, check=False)
    assert twice.exit_code == 2
    assert "version" in twice.stderr
    assert stack.run("prices", "delete", "priced-1", check=False).exit_code == 2
    stack.run("prices", "delete", "priced-2")

    past = ("--since", "1h", "--tenant", "priced")
    dry = stack.run("rerate", *past).stdout
    assert "Nothing is changed" in dry
    assert "priced-1" in dry
    assert stack.json("usage", "--tenant", "priced")["rows"][0]["cost"] != "0.25"
    assert "1 of 1 requests are corrected" in stack.run("rerate", *past, "--apply", "--reason", "a test").stdout
    assert stack.json("usage", "--tenant", "priced")["rows"][0]["cost"] == "0.25"
    assert "No charge of 1 requests" in stack.run("rerate", *past, "--apply").stdout
    assert stack.run("rerate", check=False).exit_code == 2
    stack.run("audit")
    asked = stack.run("prices", "delete", "priced-1", "--force", check=False)
    assert asked.exit_code == 1
    assert "1 charges name the price priced-1" in asked.stderr
    assert "priced-1" in stack.run("prices", "list").stdout
    assert "priced-1 is deleted" in stack.run("prices", "delete", "priced-1", "--force", "--yes").stdout
    named = stack.run("audit", check=False)
    assert named.exit_code == 1
    assert "'priced-1' is not in the price book" in named.stdout
    stack.run("prices", "set", "priced-1", *of_it, *amounts, "--from", "2020-06-01")
    stack.run("audit")
