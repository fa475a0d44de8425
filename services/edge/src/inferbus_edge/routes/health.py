"""/healthz (the process lives), /readyz (it can take requests), /metrics (Prometheus)."""

from collections.abc import Callable
from datetime import timedelta

from aiohttp import web
from inferbus_runtime.errors import unavailable
from inferbus_runtime.telemetry import metrics_text

from inferbus_edge.server import Call, Routes, json_response, own_headers

_RETRY_AFTER = timedelta(seconds=1)


class HealthRoutes:
    """``not_ready`` says why no request can be taken now (a stable reason), or None."""

    def __init__(self, not_ready: Callable[[], str | None]) -> None:
        self._not_ready = not_ready

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", "/healthz", self.alive)
        routes.add("GET", "/readyz", self.ready)
        routes.add("GET", "/metrics", self.metrics)

    async def alive(self, call: Call) -> web.StreamResponse:
        return json_response(b'{"status":"alive"}', call.request_id)

    async def ready(self, call: Call) -> web.StreamResponse:
        reason = self._not_ready()
        if reason is not None:
            raise unavailable(reason, "This server takes no requests now; retry.", retry_after=_RETRY_AFTER)
        return json_response(b'{"status":"ready"}', call.request_id)

    async def metrics(self, call: Call) -> web.StreamResponse:
        body, content_type = metrics_text()
        return web.Response(body=body, headers={"Content-Type": content_type, **own_headers(call.request_id)})
