"""Prompts straight onto the queue, with nothing but a NATS client and an API key: pip install nats-py.

    INFERBUS_API_KEY=sk-... python examples/queue.py --http http://127.0.0.1:8080 --nats nats://127.0.0.1:4222 \
        --model smollm2-135m-instruct "Name a river." "Name a mountain."

Each prompt has an id made of its text: run again within ten minutes, nothing runs twice, and the results are read.
"""

import argparse
import asyncio
import hashlib
import json
import os
import urllib.request
from typing import Any

import nats
import nats.errors
from nats.aio.msg import Msg


def where(http: str, key: str) -> dict[str, str]:
    """The subjects of this key: publish to submit_subject, listen to result_subject, and answers come to the inbox."""
    request = urllib.request.Request(f"{http}/v1/batches/queue", headers={"Authorization": f"Bearer {key}"})  # noqa: S310
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        found: dict[str, str] = json.load(answer)
    return found


class Team:
    """Publishes prompts until each is stored, and waits for what came of them. A connection lasts an hour at most: then
    the broker asks for the key again, and nats-py leaves it to us to connect anew."""

    def __init__(self, url: str, key: str, subjects: dict[str, str]) -> None:
        self._url = url
        self._key = key
        self._subjects = subjects
        self._results = subjects["result_subject"].removesuffix(">")
        self.told: dict[str, dict[str, Any]] = {}

    async def run(self, messages: dict[str, dict[str, Any]]) -> None:
        """``messages`` by id. Returns when the result of each has been told."""
        to_send = dict(messages)
        while to_send or messages.keys() - self.told.keys():
            try:
                await self._session(to_send, messages)
            except (nats.errors.Error, OSError) as error:
                print(f"again in a second: {error!r}")  # noqa: T201
                await asyncio.sleep(1)

    async def _session(self, to_send: dict[str, dict[str, Any]], messages: dict[str, dict[str, Any]]) -> None:
        closed = asyncio.Event()

        async def on_closed() -> None:
            closed.set()

        client = await nats.connect(
            self._url, user="team", password=self._key, inbox_prefix=self._subjects["inbox_prefix"], closed_cb=on_closed
        )
        try:
            # First listen, then ask; what was told while we were away is read.
            await client.subscribe(f"{self._results}>", cb=self._heard)
            for name in messages.keys() - self.told.keys() - to_send.keys():
                await self._read(client, name)
            for name, message in list(to_send.items()):
                # The acknowledgement says that it is stored; one that did not come is no harm: the id is the same.
                await client.jetstream().publish(self._subjects["submit_subject"], json.dumps(message).encode())
                del to_send[name]
                await self._read(client, name)  # of an earlier run
            while messages.keys() - self.told.keys() and not closed.is_set():
                await asyncio.sleep(0.2)
        finally:
            await client.close()

    async def _read(self, client: nats.NATS, name: str) -> None:
        answer = await client.request(f"$JS.API.DIRECT.GET.RESULTS.{self._results}{name}", b"", timeout=5)
        if not (answer.headers and "Status" in answer.headers):
            self.told[name] = json.loads(answer.data)

    async def _heard(self, msg: Msg) -> None:
        self.told[msg.subject.removeprefix(self._results)] = json.loads(msg.data)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prompts straight onto the queue.")
    parser.add_argument("--http", default="http://127.0.0.1:8080")
    parser.add_argument("--nats", default="nats://127.0.0.1:4222")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("prompts", nargs="+")
    options = parser.parse_args()
    key = os.environ["INFERBUS_API_KEY"]  # noqa: TID251 (a client, not a service)
    messages = {}
    for prompt in options.prompts:
        body = {"model": options.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 64}
        name = hashlib.sha256(json.dumps(body).encode()).hexdigest()[:32]
        request = {"url": "/v1/chat/completions", "body": body}
        messages[name] = {"id": name, "request": request, "completion_window": "24h"}
    team = Team(options.nats, key, where(options.http, key))
    asyncio.run(team.run(messages))
    for name, message in messages.items():
        print(message["request"]["body"]["messages"][0]["content"])  # noqa: T201
        print("   ", json.dumps(team.told[name]))  # noqa: T201


if __name__ == "__main__":
    main()
