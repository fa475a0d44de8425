"""A call that is admitted is put onto the log: its requests are published, and what was certainly not accepted costs
nothing."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.errors import NotSentError
from inferbus_bus.publish import Publisher
from inferbus_contracts.ids import choice_id, uuid_text
from inferbus_dialect.acceptance import messages_of
from inferbus_dialect.errors import internal
from inferbus_dialect.plan import Plan
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.telemetry import Span

from inferbus_edge.admission import Admission, InferenceSettings
from inferbus_edge.attendance import Attendance
from inferbus_edge.idempotency import Claim
from inferbus_edge.limits import Ticket
from inferbus_edge.server import Asked
from inferbus_edge.stored import Stored
from inferbus_edge.streaming import Answer, Streams
from inferbus_edge.unattended import Unattended

log = logging.getLogger(__name__)
# A client that is refused is told so after that, whether its key is free by then or not.
_PATIENCE_SECONDS = 1.0
# For ten minutes without the broker. What is not taken back then stays reserved, see billing.md.
_TRIES, _AGAIN_SECONDS = 600, 1.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """One call that is being answered. ``fields``: headers of its answer. ``claim``: on its idempotency key, if it has
    one."""

    call: Asked
    key: KeyRecord
    plan: Plan
    reply: bytes
    ticket: Ticket
    fields: Mapping[str, str]
    trace: Span
    claim: Claim | None


class Acceptance:
    """``streams``: what this edge accepted."""

    def __init__(
        self,
        *,
        edge: str,
        publisher: Publisher,
        streams: Streams,
        attendance: Attendance,
        admission: Admission,
        stored: Stored,
        unattended: Unattended,
        settings: InferenceSettings,
    ) -> None:
        self._edge = edge
        self._publisher = publisher
        self._streams = streams
        self._attendance = attendance
        self._admission = admission
        self._stored = stored
        self._unattended = unattended
        self._settings = settings

    async def accept(self, accepted: Accepted, answer: Answer) -> None:
        """Publish; how that failed, if it did, is in ``answer``."""
        plan = accepted.plan
        sent = False
        self._streams.add(answer)
        self._attendance.arrive(answer)
        try:
            messages = self._messages(accepted, answer)
            if plan.stored is not None:
                await self._store(accepted, answer.first)
            sent = True
            await self._publish(accepted, answer, messages)
        except InferBusError as error:
            # It may be on its way all the same (only its ack was lost): a retry under the same key joins it then, else
            # the generation is cancelled.
            unknown = _may_be_accepted(error)
            cancel = None if accepted.claim is not None and unknown else "not_accepted"
            self._streams.fail(answer, error, cancel=cancel)
            if not unknown and plan.stored is not None:
                self._unattended.spawn(self._stored.delete(accepted.key, answer.first))
        except Exception as error:
            self._streams.fail(answer, internal(repr(error)), cancel="not_accepted")
            raise
        finally:
            if not sent:  # also of a client that left meanwhile
                await self.take_back(answer.ids, accepted.claim)

    async def withdraw(self, first: bytes, plan: Plan, ticket: Ticket, claim: Claim | None) -> None:
        """An admitted call was not published, and is not going to be."""
        ticket.settle(0)
        await self.take_back([choice_id(first, choice) for choice in range(len(plan.requests))], claim)

    async def take_back(self, choices: Sequence[bytes], claim: Claim | None) -> None:
        """Choices of an admitted call were certainly not accepted: they cost nothing. Under a key only if no retry may
        publish them yet; who waits for this may leave."""
        if claim is None:
            self._admission.refused(choices)
        else:
            await asyncio.wait([self._unattended.spawn(self._take_back(choices, claim))], timeout=_PATIENCE_SECONDS)

    async def _take_back(self, choices: Sequence[bytes], claim: Claim) -> None:
        for _ in range(_TRIES):
            try:
                if await claim.withdraw():
                    self._admission.refused(choices)
                return
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_UNAVAILABLE:
                    raise
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _publish(self, accepted: Accepted, answer: Answer, messages: list[GenerateRequest]) -> None:
        """Raises InferBusError if one of them was not accepted, or may not have been."""
        headers = accepted.trace.headers()
        outcomes = await asyncio.gather(
            *(self._publisher.publish(one, headers) for one in messages), return_exceptions=True
        )
        failed = [one for one in outcomes if isinstance(one, BaseException)]
        refused = [
            request_id
            for request_id, one in zip(answer.ids, outcomes, strict=True)
            if isinstance(one, InferBusError) and not _may_be_accepted(one)
        ]
        # Where it is not known of one of them, a retry under the key publishes all of them again.
        if refused and (accepted.claim is None or len(refused) == len(failed)):
            await self.take_back(refused, accepted.claim)
        if failed:
            raise failed[0]

    async def _store(self, accepted: Accepted, first: bytes) -> None:
        try:
            await self._stored.create(accepted.key, first, accepted.call.accepted_us, accepted.plan, accepted.reply)
        except InferBusError as error:
            if accepted.plan.store_asked or error.error_class != ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED:
                raise
            log.warning("an answer will not be stored: there is no room", extra={"request_id": uuid_text(first)})

    def _messages(self, accepted: Accepted, answer: Answer) -> list[GenerateRequest]:
        call, key, plan = accepted.call, accepted.key, accepted.plan
        expire_us = call.accepted_us + self._settings.timeout_of(plan) // timedelta(microseconds=1)
        return messages_of(plan, key, answer.first, self._edge, call.accepted_us, expire_us, accepted.reply)


def _may_be_accepted(error: InferBusError) -> bool:
    """Whether what failed so may be on the log all the same: only its acknowledgement was lost."""
    return error.reason == "bus_unavailable" and not isinstance(error, NotSentError)
