"""gRPC between services: one way to serve and one way to call.

Both sides carry the operator's token and the trace, and turn InferBusError into a status and back. Health and
reflection are open, so that probes and grpcurl work; all else needs the token, if there is one. A server that strangers
reach has neither reflection nor Health.Watch: streams without a key would take the places of its callers.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from inferbus.common.v1.error_pb2 import ErrorClass
from opentelemetry.trace import SpanKind

from inferbus_runtime import metrics, tls
from inferbus_runtime.errors import InferBusError, invalid
from inferbus_runtime.health import Health
from inferbus_runtime.rpc_errors import error_of, status_of
from inferbus_runtime.tls import TlsFiles
from inferbus_runtime.traces import current_headers, span

__all__ = ["Public", "RpcServer", "channel", "error_of", "serve"]

log = logging.getLogger(__name__)

OPEN_SERVICES = ("/grpc.health.", "/grpc.reflection.")
HEALTH_SERVICE = "grpc.health.v1.Health"
_WATCH = f"/{HEALTH_SERVICE}/Watch"
# Calls run at once; more are refused with RESOURCE_EXHAUSTED by gRPC itself.
MAX_CALLS = 4096
# What has not ended by the drain is cut off after this long.
STOP_GRACE_SECONDS = 0.5
# A unary call whose caller named no deadline still has one.
UNARY_TIMEOUT_SECONDS = 10.0
CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # a stream may be quiet for long
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # gRPC takes this also for the time that a connection may take to come up.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
)
# (request is a stream, answer is a stream): how gRPC makes the handler, and where it keeps what it calls
KINDS = {
    (False, False): (grpc.unary_unary_rpc_method_handler, "unary_unary"),
    (False, True): (grpc.unary_stream_rpc_method_handler, "unary_stream"),
    (True, False): (grpc.stream_unary_rpc_method_handler, "stream_unary"),
    (True, True): (grpc.stream_stream_rpc_method_handler, "stream_stream"),
}
RPC_ATTRIBUTES = {"rpc.system": "grpc"}
SERVER_OPTIONS = (
    # two servers on one port would share its calls between them
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)

# Calls at once on one connection of a stranger's; more wait on his side.
MAX_STREAMS = 100
_UNCOMPRESSED = 1
# Whether a stranger's side reads is asked this often.
_PING_MS = 30_000

Admit = Callable[[str, Mapping[str, Any]], None]
"""(method, metadata) of a call; raises InferBusError for one that is refused."""

# A connection is to be made anew after this long, so that what its client never reads does not stay for ever.
MAX_AGE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Public:
    """``admit``: asked before a call's message is read. ``max_request_bytes``: of a message; a larger one is
    RESOURCE_EXHAUSTED. ``read_timeout``: a unary call whose message has not come by then is refused. ``idle_timeout``:
    a connection without a call for so long is closed. ``unread_timeout``: one whose peer reads nothing at all.
    ``call_timeout``: the longest that a call may take, once its message is there."""

    admit: Admit
    max_request_bytes: int
    read_timeout: timedelta
    idle_timeout: timedelta
    unread_timeout: timedelta
    call_timeout: timedelta

    @property
    def options(self) -> tuple[tuple[str, int], ...]:
        millisecond = timedelta(milliseconds=1)
        return (
            ("grpc.max_receive_message_length", self.max_request_bytes),
            ("grpc.max_concurrent_streams", MAX_STREAMS),
            # A small message could be made of a large one.
            ("grpc.compression_enabled_algorithms_bitset", _UNCOMPRESSED),
            ("grpc.keepalive_time_ms", _PING_MS),
            ("grpc.keepalive_timeout_ms", self.unread_timeout // millisecond),
            ("grpc.max_connection_idle_ms", self.idle_timeout // millisecond),
            ("grpc.max_connection_age_ms", MAX_AGE // millisecond),
            ("grpc.max_connection_age_grace_ms", self.call_timeout // millisecond),
        )


class RpcServer:
    """A listening server. ``address``: "host:port" really bound. It is NOT_SERVING until told otherwise."""

    def __init__(self, address: str, health: Health) -> None:
        self.address = address
        self._health = health

    def set_serving(self, serving: bool) -> None:
        """What the health service answers from now on."""
        self._health.set_serving(serving)


@asynccontextmanager
async def serve(
    address: str,
    add: Callable[[Any], None],
    service_names: Sequence[str],
    token: str | None,
    identity: TlsFiles | None = None,
    public: Public | None = None,
) -> AsyncIterator[RpcServer]:
    """Serve the servicers that ``add`` puts on the server, named in ``service_names``, until the context ends.

    With ``token``, calls must carry ``authorization: Bearer <token>``. With ``identity``, who has no certificate of its
    authority gets no connection, not even for health; if it names no authority, nobody is asked for one. ``public``: of
    a server that strangers reach; of health and reflection it has Health.Check only. At the end calls have half a
    second before they are cancelled; none runs once the context is left. Raises OSError if ``address`` is taken,
    TlsError if the files are not usable.
    """
    credentials = None if identity is None else _server_credentials(identity)
    health = Health(service_names)
    calls = _ServerCalls(token, public)
    options = (*SERVER_OPTIONS, *(() if public is None else public.options))
    server = grpc.aio.server(interceptors=[calls], options=options, maximum_concurrent_rpcs=MAX_CALLS)
    add(server)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if public is None:
        reflection.enable_server_reflection((*service_names, HEALTH_SERVICE, reflection.SERVICE_NAME), server)
    try:
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address} for gRPC: {error}") from error
    await server.start()
    try:
        yield RpcServer(f"{address.rpartition(':')[0]}:{port}", health)
    finally:
        health.close()
        await server.stop(STOP_GRACE_SECONDS)
        await calls.ended()


def channel(address: str, token: str | None, identity: TlsFiles | None = None) -> grpc.aio.Channel:
    """A channel to ``address`` that adds the token and the trace to each call. Use it as an async context manager.

    With ``identity`` the server must show a certificate of the same authority for the host in ``address``. Unary calls
    without a timeout get 10 s. A call while the server is away, or is not to be believed, fails at once with
    UNAVAILABLE. Raises TlsError if the files are not usable.
    """
    calls = [kind(token) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)]
    if identity is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS, interceptors=calls)
    return grpc.aio.secure_channel(address, _channel_credentials(identity), options=CHANNEL_OPTIONS, interceptors=calls)


def _server_credentials(identity: TlsFiles) -> grpc.ServerCredentials:
    if identity.ca is None:
        return grpc.ssl_server_credentials([tls.read_public(identity)])
    key, cert, ca = tls.read(identity)
    return grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=True)


def _channel_credentials(identity: TlsFiles) -> grpc.ChannelCredentials:
    key, cert, ca = tls.read(identity)
    return grpc.ssl_channel_credentials(root_certificates=ca, private_key=key, certificate_chain=cert)


class _ServerCalls(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Token, span and errors around every call of our own services."""

    def __init__(self, token: str | None, public: Public | None) -> None:
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._public = public
        self._running: set[asyncio.Task[Any]] = set()

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        if details.method.startswith(OPEN_SERVICES):
            if details.method == _WATCH and self._public is not None:
                return None  # UNIMPLEMENTED, which the protocol of health allows; its clients then ask no more
            return await continuation(details)
        metadata = dict(details.invocation_metadata or ())
        if self._expected is not None:
            given = metadata.get("authorization", "")
            if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected):
                return _refusing(_no_token())
        if self._public is not None:
            try:
                self._public.admit(details.method, metadata)
            except InferBusError as error:
                return _refusing(error)
        handler = await continuation(details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        kind, name = KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, name)
        if self._public is not None and name == "unary_unary":
            kind, behaviour = grpc.stream_stream_rpc_method_handler, _timed(behaviour, self._public.read_timeout)
        call = self._guarded(behaviour, details.method, metadata)
        return kind(call, handler.request_deserializer, handler.response_serializer)

    async def ended(self) -> None:
        """gRPC's stop does not wait until the calls that it cancels have ended; what they use closes after us."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_GRACE_SECONDS)

    def _guarded(self, behaviour: Callable[[Any, Any], Any], method: str, metadata: Mapping[str, Any]) -> Any:
        """``behaviour`` inside a span, with what it raises turned into a status."""

        async def call(request: Any, context: Any) -> Any:
            task, code = asyncio.current_task(), "OK"
            assert task is not None, "gRPC runs each call in a task"  # noqa: S101
            self._running.add(task)
            with span(method[1:], metadata, kind=SpanKind.SERVER, **RPC_ATTRIBUTES) as current:
                try:
                    return await _answer(behaviour(request, context), context)
                except asyncio.CancelledError:
                    code = "CANCELLED"
                    raise
                except grpc.aio.AbortError:
                    code = "ABORTED_BY_SERVICER"
                    raise
                except Exception as error:  # noqa: BLE001 - logged and turned into a status
                    current.end(error)
                    status = status_of(_told(error, method, public=self._public is not None))
                    code = status[0].name
                    await context.abort(*status)
                finally:
                    self._running.discard(task)
                    metrics.RPC_REQUESTS.labels(method, code).inc()

        return call


async def _answer(answer: Any, context: Any) -> Any:
    """The one answer of a coroutine; the answers of a generator are written here, and it is closed in time."""
    if not hasattr(answer, "__aiter__"):
        return await answer
    async with aclosing(answer):
        async for message in answer:
            await context.write(message)
    return None


def _no_token() -> InferBusError:
    message = 'This call needs the operator\'s token: metadata "authorization: Bearer <token>".'
    return InferBusError(ErrorClass.ERROR_CLASS_UNAUTHENTICATED, "invalid_rpc_token", message)


def _refusing(error: InferBusError) -> Any:
    """Reads nothing of the call."""

    async def refuse(_requests: Any, context: Any) -> None:
        await context.abort(*status_of(error))

    return grpc.stream_stream_rpc_method_handler(refuse)


def _timed(behaviour: Callable[[Any, Any], Any], read_timeout: timedelta) -> Callable[[Any, Any], Any]:
    """A unary call as one whose messages we read and write: its own would be waited for without an end, before it is
    known to us. What it sends, and so its client, is the same."""

    async def call(requests: Any, context: Any) -> None:
        try:
            async with asyncio.timeout(read_timeout.total_seconds()):
                request = await anext(requests, None)
        except TimeoutError:
            raise invalid("The message did not arrive in time.", reason="request_timeout") from None
        if request is None:
            raise invalid("The call has no message.", reason="invalid_type")
        await context.write(await behaviour(request, context))

    return call


def _told(error: Exception, method: str, *, public: bool) -> InferBusError:
    """What the caller is told of ``error``; the log is told the rest. ``public``: the caller is a stranger, whose own
    mistakes are for nobody's attention."""
    if isinstance(error, grpc.aio.AioRpcError):
        error = error_of(error)
    if not isinstance(error, InferBusError):
        log.error("a gRPC call failed", exc_info=error, extra={"rpc_method": method})
        return InferBusError(ErrorClass.ERROR_CLASS_INTERNAL, "internal_error", "Internal error.")
    level = logging.ERROR if error.error_class == ErrorClass.ERROR_CLASS_INTERNAL else logging.INFO
    if public and error.error_class not in (ErrorClass.ERROR_CLASS_INTERNAL, ErrorClass.ERROR_CLASS_UNAVAILABLE):
        level = logging.DEBUG
    fields = {"rpc_method": method, "reason": error.reason, "diagnostic": error.diagnostic}
    log.log(level, "a gRPC call was refused", extra=fields)
    return error


class _ClientCalls:
    """Adds token and trace to the details of a call."""

    def __init__(self, token: str | None) -> None:
        self._authorization = () if token is None else (("authorization", f"Bearer {token}"),)

    def _details(self, details: Any, timeout: float | None) -> Any:
        metadata = (*(details.metadata or ()), *self._authorization, *current_headers().items())
        return grpc.aio.ClientCallDetails(
            details.method,
            timeout if details.timeout is None else details.timeout,
            grpc.aio.Metadata(*metadata),
            details.credentials,
            details.wait_for_ready,
        )


class _UnaryUnary(_ClientCalls, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._details(details, UNARY_TIMEOUT_SECONDS), request)


class _UnaryStream(_ClientCalls, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(self._details(details, None), request)


class _StreamUnary(_ClientCalls, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(self._details(details, None), requests)


class _StreamStream(_ClientCalls, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return await continuation(self._details(details, None), requests)
