"""One connection to NATS, with its own inbox prefix, that says loudly what it was refused."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from inferbus.bus.v1.control_pb2 import CacheEvents, Capacity, Heartbeat
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.subjects import CACHE_SUBJECTS, CAPACITY_SUBJECTS, HEARTBEAT_SUBJECTS, subject_of, subject_token
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError, unavailable
from inferbus_runtime.tls import TlsFiles, client_context
from nats.aio.client import DEFAULT_BUFFER_SIZE, Client, Srv
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.protocol.parser import PERMISSIONS_ERR

from inferbus_bus.errors import RETRY_AFTER, StreamApiError

log = logging.getLogger(__name__)
Headers = Mapping[str, str]
MessageCallback = Callable[[Msg], Coroutine[Any, Any, None]]
# Outgoing bytes that a stalled connection may hold; above it a publish fails instead of blocking its caller.
_PENDING_BYTES = 64 << 20
# Incoming bytes that one subscription may hold before nats-py drops messages: never reached, since every
# reader here bounds what it asks for, or reads in a callback that does not wait.
_SUBSCRIPTION_BYTES = 512 << 20
_SUBSCRIPTION_MESSAGES = 1 << 20
# Control messages whose subjects name their senders, or what they are about: all of them are heard.
_FROM_ALL = {Heartbeat: HEARTBEAT_SUBJECTS, CacheEvents: CACHE_SUBJECTS, Capacity: CAPACITY_SUBJECTS}
# How long a connection that is given up, or closed, may take to send the rest.
_CLOSE_SECONDS = 2.0
# What nats-server takes as subject and reply of a message, by default (max_control_line, less two sizes and spaces).
# It cuts off who sends more.
_LINE_BYTES = 4096 - 32
# More than any inbox of ours takes.
_REPLY_BYTES = 512


class Message(Protocol):
    """Any protobuf message that has an address in the table of subjects."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 (protobuf's name)


@dataclass(frozen=True, slots=True)
class BusConfig:
    """Where the broker is and who we are. ``name`` gives the inbox prefix: no service reads another's replies.

    ``seed`` is the identity; ``tls`` protects the way there.
    """

    url: str
    name: str
    seed: str | None = None
    tls: TlsFiles | None = None


def send_now(publish: Coroutine[Any, Any, None]) -> None:
    """Run nats-py's ``publish`` to its end without a task.

    With room in its buffer the coroutine never suspends: it appends to the outgoing bytes and wakes the flusher. So
    a callback may publish as plain code, which the hot path needs.
    """
    try:
        publish.send(None)
    except StopIteration:
        return
    publish.close()
    raise BufferError("the outgoing buffer is full: the broker does not read")


class _Transport(TcpTransport):
    """nats-py's, but its end does not wait for a peer that is gone.

    asyncio's ``wait_closed`` ends when all that was written has been read over there, and never if the connection was
    given up in the middle of its TLS handshake; nats-py does not reconnect before it. While it closes a connection, it
    sends the rest, and tells nobody of the end if that cannot be sent any more: ``ending`` says that it need not.
    """

    ending = False

    async def drain(self) -> None:
        try:
            await super().drain()  # type: ignore[no-untyped-call]
        except ConnectionError:
            if not self.ending:
                raise

    async def wait_closed(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await super().wait_closed()  # type: ignore[no-untyped-call]
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        if self._bare_io_writer is not None:
            self._bare_io_writer.transport.abort()


class BusClient(Client):
    """nats-py's client. One that may reconnect does so whatever the broker says, and never closes by itself."""

    def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> Coroutine[Any, Any, None]:
        """Raises InferBusError ``name_too_long``, and sends nothing, for a subject that the broker would not take."""
        _check_line(subject, len(reply))
        return super().publish(subject, payload, reply, headers)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        """Raises like :meth:`publish`."""
        _check_line(subject, _REPLY_BYTES)  # here, before nats-py notes who waits for the answer
        async with _limit(timeout):
            return await super().request(subject, payload, None, old_style, headers)  # type: ignore[arg-type]

    async def flush(self, timeout: float = 10.0) -> None:
        """Wait until the broker has read all that was sent; ``timeout`` in seconds. Raises nats-py's TimeoutError."""
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        async with _limit(timeout):
            await self._send_ping(pong)
            await pong

    async def _connect_to_server(self, s: Srv) -> None:
        # As nats-py's own, for the schemes nats and tls; it lets nobody choose the transport.
        if not self._transport:
            self._transport = _Transport()  # type: ignore[no-untyped-call]
        s.last_attempt = clock.monotonic()
        await self._transport.connect(
            s.uri, buffer_size=DEFAULT_BUFFER_SIZE, connect_timeout=self.options["connect_timeout"]
        )

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # nats-py first sends all that it holds, and a broker that stands still reads none of it.
        if isinstance(self._transport, _Transport):
            self._transport.ending = True
        late = asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._cut_off)
        try:
            await super()._close(status, do_cbs)
        finally:
            late.cancel()

    def _cut_off(self) -> None:
        if isinstance(self._transport, _Transport):
            self._transport.abort()

    async def abandon(self, connecting: asyncio.Task[None]) -> None:
        """Close what never came to be used: nobody is told."""
        while not connecting.done():  # one cancel may be lost, see _limit, and nats-py would try again for ever
            connecting.cancel()
            await asyncio.wait({connecting}, timeout=0.05)
        await self._close(Client.CLOSED, do_cbs=False)

    async def _process_err(self, err_msg: str) -> None:
        """The broker's ``-ERR``, with which it closes the connection. nats-py would close its side, too, and stay
        closed for ever: here it is a lost connection like any other."""
        if not self.options["allow_reconnect"] or PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
            return
        error = NatsError(f"nats: {err_msg}")
        await self._error_cb(error)
        if self._current_server is not None:
            # As after a failure to connect: with a pause before the next try, should it fail each time.
            self._current_server.last_attempt = clock.monotonic()
        await self._process_op_err(error)


@asynccontextmanager
async def _limit(seconds: float) -> AsyncIterator[None]:
    """In place of nats-py's own time limits: with Python 3.11's ``asyncio.wait_for``, a cancel that comes together
    with the answer is lost (cpython issue 86296), and who was cancelled goes on for ever."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise NatsTimeoutError from error


async def _to_its_end(closing: Coroutine[Any, Any, None]) -> None:
    """Whoever is cancelled meanwhile, and hears it after that: half closed, a connection would stay."""
    task = asyncio.create_task(closing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


def _check_line(subject: str, reply_bytes: int = 0) -> None:
    size = len(subject.encode()) + reply_bytes
    if size > _LINE_BYTES:
        raise InferBusError(
            ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, "name_too_long", "A name is too long.",
            diagnostic=f"NATS takes {_LINE_BYTES} bytes of subjects, not {size}: {subject[:100]}",
        )  # fmt: skip


class Bus:
    """A connection that reconnects for ever. Create with :func:`connect`."""

    def __init__(self, config: BusConfig, nc: Client) -> None:
        self.config = config
        self.nc = nc
        self._on_disconnect: list[Callable[[], None]] = []
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self._inboxes = 0

    @property
    def connected(self) -> bool:
        return bool(self.nc.is_connected)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        self._on_disconnect.append(callback)

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        self._on_reconnect.append(callback)

    def inbox(self, purpose: str) -> str:
        """A fresh subject below this service's own inbox prefix."""
        self._inboxes += 1
        return f"{inbox_prefix(self.config.name)}.{purpose}{self._inboxes}"

    def send(self, message: Message) -> None:
        """Publish a control message without acknowledgement. While disconnected it is dropped: the sender of a
        control message says it again. Raises like :meth:`BusClient.publish`."""
        if self.connected:
            send_now(self.nc.publish(subject_of(message), message.SerializeToString()))

    async def subscribe(
        self, message_type: type[Any], callback: Callable[[Any], None], to: Any = None
    ) -> Callable[[], Awaitable[None]]:
        """Call back with each parsed control message; goes on after reconnects. ``to``: a message of that type which
        names whom it is for, where that is a part of its subject. Returns the way to end it."""
        subject = _FROM_ALL.get(message_type) or subject_of(message_type() if to is None else to)

        async def received(msg: Msg) -> None:
            callback(message_type.FromString(msg.data))

        return await self.listen(subject, received)

    async def listen(self, subject: str, callback: MessageCallback, group: str = "") -> Callable[[], Awaitable[None]]:
        """Subscribe with bounds that no reader of this package reaches. ``group``: of all that listen under this name
        one hears a message. Returns the way to end it."""
        _check_line(subject)  # else the broker would refuse it again after each reconnect
        subscription = await self.nc.subscribe(
            subject, queue=group, cb=callback, pending_msgs_limit=_SUBSCRIPTION_MESSAGES,
            pending_bytes_limit=_SUBSCRIPTION_BYTES,
        )  # fmt: skip

        async def stop() -> None:
            if not self.nc.is_closed:
                await subscription.unsubscribe()

        return stop

    async def api(self, subject: str, request: Mapping[str, Any] | None = None, timeout: float = 5.0) -> dict[str, Any]:
        """One call of JetStream's JSON API (``$JS.API.`` + ``subject``).

        Raises StreamApiError with the server's code, or InferBusError UNAVAILABLE when nobody answers.
        """
        try:
            reply = await self.nc.request(
                f"$JS.API.{subject}", json.dumps(request).encode() if request is not None else b"", timeout=timeout
            )
        except (NatsError, OSError) as error:
            raise unavailable(
                "bus_unavailable", "The service is restarting; retry.", retry_after=RETRY_AFTER,
                diagnostic=f"JetStream API {subject}: {error!r}",
            ) from error  # fmt: skip
        answer: dict[str, Any] = json.loads(reply.data)
        if "error" in answer:
            raise StreamApiError(answer["error"], subject)
        return answer

    async def _disconnected(self) -> None:
        # What nats-py still holds would be sent after the reconnect, long after its sender was told that it failed.
        # Our own outboxes decide what is sent again.
        self.nc._pending = []
        self.nc._pending_data_size = 0
        metrics.BUS_CONNECTED.set(0)
        log.warning("bus disconnected", extra={"url": self.config.url})
        for callback in self._on_disconnect:
            try:
                callback()
            except Exception:  # whatever it raised would end nats-py's reconnecting
                log.exception("a callback failed", extra={"after": "disconnect"})

    async def _reconnected(self) -> None:
        metrics.BUS_CONNECTED.set(1)
        metrics.BUS_RECONNECTS.inc()
        log.warning("bus reconnected", extra={"url": self.config.url})
        for callback in self._on_reconnect:
            try:
                await callback()
            except Exception:  # the others are to be told
                log.exception("a callback failed", extra={"after": "reconnect"})


def inbox_prefix(name: str) -> str:
    return f"_INBOX_{subject_token(name)}"


async def _refused(error: Exception) -> None:
    # A permissions violation raises nowhere: it comes here and only here.
    log.error("bus error", extra={"error": repr(error)})


async def open_client(config: BusConfig, **options: Any) -> Client:
    """A connected nats-py client with the house's settings. Raises TlsError if the files of ``tls`` are not usable.

    A cancel, or an error, ends it within seconds and leaves no connection behind.
    """
    nc = BusClient()
    if config.tls is not None:
        # The handshake comes before the first word: a server in between that says "no TLS here" is not listened to.
        options |= {"tls": client_context(config.tls), "tls_handshake_first": True}
    connecting = nc.connect(
        config.url,
        name=config.name,
        nkeys_seed_str=config.seed,
        inbox_prefix=inbox_prefix(config.name),
        error_cb=options.pop("error_cb", _refused),
        connect_timeout=options.pop("connect_timeout", 2),
        ping_interval=10,
        max_outstanding_pings=2,
        pending_size=_PENDING_BYTES,
        flusher_queue_size=1 << 16,
        skip_subject_validation=True,  # subjects come from one table, already escaped
        **options,
    )
    trying = asyncio.create_task(connecting)
    try:
        await asyncio.shield(trying)
    except BaseException:
        await _to_its_end(nc.abandon(trying))
        raise
    return nc


@asynccontextmanager
async def connect(config: BusConfig, *, timeout: float = 30.0) -> AsyncIterator[Bus]:
    """A connected :class:`Bus`; waits up to ``timeout`` seconds for the broker, then reconnects for ever.

    Raises InferBusError UNAVAILABLE if the broker does not come up.
    """
    bus = Bus(config, BusClient())
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    bus.nc = await open_client(
                        config,
                        disconnected_cb=bus._disconnected,
                        reconnected_cb=bus._reconnected,
                        allow_reconnect=True,
                        max_reconnect_attempts=-1,
                        reconnect_time_wait=0.1,
                    )
                    break
                except (OSError, NatsError) as error:
                    log.info("waiting for the bus", extra={"url": config.url, "error": repr(error)})
                    await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise unavailable(
            "bus_unavailable", "The message bus does not answer.", retry_after=RETRY_AFTER,
            diagnostic=f"no NATS at {config.url} within {timeout} s",
        ) from error  # fmt: skip
    metrics.BUS_CONNECTED.set(1)
    try:
        yield bus
    finally:
        await _to_its_end(bus.nc.close())
