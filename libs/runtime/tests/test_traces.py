"""A real OTLP collector on gRPC sees one trace across an HTTP header, a bus header and gRPC metadata."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from inferbus_runtime import rpc, traces
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.otlp import exporting
from inferbus_runtime.traces import current_headers, current_trace_id, span
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

TRACE, ABOVE = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{ABOVE}-01"
NAME = "inferbus.scheduler.v1.SchedulerService"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: dict[str, Any] = {}
        self.resources: list[dict[str, str]] = []

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        for resource in request.resource_spans:
            self.resources.append({item.key: item.value.string_value for item in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans.update({each.name: each for each in scope.spans})
        return trace_service_pb2.ExportTraceServiceResponse()


class Scheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    async def Explain(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model == "none":
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "model_not_found", "Prompt text must not be kept.")
        with span("decide"):
            return scheduler_pb2.ExplainResponse(reason=current_trace_id())


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    collecting = Collector()
    server = grpc.server(ThreadPoolExecutor(2))  # in threads: the exporter's last call blocks this loop
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collecting, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collecting, f"http://127.0.0.1:{port}"
    server.stop(None)


def attributes(recorded: Any) -> dict[str, str]:
    return {item.key: item.value.string_value for item in recorded.attributes}


async def test_one_trace_through_http_bus_and_grpc(collector: tuple[Collector, str]) -> None:
    collecting, endpoint = collector
    with exporting(endpoint, "edge", "edge-0"):

        def add(server: grpc.aio.Server) -> None:
            scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(Scheduler(), server)

        async with rpc.serve("127.0.0.1:0", add, [NAME], None) as server, rpc.channel(server.address, None) as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            with span("http", {"traceparent": TRACEPARENT}, **{"gen_ai.request.model": "m"}) as http:
                headers = http.headers()
                http.event("accepted")
            with span("generation", headers):  # another process, by the headers on the bus
                answer = await stub.Explain(scheduler_pb2.ExplainRequest(model="m"))
                assert answer.reason == TRACE
                with pytest.raises(grpc.aio.AioRpcError), span("fails"):
                    await stub.Explain(scheduler_pb2.ExplainRequest(model="none"))
    spans = collecting.spans
    assert {each.trace_id.hex() for each in spans.values()} == {TRACE}
    assert spans["http"].parent_span_id.hex() == ABOVE
    assert spans["generation"].parent_span_id == spans["http"].span_id
    assert spans["decide"].parent_span_id not in (b"", spans["generation"].span_id)
    assert attributes(spans["http"]) == {"gen_ai.request.model": "m"}
    assert [event.name for event in spans["http"].events] == ["accepted"]
    served = spans[f"{NAME}/Explain"]  # the later of two
    assert served.parent_span_id == spans["fails"].span_id
    assert attributes(served)["error.type"] == "model_not_found"
    assert "Prompt" not in str(spans)
    assert collecting.resources[0]["service.name"] == "inferbus-edge"
    assert collecting.resources[0]["service.instance.id"] == "edge-0"


async def test_a_trace_begins_where_none_came_in(collector: tuple[Collector, str]) -> None:
    collecting, endpoint = collector
    with exporting(endpoint, "edge", "edge-0"):
        begun = span("root", {"traceparent": "<script>"})
        assert len(begun.headers()["traceparent"]) == 55
        assert current_headers() == {}
        begun.end()
        begun.end()
    assert collecting.spans["root"].parent_span_id == b""


async def test_a_collector_that_is_away_costs_seconds_at_most() -> None:
    began = time.monotonic()
    with exporting("http://127.0.0.1:1", "edge", "edge-0"), span("lost"):
        pass
    assert time.monotonic() - began < 15


def test_without_a_collector_the_traceparent_goes_on() -> None:
    with span("outer", {"traceparent": TRACEPARENT}) as outer:
        assert outer.headers() == {"traceparent": TRACEPARENT}
        with span("inner") as inner:
            assert inner.headers() == {"traceparent": TRACEPARENT}
        assert current_trace_id() == TRACE
        with span("elsewhere", {}) as elsewhere:
            assert elsewhere.headers() == {}
    assert current_trace_id() == ""


@pytest.mark.parametrize("bad", ["", "00-1-2-01", TRACEPARENT + "\r\nx: y", TRACEPARENT.upper(), "é" * 55])
def test_a_header_that_is_no_traceparent_goes_nowhere(bad: str) -> None:
    assert span("work", {"traceparent": bad}).headers() == {}


async def test_a_span_left_in_another_context_does_no_harm() -> None:
    async def entered() -> traces.Span:
        return span("work", {"traceparent": TRACEPARENT}).__enter__()

    held = await asyncio.create_task(entered())
    held.__exit__(None, None, None)
    assert current_headers() == {}
