"""Rollouts in the scheduler process: where requests go, what becomes of those that a candidate fails, and what is
decided by what a meter says. The tests play workers and meter; real ones are in tests/e2e/test_rollouts.py."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import ModelRecord, PriceRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.bus.v1.revision_pb2 import (
    RevisionPin,
    RevisionRecord,
    RevisionStage,
    RolloutPolicy,
    RolloutRecord,
    RolloutState,
    RolloutStrategy,
    Shadow,
)
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1 import revisions_pb2 as statistics
from inferbus.meter.v1.revisions_pb2_grpc import (
    RevisionStatisticsServiceServicer,
    add_RevisionStatisticsServiceServicer_to_server,
)
from inferbus.scheduler.v1 import revision_pb2 as revisions
from inferbus.scheduler.v1 import rollout_pb2 as api
from inferbus.scheduler.v1.revision_pb2_grpc import RevisionServiceStub
from inferbus.scheduler.v1.rollout_pb2_grpc import RolloutServiceStub
from inferbus.worker.v1.worker_pb2 import GenerateResponse
from inferbus.worker.v1.worker_pb2_grpc import WorkerServiceServicer, add_WorkerServiceServicer_to_server
from inferbus_bus.log import FrameLog
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import uuid_text
from inferbus_contracts.shadow import SHADOW_EDGE, SHADOW_OF, SHADOW_TENANT
from inferbus_rating import PriceBook, Scope
from inferbus_runtime.rpc import channel, error_of, serve
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.traffic import Traffic, is_shadowed, part_of

TOKEN = "t" * 16
RUNNING = RolloutState.ROLLOUT_STATE_RUNNING
_WARM_AT_ONCE = RolloutPolicy(min_requests=20)
_WARM_AT_ONCE.step_time.FromMilliseconds(300)


class Probed(WorkerServiceServicer):
    """Answers each prompt with the same tokens."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[GenerateResponse]:  # noqa: N802
        yield GenerateResponse(token_id=self.tokens, text="x" * len(self.tokens))


class Tables(RevisionStatisticsServiceServicer):
    """Says of each revision what it was told."""

    def __init__(self) -> None:
        self.found: dict[str, statistics.RevisionStatistics] = {}

    def tell(self, revision: str, *, requests: int, failed: int = 0, ttft_us: int = 100_000) -> None:
        times = [ttft_us + number * 100 for number in range(requests - failed)]
        self.found[revision] = statistics.RevisionStatistics(
            revision=revision, requests=requests, failed=failed, answered=requests - failed, ttft_us=times,
            tpot_us=[value // 10 for value in times],
        )  # fmt: skip

    async def GetRevisionStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        return statistics.GetRevisionStatisticsResponse(
            revisions=[
                self.found.get(name) or statistics.RevisionStatistics(revision=name) for name in request.revisions
            ]
        )


class Desk:
    """A scheduler with a meter, and workers that can be probed."""

    def __init__(self, stage: Any, tables: Tables, stack: AsyncExitStack) -> None:
        self.stage, self.tables, self._stack = stage, tables, stack
        self.model = stage.model()

    async def open(self) -> None:
        to = await self._stack.enter_async_context(channel(self.stage.scheduler.ready["grpc"], TOKEN))
        self.rollouts, self.revisions = RolloutServiceStub(to), RevisionServiceStub(to)

    async def worker(self, revision: str, *tokens: int, **fields: Any) -> Any:
        add = lambda server: add_WorkerServiceServicer_to_server(Probed(*tokens), server)  # noqa: E731
        server = await self._stack.enter_async_context(
            serve("127.0.0.1:0", add, ("inferbus.worker.v1.WorkerService",), TOKEN)
        )
        worker = await self.stage.worker(self.model, revision=revision, address=server.address, **fields)
        async with asyncio.timeout(30):
            while not (await self.workers_of(revision)):
                await asyncio.sleep(0.01)
        return worker

    async def workers_of(self, revision: str) -> int:
        try:
            asked = revisions.GetRevisionRequest(model=self.model, revision=revision)
            return int((await self.revisions.GetRevision(asked)).workers)
        except grpc.aio.AioRpcError:
            return 1  # not registered: whoever has seen it otherwise

    async def made(self, revision: str, **fields: Any) -> RevisionRecord:
        record = RevisionRecord(model=self.model, revision=revision, engine="synthetic", **fields)
        return (await self.revisions.CreateRevision(revisions.CreateRevisionRequest(revision=record))).revision

    async def stage_of(self, revision: str) -> str:
        asked = revisions.GetRevisionRequest(model=self.model, revision=revision)
        found = (await self.revisions.GetRevision(asked)).revision
        return RevisionStage.Name(found.stage).removeprefix("REVISION_STAGE_")

    async def until_stages(self, **wanted: str) -> None:
        """The record of a rollout is stored first, and the stages follow."""
        async with asyncio.timeout(30):
            while {revision: await self.stage_of(revision) for revision in wanted} != wanted:
                await asyncio.sleep(0.02)

    async def start(self, revision: str, policy: RolloutPolicy | None = None, **fields: Any) -> RolloutRecord:
        request = api.StartRolloutRequest(
            model=self.model, revision=revision, policy=policy, actor_key_id="k", **fields
        )
        return (await self.rollouts.StartRollout(request)).rollout

    async def rollout(self) -> RolloutRecord:
        return (await self.rollouts.GetRollout(api.GetRolloutRequest(model=self.model))).rollout

    async def until(self, state: Any, weight: int | None = None) -> RolloutRecord:
        async with asyncio.timeout(60):
            while True:
                record = await self.rollout()
                if record.state == state and weight in (None, record.weight_permille):
                    return record
                await asyncio.sleep(0.05)


@pytest_asyncio.fixture
async def desk(new_stage: Any) -> AsyncIterator[Desk]:
    async with AsyncExitStack() as stack:
        tables = Tables()
        add = lambda server: add_RevisionStatisticsServiceServicer_to_server(tables, server)  # noqa: E731
        meter = await stack.enter_async_context(
            serve("127.0.0.1:0", add, ("inferbus.meter.v1.RevisionStatisticsService",), TOKEN)
        )
        stage = await new_stage(RPC_TOKEN=TOKEN, METER_ADDRESS=meter.address)
        made = Desk(stage, tables, stack)
        await made.open()
        yield made


async def test_a_good_candidate_goes_by_its_steps_and_is_stable_then(desk: Desk) -> None:
    await desk.made("r1")
    await desk.made("r2", derived_from="r1")
    old = await desk.worker("r1", 1, 2, 3)
    first = await desk.start("r2", _WARM_AT_ONCE)
    assert (first.stable_revision, list(first.step_permille)) == ("r1", [50, 250, 1000])
    assert (await desk.stage_of("r1"), await desk.stage_of("r2")) == ("STABLE", "CANARY")
    new = await desk.worker("r2", 1, 2, 3)
    await desk.until(RUNNING, 50)
    edge = await desk.stage.edge()
    asked = [await edge.submit(desk.model) for _ in range(60)]
    while len(old.taken) + len(new.taken) < len(asked):
        for worker in (old, new):
            for request_id in list(worker.running):
                worker.finish(request_id)
        await asyncio.sleep(0.01)
    record = await desk.rollout()
    assert set(new.taken) == {one for one in asked if part_of(one) < 50} or record.weight_permille > 50
    desk.tables.tell("r1", requests=900)
    desk.tables.tell("r2", requests=100)
    record = await desk.until(RolloutState.ROLLOUT_STATE_PROMOTED)
    assert (record.stable_revision, record.previous_revision) == ("r2", "r1")
    assert [event.action for event in record.events] == ["started", "warm", "advanced", "advanced", "promoted"]
    assert {figure.name for figure in record.events[-1].figures} >= {"error_rate", "ttft", "itl"}
    await desk.until_stages(r1="DEPRECATED", r2="STABLE")
    models = Registry(desk.stage.bus, "models", ModelRecord)
    await models.start()
    assert models.get(desk.model).revision == "r2"
    await models.stop()
    log = FrameLog(desk.stage.bus, "AUDIT")
    low, high = await log.bounds()
    stored = [data async for batch in log.read(low, high, subject="audit.>") for _, _, data in batch]
    told = [AuditEvent.FromString(data) for data in stored]
    assert [event.action for event in told] == [
        f"rollout.{name}" for name in ("warm", "advanced", "advanced", "promoted")
    ]
    assert '"p_value"' in told[-1].details


async def test_a_slower_candidate_is_taken_back_by_the_figures(desk: Desk) -> None:
    await desk.made("r2")
    await desk.worker("r1", 1)
    await desk.worker("r2", 1)
    await desk.start("r2", _WARM_AT_ONCE)
    await desk.until(RUNNING, 50)
    desk.tables.tell("r1", requests=900)
    desk.tables.tell("r2", requests=40, ttft_us=400_000)
    record = await desk.until(RolloutState.ROLLOUT_STATE_ROLLED_BACK)
    event = record.events[-1]
    assert (event.reason, event.revision, event.actor_key_id) == ("ttft", "r2", "")
    assert next(figure for figure in event.figures if figure.name == "ttft").p_value < 0.01
    await desk.until_stages(r2="DRAFT")
    assert record.stable_revision == "r1"


async def test_a_quantized_one_that_writes_something_else_gets_no_request(desk: Desk) -> None:
    await desk.made("r1")
    await desk.made("r2", derived_from="r1")
    old, new = await desk.worker("r1", 1, 2, 3, 4), await desk.worker("r2", 1, 9, 9, 9)
    await desk.start("r2")
    record = await desk.until(RolloutState.ROLLOUT_STATE_ROLLED_BACK)
    figure = record.events[-1].figures[0]
    assert (record.events[-1].reason, figure.name, figure.candidate, figure.limit) == (
        "agreement",
        "agreement",
        0.25,
        0.5,
    )
    edge = await desk.stage.edge()
    asked = [await edge.submit(desk.model) for _ in range(4)]
    while len(old.taken) < 4:
        await asyncio.sleep(0.01)
    assert (set(old.taken), new.taken) == (set(asked), [])


async def _half(desk: Desk, **fields: Any) -> None:
    """Half of the requests go to r2, as if it had come so far."""
    registry = Registry(desk.stage.bus, "rollouts", RolloutRecord)
    await registry.start()
    record = RolloutRecord(
        model=desk.model, stable_revision="r1", candidate_revision="r2", state=RUNNING, weight_permille=500,
        step_permille=[500, 1000], **fields,
    )  # fmt: skip
    record.step_time.GetCurrentTime()
    record.events.add(action="started", event_time=record.step_time)
    await registry.put(desk.model, record)
    await registry.stop()
    async with asyncio.timeout(30):
        while True:
            try:
                await desk.rollout()
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)


async def test_what_a_candidate_fails_another_revision_does_and_nobody_is_told(desk: Desk, wait_until: Any) -> None:
    await desk.made("r2")
    old, new = await desk.worker("r1", 1, capacity=64), await desk.worker("r2", 1, capacity=64)
    await _half(desk)
    edge = await desk.stage.edge()
    asked = [await edge.submit(desk.model) for _ in range(24)]
    await wait_until(lambda: len(old.taken) + len(new.taken) == 24)
    tried = list(new.taken)
    assert set(tried) == {one for one in asked if part_of(one) < 500}
    assert all(work.fails_over for work in new.placed)
    assert not any(work.fails_over for work in old.placed)
    for request_id in tried:
        new.fail(request_id)
    await wait_until(lambda: set(asked) <= set(old.taken))
    await wait_until(lambda: not new.running)
    assert sorted(new.recalled) == sorted((one, 1) for one in tried)
    again = [work for work in old.placed if work.request.request_id in tried]
    assert {work.attempt for work in again} == {2}
    assert all(list(work.request.resume.failed_revisions) == ["r2"] for work in again)
    assert {work.request.resume.reason for work in again} == {"failed"}
    assert not edge.closed
    for request_id in list(old.running):
        old.finish(request_id)
    await desk.stage.nothing_left()


async def test_a_full_candidate_keeps_nobody_waiting_and_a_pin_holds(desk: Desk, wait_until: Any) -> None:
    await desk.made("r2")
    old, new = await desk.worker("r1", 1, capacity=40), await desk.worker("r2", 1, capacity=1)
    await _half(desk, pins=[RevisionPin(tenant_id="pinned", revision="r2")])
    edge = await desk.stage.edge()
    asked = [await edge.submit(desk.model) for _ in range(20)]
    await wait_until(lambda: len(old.taken) + len(new.taken) == 20)
    assert len(new.taken) == 1
    waiting = await edge.submit(desk.model, tenant="pinned")
    other = await edge.submit(desk.model, tenant="other")
    await wait_until(lambda: other in old.running or other in new.running)
    await desk.stage.queued(waiting)
    assert waiting not in old.taken
    new.finish(new.taken[0])
    await wait_until(lambda: waiting in new.running)
    assert set(asked) <= set(old.taken) | set(new.taken)


async def test_a_shadow_does_a_copy_for_nobody_and_for_nothing(desk: Desk, wait_until: Any) -> None:
    await desk.made("r2")
    old, new = await desk.worker("r1", 1, capacity=64), await desk.worker("r2", 1, capacity=64)
    shadow = Shadow(revision="r2", permille=500)
    await desk.rollouts.SetShadow(api.SetShadowRequest(model=desk.model, shadow=shadow))
    edge = await desk.stage.edge()
    asked = [await edge.submit(desk.model) for _ in range(40)]
    await wait_until(lambda: set(asked) <= set(old.taken))
    traffic = Traffic("r1", shadow="r2", shadow_permille=500)
    of = {work.request.request_id: work.request for work in old.placed}
    shadowed = {one for one in asked if is_shadowed(request_like(of[one]), traffic)}
    await wait_until(lambda: len(new.taken) == len(shadowed))
    assert 5 < len(shadowed) < 35
    assert not set(new.taken) & set(asked), "a copy is a request of its own"
    for work in new.placed:
        copy = work.request
        assert (copy.context.tenant_id, copy.edge, copy.context.key_id) == (SHADOW_TENANT, SHADOW_EDGE, "")
        assert copy.priority_class == PriorityClass.PRIORITY_CLASS_BATCH
        assert not work.fails_over
    tags = {work.request.labels.tags[SHADOW_OF] for work in new.placed}
    assert tags == {uuid_text(one) for one in shadowed}
    await new.leave()
    await asyncio.sleep(0.5)
    assert len(old.taken) == len(asked), "nobody else does a copy"
    scope = Scope(SHADOW_TENANT, "shadow", desk.model, "r2")
    book = PriceBook.of([PriceRecord(rate_version="v1", currency="USD", input_per_million="1")])
    assert book.price_at(scope, 1) is None
    assert book.price_at(replace(scope, tenant_id="t"), 1) is not None


def request_like(message: GenerateRequest) -> Request:
    return Request(message.request_id, message.context.model, "t", "p", Priority.INTERACTIVE, 0.0, 1.0)


async def test_when_no_stable_worker_is_left_the_candidate_serves_all(desk: Desk, wait_until: Any) -> None:
    await desk.made("r2")
    old, new = await desk.worker("r1", 1), await desk.worker("r2", 1, capacity=32)
    await _half(desk)
    await old.leave()
    edge = await desk.stage.edge()
    asked = [await edge.submit(desk.model) for _ in range(16)]
    await wait_until(lambda: set(asked) <= set(new.taken))
    assert not any(work.fails_over for work in new.placed)


async def test_by_hand_it_goes_on_back_stops_and_returns(desk: Desk) -> None:
    await desk.made("r2")
    await desk.made("r3")
    await desk.worker("r1", 1)
    await desk.start("r2")

    async def move(what: Any) -> RolloutRecord:
        return (await desk.rollouts.MoveRollout(api.MoveRolloutRequest(model=desk.model, move=what))).rollout

    for refused in (
        desk.start("r3"),
        move(api.ROLLOUT_MOVE_RESUME),
        move(api.ROLLOUT_MOVE_RETURN),
        move(api.ROLLOUT_MOVE_PAUSE),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await refused
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    record = await move(api.ROLLOUT_MOVE_PROMOTE)
    assert (record.stable_revision, record.previous_revision) == ("r2", "r1")
    record = await move(api.ROLLOUT_MOVE_RETURN)
    assert (record.stable_revision, record.previous_revision) == ("r1", "r2")
    assert (await desk.start("r3")).candidate_revision == "r3"
    record = await move(api.ROLLOUT_MOVE_ROLL_BACK)
    assert (record.stable_revision, record.candidate_revision) == ("r1", "")
    assert [event.action for event in record.events][-2:] == ["started", "rolled_back"]


async def test_what_cannot_serve_is_refused_with_what_to_do(desk: Desk) -> None:
    bad = await desk.made("bad", validation={"passed": False, "figures": [{"name": "kl_divergence"}]})
    await desk.made("good")
    await desk.worker("r1", 1)
    for revision, code, said in (
        ("bad", grpc.StatusCode.FAILED_PRECONDITION, "kl_divergence"),
        ("nobody", grpc.StatusCode.NOT_FOUND, "nobody"),
        ("r1", grpc.StatusCode.FAILED_PRECONDITION, "already"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await desk.start(revision)
        assert refused.value.code() == code
        assert said in (refused.value.details() or "")
    create = revisions.CreateRevisionRequest
    assert (await desk.revisions.CreateRevision(create(revision=bad))).revision == bad, "the same again"
    bad.settings["THREADS"] = "2"
    faults = (
        bad,
        RevisionRecord(model=desk.model, revision="x y", engine="synthetic"),
        RevisionRecord(model=desk.model, revision="x", engine="magic"),
        RevisionRecord(model=desk.model, revision="x", engine="openai", settings={"OPENAI__API_KEY": "s"}),
        RevisionRecord(model=desk.model, revision="x", engine="synthetic", settings={"NATS_URL": "nats://elsewhere"}),
        RevisionRecord(
            model=desk.model, revision="x", engine="synthetic", artifacts=[{"name": "../x", "sha256": b"0" * 32}]
        ),
        RevisionRecord(model=f"{desk.model}:adapter", revision="x", engine="synthetic"),
    )
    for record in faults:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await desk.revisions.CreateRevision(create(revision=record))
        assert error_of(refused.value).param
    retired = RevisionStage.REVISION_STAGE_RETIRED
    stage = revisions.SetRevisionStageRequest(model=desk.model, revision="good", stage=retired)
    await desk.revisions.SetRevisionStage(stage)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await desk.start("good")
    assert "retired" in (refused.value.details() or "")
    gone = revisions.DeleteRevisionRequest(model=desk.model, revision="good")
    await desk.revisions.DeleteRevision(gone)
    with pytest.raises(grpc.aio.AioRpcError):
        await desk.revisions.DeleteRevision(gone)


async def test_the_first_revision_of_a_model_needs_nothing_to_be_compared_with(desk: Desk) -> None:
    await desk.made("r1")
    record = await desk.start("r1")
    assert (record.stable_revision, record.state) == ("r1", RolloutState.ROLLOUT_STATE_PROMOTED)
    assert await desk.stage_of("r1") == "STABLE"


async def test_what_still_serves_somebody_is_not_retired_or_deleted(desk: Desk) -> None:
    for revision in ("r1", "pinned", "shadowed"):
        await desk.made(revision)
    await desk.start("r1")
    pins = [RevisionPin(tenant_id="acme", revision="pinned")]
    await desk.rollouts.SetPins(api.SetPinsRequest(model=desk.model, pins=pins))
    shadow = Shadow(revision="shadowed", permille=100)
    await desk.rollouts.SetShadow(api.SetShadowRequest(model=desk.model, shadow=shadow))

    def retire(revision: str) -> Any:
        retired = RevisionStage.REVISION_STAGE_RETIRED
        asked = revisions.SetRevisionStageRequest(model=desk.model, revision=revision, stage=retired)
        return desk.revisions.SetRevisionStage(asked)

    def delete(revision: str) -> Any:
        return desk.revisions.DeleteRevision(revisions.DeleteRevisionRequest(model=desk.model, revision=revision))

    for revision, said in (("pinned", "`acme`"), ("shadowed", "is shadowed")):
        for move in (retire, delete):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await move(revision)
            error = error_of(refused.value)
            assert error.reason == "revision_in_use"
            assert said in str(error)
    await desk.rollouts.SetPins(api.SetPinsRequest(model=desk.model))
    await desk.rollouts.SetShadow(api.SetShadowRequest(model=desk.model))
    await retire("pinned")
    await delete("shadowed")


async def test_what_is_kept_for_a_return_is_in_use_and_what_is_retired_then_stays_so(desk: Desk) -> None:
    for revision in ("r1", "r2"):
        await desk.made(revision)
    await desk.worker("r1", 1)
    await desk.worker("r2", 1)
    await desk.start("r2", strategy=RolloutStrategy.ROLLOUT_STRATEGY_BLUE_GREEN)
    await desk.until(RolloutState.ROLLOUT_STATE_PROMOTED)
    await desk.until_stages(r1="DEPRECATED", r2="STABLE")
    retired = RevisionStage.REVISION_STAGE_RETIRED
    retire = revisions.SetRevisionStageRequest(model=desk.model, revision="r1", stage=retired)
    with pytest.raises(grpc.aio.AioRpcError, match="let it go first"):
        await desk.revisions.SetRevisionStage(retire)
    await desk.rollouts.MoveRollout(api.MoveRolloutRequest(model=desk.model, move=api.RolloutMove.ROLLOUT_MOVE_LET_GO))
    await desk.revisions.SetRevisionStage(retire)
    pins = [RevisionPin(tenant_id="acme", revision="r2")]
    await desk.rollouts.SetPins(api.SetPinsRequest(model=desk.model, pins=pins))
    assert (await desk.stage_of("r1"), await desk.stage_of("r2")) == ("RETIRED", "STABLE")
