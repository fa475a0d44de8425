"""Spans to an OTLP collector. Imported only by a process that has one: the SDK is slow to import."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from inferbus_runtime.traces import record_with

QUEUE_SPANS = 8192
EXPORT_TIMEOUT_SECONDS = 5
EXPORT_INTERVAL_MS = 1000


@contextmanager
def exporting(endpoint: str, service: str, instance: str) -> Iterator[None]:
    """Record spans and send them to the collector at ``endpoint`` (a URL); on exit what is left is sent, in seconds.

    Sending has its own thread. Past 8192 waiting spans new ones are dropped; serving never waits for a collector.
    """
    resource = Resource.create(
        {"service.namespace": "inferbus", "service.name": f"inferbus-{service}", "service.instance.id": instance}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_SECONDS)
    provider.add_span_processor(
        BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS, schedule_delay_millis=EXPORT_INTERVAL_MS)
    )
    record_with(provider.get_tracer("inferbus"))
    try:
        yield
    finally:
        record_with(None)
        provider.shutdown()
