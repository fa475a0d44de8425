"""From a parsed call of any API to its answer: accepted once, answered from the log, found again after a break."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta

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

from inferbus_edge.attendance import EDGE_STOPPED, Attendance
from inferbus_edge.auth import Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.core.acceptance import messages_of, reply_of
from inferbus_edge.core.plan import Plan
from inferbus_edge.following import Following
from inferbus_edge.holding import Holds
from inferbus_edge.idempotency import HEADER, Claim, Claims, fingerprint_of
from inferbus_edge.limits import RateLimits, Ticket
from inferbus_edge.measure import Timing
from inferbus_edge.returning import STREAM_HEADER, Returning, not_found, timed_out
from inferbus_edge.server import Call, json_response
from inferbus_edge.sinks import Body, FormBody, FormStream
from inferbus_edge.stored import Stored
from inferbus_edge.streaming import Answer, Streams
from inferbus_edge.unattended import Unattended
from inferbus_edge.wire import CLIENT_GONE
from inferbus_edge.writing import response_of, sink_of

log = logging.getLogger(__name__)

_RETRY_AFTER = timedelta(seconds=1)
# Less than the broker's memory of message ids.
_REMEMBERED_US = 9 * 60_000_000
# A retry of what ended so may succeed; anything else is the answer, also to a retry.
_WORTH_A_RETRY = (
    ErrorClass.ERROR_CLASS_UNAVAILABLE,
    ErrorClass.ERROR_CLASS_CANCELLED,
    ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
    ErrorClass.ERROR_CLASS_INTERNAL,
)


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """See the fields of the same names in ``config``."""

    request_timeout: timedelta
    background_timeout: timedelta
    max_active: int
    max_unsent_bytes: int
    max_hold: timedelta
    idempotent_hold: timedelta


@dataclass(frozen=True, slots=True)
class _Accepted:
    """One call that is being answered. ``fields``: headers of its answer."""

    call: Call
    key: KeyRecord
    plan: Plan
    reply: bytes
    ticket: Ticket
    fields: Mapping[str, str]
    trace: Span


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
        self._auth = auth
        self._catalogue = catalogue
        self._publisher = publisher
        self._streams = streams
        self._following = following
        self._attendance = attendance
        self._limits = limits
        self._claims = claims
        self._stored = stored
        self._settings = settings
        self._holds = Holds(auth, settings.max_hold)
        self._returning = Returning(following, self._holds, settings.background_timeout, settings.max_unsent_bytes)
        self.unattended = unattended
        self.draining = False

    # --- a new call -------------------------------------------------------------------------------------------------

    async def answer(self, call: Call, key: KeyRecord, plan: Plan, body: bytes) -> web.StreamResponse:
        """The answer; InferBusError as long as nothing of it was sent. ``body``: as it came, for idempotency."""
        model = self._catalogue.require(key, plan)
        self._admit()
        self._holds.asked(call)  # said wrongly it is refused before anything is claimed
        if plan.detached:
            call = replace(call, request_id=detached(call.request_id))
        facts = {
            "gen_ai.operation.name": plan.operation,
            "gen_ai.request.model": plan.model,
            "inferbus.request_id": uuid_text(call.request_id),
            "inferbus.tenant_id": key.tenant_id,
        }
        with span(f"{plan.operation} {plan.model}", call.http.headers, kind=SpanKind.SERVER, **facts) as trace:
            name = call.http.headers.get(HEADER)
            if name is None:
                return await self._begin(call, key, plan, model, None, trace)
            fingerprint = fingerprint_of(call.http.path, body)
            while True:
                claim = await self._claims.claim(key, name, fingerprint, call.request_id, call.accepted_us)
                if not claim.mine:
                    response = await self._again(call, key, plan, model, claim, trace)
                    if response is not None:
                        return response
                    if not await claim.renew(call.request_id, self._edge, call.accepted_us):
                        continue
                return await self._begin(call, key, plan, model, claim, trace)

    async def _begin(
        self, call: Call, key: KeyRecord, plan: Plan, model: ModelRecord, claim: Claim | None, trace: Span
    ) -> web.StreamResponse:
        hold = self._holds.of(call, key, self._settings.idempotent_hold.total_seconds() if claim else 0.0)
        described = reply_of(plan, model, call.accepted_us, hold)
        reply = orjson.dumps(described)
        try:
            project, tenant = self._auth.project_of(key), self._auth.tenant_of(key)
            ticket = self._limits.admit(key, project, tenant, plan.input_estimate + (plan.output_bound or 0))
        except InferBusError:
            await _release(claim)
            raise
        fields = {STREAM_HEADER: uuid_text(call.request_id), **ticket.headers(), **plan.headers}
        accepted = _Accepted(call, key, plan, reply, ticket, fields, trace)
        try:
            sink = sink_of(call, described, fields, self._settings.max_unsent_bytes, stream=plan.stream)
        except BaseException:
            ticket.settle(0)
            await _release(claim)
            raise
        timing = Timing(plan.model, call.accepted_us)
        answer = Answer(call.request_id, len(plan.requests), sink, timing, hold)
        if plan.detached and not plan.stream:
            ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # Whether its client waits for the acceptance or not.
            self.unattended.spawn(self._run_detached(accepted, answer, claim, ready))
            await ready
            if answer.error is not None:
                raise answer.error
            return json_response(sink.body if isinstance(sink, FormBody) else b"", call.request_id, headers=fields)
        try:
            await self._accept(accepted, answer, claim)
            if plan.detached and isinstance(sink, FormStream) and not answer.done.done():
                sink.accept(clock.monotonic())
            await self._wait(answer, self._timeout_of(plan))
        except asyncio.CancelledError:
            self._streams.leave(answer, CLIENT_GONE)
            self._settle(accepted, answer)
            if plan.stored is not None and (plan.detached or answer.hold > 0):
                self.unattended.spawn(self.unattended.keep(key, answer.first, reply))
            raise
        self._settle(accepted, answer)
        if plan.stored is not None:
            await self.unattended.store(key, answer)
        return response_of(answer, call, fields)

    async def _accept(self, accepted: _Accepted, answer: Answer, claim: Claim | None) -> None:
        """Publish; how that failed, if it did, is in ``answer``."""
        call, plan = accepted.call, accepted.plan
        messages = self._messages(accepted, answer)
        self._streams.add(answer)
        self._attendance.arrive(answer)
        try:
            if plan.stored is not None:
                await self._stored.create(accepted.key, answer.first, call.accepted_us, plan, accepted.reply)
            headers = accepted.trace.headers()
            if len(messages) == 1:
                await self._publisher.publish(messages[0], headers)
            else:
                await asyncio.gather(*(self._publisher.publish(one, headers) for one in messages))
        except InferBusError as error:
            # It may be stored all the same (only its ack was lost): a retry under the same key joins it then, else the
            # generation is cancelled.
            unknown = error.reason == "bus_unavailable"
            self._streams.fail(answer, error, cancel=None if claim is not None and unknown else "not_accepted")
            if not unknown:
                await _release(claim)
                if plan.stored is not None:
                    self.unattended.spawn(self._forget(accepted.key, answer.first))

    async def _wait(self, answer: Answer, timeout: timedelta) -> None:
        """To the end of the answer; how it ended is in it. Raises CancelledError if the client left."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await answer.done
        except TimeoutError:
            self._streams.fail(answer, timed_out(timeout), cancel="deadline")

    def _messages(self, accepted: _Accepted, answer: Answer) -> list[GenerateRequest]:
        call, key, plan = accepted.call, accepted.key, accepted.plan
        expire_us = call.accepted_us + self._timeout_of(plan) // timedelta(microseconds=1)
        return messages_of(plan, key, answer.first, self._edge, call.accepted_us, expire_us, accepted.reply)

    # --- a call that comes again ------------------------------------------------------------------------------------

    async def _again(
        self, call: Call, key: KeyRecord, plan: Plan, model: ModelRecord, claim: Claim, trace: Span
    ) -> web.StreamResponse | None:
        """The answer that this idempotency key already has, running or ended; None if it must be made anew."""
        record = claim.record
        first = record.request_id
        accepted_us = record.accepted_time.ToMicroseconds()

        def publish_again() -> None:
            """Who was first may have died between its claim and its publish. The same ids: stored once, as long as the
            broker remembers them."""
            if clock.now_us() - accepted_us > _REMEMBERED_US:
                return
            expire_us = accepted_us + self._timeout_of(plan) // timedelta(microseconds=1)
            hold = self._holds.of(call, key, self._settings.idempotent_hold.total_seconds())
            reply = orjson.dumps(reply_of(plan, model, accepted_us, hold))
            for one in messages_of(plan, key, first, record.edge, accepted_us, expire_us, reply):
                self._publisher.publish_then(one, _log_outcome, trace.headers())

        call = replace(call, request_id=first)
        if plan.detached and plan.stored is not None and not plan.stream:
            body = await self.unattended.snapshot(key, first, absent=publish_again)
            if body is None:  # deleted meanwhile, or its record was never made
                return None
            return json_response(body, first)
        answer = await self._returning.find(call, key, stream=plan.stream, absent=publish_again, edge=record.edge)
        if answer is None:
            return None
        if answer.done.done() and answer.error is not None and answer.error.error_class in _WORTH_A_RETRY:
            return None
        return await self._returning.deliver(answer, call)

    @contextmanager
    def counted(self, key: KeyRecord) -> Iterator[Mapping[str, str]]:
        """A call that generates nothing but is work all the same: it counts as a request of the key's limits. Gives
        headers of its answer. Raises RateLimitError."""
        ticket = self._limits.admit(key, self._auth.project_of(key), self._auth.tenant_of(key), 0)
        try:
            yield ticket.headers()
        finally:
            ticket.settle(0)

    async def resume(
        self, call: Call, key: KeyRecord, first: bytes, after: int, *, stream: bool = True, wait: bool = False
    ) -> web.StreamResponse:
        """The answer of an earlier call, without the events up to number ``after``; with ``wait`` also one that is
        known to exist and has not begun. Raises InferBusError NOT_FOUND for one that the log does not have any more, or
        that is not of the caller's project."""
        self._admit()
        self._holds.asked(call)  # said wrongly it is refused, and not in the middle of the log
        call = replace(call, request_id=first)
        absent = _wait if wait else None
        answer = await self._returning.find(call, key, stream=stream, after=after, absent=absent)
        if answer is None:
            raise not_found()
        return await self._returning.deliver(answer, call)

    async def snapshot(self, key: KeyRecord, first: bytes, wait: float = 0.0) -> bytes | None:
        """See :meth:`Unattended.snapshot`."""
        return await self.unattended.snapshot(key, first, wait)

    def cancel(self, first: bytes, choices: int = 1) -> None:
        """End the generations of a request, whoever is attached to it."""
        self._attendance.cancel(tuple(choice_id(first, choice) for choice in range(choices)), "client_cancelled")

    # --- parts ------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        if self.draining:
            raise unavailable("draining", "This server is stopping; retry.", retry_after=_RETRY_AFTER)
        running = len(self._streams) + sum(len(one) for one in self._following.streams())
        if running >= self._settings.max_active:
            raise unavailable("edge_full", "The server is overloaded; retry later.", retry_after=_RETRY_AFTER)

    def _timeout_of(self, plan: Plan) -> timedelta:
        return self._settings.background_timeout if plan.detached else self._settings.request_timeout

    async def _forget(self, key: KeyRecord, first: bytes) -> None:
        await self._stored.delete(key, first)

    def _settle(self, accepted: _Accepted, answer: Answer) -> None:
        usage = answer.usage
        if usage is None:
            accepted.ticket.settle(accepted.plan.input_estimate + answer.output_tokens if answer.output_tokens else 0)
        else:
            accepted.ticket.settle(usage.input_tokens + usage.output_tokens)
            facts = {
                "gen_ai.usage.input_tokens": usage.input_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
            }
            accepted.trace.set(**facts)
        accepted.trace.end(answer.error)

    async def _run_detached(
        self, accepted: _Accepted, answer: Answer, claim: Claim | None, ready: asyncio.Future[None]
    ) -> None:
        """An answer without a client, from its acceptance to the store. ``ready``: it is accepted, or refused."""
        try:
            await self._accept(accepted, answer, claim)
            if not ready.done():
                ready.set_result(None)
            await self._wait(answer, self._timeout_of(accepted.plan))
        finally:
            self._settle(accepted, answer)
            if not ready.done():
                ready.cancel()
        await self.unattended.store(accepted.key, answer)

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
        """Take no new requests; returns when the present ones have ended. Those that run without a client are not
        waited for: whoever asks for them finds them on the log."""
        self.draining = True
        for answer in self._streams.answers():
            if is_detached(answer.first) and isinstance(answer.sink, Body):
                self._streams.release(answer)
        await self._streams.idle()
        for streams in self._following.streams():
            for answer in streams.answers():
                if not answer.attended:
                    streams.release(answer)
            await streams.idle()

    def end_all(self) -> None:
        """The drain's deadline is over: end what is left, so that every client knows. Detached ones run on."""
        self.draining = True
        error = unavailable("draining", "This server has stopped; retry.", retry_after=_RETRY_AFTER)
        self._streams.fail_all(error, EDGE_STOPPED)
        for streams in self._following.streams():
            streams.fail_all(error, None)
        self.unattended.stop()


def _wait() -> None:
    """It is queued: its beginning will be on the log."""


async def _release(claim: Claim | None) -> None:
    if claim is not None and claim.mine:
        await claim.release()


def _log_outcome(outcome: object) -> None:
    if isinstance(outcome, InferBusError):
        log.warning("a request was not published again", extra={"reason": outcome.reason})
