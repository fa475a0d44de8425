"""A client that comes back: where it asks, and what it says of how far it got."""

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus_contracts.ids import parse_uuid
from inferbus_dialect.sse import parse_event_id
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.inference import Inference
from inferbus_edge.returning import not_found
from inferbus_edge.server import Call, Routes

LAST_EVENT_ID = "Last-Event-ID"
PATH = "/v1/streams/{stream_id}"


async def resumed(inference: Inference, call: Call, key: KeyRecord) -> web.StreamResponse | None:
    """The rest of the stream whose last event the client names in ``Last-Event-ID``; None if it names none.

    Any POST that starts a stream may carry it: what the body says is of no importance then.
    """
    name = call.http.headers.get(LAST_EVENT_ID)
    if name is None:
        return None
    try:
        first, number = parse_event_id(name)
    except ValueError:
        raise _bad(LAST_EVENT_ID) from None
    return await inference.resume(call, key, first, number)


class ResumeRoutes:
    """GET /v1/streams/{id}: any answer by the name that its response header gave."""

    def __init__(self, auth: Auth, inference: Inference) -> None:
        self._auth = auth
        self._inference = inference

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", PATH, self.get)

    async def get(self, call: Call) -> web.StreamResponse:
        """From the event after ``Last-Event-ID`` or ``starting_after``; with ``stream=false`` as one body."""
        key = self._auth.require(call.http.headers, INFERENCE)
        try:
            first = parse_uuid(call.path["stream_id"])
        except ValueError:
            raise not_found() from None
        query = call.http.query
        after = query.get("starting_after", "0")
        if not after.isascii() or not after.isdigit() or len(after) > 12:
            raise _bad("starting_after")
        stream = query.get("stream", "true")
        if stream not in ("true", "false"):
            raise invalid("'stream' is true or false.", param="stream")
        number = int(after)
        if (name := call.http.headers.get(LAST_EVENT_ID)) is not None:
            try:
                named, number = parse_event_id(name)
            except ValueError:
                raise _bad(LAST_EVENT_ID) from None
            if named != first:
                raise _bad(LAST_EVENT_ID)
        return await self._inference.resume(call, key, first, number, stream=stream == "true")


def _bad(param: str) -> InferBusError:
    return invalid(f"'{param}' must be the id of an event of this stream, as its 'id:' line gave it.", param=param)
