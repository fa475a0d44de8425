"""A worker process on a real nats-server."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from typing import Any

import grpc
import pytest
from inferbus.bus.v1.control_pb2 import Cancel, Heartbeat, Recall
from inferbus.bus.v1.frame_pb2 import Fence, Frame
from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord, WorkerState
from inferbus.bus.v1.request_pb2 import PromptInput
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus.worker.v1.worker_pb2 import (
    DetokenizeRequest,
    DrainRequest,
    GenerateRequest,
    GetStatusRequest,
    TokenizeRequest,
)
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceStub
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.errors import StreamApiError
from inferbus_bus.frames import FramePublisher
from inferbus_bus.registry import Registry
from inferbus_bus.streams import ensure_streams
from inferbus_contracts.subjects import work_subject
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.rpc import channel
from inferbus_stack.nats import NatsServer
from inferbus_worker.engine import EngineInfo, Tokens
from inferbus_worker.servicer import WorkerServicer

from services.worker.tests.lost_work import fill, steal

STOP, LENGTH = FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_LENGTH
CANCELLED, ERROR = FinishReason.FINISH_REASON_CANCELLED, FinishReason.FINISH_REASON_ERROR


async def work_left(bus: Bus, worker: Any) -> int:
    info = await bus.api(f"CONSUMER.INFO.WORK.{worker.name}")
    return int(info["num_pending"]) + int(info["num_ack_pending"])


async def left_on(bus: Bus, worker: Any, boot: int) -> int:
    """How much work that incarnation has, or had."""
    subject = work_subject(worker.name, boot)
    info = await bus.api("STREAM.INFO.WORK", {"subjects_filter": subject})
    return int((info["state"].get("subjects") or {}).get(subject, 0))


async def engine_starts(worker: Any) -> int:
    async with channel(worker.address, None) as connected:
        return int((await WorkerServiceStub(connected).GetStatus(GetStatusRequest())).engine_restarts)


def recall(worker: Any, boot: int, *requests: Any) -> Recall:
    """Of their first attempts."""
    names = b"".join(request.request_id for request in requests)
    return Recall(worker=worker.name, boot=boot, request_ids=names, attempts=[1] * len(requests))


async def all_acked(bus: Bus, worker: Any) -> None:
    async with asyncio.timeout(60):
        while await work_left(bus, worker):
            await asyncio.sleep(0.05)


async def test_a_request_becomes_frames(bus: Bus, edge: Any, worker: Any) -> None:
    before = clock.now_us()
    received = await edge.place(worker.name, edge.request("say something", max_tokens=12))
    await edge.closed(received)
    close = received.close
    assert received.ids == list(range(12))
    assert received.text.startswith(b"this is synthetic text")
    assert close.finish_reason == LENGTH
    assert (close.usage.input_tokens, close.usage.output_tokens) == (2, 12)
    assert close.engine == "synthetic"
    times = [close.accepted_time, close.placed_time, close.started_time, close.first_token_time, close.last_token_time]
    moments = [clock.unix_us(moment) for moment in (*times, close.end_time)]
    assert moments == sorted(moments)
    assert before <= moments[0]
    assert received.gaps[0] == moments[3] - moments[0], "TTFT"
    assert all(gap > 0 for gap in received.gaps[1:])
    assert sum(received.gaps[1:]) == moments[4] - moments[3], "from the first token to the last"
    await all_acked(bus, worker)


async def test_many_requests_share_frames(bus: Bus, edge: Any, worker: Any) -> None:
    requests = [edge.request("say something", max_tokens=20) for _ in range(50)]
    worker.signal(signal.SIGSTOP)  # so that it has all of them at the same time
    received = [await edge.place(worker.name, request) for request in requests]
    worker.signal(signal.SIGCONT)
    await edge.closed(*received)
    assert [one.ids for one in received] == [list(range(20))] * 50
    assert len(edge.frames) < 50 * 20 / 4, "one frame for each step, not for each token"
    await all_acked(bus, worker)


async def all_has_come(edge: Any, worker: Any) -> None:
    """Returns when what was said to this edge before is here: what is said later comes after it."""
    await edge.closed(await edge.place(worker.name, edge.request("say something")))


async def test_a_bad_request_is_closed_with_its_error(edge: Any, worker: Any) -> None:
    request = edge.request("x")
    request.sampling.temperature = 99.0
    received = await edge.place(worker.name, request)
    no_input = edge.request("x")
    no_input.ClearField("chat")
    other = await edge.place(worker.name, no_input)
    await edge.closed(received, other)
    for one, param in ((received, "temperature"), (other, "messages")):
        assert one.close.finish_reason == ERROR
        assert one.close.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
        assert one.close.error.param == param


async def test_what_an_edge_needs_to_answer_is_on_the_log(edge: Any, worker: Any) -> None:
    request = edge.request("say something", reply=b"as chat, streamed", input_counted_elsewhere=True)
    refused = edge.request("x", reply=b"as chat")
    refused.constraint.json_object = True
    received, other = await edge.place(worker.name, request), await edge.place(worker.name, refused)
    await edge.closed(received, other)
    assert received.replies == [b"as chat, streamed"]
    assert (received.close.usage.input_tokens, received.close.usage.output_tokens) == (0, 10)
    assert other.replies == [b"as chat"]
    assert (other.close.error.param, other.close.error.reason) == ("response_format", "unsupported_parameter")


async def test_vectors_of_the_embedding_engine(bus: Bus, edge: Any, new_worker: Callable[..., Any]) -> None:
    worker = new_worker(ENGINE="minilm")
    await worker.start()
    request = edge.request("", reply=b"as base64")
    texts = [f"text number {number}" for number in range(600)]
    request.embedding.inputs.extend([PromptInput(text=text) for text in texts])
    chat = edge.request("hello")
    received, refused = await edge.place(worker.name, request), await edge.place(worker.name, chat)
    await edge.closed(received, refused)
    assert sorted(received.vectors) == list(range(600))
    assert {len(values) for values in received.vectors.values()} == {4 * 384}
    assert received.close.finish_reason == STOP
    assert received.close.usage.input_tokens > 600 * 3
    assert not received.ids
    assert max(frame.ByteSize() for frame in edge.frames) < 600_000
    assert refused.close.error.param == "model"
    models = Registry(bus, "models", ModelRecord)
    await models.start()
    async with asyncio.timeout(30):
        while (record := models.get("all-minilm-l6-v2")) is None:
            await asyncio.sleep(0.02)
    assert (list(record.capabilities), record.embedding_dimensions) == (["embeddings"], 384)
    await models.stop()
    await all_acked(bus, worker)


async def test_a_model_that_has_changed_is_announced_again(bus: Bus, new_worker: Callable[..., Any]) -> None:
    models = Registry(bus, "models", ModelRecord)
    await models.start()
    old = ModelRecord(name="changing", revision="synthetic-5000us", engine="synthetic", context_length=32768)
    old.create_time.FromSeconds(1_700_000_000)
    await models.put("changing", old)
    worker = new_worker(MODEL="changing")
    await worker.start()
    async with asyncio.timeout(30):
        while not (record := models.get("changing")).capabilities:
            await asyncio.sleep(0.02)
    assert record.create_time == old.create_time
    await models.stop()


async def test_cancel(bus: Bus, edge: Any, worker: Any) -> None:
    request = edge.request("say something", max_tokens=10_000)
    received = await edge.place(worker.name, request)
    await edge.until(lambda: len(received.ids) > 3)
    bus.send(Cancel(request_id=request.request_id, reason="client_gone"))
    await edge.closed(received)
    assert received.close.finish_reason == CANCELLED
    await all_acked(bus, worker)


async def test_cancel_that_overtakes_its_request(bus: Bus, edge: Any, worker: Any) -> None:
    request = edge.request("say something")
    bus.send(Cancel(request_id=request.request_id))
    await bus.nc.flush()
    received = await edge.place(worker.name, request)
    await edge.closed(received)
    assert received.close.finish_reason == CANCELLED
    assert not received.ids
    assert received.close.usage == Usage(), "nothing was read: nothing is charged"


async def test_expired_work_is_closed(edge: Any, worker: Any) -> None:
    late = await edge.place(worker.name, edge.request("x", expire_time=clock.timestamp(clock.now_us() - 1)))
    soon = edge.request("x", max_tokens=20_000, expire_time=clock.timestamp(clock.now_us() + 8_000_000))
    running = await edge.place(worker.name, soon)
    await edge.closed(late, running)
    for one in (late, running):
        assert one.close.finish_reason == ERROR
        assert one.close.error.error_class == ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED
    assert running.ids
    assert not late.ids


async def test_a_new_incarnation_gets_nothing_of_the_old_ones(bus: Bus, edge: Any, worker: Any) -> None:
    """Killed and started again under its name: what it had is a scheduler's to give, also to itself."""
    received = await edge.place(worker.name, edge.request("say something", max_tokens=20_000))
    await edge.until(lambda: len(received.ids) >= 10)
    old = await edge.incarnation(worker.name)
    await worker.kill()
    await worker.start()
    assert await edge.incarnation(worker.name) > old
    await all_has_come(edge, worker)
    reached = len(received.ids)
    late = await edge.place(worker.name, edge.request("say something"), boot=old)
    for _ in range(3):  # others are served meanwhile
        await edge.closed(await edge.place(worker.name, edge.request("say something")))
    assert (len(received.ids), received.close) == (reached, None)
    assert (late.ids, late.close) == ([], None)
    assert await left_on(bus, worker, old) == 2
    await all_acked(bus, worker)


async def test_it_goes_on_with_the_next_token_as_the_next_attempt(bus: Bus, edge: Any, worker: Any) -> None:
    requests = [edge.request("say something", max_tokens=20_000) for _ in range(20)]
    received = [await edge.place(worker.name, request) for request in requests]
    await edge.until(lambda: all(len(one.ids) >= 10 for one in received))
    await worker.kill()
    await worker.start()
    await all_has_come(edge, worker)
    reached = [len(one.ids) for one in received]
    moved = [edge.moved(request) for request in requests]
    for request in moved:
        request.sampling.max_tokens = len(request.resume.token_ids) + 200
        await edge.place(worker.name, request)
    await edge.closed(*received)
    for one, request, before in zip(received, moved, reached, strict=True):
        assert one.attempts == [1, 2]
        assert len(request.resume.token_ids) == before >= 10
        assert one.ids == [index % 29 for index in range(before + 200)], "goes on where it was"
        close = one.close
        assert (close.attempt, close.usage.output_tokens) == (2, before + 200)
        times = (close.first_started_time, close.first_token_time, close.placed_time, close.started_time)
        moments = [clock.unix_us(time) for time in (*times, close.last_token_time)]
        assert 0 < moments[0] <= moments[1] < moments[2] <= moments[3] < moments[4], (
            "queued until the engine had it first"
        )
        assert sum(one.gaps[1:]) == moments[4] - moments[1], "the pause is a gap like any other"
    await all_acked(bus, worker)


async def test_what_ended_with_its_last_token_ends_at_once(edge: Any, worker: Any, received_type: Any) -> None:
    """Its worker died between the last token and the Close."""
    request = edge.request("say something", max_tokens=5)
    whole = await edge.place(worker.name, request)
    await edge.closed(whole)
    again = edge.request("say something", max_tokens=5)
    again.resume.CopyFrom(edge.moved(request).resume)
    edge.received[again.request_id] = received_type(ids=list(whole.ids), texts=list(whole.texts))
    received = await edge.place(worker.name, again)
    await edge.closed(received)
    assert received.ids == whole.ids
    assert (received.close.finish_reason, received.close.usage.output_tokens) == (LENGTH, 5)
    assert received.close.first_token_time == whole.close.first_token_time


# --- recalled ---------------------------------------------------------------------------------------------------------


async def test_what_is_recalled_is_not_spoken_of_any_more(bus: Bus, edge: Any, worker: Any) -> None:
    beats: list[Heartbeat] = []
    await bus.subscribe(Heartbeat, lambda beat: beats.append(beat) if beat.worker == worker.name else None)
    boot = await edge.incarnation(worker.name)
    request, other = (edge.request("say something", max_tokens=tokens) for tokens in (10_000, 400))
    received, kept = await edge.place(worker.name, request), await edge.place(worker.name, other)
    await edge.until(lambda: len(received.ids) > 3 and len(kept.ids) > 3)
    for strange in (boot - 1, boot + 1):
        bus.send(recall(worker, strange, request))
    bus.send(recall(worker, boot, request))
    async with asyncio.timeout(30):
        while not any(request.request_id in beat.ended_ids for beat in beats):
            await asyncio.sleep(0.02)
    assert beats[-1].active <= 1
    await all_has_come(edge, worker)  # heartbeats overtake frames
    reached = len(received.ids)
    await edge.closed(kept, await edge.place(worker.name, edge.request("say something", max_tokens=200)))
    assert (len(received.ids), received.close) == (reached, None)
    assert kept.ids == [index % 29 for index in range(400)]
    await all_acked(bus, worker)


async def test_a_recalled_request_may_come_back_as_the_next_attempt(bus: Bus, edge: Any, worker: Any) -> None:
    """At once, while the engine still ends the last one."""
    boot = await edge.incarnation(worker.name)
    requests = [edge.request("say something", max_tokens=20_000) for _ in range(10)]
    received = [await edge.place(worker.name, request) for request in requests]
    await edge.until(lambda: all(len(one.ids) > 3 for one in received))
    bus.send(recall(worker, boot, *requests))
    await bus.nc.flush()
    await all_acked(bus, worker)
    moved = [edge.moved(request) for request in requests]
    for request in moved:
        request.sampling.max_tokens = len(request.resume.token_ids) + 100
        await edge.place(worker.name, request)
    await edge.closed(*received)
    limits = [request.sampling.max_tokens for request in moved]
    assert [one.ids for one in received] == [[index % 29 for index in range(limit)] for limit in limits]
    assert {tuple(one.attempts) for one in received} == {(1, 2)}
    await all_acked(bus, worker)


async def test_the_next_attempt_takes_the_place_of_one_that_was_not_recalled_yet(
    bus: Bus, edge: Any, worker: Any
) -> None:
    request = edge.request("say something", max_tokens=20_000)
    received = await edge.place(worker.name, request)
    await edge.until(lambda: len(received.ids) > 3)
    moved = edge.moved(request)
    moved.sampling.max_tokens = len(moved.resume.token_ids) + 100
    await edge.place(worker.name, moved)
    async with asyncio.timeout(30):
        while not received.close:
            await asyncio.sleep(0.02)
    assert received.close.attempt == 2
    # The two overlap here, where nobody has fenced off the first.
    assert received.attempts == [1, 2]
    assert received.ids == [index % 29 for index in range(moved.sampling.max_tokens)]
    await all_acked(bus, worker)


async def test_a_recall_that_overtakes_its_request(bus: Bus, edge: Any, worker: Any) -> None:
    boot = await edge.incarnation(worker.name)
    request = edge.request("say something")
    bus.send(recall(worker, boot, request))
    await bus.nc.flush()
    received = await edge.place(worker.name, request)
    following = await edge.place(worker.name, edge.request("say something"))
    await edge.closed(following)
    assert (received.ids, received.close) == ([], None)
    await all_acked(bus, worker)
    await edge.place(worker.name, edge.moved(request))
    await edge.closed(received)
    assert len(received.ids) == 10


# --- born again -------------------------------------------------------------------------------------------------------


async def test_who_wakes_after_his_lease_is_born_again_and_says_nothing_of_the_old_life(
    bus: Bus, edge: Any, new_worker: Callable[..., Any]
) -> None:
    worker = new_worker(LEASE_TTL="10s")
    await worker.start()
    requests = [edge.request("say something", max_tokens=20_000) for _ in range(5)]
    received = [await edge.place(worker.name, request) for request in requests]
    await edge.until(lambda: all(len(one.ids) > 3 for one in received))
    old = await edge.incarnation(worker.name)
    worker.signal(signal.SIGSTOP)
    fleet = Registry(bus, "fleet", WorkerRecord)
    await fleet.start()
    async with asyncio.timeout(60):
        while fleet.get(worker.name) is not None:
            await asyncio.sleep(0.05)
    reached = [len(one.ids) for one in received]
    worker.signal(signal.SIGCONT)
    async with asyncio.timeout(30):
        while (record := fleet.get(worker.name)) is None or record.boot == old:
            await asyncio.sleep(0.05)
    fresh = await edge.place(worker.name, edge.request("say something", max_tokens=20))
    await edge.closed(fresh)
    assert [len(one.ids) for one in received] == reached
    assert [one.close for one in received] == [None] * 5
    assert (await engine_starts(worker)) == 0, "the engine lives on"
    # They go on here, too, where the engine had them before.
    for request in requests:
        moved = edge.moved(request)
        moved.sampling.max_tokens = len(moved.resume.token_ids) + 30
        await edge.place(worker.name, moved)
    await edge.closed(*received)
    for one, before in zip(received, reached, strict=True):
        assert one.ids == [index % 29 for index in range(before + 30)]
        assert one.attempts == [1, 2]
    await all_acked(bus, worker)
    assert await left_on(bus, worker, old) == 5, "they are the scheduler's to take out"
    await fleet.stop()


async def test_whose_entry_is_gone_is_born_again(bus: Bus, edge: Any, new_worker: Callable[..., Any]) -> None:
    worker = new_worker(LEASE_TTL="10s")
    await worker.start()
    fleet = Registry(bus, "fleet", WorkerRecord)
    await fleet.start()
    request = edge.request("say something", max_tokens=20_000)
    received = await edge.place(worker.name, request)
    await edge.until(lambda: received.ids)
    old = await edge.incarnation(worker.name)
    await fleet.delete(worker.name)
    async with asyncio.timeout(30):
        while (record := fleet.get(worker.name)) is None or record.boot == old:
            await asyncio.sleep(0.02)
    assert record.state == WorkerState.WORKER_STATE_ACTIVE
    await edge.closed(await edge.place(worker.name, edge.request("say something")))
    moved = edge.moved(request)
    moved.sampling.max_tokens = len(moved.resume.token_ids) + 30
    await edge.place(worker.name, moved)
    await edge.closed(received)
    assert received.ids == [index % 29 for index in range(len(received.ids))]
    assert received.attempts == [1, 2]
    await fleet.stop()


async def test_of_two_processes_with_one_name_the_earlier_one_ends(
    edge: Any, new_worker: Callable[..., Any], tmp_path: Any
) -> None:
    worker = new_worker(LEASE_TTL="6s")  # it looks at its entry three times as often
    await worker.start()
    twin = type(worker)(worker.name, edge.bus.config.url, tmp_path / "twin")
    (tmp_path / "twin").mkdir()
    try:
        await twin.start()
        assert await worker.ended() == 1
        received = await edge.place(worker.name, edge.request("say something"))
        await edge.closed(received)
        assert len(received.ids) == 10
    finally:
        await twin.kill()


async def test_redelivery_to_the_same_process_changes_nothing(
    edge: Any, new_worker: Callable[..., Any], bus: Bus
) -> None:
    worker = new_worker(LEASE_TTL="60s")
    await worker.start()
    received = await edge.place(worker.name, edge.request("say something", max_tokens=1500))
    await edge.until(lambda: len(received.ids) > 3)
    worker.signal(signal.SIGSTOP)
    async with asyncio.timeout(30):  # ack_wait passes, and the server gives it out again
        while True:
            info = await bus.api(f"CONSUMER.INFO.WORK.{worker.name}")
            if info["num_redelivered"]:
                break
            await asyncio.sleep(0.2)
    worker.signal(signal.SIGCONT)
    await edge.closed(received)
    assert received.attempts == [1]
    assert len(received.ids) == 1500
    await all_acked(bus, worker)


async def test_what_got_lost_on_its_way_here_is_begun_unless_it_was_moved_meanwhile(
    bus: Bus, edge: Any, new_worker: Callable[..., Any]
) -> None:
    """The broker gave it out, and it never came: it comes again, and only the log says whether it is still ours."""
    worker = new_worker(CAPACITY="1")
    await worker.start()
    full = await fill(bus, edge, worker)
    ours, moved = edge.request("say something"), edge.request("say something")
    received, other = await edge.place(worker.name, ours), await edge.place(worker.name, moved)
    await steal(bus, worker, ours, moved)
    scheduler = FramePublisher(bus.config, worker="a-scheduler", boot=1)
    await scheduler.start()
    fence = Frame(edge=edge.name, stead=worker.name, fences=[Fence(request_id=moved.request_id, attempt=2)])
    await scheduler.wait_acked(scheduler.publish(fence))
    for request in full:
        bus.send(Cancel(request_id=request.request_id))
    await edge.until(lambda: received.close is not None)
    assert (received.attempts, len(received.ids)) == ([1], 10)
    await all_acked(bus, worker)
    assert (other.ids, other.close) == ([], None)
    await scheduler.stop()


async def test_dead_engine_is_started_again(edge: Any, new_worker: Callable[..., Any]) -> None:
    worker = new_worker(SYNTHETIC__DIES_AFTER="300ms", MAX_ENGINE_RESTARTS="1000")
    await worker.start()
    received = [await edge.place(worker.name, edge.request("say something", max_tokens=200)) for _ in range(5)]
    await edge.closed(*received)
    for one in received:
        assert one.attempts == [1]
        assert one.ids == [index % 29 for index in range(200)]


async def test_engine_that_dies_too_often_ends_the_worker_and_nothing_else(
    bus: Bus, edge: Any, new_worker: Callable[..., Any]
) -> None:
    """Its requests are another worker's: whoever counts says when it is enough."""
    worker = new_worker(SYNTHETIC__DIES_AFTER="4s", MAX_ENGINE_RESTARTS="1")
    await worker.start()
    request = edge.request("say something", max_tokens=20_000)
    boot = await edge.incarnation(worker.name)
    received = await edge.place(worker.name, request, boot)
    await edge.until(lambda: received.ids)
    assert await worker.ended() == 1
    assert received.close is None
    assert await left_on(bus, worker, boot) == 1
    moved = edge.moved(request)
    moved.sampling.max_tokens = len(moved.resume.token_ids) + 20
    other = new_worker()
    await other.start()
    await edge.place(other.name, moved)
    await edge.closed(received)
    assert received.ids == [index % 29 for index in range(moved.sampling.max_tokens)]


async def test_sigterm_finishes_first(bus: Bus, edge: Any, worker: Any) -> None:
    received = await edge.place(worker.name, edge.request("say something", max_tokens=200))
    await edge.until(lambda: len(received.ids) > 3)
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    await edge.closed(received)
    assert received.close.finish_reason == LENGTH
    assert len(received.ids) == 200
    await all_acked(bus, worker)  # the broker may read that after the process has ended, which is all that it has said


async def test_whoever_is_stopped_leaves_the_rest_to_others(
    bus: Bus, edge: Any, new_worker: Callable[..., Any]
) -> None:
    worker = new_worker(DRAIN_TIMEOUT="10s")  # that its state is told needs a moment of it
    await worker.start()
    request = edge.request("say something", max_tokens=20_000)
    received = await edge.place(worker.name, request)
    await edge.until(lambda: len(received.ids) > 3)
    boot = await edge.incarnation(worker.name)
    fleet = Registry(bus, "fleet", WorkerRecord)
    said: list[WorkerRecord] = []
    fleet.on_change(lambda name, record: said.append(record) if record and name == worker.name else None)
    await fleet.start()
    asked = clock.now_us()
    worker.signal(signal.SIGTERM)
    assert await worker.ended() == 0
    async with asyncio.timeout(30):  # it took its entry away: its lease lasts longer
        while fleet.get(worker.name) is not None:
            await asyncio.sleep(0.02)
    assert received.close is None
    assert said[-1].state == WorkerState.WORKER_STATE_DRAINING
    assert asked + 900_000 <= clock.unix_us(said[-1].hand_over_time) <= clock.now_us()
    assert await left_on(bus, worker, boot) == 1
    await fleet.stop()


async def test_a_drain_says_when_what_runs_is_to_be_given_to_others(edge: Any, worker: Any, bus: Bus) -> None:
    request = edge.request("say something", max_tokens=20_000)
    received = await edge.place(worker.name, request)
    await edge.until(lambda: received.ids)
    boot = await edge.incarnation(worker.name)

    async def hand_over() -> int:
        record = await edge.record(worker.name)
        assert record.state == WorkerState.WORKER_STATE_DRAINING
        return clock.unix_us(record.hand_over_time)

    async with channel(worker.address, None) as connection:
        stub = WorkerServiceStub(connection)
        await stub.Drain(DrainRequest(begin_only=True))
        assert await hand_over() == 0, "never"
        for seconds in (60, 20, 600):  # the shortest holds
            now = clock.now_us()
            drain = DrainRequest(begin_only=True)
            drain.grace.FromSeconds(seconds)
            await stub.Drain(drain)
            assert (
                abs(await hand_over() - now - min(seconds, 20 if seconds == 600 else seconds) * 1_000_000) < 10_000_000
            )
        # Those who wait for it are answered when the last one was taken from here.
        waiting = asyncio.ensure_future(stub.Drain(DrainRequest()))
        bus.send(recall(worker, boot, request))
        await waiting
        assert received.close is None
        assert await hand_over() <= clock.now_us(), "what came too late need not wait"
    await all_acked(bus, worker)


async def test_fleet_models_and_heartbeats(bus: Bus, edge: Any, new_worker: Callable[..., Any]) -> None:
    worker = new_worker(CAPACITY="7", LEASE_TTL="10s", HEARTBEAT_INTERVAL="100ms")
    beats: list[Heartbeat] = []
    await bus.subscribe(Heartbeat, lambda beat: beats.append(beat) if beat.worker == worker.name else None)
    fleet, models = Registry(bus, "fleet", WorkerRecord), Registry(bus, "models", ModelRecord)
    await fleet.start()
    await models.start()
    await worker.start()
    async with asyncio.timeout(30):
        while (record := fleet.get(worker.name)) is None or models.get("synthetic") is None:
            await asyncio.sleep(0.02)
    assert (record.model, record.engine, record.capacity) == ("synthetic", "synthetic", 7)
    assert record.state == WorkerState.WORKER_STATE_ACTIVE
    assert record.address == worker.address
    assert models.get("synthetic").engine == "synthetic"
    assert list(models.get("synthetic").capabilities) == ["chat", "completions"]
    request = edge.request("say something", max_tokens=20_000)
    received = await edge.place(worker.name, request)
    await edge.until(lambda: len(received.ids) >= 100)
    async with asyncio.timeout(30):
        while not any(beat.active == 1 for beat in beats) or not any(beat.engine.running == 1 for beat in beats):
            await asyncio.sleep(0.02)
    bus.send(Cancel(request_id=request.request_id))
    await edge.closed(received)
    async with asyncio.timeout(30):
        while beats[-1].active or beats[-1].output_tokens_total < 100:
            await asyncio.sleep(0.02)
    assert beats[-1].work_sequence > 0
    assert beats[-1].HasField("engine")
    assert beats[-1].engine.running == 0
    await worker.kill()
    async with asyncio.timeout(60):
        while fleet.get(worker.name) is not None:  # its lease runs out
            await asyncio.sleep(0.05)


async def test_that_a_later_attempt_has_come_is_told_at_once(
    bus: Bus, edge: Any, new_worker: Callable[..., Any]
) -> None:
    """It may be what its last worker died of; if this one dies of it, nobody else can say that it was here."""
    worker = new_worker(SYNTHETIC__PREFILL="60s", HEARTBEAT_INTERVAL="60s")
    told = asyncio.Event()
    await bus.subscribe(
        Heartbeat, lambda beat: told.set() if beat.worker == worker.name and beat.work_sequence else None
    )
    await worker.start()
    request = edge.request("x")
    request.resume.attempt = 2
    await edge.place(worker.name, request)
    async with asyncio.timeout(60):
        await told.wait()


def begun_by(beats: list[Heartbeat], request: Any) -> bool:
    """Whether they say that it has a token."""
    tokens: list[int] = []
    for running in (beat.running for beat in beats):
        if request.request_id in running.request_ids:
            tokens.append(running.output_tokens[running.request_ids.index(request.request_id) // 16])
    return any(tokens)


async def test_the_heartbeat_that_tells_of_a_suspects_first_token_names_it(
    bus: Bus, edge: Any, new_worker: Callable[..., Any]
) -> None:
    """Until then no other suspect is placed there; the list of all that runs is told only now and then else."""
    worker = new_worker(SYNTHETIC__PREFILL="1s", HEARTBEAT_INTERVAL="50ms")
    beats: list[Heartbeat] = []
    await bus.subscribe(Heartbeat, lambda beat: beats.append(beat) if beat.worker == worker.name else None)
    await worker.start()
    told = 0
    while told < 5:
        request = edge.request("x", max_tokens=2000)
        request.resume.attempt, request.resume.fruitless_deaths = 2, 1
        await edge.place(worker.name, request)
        async with asyncio.timeout(30):  # also without a heartbeat that tells of it, all that runs is named in the end
            while not begun_by(beats, request) or beats[-1].prefill_tokens:
                await asyncio.sleep(0.01)
        if not any(one.prefill_tokens for one in beats):  # the machine stood still through the reading: no beat fell in
            beats.clear()
            continue
        told += 1
        telling = next(one for before, one in pairwise(beats) if before.prefill_tokens and not one.prefill_tokens)
        assert request.request_id in telling.running.request_ids
        at = telling.running.request_ids.index(request.request_id) // 16
        assert telling.running.output_tokens[at] > 0
        beats.clear()


@pytest.mark.parametrize(
    ("asked", "parse", "add"),
    [
        ({"parse_special": True}, True, True), ({}, False, False),  # of an edge that knows no add_special
        ({"parse_special": True, "add_special": False}, True, False),
        ({"add_special": True}, False, True),
    ],
)  # fmt: skip
async def test_what_of_special_tokens_is_asked(asked: dict[str, bool], parse: bool, add: bool) -> None:
    seen: dict[str, Any] = {}

    class Tokenizer:
        async def tokenize(self, source: Any, **how: Any) -> Tokens:
            seen.update(how)
            return Tokens([], [])

    none: Any = None
    tokenizer: Any = Tokenizer()
    servicer = WorkerServicer(none, none, none, none, none, tokenizer, EngineInfo("e", "m", "r", 1, 10), none)
    await servicer.Tokenize(TokenizeRequest(text="x", **asked), none)
    assert (seen["parse_special"], seen["add_special"]) == (parse, add)


async def test_grpc(edge: Any, worker: Any) -> None:
    async with channel(worker.address, None) as connection:
        stub = WorkerServiceStub(connection)
        request = GenerateRequest()
        request.chat.messages.add(role="user", content="diagnose this")
        request.sampling.max_tokens = 5
        answers = [answer async for answer in stub.Generate(request)]
        assert [token for answer in answers for token in answer.token_id] == [0, 1, 2, 3, 4]
        assert answers[-1].finish_reason == LENGTH
        assert answers[-1].usage.output_tokens == 5
        tokens = await stub.Tokenize(TokenizeRequest(text="this is tokenized", return_pieces=True))
        assert (list(tokens.token_id), list(tokens.piece)) == ([0, 1, 29], [b"this ", b"is ", b"tokenized "])
        assert tokens.context_length == 32768
        assert len((await stub.Tokenize(TokenizeRequest(chat=request.chat))).token_id) == 2
        assert (await stub.Detokenize(DetokenizeRequest(token_id=[0, 1]))).text == b"this is "
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Detokenize(DetokenizeRequest(token_id=[30]))
        assert unknown.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        status = await stub.GetStatus(GetStatusRequest())
        assert status.record.worker == worker.name
        assert status.output_tokens_total == 0, "past the bill"
        assert (status.engine.running, status.engine.step_seconds > 0) == (0, True)
        assert not status.engine.HasField("kv_blocks_total"), "it has no KV cache"
        received = await edge.place(worker.name, edge.request("say something", max_tokens=100))
        await edge.until(lambda: received.ids)
        await asyncio.gather(stub.Drain(DrainRequest()), stub.Drain(DrainRequest()))
        assert received.close is not None or (await edge.closed(received)) is None
        assert (await stub.GetStatus(GetStatusRequest())).record.state == WorkerState.WORKER_STATE_DRAINING
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(edge.closed(await edge.place(worker.name, edge.request("late"))), 0.5)


async def test_grpc_needs_the_token(new_worker: Callable[..., Any]) -> None:
    worker = new_worker(RPC_TOKEN="t" * 32)
    await worker.start()
    async with channel(worker.address, None) as connection:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await WorkerServiceStub(connection).GetStatus(GetStatusRequest())
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    async with channel(worker.address, "t" * 32) as connection:
        assert (await WorkerServiceStub(connection).GetStatus(GetStatusRequest())).record.capacity == 1024


async def test_broker_killed_in_mid_stream(tmp_path: Any, new_worker: Callable[..., Any], edge_type: Any) -> None:
    """Away for less than the lease: generation pauses, then every stream goes on, in the same attempt."""
    async with NatsServer(tmp_path / "nats") as server, connect(BusConfig(server.url, "own")) as own:
        await ensure_streams(own)
        edge = edge_type(own, "edge-own")
        await edge.start()
        worker = new_worker(NATS_URL=server.url, LEASE_TTL="60s")
        await worker.start()
        received = [await edge.place(worker.name, edge.request("say something", max_tokens=600)) for _ in range(10)]
        await edge.until(lambda: all(len(one.ids) > 20 for one in received))
        await server.kill()
        await asyncio.sleep(1)
        await server.restart()
        await edge.closed(*received)
        assert [one.ids for one in received] == [[index % 29 for index in range(600)]] * 10
        assert {tuple(one.attempts) for one in received} == {(1,)}
        await all_acked(own, worker)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0


async def speaking(edge: Any, worker: Any) -> int:
    """The incarnation that answers. What an earlier one said has come before its answer."""
    while True:
        probe = edge.request("say something")
        try:
            boot = await edge.incarnation(worker.name)
            said = await edge.place(worker.name, probe, boot)
            await edge.until(lambda: said.close is not None, 5)  # noqa: B023 (awaited here)
            return int(boot)
        except (StreamApiError, InferBusError, LookupError, TimeoutError):  # not back, or no entry, or the old one
            await asyncio.sleep(0.1)


async def until_no_entry(edge: Any, worker: Any) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await edge.record(worker.name)
            except LookupError:
                return
            except (StreamApiError, InferBusError):  # the broker is not back
                pass
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("entry", ["there", "run out"])
async def test_broker_away_for_longer_than_the_lease(
    entry: str, tmp_path: Any, new_worker: Callable[..., Any], edge_type: Any
) -> None:
    """If its entry is still there when the broker is back, nobody has taken it for dead, and all goes on as it was; if
    not, it is born again, and what it had is given to it again."""
    async with NatsServer(tmp_path / "nats") as server, connect(BusConfig(server.url, "own")) as own:
        await ensure_streams(own)
        edge = edge_type(own, "edge-own")
        await edge.start()
        worker = new_worker(NATS_URL=server.url, LEASE_TTL="8s")
        await worker.start()
        requests = [edge.request("say something", max_tokens=2000) for _ in range(10)]
        received = [await edge.place(worker.name, request) for request in requests]
        await edge.until(lambda: all(len(one.ids) > 20 for one in received))
        boots = [await edge.incarnation(worker.name)]
        await server.kill()
        await asyncio.sleep(10)
        if entry == "run out":  # it finds the broker only when that has given its entry up
            worker.signal(signal.SIGSTOP)
        await server.restart()
        if entry == "run out":
            await until_no_entry(edge, worker)
            worker.signal(signal.SIGCONT)
        async with asyncio.timeout(90):
            # On a machine that stands still for long the lease ends again, and it is born once more.
            while any(one.close is None for one in received):
                if (boot := await speaking(edge, worker)) != boots[-1]:
                    boots.append(boot)
                    requests = [edge.moved(request) for request in requests]
                    for request, one in zip(requests, received, strict=True):
                        if one.close is None:
                            await edge.place(worker.name, request, boot)
                with suppress(TimeoutError):
                    await edge.until(lambda: all(one.close is not None for one in received), 5)
        assert [one.ids for one in received] == [[index % 29 for index in range(2000)]] * 10
        lives = tuple(range(1, len(boots) + 1))
        assert entry == "there" or len(boots) > 1
        assert all(one.attempts[0] == 1 and set(one.attempts) <= set(lives) for one in received)
        assert len(boots) > 2 or {tuple(one.attempts) for one in received} == {lives}
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
