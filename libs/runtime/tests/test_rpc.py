"""A real server and a real channel; the scheduler's proto serves as any API."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError, invalid, unavailable
from inferbus_runtime.rpc_errors import CODES
from inferbus_runtime.telemetry import metrics_text, span

TOKEN = "operators-token-0123456789"
NAME = "inferbus.scheduler.v1.SchedulerService"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Explain = scheduler_pb2.ExplainRequest
Watch = scheduler_pb2.WatchFleetRequest


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Answers or fails as the model's name says."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.cancelled = asyncio.Event()
        self.metadata: dict[str, Any] = {}
        self.deadline: float | None = None

    async def Explain(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        self.deadline = context.time_remaining()
        if self.error is not None:
            raise self.error
        if request.model == "aborts":
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "by hand")
        return scheduler_pb2.ExplainResponse(outcome="placed", reason=rpc.current_headers().get("traceparent", ""))

    async def WatchFleet(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.metadata = dict(context.invocation_metadata())
        try:
            yield scheduler_pb2.WatchFleetResponse()
            if self.error is not None:
                raise self.error
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@pytest.fixture
async def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
async def server(scheduler: Scheduler) -> AsyncIterator[rpc.RpcServer]:
    def add(server: grpc.aio.Server) -> None:
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, server)

    async with rpc.serve("127.0.0.1:0", add, [NAME], TOKEN) as serving:
        yield serving


@pytest.fixture
async def stub(server: rpc.RpcServer) -> AsyncIterator[scheduler_pb2_grpc.SchedulerServiceStub]:
    async with rpc.channel(server.address, TOKEN) as channel:
        yield scheduler_pb2_grpc.SchedulerServiceStub(channel)


async def failure(call: Any) -> InferBusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return rpc.error_of(caught.value)


async def test_a_call_carries_token_and_deadline(scheduler: Scheduler, stub: Any) -> None:
    answer = await stub.Explain(Explain(model="m"))
    assert answer.outcome == "placed"
    assert scheduler.metadata["authorization"] == f"Bearer {TOKEN}"
    assert scheduler.deadline is not None
    assert 5 < scheduler.deadline < 11
    await stub.Explain(Explain(model="m"), timeout=100)
    assert scheduler.deadline > 50
    assert f'inferbus_rpc_requests_total{{code="OK",method="/{NAME}/Explain"}}' in metrics_text()[0].decode()


async def test_the_trace_goes_on_behind_a_call(scheduler: Scheduler, stub: Any) -> None:
    with span("outer", {"traceparent": TRACEPARENT}):
        answer = await stub.Explain(Explain(model="m"), metadata=(("x-more", "kept"),))
    assert scheduler.metadata["traceparent"] == TRACEPARENT
    assert scheduler.metadata["x-more"] == "kept"
    assert answer.reason == TRACEPARENT
    assert (await stub.Explain(Explain(model="m"))).reason == ""


@pytest.mark.parametrize("token", [None, "wrong", TOKEN[:-1], "Bearer " + TOKEN])
async def test_without_the_token_no_call_of_ours(
    server: rpc.RpcServer, scheduler: Scheduler, token: str | None
) -> None:
    async with rpc.channel(server.address, token) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        error = await failure(stub.Explain(Explain(model="m")))
        assert error.error_class == ErrorClass.ERROR_CLASS_UNAUTHENTICATED
        assert error.reason == "invalid_rpc_token"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.WatchFleet(Watch()).read()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert not scheduler.metadata


@pytest.mark.parametrize("error_class", sorted(CODES))
async def test_an_error_crosses_and_is_the_same(scheduler: Scheduler, stub: Any, error_class: Any) -> None:
    raised = scheduler.error = InferBusError(
        error_class,
        "queue_full",
        "Come back later: größer is no better.",
        param="model",
        retry_after=timedelta(milliseconds=1500),
        diagnostic="for the operator only",
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Explain(Explain(model="m"))
    error = rpc.error_of(caught.value)
    assert error.to_proto() == raised.to_proto()
    assert "for the operator only" not in repr(caught.value) + repr(caught.value.trailing_metadata())


async def test_an_error_inside_a_stream_crosses_too(scheduler: Scheduler, stub: Any) -> None:
    scheduler.error = unavailable("bus_unavailable", "Again.", retry_after=timedelta(seconds=2))
    call = stub.WatchFleet(Watch())
    await call.read()
    error = await failure(call.read())
    assert (error.reason, error.retry_after) == ("bus_unavailable", timedelta(seconds=2))


async def test_another_exception_is_internal_and_stays_inside(
    scheduler: Scheduler, stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler.error = KeyError("secret detail")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Explain(Explain(model="m"))
    assert "secret detail" not in repr(caught.value)
    error = rpc.error_of(caught.value)
    assert (error.error_class, error.reason) == (ErrorClass.ERROR_CLASS_INTERNAL, "internal_error")
    assert "secret detail" in caplog.text


async def test_a_relayed_failure_keeps_its_class(
    scheduler: Scheduler, stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with rpc.channel("127.0.0.1:1", None) as nowhere:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await scheduler_pb2_grpc.SchedulerServiceStub(nowhere).Explain(Explain(model="m"))
    direct = rpc.error_of(caught.value)
    assert direct.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE
    assert direct.retry_after == timedelta(seconds=1)
    assert "127.0.0.1" not in direct.message
    scheduler.error = caught.value
    relayed = await failure(stub.Explain(Explain(model="m")))
    assert relayed.to_proto() == direct.to_proto()


async def test_a_status_of_a_stranger_is_classed_by_its_code(stub: Any) -> None:
    error = await failure(stub.Explain(Explain(model="aborts")))
    assert (error.error_class, error.reason) == (ErrorClass.ERROR_CLASS_CONFLICT, "rpc_already_exists")
    assert error.diagnostic == "by hand"


async def test_a_cancelled_stream_cancels_its_servicer(scheduler: Scheduler, stub: Any) -> None:
    call = stub.WatchFleet(Watch())
    await call.read()
    assert scheduler.metadata["authorization"] == f"Bearer {TOKEN}"
    call.cancel()
    await asyncio.wait_for(scheduler.cancelled.wait(), 30)


async def test_a_stream_has_no_deadline_of_its_own_and_ends_with_the_server(scheduler: Scheduler) -> None:
    def add(server: grpc.aio.Server) -> None:
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, server)

    async with asyncio.timeout(10):
        async with rpc.serve("127.0.0.1:0", add, [NAME], None) as server:
            channel = rpc.channel(server.address, None)
            call = scheduler_pb2_grpc.SchedulerServiceStub(channel).WatchFleet(Watch())
            await call.read()
        assert scheduler.cancelled.is_set()
        await channel.close()


async def test_health_and_reflection_are_open(server: rpc.RpcServer) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            return (await health.Check(health_pb2.HealthCheckRequest(service=service))).status

        assert await status(NAME) == health_pb2.HealthCheckResponse.NOT_SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        server.set_serving(True)
        assert await status(NAME) == await status("") == health_pb2.HealthCheckResponse.SERVING
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await status("no.Such")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in stub.ServerReflectionInfo(iter([request])):
            assert NAME in {service.name for service in answer.list_services_response.service}


async def test_a_taken_address_is_an_os_error(server: rpc.RpcServer) -> None:
    with pytest.raises(OSError, match="cannot listen on"):
        async with rpc.serve(server.address, lambda server: None, [], None):
            pass


def test_errors_without_a_class_of_their_own_are_values() -> None:
    assert invalid("Send a number.", param="n").to_proto().param == "n"
