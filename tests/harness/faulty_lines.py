"""An input with a thousand different faults between good lines, and what is to be said of each."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

FAULTS = 1000
_URLS = ("/v1/embeddings", "/v1/completions", "/v1/responses", "/v1/audio", "chat/completions", "")
_HUGE = 50 << 20


@dataclass(frozen=True, slots=True)
class FaultyFile:
    """``faults``: (line, code) in order."""

    lines: list[bytes]
    faults: list[tuple[int, str]]


def faulty_file(model: str) -> FaultyFile:
    """Of chat lines; every other one is good. ``model``: with a context of some ten thousand tokens."""
    lines: list[bytes] = []
    faults: list[tuple[int, str]] = []
    for bad, code in islice(_faulty(model), FAULTS):
        lines += [_line(f"good-{len(lines)}", model), bad + b"\n"]
        faults.append((len(lines), code))
    return FaultyFile(lines, faults)


def _faulty(model: str) -> Iterator[tuple[bytes, str]]:
    good = _line("good", model).rstrip()
    yield _line("huge", model, content="x" * _HUGE).rstrip(), "line_too_long"
    for number in range(40):
        yield _line(f"long-{number}", model, content="word " * (40_000 + number)).rstrip(), "context_length_exceeded"
    for number in range(1, FAULTS):
        name = f"bad-{number}"
        yield good[: number % (len(good) - 2) + 1], "invalid_json_line"
        yield _line(f"good-{2 * number}", model, content=name).rstrip(), "duplicate_custom_id"
        yield _line(name, model, url=_URLS[number % len(_URLS)]).rstrip(), "mismatched_endpoint"
        yield _line(name, f"no-such-model-{number}").rstrip(), "model_not_found"
        at = number % len(good)
        yield good[:at] + bytes([0x80 + number % 64]) + good[at:], "invalid_encoding"
        yield good[:at] + b"\0" + good[at:], "invalid_json_line"
        yield _line("x" * (512 + number), model).rstrip(), "invalid_custom_id"
        yield json.dumps({"custom_id": name, "method": "GET", "url": "", "body": {}}).encode(), "invalid_method"
        yield json.dumps({"custom_id": name, f"more-{number}": 1}).encode(), "unknown_parameter"
        yield json.dumps({"custom_id": name, "method": "POST"}).encode(), "missing_required_parameter"
        yield b"[" * (100 + number) + b"]" * (100 + number), "nested_too_deep"


def _line(custom_id: str, model: str, url: str = "/v1/chat/completions", content: str = "go") -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 5}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}).encode() + b"\n"
