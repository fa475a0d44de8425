"""``inferbus invoice`` against a real stack. A month that is over is the meter's tests' business."""

import json
from pathlib import Path
from typing import Any

from inferbus_runtime import clock

from .conftest import RunningStack, until

PROFILE = {"name": "Infer GmbH", "address": ["Hauptstr. 1", "Berlin"], "tax": {"name": "VAT", "rate": "0.19"}}


def draft_of(stack: RunningStack, month: str) -> tuple[dict[str, Any], str]:
    """As JSON and as text, of the same books: what other tests asked may be charged in between."""
    asked, found = ("invoice", "draft", "default", month), list[tuple[dict[str, Any], str]]()

    def read_in_peace() -> bool:
        (before,), text = stack.json(*asked)["invoices"], stack.run(*asked).stdout
        (after,) = stack.json(*asked)["invoices"]
        found[:] = [(before, text)]
        return before["hash"] == after["hash"]

    until(read_in_peace, 20)
    return found[0]


def test_a_month_that_is_not_over_is_a_draft_and_nothing_is_issued(stack: RunningStack, tmp_path: Path) -> None:
    profile = tmp_path / "seller.json"
    profile.write_text(json.dumps(PROFILE))
    assert "VAT 0.19" in stack.run("invoice", "profile", "--set", str(profile)).stdout
    assert stack.json("invoice", "profile")["name"] == "Infer GmbH"
    stack.run("chat", "hello", "--max-tokens", "4")
    month = f"{clock.now():%Y-%m}"
    until(lambda: bool(stack.json("invoice", "draft", "default", month).get("invoices")), 20)
    draft, text = draft_of(stack, month)
    assert draft["state"] == "INVOICE_STATE_DRAFT"
    assert {"input", "output"} <= {line["kind"] for line in draft["lines"]}
    assert draft["hash"] in text
    refused = stack.run("invoice", "finalize", "default", month, check=False)
    assert (refused.exit_code, "month_not_over" in refused.stderr) == (2, True)
    assert "No invoice" in stack.run("invoice", "list").stdout
    for command in (("show", "INV-1"), ("show", "INV-1", "--format", "pdf"), ("verify", "INV-1")):
        absent = stack.run("invoice", *command, check=False)
        assert (absent.exit_code, "invoice_not_found" in absent.stderr) == (2, True)
