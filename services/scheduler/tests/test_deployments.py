"""Deployments over gRPC, and what is decided about their workers, on a real broker."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from inferbus.bus.v1.decision_pb2 import ScalingDecision
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus.scheduler.v1.deployment_pb2 import (
    DeleteDeploymentRequest,
    GetDeploymentRequest,
    ListDeploymentsRequest,
    WatchScalingRequest,
)
from inferbus_runtime import clock

from services.scheduler.tests.scaling_desk import Broker, Desk, broker


@pytest_asyncio.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Broker]:
    async with broker(tmp_path) as one:
        yield one


async def test_a_deployment_is_set_shown_listed_and_deleted(bus: Broker) -> None:
    desk = await bus.desk()
    ttft = Duration()
    ttft.FromTimedelta(timedelta(milliseconds=800))
    made = await desk.set("m", ttft_target=ttft, fallbacks=["small"], max_replicas=4)
    assert made.create_time == made.update_time
    assert (await desk.api.GetDeployment(GetDeploymentRequest(model="m"))).deployment == made
    of = desk.deployments.of("m:adapter")
    assert (of.ttft_target, of.queue_target, of.fallbacks, of.cold_start) == (0.8, 0.8, ("small",), 600.0)
    again = await desk.set("m")
    assert again.create_time == made.create_time
    assert again.update_time.ToNanoseconds() > made.update_time.ToNanoseconds()
    await desk.set("a")
    listed = (await desk.api.ListDeployments(ListDeploymentsRequest())).deployments
    assert [one.deployment.model for one in listed] == ["a", "m"]
    await desk.api.DeleteDeployment(DeleteDeploymentRequest(model="m", actor_key_id="key_operator"))
    listed = (await desk.api.ListDeployments(ListDeploymentsRequest())).deployments
    assert [one.deployment.model for one in listed] == ["a"]
    assert not desk.deployments.of("m").scaled


async def test_what_cannot_be_is_refused_and_changes_nothing(bus: Broker) -> None:
    desk = await bus.desk()
    await desk.set("a", fallbacks=["b"])
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await desk.set("b", fallbacks=["a"])
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "circle" in (refused.value.details() or "")
    for ask in (
        desk.api.GetDeployment(GetDeploymentRequest(model="b")),
        desk.api.DeleteDeployment(DeleteDeploymentRequest(model="b")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await ask
        assert missing.value.code() == grpc.StatusCode.NOT_FOUND


async def test_the_first_waiting_request_wakes_a_sleeping_deployment_and_says_why(bus: Broker) -> None:
    desk = await bus.desk()
    watch = desk.api.WatchScaling(WatchScalingRequest())
    assert not (await watch.read()).decisions, "nothing was decided yet"
    await desk.set("m", max_replicas=3)
    await desk.wait("m")
    decision = await desk.decided("m", 1)
    assert (decision.reason, decision.replicas_before, decision.scheduler) == ("cold_start", 0, "scheduler")
    assert (decision.signals.queued, decision.signals.workers) == (1, 0)
    assert list((await watch.read()).decisions) == [decision]
    assert await desk.stored("m") == [decision]
    shown = await desk.api.GetDeployment(GetDeploymentRequest(model="m"))
    assert shown.scaling == decision


async def test_adapters_wait_for_the_workers_of_their_model(bus: Broker) -> None:
    desk = await bus.desk()
    await desk.set("m", max_replicas=3)
    await desk.wait("m:french")
    assert (await desk.decided("m", 1)).reason == "cold_start"


async def test_a_queue_that_nobody_has_room_for_raises_at_once_and_idleness_takes_all_away(bus: Broker) -> None:
    desk = await bus.desk(down_window=0.5)
    idle = Duration()
    idle.FromTimedelta(timedelta(seconds=1))
    desk.workers.set("m", 1, active=2, capacity=2)
    for _ in range(4):
        await desk.wait("m")
    await desk.set("m", max_replicas=8, idle_time=idle)
    assert (await desk.decided("m", 3)).reason == "queue"
    await desk.bus.api("STREAM.PURGE.REQUESTS")
    desk.workers.set("m", 3)
    assert (await desk.decided("m", 0)).reason == "idle"


async def test_the_next_scheduler_goes_on_from_what_was_decided(bus: Broker) -> None:
    first = await bus.desk("first")
    await first.set("m", min_replicas=2, max_replicas=4)
    decision = await first.decided("m", 2)
    first.deciding = False
    # Who decides listens first, here for no more than a moment: it has heard what was decided by then.
    second = await bus.desk("second", deciding=False)
    assert await second.decided("m", 2) == decision
    second.deciding = True
    # Only one is there; that does not count as decided.
    second.workers.set("m", 1)
    await second.looked()
    assert second.scaler.last("m") == decision
    assert len(await second.stored("m")) == 1


async def test_who_may_not_decide_follows_and_says_the_same(bus: Broker) -> None:
    leader = await bus.desk("leader")
    follower = await bus.desk("follower")
    follower.deciding = False
    watch = follower.api.WatchScaling(WatchScalingRequest())
    await watch.read()
    leader.deciding = False
    await leader.set("m", min_replicas=1, max_replicas=4)
    async with asyncio.timeout(30):
        while not follower.deployments.of("m").scaled:
            await asyncio.sleep(0.01)
    leader.deciding = True
    decision = await leader.decided("m", 1)
    assert list((await watch.read()).decisions) == [decision]
    assert {one.scheduler for one in await leader.stored("m")} == {"leader"}


async def test_a_decision_that_is_heard_before_its_deployment_is_told_with_it(bus: Broker) -> None:
    follower = await bus.desk("follower", deciding=False)
    watch = follower.api.WatchScaling(WatchScalingRequest())
    assert not (await watch.read()).decisions
    now = clock.now_us()
    decision = ScalingDecision(scheduler="leader", model="m", decision_time=clock.timestamp(now), replicas=2)
    await follower.publisher.publish(decision)
    async with asyncio.timeout(30):
        while ("m", "") not in follower.scaler.log._last:
            await asyncio.sleep(0.01)
    created = clock.timestamp(now - 1_000_000)
    await follower.deployments.put(DeploymentRecord(model="m", min_replicas=1, max_replicas=4, create_time=created))
    async with asyncio.timeout(30):
        assert list((await watch.read()).decisions) == [decision]


async def test_all_deployments_together_stay_within_the_gpu_budget(bus: Broker) -> None:
    desk = await bus.desk(gpu_budget=6)
    desk.deciding = False
    for _ in range(40):
        await desk.wait("big")
        await desk.wait("small")
    desk.workers.set("big", 1, active=4, capacity=4)
    desk.workers.set("small", 1, active=4, capacity=4)
    await desk.set("big", max_replicas=8, gpus_per_replica=2)
    await desk.set("small", max_replicas=8, gpus_per_replica=1)
    desk.deciding = True
    gpus = {"big": 2, "small": 1}
    async with asyncio.timeout(30):
        while _used(desk, gpus) != 6:
            await asyncio.sleep(0.01)
    replicas = dict.fromkeys(gpus, 1)
    told = await desk.stored(*gpus)
    for one in told:
        replicas[one.model] = one.replicas
        assert sum(replicas[model] * each for model, each in gpus.items()) <= 6
    for model in gpus:
        last = next(one for one in reversed(told) if one.model == model)
        assert last.reason == "gpu_budget"
        assert last.replicas_wanted > last.replicas


def _used(desk: Desk, gpus: dict[str, int]) -> int:
    last = {model: desk.scaler.last(model) for model in gpus}
    return sum((one.replicas if one else 1) * gpus[model] for model, one in last.items())


async def test_a_deployment_that_is_made_anew_does_not_inherit_what_was_decided_before(bus: Broker) -> None:
    desk = await bus.desk()
    await desk.set("m", min_replicas=2, max_replicas=4)
    await desk.decided("m", 2)
    await desk.api.DeleteDeployment(DeleteDeploymentRequest(model="m"))
    await desk.set("m", max_replicas=4)
    assert desk.scaler.last("m") is None
