"""A call under an idempotency key that was used before: it gets the answer of the first one, running or ended."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.publish import Outcome, Publisher
from inferbus_dialect.acceptance import messages_of, reply_of
from inferbus_dialect.errors import is_lost
from inferbus_dialect.plan import Plan
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.telemetry import Span

from inferbus_edge.admission import Admission, InferenceSettings, used
from inferbus_edge.holding import Holds
from inferbus_edge.idempotency import Claim
from inferbus_edge.limits import Ticket
from inferbus_edge.returning import Returning
from inferbus_edge.server import Asked, json_response
from inferbus_edge.stored import Stored
from inferbus_edge.streaming import Answer
from inferbus_edge.unattended import Unattended

log = logging.getLogger(__name__)

# Less than the broker's memory of message ids.
_REMEMBERED_US = 9 * 60_000_000
# A retry of what ended so may succeed; anything else is the answer, also to a retry.
_WORTH_A_RETRY = (
    ErrorClass.ERROR_CLASS_UNAVAILABLE,
    ErrorClass.ERROR_CLASS_CANCELLED,
    ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
    ErrorClass.ERROR_CLASS_INTERNAL,
)


class _First:
    """The first call under a key, as a retry knows it; and what the retry does if it is not on the log: who made it may
    have died between its claim and its publish."""

    def __init__(
        self, retries: "Retries", call: Asked, key: KeyRecord, plan: Plan, model: ModelRecord, claim: Claim, trace: Span
    ) -> None:
        self.request_id = claim.record.request_id
        self.edge = claim.record.edge
        self.accepted_us = claim.record.accepted_time.ToMicroseconds()
        self.ticket: Ticket | None = None
        self.refused: asyncio.Future[InferBusError | None] = asyncio.get_running_loop().create_future()
        """Why it was not published again; None: who was first took it back, and it must be made anew."""
        self._claim = claim
        self._publishing: asyncio.Task[None] | None = None
        self._retries = retries
        self._key, self._plan, self._trace = key, plan, trace
        hold = retries.holds.of(call, key, retries.settings.idempotent_hold.total_seconds())
        self.reply = orjson.dumps(reply_of(plan, model, self.accepted_us, hold))

    @property
    def recent(self) -> bool:
        """Published again under its own ids it is stored once."""
        return clock.now_us() - self.accepted_us <= _REMEMBERED_US

    def publish(self) -> bool:
        """False if it is too late for that. Raises RateLimitError."""
        if not self.recent:
            return False
        self.ticket = self.ticket or self._retries.admission.ticket(self._key, self._plan)
        self._publishing = self._retries.unattended.spawn(self._publish())
        return True

    async def taken_back(self) -> bool:
        if self._publishing is not None:
            await self._publishing
        return self.refused.done() and self.refused.result() is None

    async def _publish(self) -> None:
        try:
            confirmed = await self._claim.confirm()
        except InferBusError as error:
            self._published(error)
            return
        if not confirmed:
            if not self.refused.done():
                self.refused.set_result(None)
            return
        expire_us = self.accepted_us + self._retries.settings.timeout_of(self._plan) // timedelta(microseconds=1)
        messages = messages_of(
            self._plan, self._key, self.request_id, self.edge, self.accepted_us, expire_us, self.reply
        )
        for one in messages:
            self._retries.publisher.publish_then(one, self._published, self._trace.headers())

    def _published(self, outcome: Outcome) -> None:
        if isinstance(outcome, InferBusError) and not self.refused.done():
            log.warning("a request was not published again", extra={"reason": outcome.reason})
            self.refused.set_result(outcome)


class Retries:
    def __init__(
        self,
        admission: Admission,
        holds: Holds,
        returning: Returning,
        publisher: Publisher,
        stored: Stored,
        unattended: Unattended,
        settings: InferenceSettings,
    ) -> None:
        self.admission = admission
        self.holds = holds
        self.publisher = publisher
        self.settings = settings
        self._returning = returning
        self._stored = stored
        self.unattended = unattended

    async def answer(
        self, call: Asked, key: KeyRecord, plan: Plan, model: ModelRecord, claim: Claim, trace: Span
    ) -> web.StreamResponse | None:
        """None if it must be made anew. Raises InferBusError."""
        self.admission.count(key)
        first = _First(self, call, key, plan, model, claim, trace)
        call = replace(call, request_id=first.request_id)
        if plan.detached and plan.stored is not None and not plan.stream:
            return await self._snapshot(key, plan, first)
        find = self._returning.find(call, key, stream=plan.stream, absent=first.publish, edge=first.edge)
        answer: Answer | None = None
        try:
            answer = await _unless(first.refused, find)
        finally:
            if first.ticket is not None:
                _settle_with(first.ticket, plan, answer)
        if answer is None:
            return None
        if answer.done.done() and answer.error is not None and _is_worth_a_retry(answer.error):
            return None
        return await self._returning.deliver(answer, call)

    async def _snapshot(self, key: KeyRecord, plan: Plan, first: _First) -> web.StreamResponse | None:
        """Of one that runs in the background."""
        body = await self.unattended.snapshot(key, first.request_id, absent=first.publish)
        if body is None and first.recent:
            # Who was first has not stored it yet, or never will: then it is this call's to do.
            await self._stored.create(key, first.request_id, first.accepted_us, plan, first.reply)
            body = await self.unattended.snapshot(key, first.request_id, absent=first.publish)
        if await first.taken_back():
            await self._stored.delete(key, first.request_id)
            if first.ticket is not None:
                first.ticket.settle(0)
            return None
        if first.ticket is not None:
            self.unattended.spawn(self._follow(key, plan, first, first.ticket))
        return None if body is None else json_response(body, first.request_id)

    async def _follow(self, key: KeyRecord, plan: Plan, first: _First, ticket: Ticket) -> None:
        """To the end of what was published again and has no client."""
        try:
            answer = await self.unattended.keep(key, first.request_id, first.reply)
        except BaseException:
            ticket.settle(plan.input_estimate)
            raise
        _settle_with(ticket, plan, answer)


def _settle_with(ticket: Ticket, plan: Plan, answer: Answer | None) -> None:
    """As soon as what it has used is known."""
    if answer is None:
        ticket.settle(0)
    elif answer.done.done():
        ticket.settle(used(plan, answer))
    else:
        answer.settle = partial(_settle_with, ticket, plan, answer)


def _is_worth_a_retry(error: InferBusError) -> bool:
    return error.error_class in _WORTH_A_RETRY and not is_lost(error)


async def _unless(
    refused: asyncio.Future[InferBusError | None], find: Coroutine[Any, Any, Answer | None]
) -> Answer | None:
    """What ``find`` gives, unless ``refused`` is known first: then that is raised, or None given."""
    looking = asyncio.ensure_future(find)
    try:
        await asyncio.wait((looking, refused), return_when=asyncio.FIRST_COMPLETED)
        if not looking.done():
            error = refused.result()
            if error is None:
                return None
            raise error
        return looking.result()
    finally:
        looking.cancel()
