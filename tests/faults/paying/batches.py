"""Lines of batches."""

import asyncio
import json
from typing import Any
from uuid import UUID

from tests.faults.paying.cases import case
from tests.harness.paying import World, asked, row

_ENDED = ("completed", "failed", "cancelled", "expired")
_CHAT = "/v1/chat/completions"


@case
async def line_of_a_batch(world: World) -> None:
    batch = await _ended(world, [asked(4), asked(9)])
    assert batch["status"] == "completed"
    path = f"/v1/files/{batch['output_file_id']}/content"
    output = (await world.http.get(world.url(path=path), headers=world.headers())).text
    for line in map(json.loads, output.splitlines()):
        answer = line["response"]
        tokens = answer["body"]["usage"]["completion_tokens"]
        request_id = str(UUID(answer["request_id"]))
        await world.billed(request_id, row("length", tokens, priority_class="batch"))


@case
async def batch_with_a_fault(world: World) -> None:
    batch = await _ended(world, [asked(4), asked(4, model="no-such-model")])
    assert batch["status"] == "failed"
    billed = await world.sql(f"SELECT count() AS n FROM charges WHERE tags['batch_id'] = '{batch['id']}'")
    assert int(billed[0]["n"]) == 0


async def _ended(world: World, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """The batch of them, when it has ended."""
    lines = [
        json.dumps({"custom_id": str(number), "method": "POST", "url": _CHAT, "body": body})
        for number, body in enumerate(bodies)
    ]
    headers = world.headers()
    sent = await world.http.post(
        world.url(path="/v1/files"), data={"purpose": "batch"}, files={"file": ("in.jsonl", "\n".join(lines))},
        headers=headers,
    )  # fmt: skip
    made = {"input_file_id": sent.json()["id"], "endpoint": _CHAT, "completion_window": "24h"}
    batch = (await world.http.post(world.url(path="/v1/batches"), json=made, headers=headers)).json()
    async with asyncio.timeout(120):
        while batch["status"] not in _ENDED:
            await asyncio.sleep(0.2)
            batch = (await world.http.get(world.url(path=f"/v1/batches/{batch['id']}"), headers=headers)).json()
    assert isinstance(batch, dict)
    return batch
