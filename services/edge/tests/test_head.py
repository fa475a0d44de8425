"""HEAD, and 405: no byte after the head of an answer to HEAD, or a proxy takes it for the next answer."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import pytest_asyncio
from inferbus_contracts.ids import uuid_text

PATH = "/v1/chat/completions"
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Raw:
    """One connection, on which requests follow each other without a look at what comes back."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def ask(self, method: str, path: str, key: str) -> dict[str, str]:
        """The head of the answer; ``:status`` is its status."""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
        self.writer.write(head.encode() + ALIVE)
        found = await self._head()
        if method != "HEAD":
            await self._reader.readexactly(int(found["content-length"]))
        # What comes next must be the next answer, with nothing before it.
        alive = await self._head()
        assert alive[":status"] == "200", (path, alive)
        assert b"alive" in await self._reader.readexactly(int(alive["content-length"]))
        return found

    async def _head(self) -> dict[str, str]:
        async with asyncio.timeout(5):
            first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        assert re.fullmatch(r"HTTP/1\.1 \d{3} [A-Za-z ]+", first), first
        return {":status": first.split()[1]} | {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }


@pytest_asyncio.fixture
async def raw(edge: Any) -> AsyncIterator[Raw]:
    address = urlsplit(edge.url)
    made = Raw(*await asyncio.open_connection(address.hostname, address.port))
    yield made
    made.writer.close()


async def test_a_stream_has_no_head(raw: Raw, http: Any, worker: Any, model: str, rig: Any) -> None:
    call = asyncio.create_task(http.post("/v1/responses", json={"model": model, "input": "x", "stream": True}))
    request = await worker.answer(model, ["a ", "b "])
    await (await call).read()
    stream = f"/v1/streams/{uuid_text(request.request_id)}"
    stored = f"/v1/responses/resp_{request.request_id.hex()}"
    assert (await http.get(stream)).status == (await http.get(stored)).status == 200
    for path in (stream, f"{stream}?stream=false", stored, f"{stored}?stream=true"):
        refused = await raw.ask("HEAD", path, rig.API_KEY)
        assert refused[":status"] == "405"
        assert refused["allow"] == ("GET" if path.startswith(stream) else "DELETE, GET")


async def test_the_head_of_everything_else_is_that_of_its_get(raw: Raw, http: Any, model: str, rig: Any) -> None:
    paths = (await (await http.get("/openapi.json")).json())["paths"]
    served = [path for path in paths if "get" in paths[path]]
    streaming = [path for path in served if "text/event-stream" in str(paths[path]["get"]["responses"])]
    assert sorted(streaming) == ["/v1/responses/{response_id}", "/v1/streams/{stream_id}"]
    compared = 0
    for path in sorted(set(served) - set(streaming)):
        asked = re.sub(r"{\w+}", quote(model if path.startswith("/v1/models") else "x"), path)
        got, head = await raw.ask("GET", asked, rig.ADMIN_KEY), await raw.ask("HEAD", asked, rig.ADMIN_KEY)
        compared += head[":status"] == "200"
        assert (head[":status"], head["content-type"]) == (got[":status"], got["content-type"]), path
        if path != "/metrics":  # that counts what was just asked
            assert head["content-length"] == got["content-length"], path
    assert compared >= 10


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", PATH, "POST"), ("HEAD", PATH, "POST"), ("PATCH", PATH, "GET, HEAD, POST"),
        ("HEAD", "/v1/completions", "POST"), ("POST", "/healthz", "GET, HEAD"), ("PUT", "/v1/models/x", "GET, HEAD"),
        ("PATCH", "/v1/streams/x", "GET"),
    ],
)  # fmt: skip
async def test_a_refused_method_is_told_which_are_not(raw: Raw, rig: Any, method: str, path: str, allow: str) -> None:
    refused = await raw.ask(method, path, rig.API_KEY)
    assert (refused[":status"], refused["allow"]) == ("405", allow)
