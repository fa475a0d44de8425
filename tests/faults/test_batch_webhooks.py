"""The end of a batch is told to its URL, though the service is killed while it tells it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from aiohttp import web
from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry

from tests.harness.batches import TENANT, chat_line
from tests.harness.local import Stack, running

CHAT = "/v1/chat/completions"


class Receiver:
    """Kills who asks first and answers nothing, answers the second time with a fault, and then takes it."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.url = ""
        self.killed = 0
        self.came: list[tuple[dict[str, str], bytes]] = []

    async def handle(self, request: web.Request) -> web.Response:
        self.came.append((dict(request.headers), await request.read()))
        if len(self.came) == 1:
            self.killed = self._stack.pids["batch"]
            os.kill(self.killed, signal.SIGKILL)
            await asyncio.Event().wait()  # whoever asked is gone, and this ends with the connection
        return web.Response(status=503 if len(self.came) == 2 else 200)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/hook", self.handle)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
        try:
            yield
        finally:
            await runner.cleanup()


async def until_told(stack: Stack, job_id: str) -> JobRecord:
    """Its record, once that says that the end was told or given up."""
    async with connect(BusConfig(stack.content["nats_url"], "admin", stack.content["nats_seed"])) as admin:
        records = Registry(admin, "jobs", JobRecord)
        await records.start()
        try:
            async with asyncio.timeout(120):
                while True:
                    record = records.get(f"{TENANT}/{job_id}")
                    if record is not None and record.HasField("webhook_end_time"):
                        return record
                    await asyncio.sleep(0.1)
        finally:
            await records.stop()


@pytest.mark.timeout(300)
async def test_whoever_tells_an_end_and_dies_is_followed_by_another_who_tells_the_same(tmp_path: Path) -> None:
    variables = {"INFERBUS_BATCH_WEBHOOK_ANYWHERE": "true"}
    async with running(tmp_path / "home", "synthetic", variables=variables) as stack:
        receiver = Receiver(stack)
        client = openai.AsyncOpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=5)
        async with receiver.listening(), client:
            file = await client.files.create(file=("in.jsonl", chat_line("one", "synthetic", 5)), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h",
                extra_body={"webhook_url": receiver.url},
            )  # fmt: skip
            record = await until_told(stack, batch.id)
            assert receiver.killed != stack.pids["batch"]
            # The try of the one that was killed is nobody's: what it came to was not stored.
            assert 2 <= record.webhook_attempts < len(receiver.came)
            assert len({body for _, body in receiver.came}) == 1
            assert {headers["webhook-id"] for headers, _ in receiver.came} == {batch.id.replace("batch_", "evt_")}
            said = await secret_of(stack)
        headers, body = receiver.came[-1]
        event = openai.OpenAI(api_key="none", webhook_secret=said).webhooks.unwrap(body.decode(), headers)
        assert (event.type, event.data.id) == ("batch.completed", batch.id)


async def secret_of(stack: Stack) -> str:
    """Of webhooks, as its owner reads it."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {stack.api_key}"}) as http:
        async with asyncio.timeout(60):
            while (answer := await http.get(f"{stack.base_url}/batches/webhook_secret")).status_code >= 500:
                await asyncio.sleep(0.5)
        answer.raise_for_status()
        found: str = answer.json()["secret"]
        return found
