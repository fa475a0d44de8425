"""The Python floor: a bare aiohttp reverse proxy, and the paced upstream behind it. It checks and stores nothing.

``python -m bench.proxy upstream PORT ITL_SECONDS`` and ``python -m bench.proxy proxy PORT UPSTREAM_URL``.
"""

import asyncio
import json
import sys

import aiohttp
import uvloop
from aiohttp import web


def chunk(text: str, finish: str | None = None) -> bytes:
    body = {
        "id": "chatcmpl-00000000000000000000000000000000", "object": "chat.completion.chunk", "created": 1,
        "model": "synthetic", "system_fingerprint": "x",
        "choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}],
    }  # fmt: skip
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


class Upstream:
    """All streams get their next token at the same tick, as an engine's step gives it."""

    def __init__(self, itl: float) -> None:
        self.itl = itl
        self.tick = asyncio.Condition()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += self.itl
            await asyncio.sleep(max(0.0, due - loop.time()))
            async with self.tick:
                self.tick.notify_all()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        count = body.get("max_tokens", 16)
        if not body.get("stream"):
            answer = {
                "id": "x", "object": "chat.completion", "model": "synthetic",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * count}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1},
            }  # fmt: skip
            return web.json_response(answer)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        token = chunk("word ")
        for _ in range(count):
            async with self.tick:
                await self.tick.wait()
            await response.write(token)
        await response.write(chunk("", "length") + b"data: [DONE]\n\n")
        await response.write_eof()
        return response


async def proxied(request: web.Request) -> web.StreamResponse:
    session: aiohttp.ClientSession = request.app["session"]
    headers = {"Content-Type": "application/json"}
    async with session.post(request.app["upstream"], data=await request.read(), headers=headers) as answer:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]})
        if answer.content_length is not None:
            response.content_length = answer.content_length
        await response.prepare(request)
        async for data in answer.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


async def main(role: str, port: int, argument: str) -> None:
    app = web.Application()
    if role == "upstream":
        upstream = Upstream(float(argument))
        app.router.add_post("/v1/chat/completions", upstream.chat)
        ticking = asyncio.create_task(upstream.run())
    else:
        app["upstream"] = argument
        app["session"] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        app.router.add_post("/v1/chat/completions", proxied)
        ticking = None
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await (ticking if ticking is not None else asyncio.Event().wait())


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
