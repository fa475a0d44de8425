"""Frames on TOKENS: published in order whatever breaks, read in order from any position."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from google.protobuf.message import DecodeError
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_contracts.subjects import edge_tokens, message_id, subject_of
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from inferbus_bus.connection import Bus, BusConfig, inbox_prefix, open_client, send_now
from inferbus_bus.consumers import Position, last_sequence
from inferbus_bus.ordered import OrderedReader
from inferbus_bus.publish import PubAck, parse_ack

log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.1
_LARGEST_RETRY_SECONDS = 2.0
_ACK_SECONDS = 5.0
# Of frames that are not stored: what a new connection must be able to send again at once.
_MAX_UNACKED_BYTES = 16 << 20
# The broker's bound on a message, until it has said its own.
_MAX_PAYLOAD = 8 << 20
# What the header takes besides the message id; it counts as payload.
_HEADER_BYTES = len(b"NATS/1.0\r\nNats-Msg-Id: \r\n\r\n")


class FramePublisher:
    """An outbox of frames on a connection of its own.

    The order of frames is a law of the log. nats-py's reconnect would send what it still buffers before what was lost
    on the way, and swap frames; so this connection never reconnects: it is replaced, and everything not acknowledged
    is sent again from the oldest on, under the same message ids. Each connection carries an ascending run that starts
    at or before the first frame not stored, so no interleaving of an old and a new one can store a frame before an
    older one.
    """

    def __init__(self, config: BusConfig, *, worker: str, boot: int, max_unacked: int = 4096) -> None:
        self._config = config
        self._worker = worker
        self._boot = boot
        self._max_unacked = max_unacked
        self._max_payload = _MAX_PAYLOAD
        self._sequence = 0
        self._acked = 0
        # sequence -> (subject, data, message id, monotonic time of the last sending)
        self._outbox: OrderedDict[int, tuple[str, bytes, str]] = OrderedDict()
        self._outbox_bytes = 0
        self._oldest_sent = 0.0
        self._inbox = f"{inbox_prefix(config.name)}.frames-{boot}"
        self._nc: Client | None = None
        self._epoch = 0
        # Before the next connection; only a stored frame resets it, since a stream may refuse on every connection.
        self._pause = 0.0
        self._broken = asyncio.Event()
        self._progress = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._published = metrics.FRAMES_PUBLISHED
        self._unacked = metrics.FRAMES_UNACKED

    @property
    def unacked(self) -> int:
        return len(self._outbox)

    async def start(self) -> None:
        """Connect. Raises OSError or nats' error if the broker is not there now."""
        await self._connect()
        self._runner = asyncio.create_task(self._keep(), name="frame publisher")

    def publish(self, frame: Frame) -> int:
        """Number the frame, keep it until it is stored, send it. Never blocks; returns its sequence.

        Raises InferBusError INTERNAL ``frame_too_large``, and does nothing, if the broker would not take it: it cuts
        off who sends such a message, so kept here it would hold back everything behind it for ever.
        """
        frame.worker, frame.boot, frame.sequence = self._worker, self._boot, self._sequence + 1
        entry = subject, data, msg_id = subject_of(frame), frame.SerializeToString(), message_id(frame)
        if len(data) + len(msg_id) + _HEADER_BYTES > self._max_payload:
            raise _too_large(subject, len(data), self._max_payload)
        self._sequence += 1
        if not self._outbox:
            self._oldest_sent = clock.monotonic()
        self._outbox[self._sequence] = entry
        self._outbox_bytes += len(data)
        self._published.inc()
        self._send(self._sequence, entry)
        return self._sequence

    async def room(self) -> None:
        """Back-pressure: waits while more than ``max_unacked`` frames, or 16 MiB of them, are not stored."""
        while len(self._outbox) > self._max_unacked or self._outbox_bytes > _MAX_UNACKED_BYTES:
            self._progress.clear()
            await self._progress.wait()

    async def wait_acked(self, sequence: int) -> None:
        """Returns when this frame and all before it are stored, however long the broker is away."""
        while self._acked < sequence:
            self._progress.clear()
            await self._progress.wait()

    async def stop(self, timeout: float = 5.0) -> None:
        """Wait for the outstanding acks, then close. What is not stored by then is logged as lost."""
        try:
            async with asyncio.timeout(timeout):
                await self.wait_acked(self._sequence)
        except TimeoutError:
            log.error("frames not stored at stop", extra={"frames": len(self._outbox)})
        if self._runner is not None:
            self._runner.cancel()
        nc, self._nc = self._nc, None
        if nc is not None:
            await nc.close()

    def _send(self, sequence: int, entry: tuple[str, bytes, str]) -> None:
        subject, data, msg_id = entry
        if self._nc is None:
            return
        try:
            send_now(
                self._nc.publish(subject, data, f"{self._inbox}.{self._epoch}.{sequence}", {"Nats-Msg-Id": msg_id})
            )
        except (NatsError, BufferError, OSError) as error:
            # Nothing after this frame may go out on this connection.
            self._break(repr(error))

    def _break(self, why: str) -> None:
        if self._nc is not None:
            log.warning("frame connection broken", extra={"error": why, "unacked": len(self._outbox)})
        self._nc = None
        self._broken.set()

    async def _connect(self) -> None:
        self._epoch += 1
        epoch = self._epoch

        async def lost() -> None:
            if epoch == self._epoch:
                self._break("connection closed")

        nc = await open_client(self._config, allow_reconnect=False, closed_cb=lost, disconnected_cb=lost)
        await nc.subscribe(f"{self._inbox}.{epoch}.*", cb=self._received)
        await nc.flush()
        self._client, self._nc = nc, nc
        self._max_payload = nc.max_payload
        self._broken.clear()
        self._oldest_sent = clock.monotonic()
        metrics.FRAMES_REPUBLISHED.inc(len(self._outbox))
        for sequence, entry in list(self._outbox.items()):
            if self._nc is None:
                break
            self._send(sequence, entry)

    async def _received(self, msg: Msg) -> None:
        *_, epoch, sequence = msg.subject.split(".")
        outcome = parse_ack(msg.data, msg.headers.get("Status") if msg.headers else None)
        if isinstance(outcome, PubAck):
            if (stored := self._outbox.pop(int(sequence), None)) is not None:
                self._outbox_bytes -= len(stored[1])
            # Acks come in order on one connection; a frame counts as stored when all before it are.
            self._acked = next(iter(self._outbox)) - 1 if self._outbox else self._sequence
            self._oldest_sent = clock.monotonic()
            self._pause = 0.0
            self._unacked.set(len(self._outbox))
            self._progress.set()
        elif isinstance(outcome, InferBusError) and int(epoch) == self._epoch:
            self._break(str(outcome))

    async def _keep(self) -> None:
        """Replace the connection whenever it breaks, or when the oldest frame stays without an answer."""
        while True:
            try:
                async with asyncio.timeout(1.0):
                    await self._broken.wait()
            except TimeoutError:
                if not self._outbox or clock.monotonic() - self._oldest_sent < _ACK_SECONDS:
                    continue
                self._break("no acknowledgement in time")
            await asyncio.sleep(self._pause)
            self._pause = min(max(_RETRY_SECONDS, 2 * self._pause), _LARGEST_RETRY_SECONDS)
            try:
                await self._client.close()
                await self._connect()
                log.warning("frame connection restored", extra={"republished": len(self._outbox)})
            except Exception as error:  # noqa: BLE001 (this task must outlive whatever the client raises)
                log.info("frame connection retries", extra={"error": repr(error)})
                self._pause = _RETRY_SECONDS  # nobody is there: asking again soon costs nothing
                self._broken.set()


def _too_large(subject: str, size: int, bound: int) -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_INTERNAL,
        "frame_too_large",
        "The server had an error; retry.",
        diagnostic=f"a frame for {subject} has {size} bytes, and the broker takes {bound}",
    )


class FrameReader:
    """What is stored for one edge from :meth:`start` on: each frame once, in stream order, also across outages."""

    def __init__(self, bus: Bus, *, edge: str, on_frame: Callable[[Frame, int], None]) -> None:
        self._bus = bus
        self._on_frame = on_frame
        self._reader = OrderedReader(bus, stream="TOKENS", subject=edge_tokens(edge), on_message=self._received)

    async def start(self) -> None:
        last = await last_sequence(self._bus, "TOKENS")
        # An explicit start: "new" would mean "whatever comes after the consumer was made", also after it was remade.
        await self._reader.start({"deliver_policy": "by_start_sequence", "opt_start_seq": last + 1}, last)

    async def stop(self) -> None:
        await self._reader.stop()

    @property
    def last_sequence(self) -> int:
        """Everything for this edge up to here in the stream has been given, or is older than the start."""
        return self._reader.last_sequence

    def _received(self, msg: Msg, at: Position) -> None:
        try:
            frame = Frame.FromString(msg.data)
        except DecodeError:
            # It was stored, so it is not lost to an investigation; the streams behind it must go on.
            log.error("a frame cannot be read", extra={"sequence": at.stream_sequence, "bytes": len(msg.data)})
            return
        self._on_frame(frame, at.stream_sequence)
