"""/inferbus/v1/replay: the tables made from the stream again, with an admin key. The meter does it."""

from datetime import timedelta

import grpc
from aiohttp import web
from inferbus.meter.v1.replay_pb2 import ReplayRequest
from inferbus.meter.v1.replay_pb2_grpc import ReplayServiceStub

from inferbus_edge.auth import ADMIN, Auth
from inferbus_edge.routes.admin import duration
from inferbus_edge.routes.messages import body_object, parse
from inferbus_edge.routes.relay import configured, ndjson
from inferbus_edge.server import Call, Routes

_PATH = "/inferbus/v1/replay"
# Three days of a large platform.
_REPLAY_SECONDS = 12 * 3600.0
_NAMES = {"start": "start_time", "end": "end_time", "dry_run": "dry_run", "timeout": "timeout"}


class ReplayRoutes:
    """``meter``: a channel to it, None if the operator named none."""

    def __init__(self, auth: Auth, meter: grpc.aio.Channel | None, body_timeout: timedelta) -> None:
        self._auth = auth
        self._meter = None if meter is None else ReplayServiceStub(meter)
        self._body_timeout = body_timeout

    def add_to(self, routes: Routes) -> None:
        routes.add("POST", _PATH, self.replay)

    async def replay(self, call: Call) -> web.StreamResponse:
        """NDJSON, one line an event as it comes; a failure half-way is a last line with ``error``."""
        self._auth.require(call.http.headers, ADMIN)
        body = await body_object(call, self._body_timeout)
        asked = {_NAMES.get(name, name): value for name, value in body.items() if value is not None}
        if "timeout" in asked:
            asked["timeout"] = duration(asked["timeout"], "timeout")
        request = parse(asked, ReplayRequest())
        events = configured(self._meter, "meter").Replay(request, timeout=_REPLAY_SECONDS)
        return await ndjson(call, events, "replay")
