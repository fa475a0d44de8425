"""The scheduler as a process: whose work is moved, when, and what becomes of it."""

import signal
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.registry_pb2 import WorkerState
from inferbus.bus.v1.request_pb2 import Resume, Work
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.publish import Publisher
from inferbus_runtime import clock

NewStage = Callable[..., Awaitable[Any]]
WaitUntil = Callable[..., Awaitable[None]]
LONG = 45.0


async def test_what_a_worker_had_goes_on_elsewhere_when_it_is_gone(new_stage: NewStage, wait_until: WaitUntil) -> None:
    """Killed; asked to leave, at the time that it named; and born again."""
    stage = await new_stage()
    model, edge = stage.model(), await stage.edge()
    first = await stage.worker(model)
    request = await edge.submit(model)
    await wait_until(lambda: request in first.running, LONG)
    await first.leave()
    second = await stage.worker(model)
    await wait_until(lambda: request in second.running, LONG)
    assert second.attempts[request] == 2
    resume = second.placed[-1].request.resume
    assert (resume.attempt, resume.reason, resume.worker) == (2, "worker_lost", first.name)

    third = await stage.worker(model)
    hand_over = clock.now() + timedelta(milliseconds=300)
    await second.register(state=WorkerState.WORKER_STATE_DRAINING, hand_over_time=hand_over)
    await wait_until(lambda: request in third.running, LONG)
    assert third.placed[-1].request.resume.reason == "drained"
    await wait_until(lambda: (request, 2) in second.recalled, LONG)
    await wait_until(lambda: not second.running, LONG)

    again = await edge.submit(model)
    await wait_until(lambda: again in third.running, LONG)
    third.finish(request)
    await third.restart()
    await wait_until(lambda: third.attempts.get(again) == 2, LONG)
    await stage.nothing_left()


async def test_a_client_that_leaves_while_its_worker_is_dead_is_heard(
    new_stage: NewStage, wait_until: WaitUntil
) -> None:
    stage = await new_stage()
    model, edge = stage.model(), await stage.edge()
    worker = await stage.worker(model)
    request, other = await edge.submit(model), await edge.submit(model)
    await wait_until(lambda: len(worker.running) == 2, LONG)
    await worker.stop()
    stage.bus.send(Cancel(request_id=request, reason="client_gone"))
    await wait_until(lambda: request in edge.closes, LONG)
    close = edge.closes[request]
    assert (close.finish_reason, close.attempt) == (FinishReason.FINISH_REASON_CANCELLED, 2)
    second = await stage.worker(model)
    await wait_until(lambda: other in second.running, LONG)
    assert request not in second.taken


async def test_a_request_whose_workers_die_twice_before_a_token_is_stopped(
    new_stage: NewStage, wait_until: WaitUntil
) -> None:
    stage = await new_stage()
    model, edge = stage.model(), await stage.edge()
    await stage.known(model)
    request = await edge.submit(model)
    for _ in range(2):
        worker = await stage.worker(model)
        await wait_until(lambda worker=worker: request in worker.running, LONG)
        await worker.leave()
    await wait_until(lambda: request in edge.closes, LONG)
    close = edge.closes[request]
    assert (close.error.reason, close.attempt, close.usage.output_tokens) == ("worker_lost", 3, 0)
    assert "twice" in close.error.message
    await stage.nothing_left()


async def test_a_scheduler_that_starts_finds_the_work_that_nobody_has(
    new_stage: NewStage, wait_until: WaitUntil
) -> None:
    """Of an incarnation that is gone; and the copy of a move that was broken off, whose worker runs it still."""
    stage = await new_stage()
    model, edge = stage.model(), await stage.edge()
    worker = await stage.worker(model, capacity=8)
    kept = await edge.submit(model)
    await wait_until(lambda: kept in worker.running, LONG)
    publisher = Publisher(stage.bus)
    await publisher.start()

    async def placed(name: str, boot: int) -> bytes:
        message = edge.request(model)
        work = Work(request=message, worker=name, boot=boot, attempt=1)
        work.placed_time.CopyFrom(clock.timestamp(clock.now_us()))
        await publisher.publish(work)
        return message.request_id

    await stage.scheduler.end(signal.SIGKILL)
    orphan = await placed("ghost", 7)
    copied = await placed(worker.name, 0)
    await stage.scheduler.start()
    await wait_until(lambda: {orphan, copied} <= set(worker.running), LONG)
    assert {worker.attempts[request] for request in (orphan, copied)} == {2}
    assert worker.attempts[kept] == 1
    assert worker.taken.count(kept) == 1


async def test_what_goes_back_to_the_queue_keeps_what_it_had(new_stage: NewStage, wait_until: WaitUntil) -> None:
    """Its third attempt has the tokens of the first two."""
    stage = await new_stage()
    model, edge = stage.model(), await stage.edge()
    message = edge.request(model)
    message.resume.CopyFrom(Resume(attempt=2, token_ids=[4, 5, 6], text=b"abc", reason="worker_lost"))
    worker = await stage.worker(model)
    await edge.publish(message)
    await wait_until(lambda: message.request_id in worker.running, LONG)
    await worker.leave()
    second = await stage.worker(model)
    await wait_until(lambda: message.request_id in second.running, LONG)
    resume = second.placed[-1].request.resume
    assert (resume.attempt, list(resume.token_ids), resume.text) == (3, [4, 5, 6], b"abc")
    # A death before a new token: it may be what kills them.
    assert resume.fruitless_deaths == 1
