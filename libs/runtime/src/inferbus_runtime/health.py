"""gRPC's health protocol for one server: all of its services serve, or none does."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """NOT_SERVING until told otherwise. A change is seen by the next call, and by watchers at once."""

    def __init__(self, service_names: Sequence[str]) -> None:
        self._names = frozenset(service_names) | {""}
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        self._serving = serving
        self._wake()

    def close(self) -> None:
        """Ends all watches, so that they do not hold up the stop of the server."""
        self._serving, self._closed = False, True
        self._wake()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this server has no such service")
        return Response(status=self._status(request.service))

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        last = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status != last:
                yield Response(status=status)
                last = status
            if self._closed:
                return
            await changed.wait()

    def _status(self, service: str) -> Any:
        if service not in self._names:
            return Response.SERVICE_UNKNOWN
        return Response.SERVING if self._serving else Response.NOT_SERVING

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
