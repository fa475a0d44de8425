"""A team's own NATS client, straight on the queue of a stack whose processes may be away for a while."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2 as httpx
import nats
import nats.errors

from tests.harness.local import Stack

CHAT = "/v1/chat/completions"
TOKENS = 10


async def subjects(stack: Stack, secret: str) -> dict[str, str]:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{stack.base_url}/batches/queue", headers={"Authorization": f"Bearer {secret}"})
    answer.raise_for_status()
    return answer.json()


class Client:
    """What it publishes is stored when that returns. ``told``: (subject, what was said), as it was heard."""

    def __init__(self, connection: nats.NATS, where: dict[str, str]) -> None:
        self.connection = connection
        self.prefix = where["result_subject"].removesuffix(".>")
        self._submit = where["submit_subject"]
        self.told: list[tuple[str, dict[str, Any]]] = []

    async def publish(self, message: dict[str, Any] | bytes) -> None:
        """However long it takes: a message with an id may be sent again."""
        data = message if isinstance(message, bytes) else json.dumps(message).encode()
        while True:
            try:
                await self.connection.jetstream().publish(self._submit, data, timeout=10)
            except (nats.errors.Error, OSError):
                await asyncio.sleep(0.2)
            else:
                return

    async def single(self, name: str, **fields: Any) -> None:
        body = {"model": "synthetic", "messages": [{"role": "user", "content": name}], "max_tokens": TOKENS}
        await self.publish({"id": name, "request": {"url": CHAT, "body": body | fields.pop("body", {})}, **fields})

    async def heard(self, *names: str, timeout: float = 240.0) -> dict[str, dict[str, Any]]:
        """What was told of each of them, once all are."""
        wanted = {f"{self.prefix}.{name}" for name in names}
        async with asyncio.timeout(timeout):
            while not wanted <= (known := dict(self.told)).keys():
                await asyncio.sleep(0.1)
        return {name: known[f"{self.prefix}.{name}"] for name in names}

    async def last(self, name: str) -> dict[str, Any] | None:
        """As somebody reads it who was away."""
        asked = f"$JS.API.DIRECT.GET.RESULTS.{self.prefix}.{name}"
        answer = await self.connection.request(asked, b"", timeout=30)
        return None if answer.headers and answer.headers.get("Status") == "404" else json.loads(answer.data)


@asynccontextmanager
async def client(stack: Stack, secret: str = "") -> AsyncIterator[Client]:
    secret = secret or stack.api_key
    where = await subjects(stack, secret)
    connection = await nats.connect(
        stack.content["nats_url"], user="team", password=secret, inbox_prefix=where["inbox_prefix"], connect_timeout=30
    )
    try:
        made = Client(connection, where)

        async def on_result(msg: nats.aio.msg.Msg) -> None:
            made.told.append((msg.subject, json.loads(msg.data)))

        await connection.subscribe(where["result_subject"], cb=on_result)
        await connection.flush(30)
        yield made
    finally:
        await connection.close()
