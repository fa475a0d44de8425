"""A server in front of a real one that passes everything on, and misbehaves on command."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web


@dataclass(frozen=True)
class Fault:
    """What one answer does. ``status`` with ``headers`` and ``body``: instead of it. After ``events`` of its stream it
    does ``then``: stall, close, half (a part of the next event, then it closes), garbage, error, end (without the
    rest), other (an event of another answer)."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    events: int = 0
    then: str = ""


class Faults:
    """``next``: faults of the next answers, one each. ``hangs``: nothing is answered any more. ``asked``: bodies that
    came, with their paths. ``dropped``: answers whose client left before their end.

    ``always`` lists habits: no_usage (none is told, in no form), no_done, crlf, comments, halves (characters above the
    first plane come as two halves of a surrogate pair, in two events), pieces (a few bytes at a time), no_counts
    (llama.cpp's running counts are left out), plain_owner, thinks (the first five events with text are a thought).
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.next: deque[Fault] = deque()
        self.always: set[str] = set()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.dropped = 0
        self.url = ""
        self.thoughts = 0
        self.hangs = False
        self.session: aiohttp.ClientSession

    def generations(self) -> list[dict[str, Any]]:
        """Bodies of chats and completions."""
        return [body for path, body in self.asked if path.endswith("completions")]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.hangs:
            await asyncio.sleep(3600)
        data = await request.read()
        body = json.loads(data) if data else {}
        generates = request.path.endswith("completions")
        self.asked.append((request.path, body))
        self.headers = dict(request.headers)
        fault = self.next.popleft() if generates and self.next else Fault()
        if fault.status:
            return web.json_response(fault.body, status=fault.status, headers=fault.headers)
        url = f"{self.target}{request.path.removeprefix('/v1')}"
        try:
            async with self.session.request(request.method, url, data=data or None) as answer:
                if answer.content_type != "text/event-stream":
                    text = await answer.text()
                    return web.Response(text=self._edited(text), status=answer.status, content_type="application/json")
                return await self._stream(request, answer, fault)
        except aiohttp.ClientConnectionError:  # the real one is gone: as if this one were, too
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)

    def _edited(self, text: str) -> str:
        value = json.loads(text)
        if "plain_owner" in self.always and "data" in value:
            for model in value["data"]:
                model["owned_by"] = "somebody"
                model.pop("meta", None)
        return json.dumps(value)

    async def _stream(self, request: web.Request, answer: aiohttp.ClientResponse, fault: Fault) -> web.StreamResponse:
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await out.prepare(request)
        count = self.thoughts = 0
        try:
            async for line in answer.content:
                if not line.startswith(b"data: "):
                    continue
                said = line[6:].strip()
                if fault.then and count == fault.events:
                    await self._misbehave(fault.then, request, out, said)
                    if fault.then in ("close", "half", "end"):
                        return out
                count += 1
                for event in self._events(said):
                    await self._write(out, event)
        except (ConnectionResetError, asyncio.CancelledError):
            self.dropped += 1
            raise
        return out

    async def _misbehave(self, how: str, request: web.Request, out: web.StreamResponse, said: bytes) -> None:
        match how:
            case "stall":
                await asyncio.sleep(3600)
            case "close":
                request.transport.abort()
            case "half":
                whole = b"data: " + said
                await out.write(whole[: whole.index("🚀".encode()) + 2 if "🚀".encode() in whole else len(whole) // 2])
                await asyncio.sleep(0.05)
                request.transport.abort()
            case "garbage":
                await out.write(b'data: {"choices": [{"de\n\n')
            case "error":
                await out.write(b'data: {"error": {"message": "worker died at 10.1.2.3", "code": 500}}\n\n')
            case "other":
                event = json.loads(said) | {"id": "another one"}
                await out.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            case "end":
                await out.write_eof()

    def _events(self, said: bytes) -> list[bytes]:
        if said == b"[DONE]":
            return [] if "no_done" in self.always else [said]
        event = json.loads(said)
        if self.always & {"no_usage", "no_counts"}:
            event.pop("timings", None)
            for choice in event["choices"]:
                choice.pop("token_ids", None)
        if "no_usage" in self.always:
            event.pop("usage", None)
            if not event["choices"]:
                return []
        if "thinks" in self.always and self.thoughts < 5 and event["choices"]:
            delta = event["choices"][0]["delta"]
            if delta.get("content"):
                delta["reasoning_content"] = delta.pop("content")
                self.thoughts += 1
        text = event["choices"][0].get("delta", {}).get("content") if event["choices"] else None
        if "halves" in self.always and text and any(ord(letter) > 0xFFFF for letter in text):
            units = text.encode("utf-16-be")
            made = []
            for at in range(0, len(units), 2):
                event["choices"][0]["delta"]["content"] = "?"
                unit = int.from_bytes(units[at : at + 2], "big")
                made.append(json.dumps(event).replace('"content": "?"', f'"content": "\\u{unit:04x}"').encode())
            return made
        return [json.dumps(event, ensure_ascii=False).encode()]

    async def _write(self, out: web.StreamResponse, event: bytes) -> None:
        end = b"\r\n" if "crlf" in self.always else b"\n"
        before = b": still there" + end + end if "comments" in self.always else b""
        data = before + b"data: " + event + end + end
        if "pieces" not in self.always:
            await out.write(data)
            return
        for at in range(0, len(data), 7):
            await out.write(data[at : at + 7])
            await asyncio.sleep(0)


@asynccontextmanager
async def faults(target: str) -> AsyncIterator[Faults]:
    """``target``: the address of a real upstream's API, with its /v1."""
    made = Faults(target)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    # A client that leaves ends what is done for it, as in a server that looks.
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        made.session = session
        yield made
        await runner.cleanup()
