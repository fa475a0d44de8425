"""Workers, engines and edges that refuse, die or stop under a request."""

import asyncio
import signal

from tests.faults.paying.cases import ENDLESS, case
from tests.harness.paying import Streamed, World, asked, row


@case
async def refused_input(world: World) -> None:
    body = asked(5) | {"messages": [{"role": "user", "content": "word " * 9000}]}
    answer = await world.whole(body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    await world.billed(answer.headers["x-request-id"], row("error", 0, read=0, error="context_length_exceeded"))


async def dying_scene(world: World) -> tuple[Streamed, Streamed]:
    """An engine that dies four times: what ends before the fourth goes on after each; what does not is left with nobody
    who serves its model."""
    await world.serve("mortal", SYNTHETIC__DIES_AFTER="3s", MAX_ENGINE_RESTARTS="3", SYNTHETIC__ITL="20ms")
    whole, cut = await asyncio.gather(world.stream(asked(160, "mortal")), world.stream(asked(ENDLESS, "mortal")))
    return whole, cut


@case
async def engine_died(world: World) -> None:
    whole, _ = await world.shared(dying_scene)
    assert (whole.words, whole.error) == (160, "")
    await world.billed(whole.request_id, row("length", 160))


@case
async def engine_died_for_good(world: World) -> None:
    _, cut = await world.shared(dying_scene)
    assert cut.error == "no_worker"
    await world.billed(cut.request_id, row("error", cut.words, read=0, error="no_worker", attempt=2))


async def draining_scene(world: World) -> Streamed:
    """A worker stops under a request, and nobody serves its model from then on."""
    worker = await world.serve("leaving", DRAIN_TIMEOUT="1s")
    seen = Streamed()
    task = asyncio.ensure_future(world.stream(asked(ENDLESS, "leaving"), into=seen))
    await seen.begun.wait()
    worker.signal(signal.SIGTERM)
    await task
    return seen


@case
async def drained_for_good(world: World) -> None:
    seen = await world.shared(draining_scene)
    assert seen.error == "no_worker"
    await world.billed(seen.request_id, row("error", seen.words, read=0, error="no_worker", attempt=2))


@case
async def drained(world: World) -> None:
    """To another worker of the model."""
    workers = await world.serve_twice("handed-over", SYNTHETIC__ITL="20ms", DRAIN_TIMEOUT="2s")
    task = asyncio.ensure_future(world.stream(asked(800, "handed-over")))
    (await world.busy(workers)).signal(signal.SIGTERM)
    seen = await task
    assert (seen.words, seen.error) == (800, "")
    await world.billed(seen.request_id, row("length", 800, attempt=2))


@case
async def no_worker(world: World) -> None:
    """Tried again under one key: what failed for a reason of ours is made anew, with a row of its own."""
    await world.shared(draining_scene)
    ids = set()
    for _ in range(2):
        answer = await world.whole(asked(5, "leaving"), **{"Idempotency-Key": "nobody-there"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")
        ids.add(answer.headers["x-request-id"])
    assert len(ids) == 2
    for one in ids:
        await world.billed(one, row("error", 0, read=0, error="no_worker", attempt=0))


@case
async def worker_killed(world: World) -> None:
    """Another one goes on."""
    workers = await world.serve_twice("moving", SYNTHETIC__ITL="20ms")
    seen = Streamed()
    task = asyncio.ensure_future(world.stream(asked(800, "moving"), into=seen))
    await seen.begun.wait()
    (await world.busy(workers)).signal(signal.SIGKILL)
    await task
    assert (seen.words, seen.error) == (800, "")
    await world.billed(seen.request_id, row("length", 800, attempt=2))


@case
async def worker_lost(world: World) -> None:
    """A request whose workers die before they have made a token of it is not tried for ever: twice, or four times where
    workers have died of other things lately, as they do here."""
    workers = await world.serve_twice("poisoned", SYNTHETIC__PREFILL="60s")
    task = asyncio.ensure_future(world.stream(asked(5, "poisoned")))
    deaths = 0
    while True:
        busy = asyncio.ensure_future(world.busy(workers))
        await asyncio.wait((task, busy), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            busy.cancel()
            break
        victim = await busy
        victim.signal(signal.SIGKILL)
        deaths += 1
        await victim.ended()
        await victim.start()
    seen = await task
    assert (seen.words, seen.error, deaths in (2, 4)) == (0, "worker_lost", True)
    await world.billed(seen.request_id, row("error", 0, read=0, error="worker_lost", attempt=deaths + 1))


async def edge_scene(world: World) -> tuple[Streamed, Streamed]:
    """An edge dies under two clients: one comes back elsewhere, the other one nowhere."""
    edge = await world.add("edge", "edge-mortal", ORPHAN_HOLD="15s")
    back, gone = Streamed(), Streamed()
    calls = [
        asyncio.ensure_future(world.stream(asked(tokens), "edge-mortal", into=one))
        for tokens, one in ((1500, back), (ENDLESS, gone))
    ]
    await asyncio.gather(back.begun.wait(), gone.begun.wait())
    edge.signal(signal.SIGKILL)
    await edge.ended()
    await asyncio.gather(*calls)
    headers = world.headers(**{"Last-Event-ID": back.last_event})
    returned = asyncio.ensure_future(world.http.post(world.url(), headers=headers))
    await edge.start()
    assert (await returned).text.rstrip().endswith("[DONE]")
    return back, gone


@case
async def edge_died(world: World) -> None:
    back, _ = await world.shared(edge_scene)
    await world.billed(back.request_id, row("length", 1500))


@case
async def edge_died_for_good(world: World) -> None:
    _, gone = await world.shared(edge_scene)
    await world.billed(gone.request_id, row("cancelled", await world.made(gone.request_id, gone.words)))
