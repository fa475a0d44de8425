"""What never reaches a worker. The model ``narrow`` has one that runs one request at a time."""

import asyncio
import uuid
from dataclasses import dataclass

from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_bus.connection import BusConfig, connect
from inferbus_contracts.ids import request_id as request_id_of
from inferbus_contracts.ids import uuid_text
from inferbus_contracts.subjects import request_subject
from inferbus_runtime import clock

from tests.faults.paying.cases import ENDLESS, QUEUE, brief_edge, case
from tests.harness.paying import PROMPT, Streamed, World, asked, row


async def waiting(world: World, count: int) -> None:
    """Returns when so many wait for the model ``narrow``."""
    metrics = world.stack.content["services"]["scheduler"]["metrics"]
    named = 'inferbus_queue_depth{model="narrow",priority_class="interactive"}'
    async with asyncio.timeout(60):
        while f"{named} {float(count)}" not in (await world.http.get(metrics)).text:
            await asyncio.sleep(0.05)


async def occupied(world: World) -> asyncio.Task[Streamed]:
    """The place is taken when it returns."""
    seen = Streamed()
    task = asyncio.ensure_future(world.stream(asked(ENDLESS, "narrow"), into=seen))
    await seen.begun.wait()
    return task


@dataclass
class Queued:
    """Request ids, by what became of them."""

    left: list[str]
    choices: str
    refused: str
    expired: str


async def _left(world: World) -> list[str]:
    """Those who left, once all of them have their end."""
    query = "SELECT toString(request_id) AS id FROM bills WHERE end_user = 'left'"
    async with asyncio.timeout(90):
        while len(left := await world.sql(query)) < QUEUE - 1:
            await asyncio.sleep(0.1)
    return [one["id"] for one in left]


async def queue_scene(world: World) -> Queued:
    await world.serve("narrow", CAPACITY="1", SYNTHETIC__ITL="20ms")
    await world.shared(brief_edge)
    occupant = await occupied(world)
    leaving = [
        asyncio.ensure_future(world.stream(asked(5, "narrow", user="left"), into=Streamed())) for _ in range(QUEUE - 1)
    ]
    await waiting(world, QUEUE - 1)
    # One of its choices is the last to wait, the other one too many.
    several = await world.whole(asked(5, "narrow", n=2))
    assert (several.status_code, several.json()["error"]["code"]) == (429, "queue_full")
    await waiting(world, QUEUE - 1)
    late = asyncio.ensure_future(world.whole(asked(5, "narrow"), "edge-brief"))
    await waiting(world, QUEUE)
    refused = await world.whole(asked(5, "narrow"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    expired = await late
    assert expired.status_code == 504
    for one in leaving:
        one.cancel()
    left = await _left(world)  # else the last of them might get the place that the occupant leaves
    occupant.cancel()
    await asyncio.gather(*leaving, occupant, return_exceptions=True)
    return Queued(left, *(answer.headers["x-request-id"] for answer in (several, refused, expired)))


@case
async def one_choice_failed(world: World) -> None:
    first = (await world.shared(queue_scene)).choices
    ends = {}
    for request_id, whole in ((first, {}), (first[:-1] + "1", {"first": False})):
        found = await world.found(request_id)
        ends[found["finish_reason"]] = found["error_reason"]
        expected = row(found["finish_reason"], 0, read=0, error=found["error_reason"], attempt=0, **whole)
        await world.billed(request_id, expected)
    assert ends == {"error": "queue_full", "cancelled": ""}


@case
async def queue_full(world: World) -> None:
    request_id = (await world.shared(queue_scene)).refused
    await world.billed(request_id, row("error", 0, read=0, error="queue_full", attempt=0))


@case
async def expired_in_the_queue(world: World) -> None:
    request_id = (await world.shared(queue_scene)).expired
    quicker = (await world.found(request_id))["finish_reason"] == "cancelled"
    ended = ("cancelled", "") if quicker else ("error", "deadline_exceeded")
    await world.billed(request_id, row(ended[0], 0, read=0, error=ended[1], attempt=0))


@case
async def left_in_the_queue(world: World) -> None:
    for request_id in (await world.shared(queue_scene)).left:
        await world.billed(request_id, row("cancelled", 0, read=0, attempt=0))


@case
async def expired_while_running(world: World) -> None:
    await world.shared(brief_edge)
    seen = await world.stream(asked(ENDLESS), "edge-brief")
    assert seen.error in ("request_deadline", "deadline_exceeded")
    made = await world.made(seen.request_id, seen.words)
    quicker = (await world.found(seen.request_id))["finish_reason"] == "cancelled"
    await world.billed(
        seen.request_id, row("cancelled", made) if quicker else row("error", made, error="deadline_exceeded")
    )


@case
async def unknown_to_the_scheduler(world: World) -> None:
    """An edge refuses what it does not know: this model went while its request was on the way."""
    now = clock.now_us()
    message = GenerateRequest(
        request_id=request_id_of(now // 1000, uuid.uuid4().bytes, "edge-0"), edge="edge-0",
        context=RequestContext(tenant_id="default", project_id="default", key_id="k", model="gone"),
        accepted_time=clock.timestamp(now), expire_time=clock.timestamp(now + 60_000_000),
        priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE,
    )  # fmt: skip
    message.chat.messages.add(role="user", content=PROMPT)
    content = world.stack.content
    async with connect(BusConfig(content["nats_url"], "admin", content["nats_seed"])) as bus:
        await bus.nc.jetstream().publish(request_subject(message), message.SerializeToString())
    expected = row("error", 0, read=0, error="model_not_found", attempt=0)
    await world.billed(uuid_text(message.request_id), expected)
