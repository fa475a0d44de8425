"""One trace follows a request through HTTP, NATS and back, seen by a real OTLP collector."""

from collections import defaultdict
from pathlib import Path

import grpc.aio
import openai
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.harness.local import running, until

SECRET = "xyzzy-trace-4711"
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.services: dict[str, set[str]] = defaultdict(set)
        self.parents: dict[bytes, bytes] = {}
        self.raw = b""

    async def Export(self, request, context):  # noqa: N802
        self.raw += request.SerializeToString()
        for resource in request.resource_spans:
            names = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.services[span.trace_id.hex()].update(names)
                    self.parents[span.span_id] = span.parent_span_id
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_one_trace_goes_from_the_client_through_every_service(tmp_path: Path) -> None:
    collector, server = Collector(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    endpoint = f"http://127.0.0.1:{port}"
    variables = {f"INFERBUS_{service}_OTLP_ENDPOINT": endpoint for service in ("EDGE", "SCHEDULER", "WORKER", "METER")}
    async with (
        running(tmp_path / "home", "synthetic", variables=variables) as stack,
        openai.AsyncOpenAI(base_url=stack.base_url, api_key=stack.api_key, max_retries=0) as client,
    ):
        await client.chat.completions.create(
            model="synthetic", messages=[{"role": "user", "content": SECRET}], max_tokens=3,
            extra_headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
        )  # fmt: skip
        await until(lambda: len(collector.services[TRACE]) >= 3, 30)
    await server.stop(None)
    assert {name.removeprefix("inferbus-") for name in collector.services[TRACE]} >= {"edge", "scheduler", "worker"}
    assert SECRET.encode() not in collector.raw
    # One tree: every span but the first has its parent among the others.
    roots = [parent for parent in collector.parents.values() if parent not in collector.parents]
    assert bytes.fromhex("b7ad6b7169203331") in roots
