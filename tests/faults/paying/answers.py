"""Answers that came to their end, and clients that left or came back."""

from tests.faults.paying.cases import ENDLESS, brief_edge, case
from tests.harness.paying import PROMPT, World, asked, row


@case
async def completed(world: World) -> None:
    answer = await world.whole(asked(7))
    await world.billed(answer.headers["x-request-id"], row("length", 7))
    seen = await world.stream(asked(None))
    await world.billed(seen.request_id, row("stop", seen.words))


@case
async def background(world: World) -> None:
    body = {"model": "synthetic", "input": PROMPT, "max_output_tokens": 20, "background": True}
    answer = await world.http.post(world.url(path="/v1/responses"), json=body, headers=world.headers())
    await world.billed(answer.headers["x-request-id"], row("length", 20, priority_class="background"))


@case
async def flex(world: World) -> None:
    answer = await world.whole(asked(6, service_tier="flex"))
    await world.billed(answer.headers["x-request-id"], row("length", 6, priority_class="background"))


@case
async def choices(world: World) -> None:
    answer = await world.whole(asked(6, n=2))
    first = answer.headers["x-request-id"]
    await world.billed(first, row("length", 6))
    await world.billed(first[:-1] + "1", row("length", 6, read=0, first=False))


@case
async def stop_string(world: World) -> None:
    """It takes two tokens, and the client gets neither."""
    seen = await world.stream(asked(50, stop=["model made"]))
    assert seen.text == "this is synthetic text: no "
    await world.billed(seen.request_id, row("stop", seen.words + 2))


@case
async def client_left(world: World) -> None:
    seen = await world.stream(asked(ENDLESS), leave=3)
    await world.billed(seen.request_id, row("cancelled", await world.made(seen.request_id, seen.words)))


@case
async def held(world: World) -> None:
    hold = {"x-inferbus-hold": "30"}
    seen = await world.stream(asked(200), leave=3, **hold)
    await world.billed(seen.request_id, row("length", 200))


@case
async def held_in_vain(world: World) -> None:
    seen = await world.stream(asked(ENDLESS), leave=3, **{"x-inferbus-hold": "1"})
    await world.billed(seen.request_id, row("cancelled", await world.made(seen.request_id, seen.words)))


@case
async def resumed(world: World) -> None:
    hold = {"x-inferbus-hold": "30"}
    seen = await world.stream(asked(300), leave=3, **hold)
    headers = world.headers(**hold, **{"Last-Event-ID": seen.last_event})
    await world.shared(brief_edge)
    for edge in ("edge-brief", ""):
        rest = await world.http.post(world.url(edge), headers=headers)
        assert rest.text.rstrip().endswith("[DONE]")
    await world.billed(seen.request_id, row("length", 300))


@case
async def retried(world: World) -> None:
    key = {"Idempotency-Key": "retried"}
    first, again = await world.whole(asked(11), **key), await world.whole(asked(11), **key)
    assert first.json()["choices"] == again.json()["choices"]
    await world.billed(first.headers["x-request-id"], row("length", 11))
    assert len(await world.sql("SELECT 1 AS one FROM bills WHERE output_tokens = 11 AND finish_reason = 'length'")) == 1
