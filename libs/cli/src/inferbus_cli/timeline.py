"""One request's timeline, as the edge tells it in JSON, for a terminal. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.text import Text

from inferbus_cli.tables import Column, Rows
from inferbus_cli.text import count, seconds

_WIDTH = 64
_HEIGHTS = "▁▂▃▄▅▆▇█"
_STATES = {
    "REQUEST_STATE_UNSTORED": "waits or runs; nothing of it is stored yet",
    "REQUEST_STATE_RUNNING": "runs, or its end is not stored yet",
    "REQUEST_STATE_ENDED": "ended",
}


def head(shown: Mapping[str, Any]) -> Text:
    """Who, what, and how it went, in a few lines."""
    one = shown["request"]
    text = Text()
    text.append(f"{one['request_id']}", style="bold")
    text.append(f"  {_STATES.get(one.get('state', ''), 'unknown')}")
    how = " ".join(filter(None, (_name(one.get("finish_reason", ""), "FINISH_REASON_"), one.get("error_reason"))))
    text.append(f": {how}\n" if how else "\n")
    names = ("tenant_id", "project_id", "key_id", "model", "revision", "end_user")
    text.append("  ".join(f"{name.removesuffix('_id')} {one[name]}" for name in names if one.get(name)) + "\n")
    spans = [f"{label} {seconds(_seconds(one[name]))}" for name, label in _SPANS.items() if name in one]
    tokens = [f"{count(one.get(name, 0))} {name.removesuffix('_tokens')}" for name in ("input_tokens", "output_tokens")]
    text.append("  ".join((*spans, " + ".join(tokens) + " tokens")))
    if one.get("charge") and one.get("currency"):
        text.append(f"  {one['charge']} {one['currency']}")
    placement = shown.get("placement")
    if placement is not None:
        text.append("\n" + _placed(placement))
    return text


_SPANS = {"queue": "queue", "cold_start": "cold start", "ttft": "TTFT", "e2e": "E2E", "tpot": "TPOT"}


def _placed(placement: Mapping[str, Any]) -> str:
    """What the scheduler still knows."""
    others = len(placement.get("verdicts", ()))
    on = f" on {placement['worker']}" if placement.get("worker") else ""
    if "cold_start" in placement:
        on += f" after {seconds(_seconds(placement['cold_start']))} of a cold start"
    return f"scheduler: {placement.get('outcome', '')}{on} ({placement.get('reason', '')}; {others} workers seen)"


def lanes(shown: Mapping[str, Any]) -> Text | None:
    """A line an attempt: how many tokens came when. None if none came."""
    attempts = [one for one in shown.get("attempts", ()) if one.get("offset_us")]
    if not attempts:
        return None
    end = max(max(one["offset_us"]) for one in attempts) + 1
    text = Text(f"\n{'':12}0{seconds(end / 1e6):>{_WIDTH - 1}}\n", style="dim")
    highest = max(max(_cells(one["offset_us"], end)) for one in attempts)
    for one in attempts:
        line = "".join(_block(number, highest) for number in _cells(one["offset_us"], end))
        void = f", {count(one['void_tokens'])} void" if one.get("void_tokens") else ""
        text.append(f"attempt {one['number']:<4}{line}  ", style="")
        text.append(f"{count(one['tokens'])} tokens{void}  {one.get('worker', '')}\n", style="dim")
    return text


def _cells(offsets: Sequence[int], end: int) -> list[int]:
    cells = [0] * _WIDTH
    for offset in offsets:
        cells[min(max(offset, 0) * _WIDTH // end, _WIDTH - 1)] += 1
    return cells


def _block(number: int, highest: int) -> str:
    return " " if number == 0 else _HEIGHTS[(number - 1) * (len(_HEIGHTS) - 1) // max(1, highest - 1)]


def event_table(shown: Mapping[str, Any]) -> Rows | None:
    events = shown.get("events", ())
    if not events:
        return None
    begin = datetime.fromisoformat(events[0]["time"])
    table = Rows(
        *(Column("after", number=True), Column("what"), Column("attempt", number=True), Column("who", spare=1)),
        Column("details", folds=True),
    )
    for event in events:
        after = (datetime.fromisoformat(event["time"]) - begin).total_seconds()
        what = _name(event["kind"], "TIMELINE_KIND_").replace("_", " ")
        table.add(
            "0" if after == 0 else seconds(after), what, str(event.get("attempt", "")), event.get("actor", ""),
            _details(event),
        )  # fmt: skip
    return table


def _details(event: Mapping[str, Any]) -> str:
    parts = [event.get("detail", "")]
    if "gap" in event:
        parts.append(f"token {count(event.get('index', 0))}, after {seconds(_seconds(event['gap']))}")
    if event["kind"] == "TIMELINE_KIND_DELIVERED":
        parts.append(f"{count(event.get('tokens', 0))} tokens")
    if event.get("amount"):
        parts.append(f"{event['amount']} {event.get('currency', '')}".strip())
    return ", ".join(filter(None, parts))


def charge_table(shown: Mapping[str, Any]) -> Rows | None:
    """What it is charged for, to the last digit."""
    charge = shown.get("charge", {})
    if not charge.get("lines"):
        return None
    table = Rows(
        *(Column("charged for"), Column("quantity", number=True), Column("price", number=True), Column("price of")),
        *(Column("factor", number=True), Column("amount", number=True)),
    )
    for line in charge["lines"]:
        name = line["name"].replace("_", " ")
        per = "" if "unit_price" not in line else "million" if name.endswith("tokens") else "call"
        quantity = count(int(line["quantity"])) if "quantity" in line else ""
        table.add(name, quantity, line.get("unit_price", ""), per, line.get("factor", ""), line["amount"])
    version = charge.get("present_rate_version", "")
    table.add(f"all, by {version}", "", "", "", "", f"{charge['amount']} {charge.get('currency', '')}")
    return table


def _name(text: str, prefix: str) -> str:
    name = text.removeprefix(prefix).lower()
    return "" if name == "unspecified" else name


def _seconds(text: str) -> float:
    """Of protobuf's JSON of a Duration."""
    return float(text.removesuffix("s"))
