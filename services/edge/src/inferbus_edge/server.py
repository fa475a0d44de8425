"""What a request meets before and after its handler: its route is found, and every failure is given its API's error
body, OpenAI's if no other. The connections themselves: see :mod:`.listening`."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from dataclasses import dataclass
from datetime import timedelta

from aiohttp import web
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.ids import request_id, uuid_text
from inferbus_dialect.errors import error_body, http_status, internal, is_final, of_status, retry_after_seconds
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.answers import WholeResponse, WrittenResponse
from inferbus_edge.core.openapi import OPERATIONS
from inferbus_edge.cors import Cors, is_preflight
from inferbus_edge.limits import RateLimitError

log = logging.getLogger(__name__)

# What may answer in events: those are written to the transport as they come, whatever the method.
_STREAMING = frozenset((one.method, one.path) for one in OPERATIONS if one.events)


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, over HTTP or gRPC. ``said``: its headers or metadata, found by their names in lower case; ``address``:
    its path or method."""

    request_id: bytes
    accepted_us: int
    said: Mapping[str, str]
    address: str


@dataclass(frozen=True, slots=True)
class Call(Asked):
    """One HTTP request on its way through a route. ``path``: what stands in the path for each ``{name}`` of the
    route; ``tail``: the path after a prefix route's path."""

    http: web.BaseRequest
    tail: str
    path: Mapping[str, str]
    # Of every answer, for those that write their head themselves.
    headers: Mapping[str, str]


Handler = Callable[[Call], Awaitable[web.StreamResponse]]
# Of a method, a path and its handler.
Bound = Callable[[str, str, Handler], Handler]
ErrorBody = Callable[[InferBusError, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Route:
    """``name`` for the metrics: the path with its ``{name}`` parts as they are. ``errors``: how this API writes one."""

    name: str
    methods: dict[str, Handler]
    errors: ErrorBody
    parts: tuple[str, ...] = ()

    def allow(self, refused: str) -> str:
        """What a 405 to the method ``refused`` has to name; who serves it may have refused it himself."""
        handler = self.methods.get(refused)
        return ", ".join(sorted(method for method, one in self.methods.items() if one is not handler))


class Routes:
    """Which handler answers: exact paths, paths with ``{name}`` parts, and prefixes that end in a slash."""

    def __init__(self) -> None:
        self._exact: dict[str, Route] = {}
        # By number of parts: few routes share one.
        self._patterns: dict[int, list[Route]] = {}
        self._prefixes: dict[str, Route] = {}
        self._bound: Bound | None = None

    def within(self, bound: Bound) -> "Routes":
        """These routes, to which a handler is added as what ``bound`` makes of it."""
        view = copy(self)
        view._bound = bound
        return view

    def add(
        self, method: str, path: str, handler: Handler, errors: ErrorBody = error_body, *, whole: bool = False
    ) -> None:
        """A GET comes with its HEAD, which aiohttp answers without a body, unless it may answer in events. ``whole``: a
        path that ends in a slash is no prefix, but the path itself."""
        if self._bound is not None:
            handler = self._bound(method, path, handler)
        methods = (
            self._exact.setdefault(path, Route(path, {}, errors)) if whole else self._route(path, errors)
        ).methods
        methods[method] = handler
        if method == "GET" and (method, path) not in _STREAMING:
            methods["HEAD"] = handler

    def _route(self, path: str, errors: ErrorBody) -> Route:
        if "{" not in path:
            table = self._prefixes if path.endswith("/") else self._exact
            return table.setdefault(path, Route(path, {}, errors))
        parts = tuple(path.split("/"))
        routes = self._patterns.setdefault(len(parts), [])
        route = next((one for one in routes if one.parts == parts), None)
        if route is None:
            route = Route(path, {}, errors, parts)
            # A fixed part is meant before one that takes anything.
            routes.append(route)
            routes.sort(key=lambda one: [part.startswith("{") for part in one.parts])
        return route

    def all(self) -> list[tuple[str, str, Handler]]:
        """(method, path, handler) of every route, but HEAD: what the API's document is checked against."""
        routes = [*self._exact.values(), *(one for some in self._patterns.values() for one in some)]
        routes += self._prefixes.values()
        added = ((route.name, *one) for route in routes for one in route.methods.items())
        return [(method, name, handler) for name, method, handler in added if method != "HEAD"]

    def find(self, path: str) -> tuple[Route, str, dict[str, str]] | None:
        """(route, tail, values of its ``{name}`` parts); None if there is no such path."""
        route = self._exact.get(path)
        if route is not None:
            return route, "", {}
        parts = path.split("/")
        for one in self._patterns.get(len(parts), ()):
            values = _match(one.parts, parts)
            if values is not None:
                return one, "", values
        prefix = next((one for one in self._prefixes if path.startswith(one) and path != one), None)
        return None if prefix is None else (self._prefixes[prefix], path[len(prefix) :], {})


def _match(pattern: tuple[str, ...], parts: list[str]) -> dict[str, str] | None:
    values: dict[str, str] = {}
    for wanted, given in zip(pattern, parts, strict=True):
        if wanted.startswith("{"):
            if not given:
                return None
            values[wanted[1:-1]] = given
        elif wanted != given:
            return None
    return values


async def read_body(call: Call, timeout: timedelta) -> bytes:
    """The request's body. Raises InferBusError ``request_timeout``, ``body_too_large``, ``bad_request``, or
    ``unsupported_parameter`` for one that is compressed: a small one could be made of a large one."""
    if call.http.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise invalid(
            "'Content-Encoding' is not supported; send the body as it is.",
            param="Content-Encoding",
            reason="unsupported_parameter",
        )
    try:
        if call.http.content.is_eof():  # a small body comes along with its head
            return await call.http.read()
        async with asyncio.timeout(timeout.total_seconds()):
            return await call.http.read()
    except TimeoutError:
        raise of_status(408) from None
    except web.HTTPException as error:
        raise of_status(error.status) from None
    except web.RequestPayloadError:
        raise of_status(400) from None


def error_response(error: InferBusError, request_id: bytes, body: ErrorBody = error_body) -> web.Response:
    """What a client is told of ``error``."""
    response = json_response(body(error, request_id), request_id, http_status(error))
    if isinstance(error, RateLimitError):
        response.headers.update(error.headers)
    if is_final(error):
        response.headers["x-should-retry"] = "false"  # OpenAI's SDKs try a 429 and a 500 again without it
    seconds = retry_after_seconds(error)
    if seconds is not None:
        response.headers["Retry-After"] = str(seconds)
    return response


def json_response(
    body: bytes, request_id: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """``headers``: further ones. A cache on the way keeps none: most of it is one tenant's, and a key that is sent in
    x-api-key does not tell a cache so."""
    own = {**own_headers(request_id), "Cache-Control": "no-store"}
    return web.Response(
        status=status, body=body, content_type="application/json", headers={**own, **headers} if headers else own
    )


def body_response(body: bytes, request_id: bytes, headers: Mapping[str, str]) -> web.Response:
    """``headers``: the Content-Type, and further ones."""
    return WholeResponse(body=body, headers={**own_headers(request_id), **headers})


def own_headers(request_id: bytes) -> dict[str, str]:
    """What every answer carries: its id by OpenAI's name and by Anthropic's; without a Server of our own aiohttp would
    tell its version."""
    name = uuid_text(request_id)
    return {"x-request-id": name, "request-id": name, "Server": "inferbus"}


def new_request_id(edge: str, accepted_us: int) -> bytes:
    return request_id(accepted_us // 1000, secrets.token_bytes(10), edge)


class Front:
    """Takes every request: finds its route, answers its failure, counts it."""

    def __init__(self, routes: Routes, edge: str, cors: Cors) -> None:
        self._routes = routes
        self._edge = edge
        self._cors = cors

    async def handle(self, http: web.BaseRequest) -> web.StreamResponse:
        accepted_us = clock.now_us()
        call_id = new_request_id(self._edge, accepted_us)
        route, status, found = "unknown", 499, None
        errors: ErrorBody = error_body
        fields = self._cors.headers(http.headers.get("Origin"))
        try:
            if http.headers.get("Expect") is not None:
                _expected(http)
            if is_preflight(http.method, http.headers):
                route, status = "preflight", 204
                return web.Response(status=204, headers={**own_headers(call_id), **self._cors.preflight(http.headers)})
            found = self._routes.find(http.path)
            if found is None:
                raise of_status(404)
            route, errors = found[0].name, found[0].errors
            handler = found[0].methods.get(http.method)
            if handler is None:
                raise of_status(405)
            call = Call(call_id, accepted_us, http.headers, http.path, http, found[1], found[2], fields)
            response = await handler(call)
            status = response.status
        except InferBusError as error:
            _log(error, route, call_id)
            response = error_response(error, call_id, errors)
            status = response.status
            if status == 405 and found is not None:
                response.headers["Allow"] = found[0].allow(http.method)
        except ConnectionError:
            response = WrittenResponse(keep_alive=False)
        except Exception:
            log.exception("a route failed", extra={"route": route, "request_id": uuid_text(call_id)})
            response = error_response(internal(), call_id, errors)
            status = response.status
        finally:
            metrics.HTTP_REQUESTS.labels(route, str(status)).inc()
        if not response.prepared:
            response.headers.update(fields)
        return response


def _expected(http: web.BaseRequest) -> None:
    """``Expect: 100-continue``, which curl sends before a large body. Raises InferBusError ``expectation_failed``."""
    if http.headers["Expect"].lower() != "100-continue":
        raise of_status(417)
    if http.transport is not None:
        http.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _log(error: InferBusError, route: str, request_id: bytes) -> None:
    """One line for an operator; the client's own mistakes only at debug level."""
    ours = error.error_class in (ErrorClass.ERROR_CLASS_INTERNAL, ErrorClass.ERROR_CLASS_UNAVAILABLE)
    log.log(
        logging.WARNING if ours else logging.DEBUG,
        "a request was refused",
        extra={
            "route": route,
            "request_id": uuid_text(request_id),
            "reason": error.reason,
            "diagnostic": error.diagnostic,
        },
    )
