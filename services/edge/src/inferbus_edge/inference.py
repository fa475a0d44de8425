"""From a parsed call of any API to its answer: accepted once, answered from the log, found again after a break."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.publish import Publisher
from inferbus_contracts.ids import choice_id, detached, is_detached, uuid_text
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, unavailable
from inferbus_runtime.telemetry import Span, span
from opentelemetry.trace import SpanKind

from inferbus_edge.admission import Admission, InferenceSettings, used
from inferbus_edge.attendance import EDGE_STOPPED, Attendance
from inferbus_edge.auth import Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.core.acceptance import messages_of, reply_of
from inferbus_edge.core.errors import internal
from inferbus_edge.core.plan import Plan
from inferbus_edge.following import Following
from inferbus_edge.holding import Holds
from inferbus_edge.idempotency import HEADER, Claims, fingerprint_of
from inferbus_edge.limits import RateLimits, Ticket
from inferbus_edge.measure import Timing
from inferbus_edge.retries import Retries
from inferbus_edge.returning import STREAM_HEADER, Returning, not_found, timed_out
from inferbus_edge.server import Asked, json_response
from inferbus_edge.sinks import Body, FormBody, FormStream
from inferbus_edge.stored import Stored
from inferbus_edge.streaming import Answer, Streams
from inferbus_edge.unattended import Unattended
from inferbus_edge.unread import Unread
from inferbus_edge.wire import CLIENT_GONE
from inferbus_edge.writing import response_of, sink_of

log = logging.getLogger(__name__)

_RETRY_AFTER = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class _Accepted:
    """One call that is being answered. ``fields``: headers of its answer. ``keyed``: under an idempotency key."""

    call: Asked
    key: KeyRecord
    plan: Plan
    reply: bytes
    ticket: Ticket
    fields: Mapping[str, str]
    trace: Span
    keyed: bool


class Inference:
    """``streams``: what this edge accepted; ``following``: what came back here."""

    def __init__(
        self,
        *,
        edge: str,
        auth: Auth,
        catalogue: Catalogue,
        publisher: Publisher,
        streams: Streams,
        following: Following,
        attendance: Attendance,
        limits: RateLimits,
        claims: Claims,
        stored: Stored,
        unattended: Unattended,
        settings: InferenceSettings,
    ) -> None:
        self._edge = edge
        self._catalogue = catalogue
        self._publisher = publisher
        self._streams = streams
        self._following = following
        self._attendance = attendance
        self._claims = claims
        self._stored = stored
        self._settings = settings
        self._holds = Holds(auth, settings.max_hold)
        self._returning = Returning(following, self._holds, settings.background_timeout, settings.max_unsent_bytes)
        self._unattended = unattended
        self._unread = Unread()
        self.admission = Admission(auth, limits, self._running, settings.max_active)
        self._retries = Retries(self.admission, self._holds, self._returning, publisher, stored, unattended, settings)

    # --- a new call -------------------------------------------------------------------------------------------------

    async def answer(self, call: Asked, key: KeyRecord, plan: Plan, body: bytes) -> web.StreamResponse:
        """The answer; InferBusError as long as nothing of it was sent. ``body``: as it came, for idempotency."""
        model = self._catalogue.require(key, plan)
        self.admission.room()
        self._unread.check(key.tenant_id)
        self._holds.asked(call)  # said wrongly it is refused before anything is claimed
        if plan.detached:
            call = replace(call, request_id=detached(call.request_id))
        facts = {
            "gen_ai.operation.name": plan.operation,
            "gen_ai.request.model": plan.model,
            "inferbus.request_id": uuid_text(call.request_id),
            "inferbus.tenant_id": key.tenant_id,
        }
        with span(f"{plan.operation} {plan.model}", call.said, kind=SpanKind.SERVER, **facts) as trace:
            name = call.said.get(HEADER.lower())
            if not name:  # an empty one names nothing
                response = await self._begin(call, key, plan, model, self.admission.ticket(key, plan), trace)
            else:
                response = await self._once(call, key, plan, model, name, fingerprint_of(call.address, body), trace)
            return self._unread.keep(key.tenant_id, response)

    async def _once(
        self, call: Asked, key: KeyRecord, plan: Plan, model: ModelRecord, name: str, fingerprint: bytes, trace: Span
    ) -> web.StreamResponse:
        """The answer to the first call under an idempotency key, whoever makes it."""
        while True:
            claim = await self._claims.find(key, name, fingerprint)
            if claim is not None:
                response = await self._retries.answer(call, key, plan, model, claim, trace)
                if response is not None:
                    return response
            # Before anybody can see the claim: who finds one takes its request for admitted.
            ticket = self.admission.ticket(key, plan)
            try:
                if claim is None:
                    mine = await self._claims.make(key, name, fingerprint, call.request_id, call.accepted_us)
                else:
                    mine = await claim.renew(call.request_id, self._edge, call.accepted_us)
            except BaseException:
                ticket.settle(0)
                raise
            if mine:
                return await self._begin(call, key, plan, model, ticket, trace, keyed=True)
            ticket.settle(0)

    async def _begin(
        self,
        call: Asked,
        key: KeyRecord,
        plan: Plan,
        model: ModelRecord,
        ticket: Ticket,
        trace: Span,
        *,
        keyed: bool = False,
    ) -> web.StreamResponse:
        """``keyed``: a retry may join it. Settles ``ticket``, at once or when its generations have ended."""
        fields = {STREAM_HEADER: uuid_text(call.request_id), **ticket.headers(), **plan.headers}
        try:
            hold = self._holds.of(call, key, self._settings.idempotent_hold.total_seconds() if keyed else 0.0)
            described = reply_of(plan, model, call.accepted_us, hold)
            accepted = _Accepted(call, key, plan, orjson.dumps(described), ticket, fields, trace, keyed)
            sink = sink_of(call, described, fields, self._settings.max_unsent_bytes, stream=plan.stream)
        except BaseException:
            ticket.settle(0)
            raise
        answer = Answer(call.request_id, len(plan.requests), sink, Timing(plan.model, call.accepted_us), hold)
        timeout = self._settings.timeout_of(plan)
        answer.expires = clock.monotonic() + timeout.total_seconds()
        answer.settle = partial(_settle, accepted, answer)
        if plan.detached and not plan.stream:
            ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # Whether its client waits for the acceptance or not.
            self._unattended.spawn(self._run_detached(accepted, answer, ready))
            await ready
            if answer.error is not None:
                raise answer.error
            return json_response(sink.body if isinstance(sink, FormBody) else b"", call.request_id, headers=fields)
        try:
            await self._accept(accepted, answer)
            if plan.detached and isinstance(sink, FormStream) and not answer.done.done():
                sink.accept(clock.monotonic())
            await self._wait(answer, timeout)
        except asyncio.CancelledError:
            self._streams.leave(answer, CLIENT_GONE)
            if answer.goes_on and plan.stored is not None:
                self._unattended.spawn(self._unattended.keep(key, answer.first, accepted.reply))
            else:
                self._unattended.spawn(self._keep(accepted, answer))
            raise
        if plan.stream:  # its client has all of it, and may be gone
            self._unattended.spawn(self._keep(accepted, answer))
        else:
            await self._keep(accepted, answer)
        return response_of(answer, call, fields)

    async def _keep(self, accepted: _Accepted, answer: Answer) -> None:
        """An answer that is to be stored is; a call that was refused leaves nothing."""
        if accepted.plan.stored is None:
            return
        error = answer.error
        refused = error is not None and error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
        if refused and not accepted.plan.detached:
            await self._forget(accepted.key, answer.first)
        else:
            await self._unattended.store(accepted.key, answer)

    async def _accept(self, accepted: _Accepted, answer: Answer) -> None:
        """Publish; how that failed, if it did, is in ``answer``."""
        plan = accepted.plan
        self._streams.add(answer)
        self._attendance.arrive(answer)
        try:
            messages = self._messages(accepted, answer)
            if plan.stored is not None:
                await self._store(accepted, answer.first)
            headers = accepted.trace.headers()
            if len(messages) == 1:
                await self._publisher.publish(messages[0], headers)
            else:
                await asyncio.gather(*(self._publisher.publish(one, headers) for one in messages))
        except InferBusError as error:
            # It may be on its way all the same (only its ack was lost): a retry under the same key joins it then, else
            # the generation is cancelled.
            unknown = error.reason == "bus_unavailable"
            self._streams.fail(answer, error, cancel=None if accepted.keyed and unknown else "not_accepted")
            if not unknown and plan.stored is not None:
                self._unattended.spawn(self._forget(accepted.key, answer.first))
        except Exception as error:
            self._streams.fail(answer, internal(repr(error)), cancel="not_accepted")
            raise

    async def _store(self, accepted: _Accepted, first: bytes) -> None:
        try:
            await self._stored.create(accepted.key, first, accepted.call.accepted_us, accepted.plan, accepted.reply)
        except InferBusError as error:
            if accepted.plan.store_asked or error.error_class != ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED:
                raise
            log.warning("an answer will not be stored: there is no room", extra={"request_id": uuid_text(first)})

    async def _wait(self, answer: Answer, timeout: timedelta) -> None:
        """To the end of the answer; how it ended is in it. Raises CancelledError if the client left."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await answer.done
        except TimeoutError:
            self._streams.fail(answer, timed_out(timeout), cancel="deadline")

    def _messages(self, accepted: _Accepted, answer: Answer) -> list[GenerateRequest]:
        call, key, plan = accepted.call, accepted.key, accepted.plan
        expire_us = call.accepted_us + self._settings.timeout_of(plan) // timedelta(microseconds=1)
        return messages_of(plan, key, answer.first, self._edge, call.accepted_us, expire_us, accepted.reply)

    # --- a call that comes again ------------------------------------------------------------------------------------

    async def resume(
        self, call: Asked, key: KeyRecord, first: bytes, after: int, *, stream: bool = True, wait: bool = False
    ) -> web.StreamResponse:
        """The answer of an earlier call, without the events up to number ``after``; with ``wait`` also one that is
        known to exist and has not begun. Raises InferBusError NOT_FOUND for one that the log does not have any more, or
        that is not of the caller's project."""
        self.admission.room()
        self._unread.check(key.tenant_id)
        self.admission.count(key)
        self._holds.asked(call)  # said wrongly it is refused, and not in the middle of the log
        call = replace(call, request_id=first)
        absent = _wait if wait else None
        answer = await self._returning.find(call, key, stream=stream, after=after, absent=absent)
        if answer is None:
            raise not_found()
        return self._unread.keep(key.tenant_id, await self._returning.deliver(answer, call))

    async def snapshot(self, key: KeyRecord, first: bytes, wait: float = 0.0) -> bytes | None:
        """See :meth:`Unattended.snapshot`. Counts as a request. Raises InferBusError, also RESOURCE_EXHAUSTED."""
        self.admission.room()
        self.admission.count(key)
        return await self._unattended.snapshot(key, first, wait)

    def cancel(self, first: bytes, choices: int = 1) -> None:
        """End the generations of a request, whoever is attached to it."""
        self._attendance.cancel(tuple(choice_id(first, choice) for choice in range(choices)), "client_cancelled")

    # --- parts ------------------------------------------------------------------------------------------------------

    def _running(self) -> int:
        return len(self._streams) + sum(len(one) for one in self._following.streams())

    async def _forget(self, key: KeyRecord, first: bytes) -> None:
        await self._stored.delete(key, first)

    async def _run_detached(self, accepted: _Accepted, answer: Answer, ready: asyncio.Future[None]) -> None:
        """An answer without a client, from its acceptance to the store. ``ready``: it is accepted, or refused."""
        self._unattended.offer(answer)
        try:
            await self._accept(accepted, answer)
            if not ready.done():
                ready.set_result(None)
            await self._wait(answer, self._settings.timeout_of(accepted.plan))
        finally:
            if not ready.done():
                ready.cancel()
        await self._keep(accepted, answer)

    # --- the process ------------------------------------------------------------------------------------------------

    async def keep_alive(self, interval: timedelta) -> None:
        """Comment lines for silent streams: one timer for all, for ever."""
        seconds = interval.total_seconds()
        while True:
            await asyncio.sleep(seconds / 4)
            now = clock.monotonic()
            for streams in (self._streams, *self._following.streams()):
                streams.keep_alive(seconds, now)

    async def drain(self) -> None:
        """Take no new requests; returns when the present ones have ended, and answers with tensors are written. Those
        that run without a client are not waited for: whoever asks for them finds them on the log."""
        self.admission.draining = True
        for answer in self._streams.answers():
            if answer.goes_on or (is_detached(answer.first) and isinstance(answer.sink, Body)):
                self._streams.release(answer)
        await self._streams.idle()
        for streams in self._following.streams():
            for answer in streams.answers():
                if not answer.attended:
                    streams.release(answer)
            await streams.idle()
        await self._unread.idle()

    def end_all(self) -> None:
        """The drain's deadline is over: end what is left, so that every client knows. Detached ones run on."""
        self.admission.draining = True
        error = unavailable("draining", "This server has stopped; retry.", retry_after=_RETRY_AFTER)
        self._streams.fail_all(error, EDGE_STOPPED)
        for streams in self._following.streams():
            streams.fail_all(error, None)
        self._unattended.stop()


def _wait() -> bool:
    """It is queued: its beginning will be on the log."""
    return True


def _settle(accepted: _Accepted, answer: Answer) -> None:
    """Its generations have ended, or are wanted by nobody."""
    accepted.ticket.settle(used(accepted.plan, answer))
    if answer.usage is not None:
        facts = {
            "gen_ai.usage.input_tokens": answer.usage.input_tokens,
            "gen_ai.usage.output_tokens": answer.usage.output_tokens,
        }
        accepted.trace.set(**facts)
    accepted.trace.end(answer.error)
