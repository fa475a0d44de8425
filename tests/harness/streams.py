"""Streams of every form that outlive all deaths: the client that customers should have, and when it was told what."""

import asyncio
import itertools
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

_PATIENCE = 90.0
_COME_BACK = (408, 409, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Form:
    """One way to ask. ``read``: what an answer says, from the data of its events, in order."""

    path: str
    body: dict[str, Any]
    read: Callable[[Sequence[dict[str, Any]]], str]


@dataclass
class Told:
    """``events``: (monotonic seconds of arrival, data), each once. ``breaks``: connections that ended too early."""

    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    breaks: int = 0
    refusals: list[str] = field(default_factory=list)

    @property
    def data(self) -> list[dict[str, Any]]:
        return [data for _, data in self.events]

    def gap_at(self, moment: float) -> tuple[float, int]:
        """(seconds of the longest silence that lay at ``moment`` or began within the second after: something may have
        been on its way, events before it). (0, n) if there is none."""
        times = [at for at, _ in self.events]
        silences = [
            (after - before, number)
            for number, (before, after) in enumerate(itertools.pairwise(times), 1)
            if before < moment + 1 and after > moment
        ]
        return max(silences, default=(0.0, len(times)))


def chat(model: str, prompt: str, max_tokens: int, **more: Any) -> Form:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, **more}
    return Form("/chat/completions", {"temperature": 0, **body}, read_chat)


def responses(model: str, prompt: str, max_tokens: int) -> Form:
    body = {"model": model, "input": prompt, "max_output_tokens": max_tokens, "temperature": 0}
    return Form("/responses", body, read_responses)


def read_chat(events: Sequence[dict[str, Any]]) -> str:
    """Text, calls and end of each choice, as JSON."""
    said: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event.get("choices", ()):
            one = said.setdefault(choice["index"], {"text": "", "calls": {}, "end": None})
            one["text"] += choice["delta"].get("content") or ""
            one["end"] = choice.get("finish_reason") or one["end"]
            for call in choice["delta"].get("tool_calls") or ():
                held = one["calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                for key in held:
                    held[key] += call["function"].get(key) or ""
    return json.dumps(said, sort_keys=True)


def read_responses(events: Sequence[dict[str, Any]]) -> str:
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    ends = [event["response"] for event in events if event["type"] in ("response.completed", "response.incomplete")]
    assert len(ends) == 1, [event["type"] for event in events]
    return json.dumps([text, ends[0]["status"], ends[0]["usage"]["output_tokens"]])


async def told(
    http: httpx.AsyncClient,
    urls: Sequence[str],
    key: str,
    form: Form,
    *,
    begun: asyncio.Event | None = None,
    after: int = 5,
    leave: asyncio.Event | None = None,
) -> Told:
    """The whole stream, whichever edges die meanwhile. ``begun`` is set after so many events, or at the end. Once
    ``leave`` is set the connection is dropped, and the rest is asked for at another edge. AssertionError for an error
    that a customer would see; a refusal that says to come back is none, within the patience of a customer."""
    answer = Told()
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": str(uuid.uuid4())}
    deadline = time.monotonic() + _PATIENCE
    for url in itertools.cycle(urls):
        assert time.monotonic() < deadline, (answer.breaks, answer.refusals, len(answer.events))
        try:
            if await _listen(http, f"{url}{form.path}", form.body, headers, answer, begun, after, leave):
                break
        except httpx.HTTPError:
            answer.breaks += 1
        await asyncio.sleep(0.05)
    if begun is not None:
        begun.set()
    return answer


async def _listen(
    http: httpx.AsyncClient,
    url: str,
    body: dict[str, Any],
    headers: dict[str, str],
    answer: Told,
    begun: asyncio.Event | None,
    after: int,
    leave: asyncio.Event | None,
) -> bool:
    """Whether the stream came to its end."""
    async with http.stream("POST", url, json={**body, "stream": True}, headers=headers) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode()
            assert response.status_code in _COME_BACK, text
            answer.refusals.append(text)
            return False
        event_id = ""
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                event_id = value
            elif name == "data" and value == "[DONE]":
                return True
            elif name == "data":
                data = json.loads(value)
                if "error" in data and data.get("type") in (None, "error"):
                    assert data["error"]["code"] == "draining", data
                    answer.breaks += 1
                    return False
                answer.events.append((time.monotonic(), data))
                headers["Last-Event-ID"] = event_id
                if begun is not None and len(answer.events) >= after:
                    begun.set()
                if data.get("type") in ("response.completed", "response.incomplete"):
                    return True
                assert data.get("type") != "response.failed", data
                if leave is not None and leave.is_set():
                    leave.clear()
                    answer.breaks += 1
                    return False
    answer.breaks += 1
    return False


def open_http() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx.AsyncClient(timeout=_PATIENCE, limits=limits)
