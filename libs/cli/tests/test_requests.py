"""``inferbus requests`` and ``inferbus request`` against a real stack, and the drawing of a timeline alone."""

import io
from decimal import Decimal
from typing import Any

import openai
import pytest
from inferbus_cli.timeline import charge_table, event_table, head, lanes
from rich.console import Console

from .conftest import RunningStack, until

TOKENS = 12


@pytest.fixture(scope="module")
def asked(stack: RunningStack) -> str:
    """The x-request-id of a call of an end user that no other test has, once it is billed."""
    content = stack.content
    with openai.OpenAI(base_url=content["base_url"], api_key=content["api_key"], max_retries=0) as client:
        made = client.chat.completions.with_raw_response.create(
            model="synthetic", messages=[{"role": "user", "content": "timeline"}], max_tokens=TOKENS, user="hopper"
        )  # fmt: skip
        request_id: str = made.headers["x-request-id"]
    until(lambda: bool(stack.json("requests", "--user", "hopper").get("requests")), 20)
    return request_id


def test_a_request_is_found_and_listed(stack: RunningStack, asked: str) -> None:
    found = stack.json("requests", "--user", "hopper", "--order", "e2e", "--status", "length", "--status", "stop")
    (one,) = found["requests"]
    assert (one["request_id"], one["output_tokens"], one["state"]) == (asked, TOKENS, "REQUEST_STATE_ENDED")
    kind = ("--class", "interactive", "--class", "batch", "--revision", one["revision"])
    assert len(stack.json("requests", "--user", "hopper", *kind)["requests"]) == 1
    for other in (("--class", "batch"), ("--revision", "another")):
        assert "requests" not in stack.json("requests", "--user", "hopper", *other)
    text = stack.run("requests", "--user", "hopper", "--since", "1h").stdout
    assert asked in text
    assert one["worker"] in text
    assert "No request ended" in stack.run("requests", "--user", "hopper", "--status", "error").stdout


def test_a_request_is_shown_as_a_timeline(stack: RunningStack, asked: str) -> None:
    shown = stack.json("request", asked)
    (attempt,) = shown["attempts"]
    assert (attempt["tokens"], len(attempt["gap_us"]), len(attempt["offset_us"])) == (TOKENS, TOKENS, TOKENS)
    assert sum(Decimal(line["amount"]) for line in shown["charge"]["lines"]) == Decimal(shown["charge"]["amount"]) > 0
    kinds = [event["kind"].removeprefix("TIMELINE_KIND_") for event in shown["events"]]
    assert kinds[:4] == ["ACCEPTED", "PLACED", "STARTED", "FIRST_TOKEN"]
    assert {"LAST_TOKEN", "ENDED"} < set(kinds)
    text = stack.run("request", f"chatcmpl-{asked.replace('-', '')}").stdout
    for part in (asked, "attempt 1", "first token", "output tokens", shown["charge"]["amount"], "accepted"):
        assert part in text
    refused = stack.run("request", "01a1fe2d-da39-7684-88df-274e4b208300", check=False)
    assert (refused.exit_code, "request_not_found" in refused.output) == (2, True)


def drawn(shown: dict[str, Any], width: int = 200) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width)
    for part in (head(shown), lanes(shown), event_table(shown), charge_table(shown)):
        if part is not None:
            console.print(part)
    return out.getvalue()


@pytest.mark.parametrize("width", [40, 200])
def test_every_state_can_be_drawn(width: int) -> None:
    name = "01a1fe2d-da39-7684-88df-274e4b208300"
    unstored = {
        "request": {"request_id": name, "state": "REQUEST_STATE_UNSTORED", "accepted_time": "2026-11-22T00:00:00Z"},
        "placement": {"outcome": "queued", "reason": "full", "verdicts": [{"worker": "w"}]},
    }
    assert "nothing of it is stored yet" in drawn(unstored)
    running = {
        "request": {"request_id": name, "state": "REQUEST_STATE_RUNNING", "output_tokens": 3, "ttft": "0.030s"},
        "events": [
            {"kind": "TIMELINE_KIND_ACCEPTED", "time": "2026-11-22T00:00:00Z"},
            {"kind": "TIMELINE_KIND_RESUMED", "time": "2026-11-22T00:00:02.000001Z", "attempt": 2, "index": 2,
             "gap": "2s"},
        ],
        "attempts": [
            {"number": 1, "tokens": 3, "void_tokens": 1, "offset_us": [30, 40, 50], "gap_us": [30, 10, 10]},
            {"number": 2},
            {"number": 3, "tokens": 1, "first_index": 2, "offset_us": [2_000_001], "gap_us": [2_000_000]},
        ],
        "charge": {"amount": "0"},
    }  # fmt: skip
    text = drawn(running, width)
    assert "3 tokens, 1 void" in " ".join(text.split())
    assert "attempt 2 " not in text
    assert "2.00 s" in text
