"""``inferbus captures`` and ``inferbus erase`` against a real stack: text is kept when it is asked for, and goes."""

import httpx2

from .conftest import RunningStack, until

SECRET = "plugh-4711"


def ask(stack: RunningStack) -> None:
    stack.run("chat", f"Say {SECRET}", "--max-tokens", "4")


def test_text_is_kept_when_it_is_asked_for_and_is_erased(stack: RunningStack) -> None:
    ask(stack)
    assert "No text is kept" in stack.run("captures", "list").stdout
    assert "100" in stack.run("captures", "set", "default", "--rate", "1").stdout
    try:
        ask(stack)
        until(lambda: bool(stack.json("captures", "list").get("captures")), 20)
    finally:
        assert "No text" in stack.run("captures", "off", "default").stdout
    (listed,) = stack.json("captures", "list", "--tenant", "default")["captures"]
    ended = f"SELECT count() AS n FROM bills WHERE request_id = '{listed['request_id']}'"
    until(lambda: "1" in stack.run("sql", ended, "--format", "TSV").stdout, 20)
    shown = stack.json("captures", "show", listed["request_id"])["capture"]
    assert SECRET in shown["input"]
    assert shown["output"]
    assert listed["request_id"] in stack.run("captures", "list").stdout
    assert SECRET in stack.run("captures", "show", listed["request_id"]).stdout
    # Nobody but the one reader sees it.
    for query in ("SELECT text FROM captures", "SELECT count() FROM captures"):
        assert stack.run("sql", query, check=False).exit_code != 0

    dry = stack.json("erase", "--tenant", "default", "--dry-run")
    assert int(dry["erasure"]["erased"]["captures"]) == 1
    assert "Would go" in stack.run("erase", "--tenant", "default", "--dry-run").stdout
    assert stack.run("erase", "--tenant", "default", check=False).exit_code != 0  # it asks, and nobody answers
    stack.run("audit")  # all that other tests asked is charged: nothing comes to the cost behind our back
    before = stack.json("cost", "--by", "tenant")
    done = stack.json("erase", "--tenant", "default", "--yes")["erasure"]
    assert (int(done["erased"]["captures"]), "done_time" in done) == (1, True)
    assert stack.json("cost", "--by", "tenant") == before
    assert stack.run("captures", "show", listed["request_id"], check=False).exit_code != 0
    assert "No text is kept" in stack.run("captures", "list").stdout
    assert done["erasure_id"] in str(stack.json("erase", "--list"))
    assert "everybody" in stack.run("erase", "--list").stdout


def test_an_end_user_and_his_stored_answers_go_and_others_stay(stack: RunningStack) -> None:
    headers = {"Authorization": f"Bearer {stack.content['api_key']}"}
    with httpx2.Client(base_url=stack.content["base_url"], headers=headers, timeout=30) as http:

        def stored(user: str) -> str:
            body = {"model": "synthetic", "input": SECRET, "max_output_tokens": 16, "safety_identifier": user}
            answer = http.post("/responses", json=body, headers={"Idempotency-Key": f"of-{user}"})
            assert answer.status_code == 200, answer.text
            return str(answer.json()["id"])

        ada, bob = stored("ada@example.com"), stored("bob@example.com")
        ended = "SELECT uniqExact(end_user) AS n FROM bills WHERE end_user IN ('ada@example.com', 'bob@example.com')"
        until(lambda: "2" in stack.run("sql", ended, "--format", "TSV").stdout, 20)
        assert http.get(f"/responses/{ada}").status_code == 200
        done = stack.json("erase", "--tenant", "default", "--end-user", "ada@example.com", "--yes")["erasure"]
        gone = {kind: int(number) for kind, number in done["erased"].items()}
        assert gone == {"requests": 1, "captures": 0, "responses": 1, "idempotency_keys": 1}
        assert [http.get(f"/responses/{one}").status_code for one in (ada, bob)] == [404, 200]
        names = stack.run("sql", "SELECT DISTINCT end_user FROM bills", "--format", "TSV").stdout
        assert ("ada@example.com" in names, "bob@example.com" in names, "[erased]" in names) == (False, True, True)
        assert "ada@" not in stack.run("erase", "--list").stdout
        # The key is free: this is a new request.
        assert stored("ada@example.com") != ada
