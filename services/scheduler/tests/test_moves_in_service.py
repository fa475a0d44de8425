"""What the scheduler process does besides placing what comes first on who has room: pausing, falling back, ending what
has been on a worker, draining."""

import asyncio
import signal

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus.bus.v1.request_pb2 import Resume
from inferbus.common.v1.usage_pb2 import FinishReason, Operation
from inferbus.scheduler.v1.deployment_pb2 import ListDeploymentsRequest, SetDeploymentRequest
from inferbus.scheduler.v1.deployment_pb2_grpc import DeploymentServiceStub
from inferbus.scheduler.v1.scheduler_pb2 import DrainWorkersRequest, ExplainRequest, WatchFleetRequest
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceStub
from inferbus.worker.v1.worker_pb2 import DrainRequest, DrainResponse
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from inferbus_contracts.subjects import model_shard, request_subject
from inferbus_runtime import clock
from inferbus_runtime.rpc import channel, error_of, serve

TOKEN = "t" * 16


async def test_interactive_work_pauses_batch_work_which_goes_on_later(new_stage, wait_until) -> None:
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=2), await stage.edge()
    worker.made = 100
    batch = [await edge.submit(model, priority=3) for _ in range(3)]
    await wait_until(lambda: len(worker.running) == 2)
    await asyncio.sleep(2.5)  # they may be paused by now, and are told to have made enough
    asked_at = clock.monotonic()
    urgent = await edge.submit(model)
    await wait_until(lambda: urgent in worker.running)
    # Where all stood still meanwhile, it has asked again after each two seconds.
    asked = 1 + int((clock.monotonic() - asked_at) / 2.0)
    assert 1 <= len(worker.recalled) <= asked, "no more than it takes"
    paused, attempt = worker.recalled[0]
    assert (paused in batch, attempt) == (True, 1)
    for _ in range(4):
        await wait_until(lambda: worker.running)
        worker.finish(next(iter(worker.running)))
    again = [work for work in worker.placed if work.request.request_id == paused]
    assert [work.attempt for work in again] == [1, 2]
    assert (again[1].request.resume.reason, again[1].request.resume.fruitless_deaths) == ("preempted", 0)
    assert set(worker.taken) == {urgent, *batch}
    assert not edge.closed
    await stage.nothing_left()


async def test_a_scheduler_that_dies_between_the_pause_and_the_queue_loses_nothing(new_stage, wait_until) -> None:
    """The worker has forgotten what it was told to stop, and the queue does not have it again yet."""
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=4), await stage.edge()
    worker.made = 100
    batch = [await edge.submit(model, priority=3) for _ in range(4)]
    await wait_until(lambda: len(worker.running) == 4)
    await asyncio.sleep(2.5)
    urgent = [await edge.submit(model) for _ in range(3)]
    await wait_until(lambda: worker.recalled)
    await stage.scheduler.end(signal.SIGKILL)
    await stage.scheduler.start()
    finished: set[bytes] = set()
    while finished != {*urgent, *batch}:
        await wait_until(lambda: worker.running, 45.0)
        finished.add(done := next(iter(worker.running)))
        worker.finish(done)
    again = {work.request.request_id for work in worker.placed if work.attempt == 2}
    assert {paused for paused, _ in worker.recalled} <= again <= set(batch)
    assert not edge.closed
    await stage.nothing_left()


async def test_a_request_goes_to_a_fallback_when_its_model_has_nobody_or_its_queue_takes_too_long(
    new_stage, wait_until
) -> None:
    stage = await new_stage()
    large, small = stage.model(), stage.model()
    await stage.known(large)
    few, edge = await stage.worker(small, capacity=3), await stage.edge()

    async def asks(model: str) -> bytes:
        message = edge.request(model)
        message.chat.messages.add(role="user", content="hello")
        await edge.publish(message)
        return message.request_id

    deployment = DeploymentRecord(model=large, fallbacks=[small])
    deployment.queue_target.FromMilliseconds(500)
    async with channel(stage.scheduler.ready["grpc"], None) as grpc_channel:
        deployments = DeploymentServiceStub(grpc_channel)
        await deployments.SetDeployment(SetDeploymentRequest(deployment=deployment))
        while not (await deployments.ListDeployments(ListDeploymentsRequest())).deployments:
            await asyncio.sleep(0.01)
        unserved = await asks(large)
        await wait_until(lambda: unserved in few.running)
        told = await SchedulerServiceStub(grpc_channel).Explain(ExplainRequest(request_id=unserved))
        assert (told.outcome, told.worker) == ("placed", few.name)
    [work] = few.placed
    assert (work.request.context.model, work.request.asked_model, work.attempt) == (small, large, 1)

    many = await stage.worker(large, capacity=1)
    served = await edge.submit(large)
    await wait_until(lambda: served in many.running)
    message = edge.request(large)
    # Nobody else could go on with token ids: it waits.
    message.prompt.tokens.ids.extend([1, 2, 3])
    await edge.publish(message)
    waits = await asks(large)
    await wait_until(lambda: waits in few.running)
    assert message.request_id not in few.running
    edge.bus.send(Cancel(request_id=message.request_id))
    await wait_until(lambda: message.request_id in edge.closes)
    many.finish(served)
    after = await edge.submit(large)
    await wait_until(lambda: after in many.running)
    assert edge.closed == [message.request_id]
    await stage.nothing_left()


async def test_what_has_been_on_a_worker_ends_with_what_it_had_and_a_cancel_that_came_before_it_counts(
    new_stage, wait_until
) -> None:
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=1), await stage.edge()
    running = await edge.submit(model)
    await wait_until(lambda: running in worker.running)
    stamp = Timestamp(seconds=clock.now_us() // 1_000_000 - 5)

    def back(expires_in: float):
        message = edge.request(model, expires_in=expires_in)
        message.resume.CopyFrom(
            Resume(
                attempt=3, token_ids=[7, 8, 9], text=b"so far", first_token_time=stamp, last_token_time=stamp,
                first_started_time=stamp, reason="worker_lost", worker="gone",
            )
        )  # fmt: skip
        return message

    late, left = back(-1), back(60)
    edge.bus.send(Cancel(request_id=left.request_id))
    await edge.bus.nc.flush()
    for message in (late, left):
        await edge.publish(message)
    await wait_until(lambda: {late.request_id, left.request_id} <= edge.closes.keys())
    for message, how in ((late, FinishReason.FINISH_REASON_ERROR), (left, FinishReason.FINISH_REASON_CANCELLED)):
        close = edge.closes[message.request_id]
        assert (close.attempt, close.finish_reason, close.usage.output_tokens) == (3, how, 3)
        assert close.usage.input_tokens == 0
        assert close.first_token_time == close.last_token_time == close.first_started_time == stamp
    assert edge.closes[late.request_id].error.reason == "deadline_exceeded"

    first, second = await edge.submit(model), back(60)
    await edge.publish(second)
    await stage.queued(first, second.request_id)
    worker.finish(running)
    await wait_until(lambda: second.request_id in worker.running)
    assert worker.placed[-1].attempt == 3, "what was begun goes on before what was not"
    worker.finish(second.request_id)
    await wait_until(lambda: first in worker.running)
    await stage.nothing_left()


async def test_what_is_only_to_be_ended_needs_nothing_and_is_ended_once_as_it_was_decided(
    new_stage, wait_until
) -> None:
    """Nobody knows its model, its time is over, its client has left, and it comes twice."""
    stage = await new_stage(QUEUE_TIMEOUT="600s")
    edge = await stage.edge()
    while model_shard(waits := stage.model()) != model_shard("nobody-knows"):
        pass
    await stage.known(waits)
    # What has ended since this came may come again, however long the test takes for that.
    await edge.submit(waits)

    def over(end: str, asked_model: str = ""):
        message = edge.request("nobody-knows", expires_in=-1)
        message.chat.SetInParent()
        message.reply, message.asked_model = b"form", asked_model
        message.resume.CopyFrom(Resume(attempt=3, end=end, output_tokens=7, fruitless_deaths=2, worker="gone"))
        return message

    messages = [over("worker_lost"), over("too_large"), over("cancelled"), over("worker_lost", "another")]
    for message in messages:
        edge.bus.send(Cancel(request_id=message.request_id))
        await edge.publish(message)
    await wait_until(lambda: len(edge.closes) == len(messages))
    await stage.nothing_left(but=1)
    await stage.scheduler.end(signal.SIGKILL)
    for message in messages:
        await edge.bus.nc.jetstream().publish(request_subject(message), message.SerializeToString())
    await stage.scheduler.start(QUEUE_TIMEOUT="600s")
    await stage.nothing_left(but=1)
    assert sorted(edge.closed) == sorted(message.request_id for message in messages)
    for message in messages:
        close = edge.closes[message.request_id]
        assert (close.attempt, close.usage.output_tokens) == (3, 7)
        assert close.operation == Operation.OPERATION_CHAT
        expected = {"too_large": "worker_lost", "cancelled": ""}
        assert close.error.reason == expected.get(message.resume.end, message.resume.end)
    assert "twice" in edge.closes[messages[0].request_id].error.message
    opens = {one.request_id: one.reply for frame in edge.frames for one in frame.opens}
    assert opens == {message.request_id: b"form" for message in messages}


class _Leaving(WorkerServiceServicer):
    """Plays the gRPC side of a worker."""

    def __init__(self) -> None:
        self.asked: list[DrainRequest] = []

    async def Drain(self, request: DrainRequest, context: object) -> DrainResponse:  # noqa: N802 (gRPC's name)
        self.asked.append(request)
        return DrainResponse()


async def test_workers_are_asked_to_leave_by_name_or_by_machine(new_stage, wait_until) -> None:
    stage = await new_stage(RPC_TOKEN=TOKEN)
    model, service = stage.model(), _Leaving()
    workers = [await stage.worker(model) for _ in range(3)]
    async with (
        serve("127.0.0.1:0", lambda s: add_WorkerServiceServicer_to_server(service, s), [], TOKEN) as there,
        channel(stage.scheduler.ready["grpc"], TOKEN) as grpc_channel,
    ):
        for worker, node in zip(workers, ("rack-1", "rack-2", "rack-2"), strict=True):
            await worker.register(node=node, address=there.address)
        stub = SchedulerServiceStub(grpc_channel)
        pictures = stub.WatchFleet(WatchFleetRequest())
        async with asyncio.timeout(30):
            async for picture in pictures:
                # Each was there before its machine was told.
                if [each.record.address for each in picture.workers] == [there.address] * 3:
                    break
        pictures.cancel()
        wanted = DrainWorkersRequest(node="rack-2")
        wanted.grace.FromSeconds(7)
        answer = await stub.DrainWorkers(wanted)
        assert sorted(answer.workers) == sorted(worker.name for worker in workers[1:])
        assert [(each.grace.seconds, each.begin_only) for each in service.asked] == [(7, True)] * 2
        answer = await stub.DrainWorkers(DrainWorkersRequest(worker=workers[0].name))
        assert list(answer.workers) == [workers[0].name]
        assert service.asked[2].HasField("grace"), "at once, not whenever it likes"
        assert service.asked[2].grace.ToMilliseconds() == 0
        await workers[0].register(address="127.0.0.1:1")
        for target, reason in (
            (DrainWorkersRequest(node="nowhere"), "worker_not_found"),
            (DrainWorkersRequest(), "invalid_value"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.DrainWorkers(target)
            assert error_of(error.value).reason == reason
