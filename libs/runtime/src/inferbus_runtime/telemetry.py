"""The door to telemetry: logs, spans and /metrics. Metrics themselves are defined in ``metrics``."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest, start_http_server

from inferbus_runtime.logs import get_logger
from inferbus_runtime.traces import Span, current_headers, current_trace_id, span

__all__ = ["Span", "current_headers", "current_trace_id", "get_logger", "metrics_text", "serve_metrics", "span"]


def metrics_text() -> tuple[bytes, str]:
    """All metrics of this process in Prometheus' text format, and its content type."""
    return generate_latest(), CONTENT_TYPE_LATEST


@asynccontextmanager
async def serve_metrics(address: str) -> AsyncIterator[str]:
    """``/metrics`` over HTTP on ``address`` (host:port, port 0 takes a free one); gives the address really bound.

    It runs in a thread of its own, so that a scrape never holds up the event loop for long. Raises OSError.
    """
    host, _, port = address.rpartition(":")
    server, thread = start_http_server(int(port), host.strip("[]"))
    try:
        yield f"{host}:{server.server_port}"
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await asyncio.to_thread(thread.join)
