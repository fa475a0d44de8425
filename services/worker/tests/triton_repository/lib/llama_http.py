"""llama.cpp's server over HTTP with the standard library alone: the interpreter of the models has numpy and no more.

Dropping a stream closes its connection, which is llama.cpp's cancel.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any


class RefusedError(Exception):
    """What the server says against a request. ``kind``: its error type; ``tokens``: of the prompt, if it counted."""

    def __init__(self, body: dict[str, Any]) -> None:
        error = body.get("error", {})
        super().__init__(str(error.get("message", body)))
        self.kind = str(error.get("type", ""))
        self.tokens = int(error.get("n_prompt_tokens", 0))


@dataclass
class Piece:
    """What one step of the model added. ``ids`` hold the end-of-turn token, too, as the real backends say it."""

    ids: list[int]
    text: str
    reason: str = ""
    """Of the last piece: stop or length."""


@dataclass
class Counts:
    """Of one completion, as far as it is."""

    input: int = 0
    cached: int = 0
    output: int = 0


class LlamaHttp:
    def __init__(self, address: str) -> None:
        self.host, _, port = address.partition(":")
        self.port = int(port)

    async def tokenize(self, text: str) -> list[int]:
        return list((await self._post("/tokenize", {"content": text, "parse_special": True}))["tokens"])

    async def detokenize(self, ids: list[int]) -> str:
        return str((await self._post("/detokenize", {"tokens": ids}))["content"])

    async def complete(self, body: dict[str, Any], end_id: int, counts: Counts) -> AsyncIterator[Piece]:
        """The pieces of a completion; the last has a reason, and comes with the last token as in the real backends."""
        held: Piece | None = None  # maybe the last
        async for event in self._events({**body, "stream": True, "return_tokens": True, "return_progress": True}):
            if (progress := event.get("prompt_progress")) is not None:
                counts.input, counts.cached = progress["total"], progress["cache"]
                continue
            if event.get("stop"):
                last = held or Piece([], "")
                hidden = event["tokens_predicted"] - counts.output
                if hidden > 0:  # it ends inside a character: no event came for these
                    last.ids += await self._hidden(body, last.ids, hidden)
                    counts.output += hidden
                last.reason = "stop" if event.get("stop_type") == "eos" else "length"
                yield last
                return
            if held is not None:
                yield held
                held = None
            new = event["tokens_predicted"] - counts.output
            counts.output = event["tokens_predicted"]
            # Tokens that end inside a character come with the one that completes it, and only its id is said.
            piece = Piece(event["tokens"][-1:] if new == 1 else await self._spell(event["content"]), event["content"])
            if piece.ids[-1:] == [end_id] or not piece.text or counts.output >= body["n_predict"]:
                held = piece
            else:
                yield piece
        raise RefusedError({"error": {"message": "the engine closed the stream"}})

    async def _spell(self, text: str) -> list[int]:
        return list((await self._post("/tokenize", {"content": text, "add_special": False}))["tokens"])

    async def _hidden(self, body: dict[str, Any], ids: list[int], count: int) -> list[int]:
        prompt = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        again = {**body, "prompt": [*prompt, *ids], "n_predict": count, "temperature": 0, "return_tokens": True}
        return list((await self._post("/completion", again))["tokens"])

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._request(path, body) as (status, chunks):
            answer = json.loads(b"".join([chunk async for chunk in chunks]))
        if status != 200:
            raise RefusedError(answer)
        return dict(answer)

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self._request("/completion", body) as (status, chunks):
            rest = b""
            async for chunk in chunks:
                *whole, rest = (rest + chunk).split(b"\n\n") if status == 200 else (rest + chunk,)
                for event in whole:
                    if event.startswith((b"data: {", b"error: {")):
                        value = json.loads(event.partition(b": ")[2])
                        if "error" in value:
                            raise RefusedError(value)
                        yield value
            if status != 200:
                raise RefusedError(json.loads(rest))

    @asynccontextmanager
    async def _request(self, path: str, body: dict[str, Any]) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            payload = json.dumps(body).encode()
            head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nConnection: close\r\nContent-Length: {len(payload)}"
            writer.write(head.encode() + b"\r\nContent-Type: application/json\r\n\r\n" + payload)
            status = int((await reader.readline()).split()[1])
            headers = {}
            while (line := (await reader.readline()).strip()) != b"":
                name, _, value = line.lower().partition(b":")
                headers[name] = value.strip()
            yield status, _chunks(reader, headers.get(b"transfer-encoding") == b"chunked")
        finally:
            writer.transport.abort()


async def _chunks(reader: asyncio.StreamReader, chunked: bool) -> AsyncIterator[bytes]:
    if not chunked:
        yield await reader.read()
        return
    while size := int(await reader.readline(), 16):
        yield (await reader.readexactly(size + 2))[:-2]
