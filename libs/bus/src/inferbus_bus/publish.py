"""Durable publishing: an acknowledged publish is stored.

One wildcard inbox with numbered replies, no task, no NUID and no dataclass per message: it costs a third of nats-py's
own ``js.publish`` (0.1 CPU-seconds less per 1,000 requests, measured on the prototype).
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from inferbus_contracts.subjects import message_id, subject_of
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError, invalid
from nats.aio.msg import Msg

from inferbus_bus.connection import Bus, send_now
from inferbus_bus.errors import NotSentError, bus_unavailable, publish_error


class PubAck(NamedTuple):
    """Stored at ``sequence``; ``duplicate``: it had been stored before, under the same message id."""

    sequence: int
    duplicate: bool


Outcome = PubAck | InferBusError
OnAck = Callable[[Outcome], None]
_SWEEP_SECONDS = 0.25
# Of the headers of a message, which count as it does.
_HEADER_BYTES = 1024


def parse_ack(data: bytes, status: str | None) -> Outcome:
    """What the server's answer to a publish means."""
    if status is not None:  # 503: nobody listens on the subject, so no stream takes it
        return NotSentError(f"no stream answered (status {status})")
    answer = json.loads(data)
    if "error" in answer:
        return publish_error(answer["error"])
    return PubAck(answer["seq"], answer.get("duplicate", False))


class Publisher:
    """Publishes messages to the stream of their type and waits for the stream's word."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._prefix = bus.inbox("ack") + "."
        self._pending: dict[str, tuple[OnAck, float]] = {}
        self._count = 0
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        await self._bus.listen(self._prefix + "*", self._acked)
        self._bus.on_disconnect(self._disconnected)

    async def publish(self, message: Any, headers: Mapping[str, str] | None = None, timeout: float = 5.0) -> PubAck:
        """Returns when the message is stored.

        Raises InferBusError: UNAVAILABLE ``bus_unavailable`` (at once if disconnected, as NotSentError; after
        ``timeout`` seconds the message may or may not be stored, and publishing it again is harmless),
        RESOURCE_EXHAUSTED ``stream_full``; INVALID_ARGUMENT ``body_too_large`` if the broker takes no message of its
        size.
        """
        return await self.publish_raw(
            subject_of(message), message.SerializeToString(), {"Nats-Msg-Id": message_id(message), **(headers or {})},
            timeout,
        )  # fmt: skip

    async def publish_raw(self, subject: str, data: bytes, headers: dict[str, str], timeout: float = 5.0) -> PubAck:
        """:meth:`publish` for the modules of this package that own a subject (registries)."""
        future: asyncio.Future[PubAck] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome) -> None:
            if future.done():
                return
            if isinstance(outcome, InferBusError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self._publish(subject, data, headers, settle, timeout)
        return await future

    def publish_then(
        self, message: Any, on_ack: OnAck, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> None:
        """:meth:`publish` without a task: ``on_ack`` gets the ack or the error, at once or later, exactly once."""
        self._publish(
            subject_of(message), message.SerializeToString(), {"Nats-Msg-Id": message_id(message), **(headers or {})},
            on_ack, timeout,
        )  # fmt: skip

    def _publish(self, subject: str, data: bytes, headers: dict[str, str], on_ack: OnAck, timeout: float) -> None:
        if not self._bus.connected:
            _tell(on_ack, NotSentError("not connected to NATS"))
            return
        if len(data) + _HEADER_BYTES > self._bus.nc.max_payload:
            _tell(on_ack, invalid("The request is too large.", reason="body_too_large"))
            return
        self._count += 1
        reply = f"{self._prefix}{self._count}"
        self._pending[reply] = (on_ack, clock.monotonic() + timeout)
        try:
            send_now(self._bus.nc.publish(subject, data, reply, headers))
        except InferBusError as error:  # about this message, such as a name that is too long
            del self._pending[reply]
            _tell(on_ack, error)
            return
        except Exception as error:  # noqa: BLE001 (whatever the client raises, the message was not sent)
            del self._pending[reply]
            _tell(on_ack, NotSentError(f"publish to {subject}: {error!r}"))
            return
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    async def _acked(self, msg: Msg) -> None:
        entry = self._pending.pop(msg.subject, None)
        if entry is not None:
            _tell(entry[0], parse_ack(msg.data, msg.headers.get("Status") if msg.headers else None))

    def _sweep(self) -> None:
        now = clock.monotonic()
        late = [reply for reply, (_, deadline) in self._pending.items() if deadline <= now]
        for reply in late:
            _tell(self._pending.pop(reply)[0], bus_unavailable("no acknowledgement in time"))
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep) if self._pending else None

    def _disconnected(self) -> None:
        pending, self._pending = self._pending, {}
        for on_ack, _ in pending.values():
            _tell(on_ack, bus_unavailable("connection lost before the acknowledgement"))


def _tell(on_ack: OnAck, outcome: Outcome) -> None:
    if isinstance(outcome, InferBusError):
        metrics.BUS_PUBLISH_FAILURES.labels(outcome.reason).inc()
    on_ack(outcome)
