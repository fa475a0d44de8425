"""The scheduler process on a real nats-server."""

import asyncio
import signal
import urllib.request

import grpc
import pytest
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.registry_pb2 import WorkerState
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus.scheduler.v1.scheduler_pb2 import ExplainRequest, WatchFleetRequest
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from inferbus_runtime.rpc import channel, error_of

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_is_placed_with_its_trace_and_taken_off_requests(new_stage, wait_until) -> None:
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model), await stage.edge()
    request_id = await edge.submit(model, headers={"traceparent": TRACEPARENT})
    await wait_until(lambda: request_id in worker.running)
    await stage.nothing_left()
    [work] = worker.placed
    assert work.worker == worker.name
    assert work.request.context.model == model
    assert work.request.context.tenant_id == "t"
    assert work.placed_time.ToMicroseconds() >= work.request.accepted_time.ToMicroseconds()
    assert worker.headers[request_id]["traceparent"] == TRACEPARENT
    assert not edge.closed


async def test_nothing_is_placed_above_room_and_what_waits_goes_when_there_is_some(new_stage, wait_until) -> None:
    stage = await new_stage()
    model = stage.model()
    workers = [await stage.worker(model, capacity=3), await stage.worker(model, capacity=2)]
    edge = await stage.edge()
    sent = [await edge.submit(model) for _ in range(40)]
    done: list[bytes] = []
    while len(done) < len(sent):
        await wait_until(lambda: any(worker.running for worker in workers))
        worker = max(workers, key=lambda worker: len(worker.running))
        request_id = next(iter(worker.running))
        worker.finish(request_id)
        done.append(request_id)
    assert [worker.most for worker in workers] == [3, 2]
    assert sorted(done) == sorted(sent)
    assert sum(len(worker.taken) for worker in workers) == len(sent)
    await stage.nothing_left()


async def test_a_full_queue_refuses_with_a_retry_time_and_lower_classes_do_not_fill_it(new_stage, wait_until) -> None:
    stage = await new_stage(MAX_QUEUED="3")
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=1), await stage.edge()
    running = await edge.submit(model)
    await wait_until(lambda: running in worker.running)
    for _ in range(3):
        await edge.submit(model, priority=3)
    refused_batch = await edge.submit(model, priority=3)
    await wait_until(lambda: refused_batch in edge.closes)
    waiting = [await edge.submit(model) for _ in range(3)]
    message = edge.request(model)
    message.reply = b"how to answer"
    message.labels.end_user = "ada"
    await edge.publish(message)
    refused = message.request_id
    await wait_until(lambda: refused in edge.closes)
    close = edge.closes[refused]
    assert close.finish_reason == FinishReason.FINISH_REASON_ERROR
    assert close.attempt == 0
    assert close.error.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
    assert close.error.reason == "queue_full"
    assert close.error.retry_after.seconds >= 1
    assert close.usage.output_tokens == 0
    assert close.labels == message.labels
    assert close.accepted_time.seconds
    assert close.end_time.ToMicroseconds() >= close.accepted_time.ToMicroseconds()
    frame = next(frame for frame in edge.frames if refused in [each.request_id for each in frame.closes])
    assert (frame.worker, frame.contexts[0].key_id) == ("scheduler-under-test", "k")
    (opens,) = [each for each in frame.opens if each.request_id == refused]
    assert opens.reply == b"how to answer"
    assert not set(waiting) & set(edge.closed)
    for _ in range(7):
        await wait_until(lambda: worker.running)
        worker.finish(next(iter(worker.running)))
    assert worker.taken[:4] == [running, *waiting]
    await stage.nothing_left()


async def test_a_waiting_request_is_cancelled_and_an_early_cancel_is_remembered(new_stage, wait_until) -> None:
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=1), await stage.edge()
    running = await edge.submit(model)
    await wait_until(lambda: running in worker.running)
    waiting = await edge.submit(model)
    message = edge.request(model)
    edge.bus.send(Cancel(request_id=message.request_id, reason="client_gone"))
    await edge.bus.nc.flush()
    await edge.publish(message)
    await wait_until(lambda: message.request_id in edge.closes)
    edge.bus.send(Cancel(request_id=waiting, reason="client_gone"))
    await wait_until(lambda: waiting in edge.closes)
    for request_id in (waiting, message.request_id):
        assert edge.closes[request_id].finish_reason == FinishReason.FINISH_REASON_CANCELLED
        assert edge.closes[request_id].attempt == 0
        assert not edge.closes[request_id].HasField("error")
    await stage.nothing_left()
    worker.finish(running)
    after = await edge.submit(model)
    await wait_until(lambda: after in worker.running)
    assert worker.taken == [running, after]


async def test_what_waits_too_long_ends(new_stage, wait_until) -> None:
    stage = await new_stage(QUEUE_TIMEOUT="1s", HEARTBEAT_TIMEOUT="60s")
    served, unserved = stage.model(), stage.model()
    worker, edge = await stage.worker(served, capacity=1), await stage.edge()
    await stage.known(unserved)
    running = await edge.submit(served)
    await wait_until(lambda: running in worker.running)
    late = await edge.submit(served, expires_in=0.5)
    dead_on_arrival = await edge.submit(served, expires_in=-1)
    nobody = await edge.submit(unserved)
    unknown = await edge.submit(stage.model())
    patient = await edge.submit(served)
    await wait_until(lambda: {late, dead_on_arrival, nobody, unknown} <= edge.closes.keys())
    assert {edge.closes[each].error.reason for each in (late, dead_on_arrival)} == {"deadline_exceeded"}
    assert edge.closes[late].error.error_class == ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED
    assert edge.closes[nobody].error.reason == "no_worker"
    assert edge.closes[nobody].error.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE
    assert edge.closes[unknown].error.reason == "model_not_found"
    await asyncio.sleep(0.5)
    assert patient not in edge.closes, "a model with a live worker is waited for"
    worker.finish(running)
    await wait_until(lambda: patient in worker.running)


async def test_a_worker_that_leaves_or_drains_or_falls_silent_gets_nothing(new_stage, wait_until) -> None:
    stage = await new_stage(HEARTBEAT_TIMEOUT="500ms")
    model = stage.model()
    drains, leaves, silent = [await stage.worker(model, capacity=100) for _ in range(3)]
    edge = await stage.edge()
    async with channel(stage.scheduler.ready["grpc"], None) as grpc_channel:
        stub = SchedulerServiceStub(grpc_channel)

        async def seen(reasons: dict[str, str]) -> None:
            """Once these are the present workers, and for these reasons none of them may be chosen, or all may."""
            async with asyncio.timeout(30):
                while reasons != {
                    each.worker: each.reason for each in (await stub.Explain(ExplainRequest(model=model))).verdicts
                }:
                    await asyncio.sleep(0.05)

        await seen({each.name: "" for each in (drains, leaves, silent)})
        await drains.register(state=WorkerState.WORKER_STATE_DRAINING)
        await leaves.leave()
        silent.silent = True
        await seen({drains.name: "draining", silent.name: "lease_expired"})
    waiting = [await edge.submit(model) for _ in range(5)]
    await asyncio.sleep(0.3)
    assert not drains.taken
    assert not leaves.taken
    assert not silent.taken
    comes = await stage.worker(model, capacity=100)
    await wait_until(lambda: set(waiting) <= comes.running.keys())


async def test_a_worker_that_restarts_begins_with_an_empty_account_and_gets_what_it_had_as_another_attempt(
    new_stage, wait_until
) -> None:
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=1), await stage.edge()
    first = await edge.submit(model)
    await wait_until(lambda: first in worker.running)
    second = await edge.submit(model)
    worker.finish(first)
    await wait_until(lambda: second in worker.running)
    await worker.restart()
    await wait_until(lambda: worker.attempts.get(second) == 2)
    third = await edge.submit(model)
    worker.finish(second)
    await wait_until(lambda: third in worker.running)
    assert worker.taken == [first, second, second, third]
    resumed = worker.placed[2]
    assert (resumed.boot, resumed.request.resume.reason) == (worker.record.boot, "worker_lost")
    assert not edge.closed


async def test_the_fleet_and_decisions_can_be_seen(new_stage, wait_until) -> None:
    stage = await new_stage(RPC_TOKEN="t" * 16, HEARTBEAT_TIMEOUT="60s")
    model, other = stage.model(), stage.model()
    worker, edge = await stage.worker(model, capacity=2), await stage.edge()
    await stage.worker(other)
    placed = [await edge.submit(model) for _ in range(2)]
    await wait_until(lambda: len(worker.running) == 2)
    queued = await edge.submit(model)
    refused = await edge.submit(stage.model())
    await wait_until(lambda: refused in edge.closes)
    async with channel(stage.scheduler.ready["grpc"], "t" * 16) as grpc_channel:
        stub = SchedulerServiceStub(grpc_channel)
        pictures = stub.WatchFleet(WatchFleetRequest())
        async with asyncio.timeout(30):
            async for picture in pictures:
                shown = {each.record.worker: each for each in picture.workers}
                # It beats ten times a second, while the machine lets it.
                fresh = shown[worker.name].heartbeat_age.ToMilliseconds() < 1000
                if picture.queues and shown[worker.name].active == 2 and fresh:
                    break
        pictures.cancel()
        assert shown[worker.name].record.capacity == 2
        assert shown[worker.name].active == 2
        assert shown[worker.name].heartbeat_age.ToMilliseconds() < 1000
        [queue] = picture.queues
        assert (queue.model, queue.queued) == (model, 1)

        now = await stub.Explain(ExplainRequest(model=model))
        assert (now.outcome, now.reason) == ("queued", "full")
        assert {each.reason for each in now.verdicts} == {"full", "wrong_model"}
        free = await stub.Explain(ExplainRequest(model=other))
        assert (free.outcome, free.reason) == ("placed", "best_score")
        assert free.verdicts[0].worker == free.worker
        assert free.verdicts[0].parts["load"] == 1.0
        assert 0 < free.verdicts[0].score <= 1
        unknown = await stub.Explain(ExplainRequest(model="no-such-model"))
        assert (unknown.outcome, unknown.reason) == ("rejected", "model_not_found")

        then = await stub.Explain(ExplainRequest(request_id=placed[1]))
        assert (then.outcome, then.worker) == ("placed", worker.name)
        assert [(each.worker, each.eligible, each.parts["load"]) for each in then.verdicts] == [
            (worker.name, True, 0.5)
        ]
        assert then.attempt == 1
        waits = await stub.Explain(ExplainRequest(request_id=queued))
        assert (waits.outcome, waits.reason, waits.worker) == ("queued", "full", "")
        never = await stub.Explain(ExplainRequest(request_id=refused))
        assert (never.outcome, never.reason) == ("rejected", "model_not_found")
        for bad, reason in ((b"1" * 16, "request_not_found"), (b"1", "invalid_value")):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.Explain(ExplainRequest(request_id=bad))
            assert error_of(error.value).reason == reason
    expected = (
        f'inferbus_queue_depth{{model="{model}",priority_class="interactive"}} 1.0',
        f'inferbus_placements_total{{model="{model}"}} 2.0',
        'inferbus_rejections_total{reason="model_not_found"} 1.0',
    )
    async with asyncio.timeout(30):  # gauges are brought up to date once a second
        while True:
            metrics = await asyncio.to_thread(_scrape, stage.scheduler.ready["metrics"])
            if all(each in metrics for each in expected):
                break
            await asyncio.sleep(0.1)


def _scrape(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        return answer.read().decode()


async def test_a_stop_gives_back_what_waits(new_stage, wait_until) -> None:
    stage = await new_stage(ACK_WAIT="120s", QUEUE_TIMEOUT="600s")
    model = stage.model()
    await stage.known(model)
    edge = await stage.edge()
    waiting = [await edge.submit(model) for _ in range(5)]
    await stage.queued(*waiting)
    assert await stage.scheduler.end(signal.SIGTERM) == 0
    await stage.scheduler.start(ACK_WAIT="120s", QUEUE_TIMEOUT="600s")
    worker = await stage.worker(model, capacity=10)
    await wait_until(lambda: set(waiting) <= worker.running.keys(), timeout=30)


async def test_what_is_no_request_is_taken_off_and_stops_nothing(new_stage, wait_until) -> None:
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model), await stage.edge()
    await stage.bus.nc.jetstream().publish("req.3.interactive.x", b"\xff\xff not a message")
    await stage.bus.nc.jetstream().publish("req.3.interactive.x", b"")
    request_id = await edge.submit(model)
    await wait_until(lambda: request_id in worker.running)
    await stage.nothing_left()
    assert "is no request" in stage.scheduler.log_file.read_text()


async def test_more_than_it_may_hold_waits_on_the_stream(new_stage, wait_until) -> None:
    stage = await new_stage(MAX_HELD="5")
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=1), await stage.edge()
    sent = [await edge.submit(model) for _ in range(20)]
    for _ in sent:
        await wait_until(lambda: worker.running)
        worker.finish(next(iter(worker.running)))
    assert worker.taken == sent
    await stage.nothing_left()
