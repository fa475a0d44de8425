"""Decisions about single revisions, and about models that share their memory, on a real broker."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from externalscaler.externalscaler_pb2 import ScaledObjectRef
from google.protobuf.duration_pb2 import Duration
from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus.scheduler.v1.deployment_pb2 import GetDeploymentRequest, WatchScalingRequest
from inferbus_runtime import clock
from inferbus_scheduler.core.residency import Rules

from services.scheduler.tests.scaling_desk import Broker, broker

RULES = Rules(budget=1000, min_residence=0.5, max_wait=1.0, idle_grace=0.2)


@pytest_asyncio.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Broker]:
    async with broker(tmp_path) as one:
        yield one


def ref(**metadata: str) -> ScaledObjectRef:
    return ScaledObjectRef(name="workers", namespace="inferbus", scalerMetadata=metadata)


async def test_a_model_that_nobody_scales_gets_workers_of_a_new_revision_beside_the_old_one(bus: Broker) -> None:
    desk = await bus.desk()
    desk.workers.set("m", 2, revision="r1")
    watch = desk.api.WatchScaling(WatchScalingRequest())
    await watch.read()
    desk.shares["m"] = (("r1", 950), ("r2", 50))
    assert (await desk.decided("m", 1, "r2")).reason == "revisions"
    assert (await desk.decided("m", 2)).reason == "revisions", "all of them together"
    assert desk.scaler.last("m", "r1").replicas == 1
    heard = {}
    while len(heard) < 3:
        heard |= {one.revision: one.replicas for one in (await watch.read()).decisions}
    assert heard == {"": 2, "r1": 1, "r2": 1}
    # Now it has all: as many as there were, and the old one's are let go when it is there.
    desk.workers.set("m", 1, revision="r2")
    desk.shares["m"] = (("r2", 1000),)
    await desk.decided("m", 2, "r2")
    assert (await desk.decided("m", 0, "r1")).reason == "revisions"


async def test_what_serves_is_not_let_go_before_another_revision_is_there(bus: Broker) -> None:
    desk = await bus.desk()
    desk.workers.set("m", 1, revision="old")
    desk.shares["m"] = (("new", 1000),)
    await desk.decided("m", 1, "new")
    await desk.looked()
    assert desk.scaler.last("m", "old") is None
    desk.workers.set("m", 1, revision="new")
    await desk.decided("m", 0, "old")


async def test_old_and_new_side_by_side_are_both_full_and_kubernetes_is_told_of_each(bus: Broker) -> None:
    desk = await bus.desk()
    desk.workers.set("m", 3, revision="old")
    desk.shares["m"] = (("new", 1000), ("old", 1000))
    await desk.set("m", min_replicas=3, max_replicas=9)
    await desk.decided("m", 3, "new")
    await desk.decided("m", 3, "old")
    assert desk.scaler.replicas(desk.deployments.of("m"), "new") == 3
    assert (await desk.keda.IsActive(ref(model="m", revision="new"))).result
    assert not (await desk.keda.IsActive(ref(model="m", revision="unheard-of"))).result
    shown = await desk.api.GetDeployment(GetDeploymentRequest(model="m"))
    assert {one.revision: one.replicas for one in shown.revisions} == {"new": 3, "old": 3}
    # Without them any revision will do, and those decisions hold no longer.
    desk.shares.clear()
    assert (await desk.decided("m", 3)).reason != "revisions"
    await desk.decided("m", 0, "new")


async def test_a_revision_of_a_model_that_nobody_scales_is_found_by_kubernetes_once_it_is_decided(bus: Broker) -> None:
    desk = await bus.desk()
    desk.workers.set("m", 1, revision="r1")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await desk.keda.IsActive(ref(model="m", revision="r2"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    desk.shares["m"] = (("r1", 500), ("r2", 500))
    await desk.decided("m", 1, "r2")
    assert (await desk.keda.IsActive(ref(model="m", revision="r2"))).result


async def test_an_idle_model_gives_its_memory_to_one_that_is_asked_for(bus: Broker) -> None:
    desk = await bus.desk(rules=RULES)
    desk.register("a", "r", 700)
    desk.register("b", "r", 600)
    desk.workers.set("a", 1, revision="r")
    for model in "ab":
        await desk.set(model, max_replicas=1)
    await asyncio.sleep(0.5)
    assert desk.scaler.last("a") is None, "as it is"
    await desk.wait("b")
    evicted = await desk.decided("a", 0)
    assert (evicted.reason, evicted.replicas_before, evicted.memory_bytes) == ("lru", 1, 700)
    assert (await desk.decided("b", 0, reason="budget")).memory_bytes == 600, "until the other one has gone"
    desk.workers.set("a", 0, revision="r")
    assert (await desk.decided("b", 1)).reason == "cold_start"


async def test_one_that_can_never_be_loaded_is_known_as_such_and_not_for_ever(bus: Broker) -> None:
    desk = await bus.desk(rules=RULES)
    desk.register("large", "r", 1001)
    await desk.set("large", max_replicas=1)
    assert (await desk.decided("large", 0, reason="too_large")).memory_bytes == 1001
    assert desk.scaler.too_large("large:adapter")
    desk.register("large", "r", 900)
    # What was decided counts as known: a smaller build is another revision.
    desk.revisions = {}
    desk.register("large", "r2", 900)
    await desk.decided("large", 0, reason="no_load")
    assert not desk.scaler.too_large("large")


async def test_what_a_worker_holds_is_remembered_as_what_its_model_needs(bus: Broker) -> None:
    desk = await bus.desk(rules=RULES, down_window=0.3)
    desk.workers.set("m", 1, revision="r")
    await asyncio.sleep(0.5)
    desk.scaler.heartbeat(Heartbeat(worker="mr-0", boot=1, memory_bytes=450), clock.monotonic())
    await desk.set("m", max_replicas=1, idle_time=Duration(seconds=1))
    assert (await desk.decided("m", 0)).memory_bytes == 450
    desk.workers.set("m", 0, revision="r")
    later = await bus.desk("later", rules=RULES, deciding=False)
    desk.deciding = False
    later.deciding = True
    await later.wait("m")
    assert (await later.decided("m", 1)).memory_bytes == 450
