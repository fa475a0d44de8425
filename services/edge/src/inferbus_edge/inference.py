"""From a parsed call of any API to its answer: accepted once, answered from the log, found again after a break."""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from functools import partial

import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_budgets.budgets import Budgets
from inferbus_bus.publish import Publisher
from inferbus_contracts.ids import choice_id, detached, is_detached, uuid_text
from inferbus_dialect.acceptance import reply_of
from inferbus_dialect.capture import capture_rate
from inferbus_dialect.labels import TAGS_HEADER, tags_of
from inferbus_dialect.plan import Plan
from inferbus_runtime import clock
from inferbus_runtime.errors import unavailable
from inferbus_runtime.telemetry import Span, span
from opentelemetry.trace import SpanKind

from inferbus_edge.accepting import Acceptance, Accepted
from inferbus_edge.admission import Admission, InferenceSettings, used
from inferbus_edge.attendance import EDGE_STOPPED, Attendance
from inferbus_edge.auth import Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.deliveries import DeliveryLog
from inferbus_edge.following import Following
from inferbus_edge.holding import Holds
from inferbus_edge.idempotency import HEADER, Claim, Claims, fingerprint_of
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
        budgets: Budgets,
        claims: Claims,
        stored: Stored,
        unattended: Unattended,
        deliveries: DeliveryLog,
        settings: InferenceSettings,
    ) -> None:
        self._auth = auth
        self._catalogue = catalogue
        self._streams = streams
        self._following = following
        self._attendance = attendance
        self._claims = claims
        self._stored = stored
        self._settings = settings
        self._holds = Holds(auth, settings.max_hold)
        self._deliveries = deliveries
        self._returning = Returning(
            following, self._holds, settings.background_timeout, settings.max_unsent_bytes, deliveries
        )
        self._unattended = unattended
        self._unread = Unread()
        self.admission = Admission(auth, limits, budgets, self._running, settings.max_active)
        self._acceptance = Acceptance(
            edge=edge, publisher=publisher, streams=streams, attendance=attendance, admission=self.admission,
            stored=stored, unattended=unattended, settings=settings,
        )  # fmt: skip
        self._retries = Retries(self.admission, self._holds, self._returning, publisher, stored, unattended, settings)

    # --- a new call -------------------------------------------------------------------------------------------------

    async def answer(self, call: Asked, key: KeyRecord, plan: Plan, body: bytes) -> web.StreamResponse:
        """The answer; InferBusError as long as nothing of it was sent. ``body``: as it came, for idempotency."""
        model = self._catalogue.require(key, plan)
        self.admission.room()
        self._unread.check(key.tenant_id)
        self._holds.asked(call)  # said wrongly it is refused before anything is claimed
        if TAGS_HEADER in call.said:
            plan = replace(plan, tags=tags_of(call.said[TAGS_HEADER]))
        rate = capture_rate(self._auth.tenant_of(key).capture, key.project_id, call.said)
        if rate:
            plan = replace(plan, capture_rate=rate)
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
                ticket = await self._admit(call, key, plan, model)
                response = await self._begin(call, key, plan, model, ticket, trace)
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
            ticket = await self._admit(call, key, plan, model)
            mine = self._claims.new(key, name, fingerprint, call.request_id, call.accepted_us, claim)
            try:
                made = await mine.make()
            except BaseException:
                await self._acceptance.withdraw(call.request_id, plan, ticket, mine)  # it may stand all the same
                raise
            if made:
                return await self._begin(call, key, plan, model, ticket, trace, mine)
            await self._acceptance.withdraw(call.request_id, plan, ticket, None)

    async def _admit(self, call: Asked, key: KeyRecord, plan: Plan, model: ModelRecord) -> Ticket:
        return await self.admission.admit(call.request_id, key, plan, model, call.accepted_us)

    async def _begin(
        self,
        call: Asked,
        key: KeyRecord,
        plan: Plan,
        model: ModelRecord,
        ticket: Ticket,
        trace: Span,
        claim: Claim | None = None,
    ) -> web.StreamResponse:
        """With a ``claim`` a retry may join it. Settles ``ticket``, at once or when its generations have ended."""
        fields = {STREAM_HEADER: uuid_text(call.request_id), **ticket.headers(), **plan.headers}
        try:
            longer = 0.0 if claim is None else self._settings.idempotent_hold.total_seconds()
            hold = self._holds.of(call, key, longer)
            described = reply_of(plan, model, call.accepted_us, hold)
            accepted = Accepted(call, key, plan, orjson.dumps(described), ticket, fields, trace, claim)
            sink = sink_of(call, described, fields, self._settings.max_unsent_bytes, stream=plan.stream)
        except BaseException:
            await self._acceptance.withdraw(call.request_id, plan, ticket, claim)
            raise
        answer = Answer(call.request_id, len(plan.requests), sink, Timing(plan.model, call.accepted_us), hold)
        timeout = self._settings.timeout_of(plan)
        answer.expires = clock.monotonic() + timeout.total_seconds()
        answer.settle = partial(_settle, accepted, answer)
        self._deliveries.follow(answer, key, stored=plan.detached and not plan.stream)
        if plan.detached and not plan.stream:
            ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            # Whether its client waits for the acceptance or not.
            self._unattended.spawn(self._run_detached(accepted, answer, ready))
            await ready
            if answer.error is not None:
                raise answer.error
            return json_response(sink.body if isinstance(sink, FormBody) else b"", call.request_id, headers=fields)
        try:
            await self._acceptance.accept(accepted, answer)
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

    async def _keep(self, accepted: Accepted, answer: Answer) -> None:
        """An answer that is to be stored is; a call that was refused leaves nothing."""
        if accepted.plan.stored is None:
            return
        error = answer.error
        refused = error is not None and error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
        if refused and not accepted.plan.detached:
            await self._stored.delete(accepted.key, answer.first)
        else:
            await self._unattended.store(accepted.key, answer)

    async def _wait(self, answer: Answer, timeout: timedelta) -> None:
        """To the end of the answer; how it ended is in it. Raises CancelledError if the client left."""
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                await answer.done
        except TimeoutError:
            self._streams.fail(answer, timed_out(timeout), cancel="deadline")

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

    async def _run_detached(self, accepted: Accepted, answer: Answer, ready: asyncio.Future[None]) -> None:
        """An answer without a client, from its acceptance to the store. ``ready``: it is accepted, or refused."""
        self._unattended.offer(answer)
        try:
            await self._acceptance.accept(accepted, answer)
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


def _settle(accepted: Accepted, answer: Answer) -> None:
    """Its generations have ended, or are wanted by nobody."""
    accepted.ticket.settle(used(accepted.plan, answer))
    if answer.usage is not None:
        facts = {
            "gen_ai.usage.input_tokens": answer.usage.input_tokens,
            "gen_ai.usage.output_tokens": answer.usage.output_tokens,
        }
        accepted.trace.set(**facts)
    accepted.trace.end(answer.error)
