"""A chat stream read as a patient client does: where the connection breaks it goes on at the next edge, after the last
event that it has."""

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
from inferbus_runtime import clock

from inferbus_cli.edge import error_text

_TIMEOUT = httpx2.Timeout(connect=2.0, read=60.0, write=10.0, pool=5.0)
# What all edges being away may take.
_PATIENCE_SECONDS = 30.0
_AGAIN_SECONDS = 0.05
_HOLD = {"x-inferbus-hold": "60"}
_TO_COME_BACK_TO = (408, 429, 503)


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that came at ``at`` (monotonic seconds). ``tokens``: of the answer so far."""

    at: float
    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Moved:
    """The connection broke after event ``number``; it goes on at ``url``."""

    at: float
    url: str
    number: int


@dataclass(frozen=True, slots=True)
class Ended:
    """``tokens``: as the answer's usage counts them. ``error``: empty for a good end."""

    at: float
    tokens: int = 0
    error: str = ""


Heard = Piece | Moved | Ended


class _AwayError(Exception):
    """The edge is there and cannot answer now."""


class ResumingStream:
    """``urls``: of the edges, without a path, the first one asked first. Read by a thread of its own, so that what is
    done with a piece does not change when the next one is said to have come."""

    def __init__(self, urls: Sequence[str], key: str, body: Mapping[str, Any]) -> None:
        self._urls = deque(urls)
        self._headers = {"authorization": f"Bearer {key}"}
        options = {"include_usage": True, "continuous_usage_stats": True}
        self._body = {**body, "stream": True, "stream_options": options}
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._number = 0
        self._tokens = 0
        self.stream_id = ""
        """Names the answer, once it has begun."""
        self.at = clock.monotonic()
        """When it was asked."""

    @property
    def url(self) -> str:
        """The edge that serves it now."""
        return self._urls[0]

    def __iter__(self) -> Iterator[Heard]:
        """All of it; the last one is an Ended."""
        threading.Thread(target=self._run, name="stream", daemon=True).start()
        while True:
            heard = self._heard.get()
            yield heard
            if isinstance(heard, Ended):
                return

    def _run(self) -> None:
        self.at = last = clock.monotonic()
        with httpx2.Client(timeout=_TIMEOUT, trust_env=False) as http:
            while True:
                number = self._number
                try:
                    ended = self._read(http)
                except (httpx2.TransportError, _AwayError) as error:
                    if self._number > number:
                        last = clock.monotonic()
                    if clock.monotonic() - last > _PATIENCE_SECONDS:
                        self._heard.put(Ended(clock.monotonic(), self._tokens, f"no edge goes on with it: {error}"))
                        return
                    self._urls.rotate(-1)
                    self._heard.put(Moved(clock.monotonic(), self.url, self._number))
                    if self._number == number:
                        time.sleep(_AGAIN_SECONDS)
                else:
                    self._heard.put(ended)
                    return

    def _read(self, http: httpx2.Client) -> Ended:
        """To its end. Raises TransportError where it breaks."""
        if self.stream_id:
            headers = {**self._headers, **_HOLD}
            if self._number:
                headers["last-event-id"] = f"{self.stream_id}:{self._number}"
            call = http.stream("GET", f"{self.url}/v1/streams/{self.stream_id}", headers=headers)
        else:
            headers = {**self._headers, **_HOLD}
            call = http.stream("POST", f"{self.url}/v1/chat/completions", headers=headers, json=self._body)
        with call as response:
            if response.status_code in _TO_COME_BACK_TO:
                raise _AwayError(f"status {response.status_code}")
            if response.status_code >= 400:
                response.read()
                said = error_text(response.json(), f"status {response.status_code}")
                return Ended(clock.monotonic(), self._tokens, said)
            self.stream_id = self.stream_id or response.headers["x-request-id"]
            for line in response.iter_lines():
                if line.startswith("id:"):
                    self._number = int(line.rpartition(":")[2])
                elif line.startswith("data:"):
                    ended = self._take(line.removeprefix("data:").strip())
                    if ended is not None:
                        return ended
        raise httpx2.ReadError("it broke off")

    def _take(self, data: str) -> Ended | None:
        now = clock.monotonic()
        if data == "[DONE]":
            return Ended(now, self._tokens)
        chunk = json.loads(data)
        if "error" in chunk:
            return Ended(now, self._tokens, error_text(chunk, "it ended with an error"))
        usage = chunk.get("usage") or {}
        self._tokens = usage.get("completion_tokens", self._tokens)
        for choice in chunk["choices"]:
            self._heard.put(Piece(now, choice["delta"].get("content") or "", self._tokens))
        return None
