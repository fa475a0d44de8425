"""What an edge refuses."""

import asyncio
import signal
from collections.abc import Awaitable

from tests.faults.paying.cases import ENDLESS, case
from tests.harness.paying import Streamed, World, asked, row


def _admin(world: World) -> dict[str, str]:
    return {"Authorization": f"Bearer {world.stack.admin_key}"}


async def door_scene(world: World) -> Streamed:
    """Every status of an edge that refuses, its drain included; the stream that it cuts off for that."""
    stack = world.stack
    edge = await world.add("edge", "edge-full", MAX_ACTIVE_REQUESTS="1", DRAIN_TIMEOUT="10s")
    other = await stack.new_key(models=["another"])
    admin = await stack.new_key(scopes=["admin"], tenant_id="operator")
    slow = await stack.new_key(limits={"requests_per_minute": 1})
    spent = await stack.new_key(name="spent")
    keys = (await world.http.get(world.url(path="/inferbus/v1/keys"), headers=_admin(world))).json()["keys"]
    (key_id,) = [one["key_id"] for one in keys if one["name"] == "spent"]
    budget = {"tenant_id": "default", "key_id": key_id, "period": "day", "currency": "USD", "amount": "0.000001",
              "hard": True}  # fmt: skip
    put = await world.http.put(world.url(path="/inferbus/v1/budgets"), json=budget, headers=_admin(world))
    assert put.status_code == 200, put.text
    occupant = Streamed()
    held = asyncio.ensure_future(world.stream(asked(ENDLESS), "edge-full", into=occupant))
    assert (await world.whole(asked(13), Authorization=f"Bearer {slow}")).status_code == 200
    assert (await world.whole(asked(13), **{"Idempotency-Key": "door"})).status_code == 200
    await occupant.begun.wait()

    async def refused(status: int, code: str, answer: Awaitable[object]) -> None:
        found = await answer
        assert (found.status_code, found.json()["error"]["code"]) == (status, code)  # type: ignore[attr-defined]

    def by(secret: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {secret}"}

    await refused(401, "invalid_api_key", world.whole(asked(13), **by("nobody")))
    await refused(403, "insufficient_scope", world.whole(asked(13), **by(admin)))
    await refused(404, "model_not_found", world.whole(asked(13, "nothing")))
    await refused(404, "model_not_found", world.whole(asked(13), **by(other)))
    await refused(409, "idempotency_key_reused", world.whole(asked(14), **{"Idempotency-Key": "door"}))
    await refused(413, "body_too_large", world.whole(asked(13, user="x" * (5 << 20))))
    await refused(429, "rate_limit_exceeded", world.whole(asked(13), **by(slow)))
    await refused(503, "edge_full", world.whole(asked(13), "edge-full"))
    assert (await world.whole(asked(13, temperature=9))).status_code == 400
    async with asyncio.timeout(60):  # until the edge knows of the budget
        while (answer := await world.whole(asked(12), **by(spent))).status_code == 200:
            await asyncio.sleep(0.1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
    url = world.url("edge-full")
    edge.signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        while True:
            answer = await world.http.post(url, json=asked(13), headers=world.headers())
            assert answer.status_code == 503
            if answer.json()["error"]["code"] == "draining":
                break
    await held
    assert occupant.error in ("draining", "edge_stopped")
    return occupant


@case
async def refused_at_the_door(world: World) -> None:
    """No row but of the two that were let in."""
    occupant = await world.shared(door_scene)
    await world.found(occupant.request_id)
    assert len(await world.sql("SELECT 1 AS one FROM bills WHERE output_tokens = 13 AND finish_reason = 'length'")) == 2
    assert not await world.sql("SELECT request_id FROM bills WHERE model IN ('nothing', 'another')")


@case
async def edge_stopped(world: World) -> None:
    occupant = await world.shared(door_scene)
    await world.billed(occupant.request_id, row("cancelled", await world.made(occupant.request_id, occupant.words)))
