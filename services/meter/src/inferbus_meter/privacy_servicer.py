"""The gRPC API of erasures."""

import asyncio
import secrets
from datetime import timedelta
from typing import Any

from inferbus.bus.v1.registry_pb2 import ErasureRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import privacy_pb2_grpc
from inferbus.meter.v1.privacy_pb2 import (
    EraseRequest,
    EraseResponse,
    Erasure,
    ListErasuresRequest,
    ListErasuresResponse,
)
from inferbus_contracts.erasure import end_user_hash
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_meter.clickhouse import RETRY_AFTER, STORE_ERRORS, store_unavailable
from inferbus_meter.core.erasing import scope_of
from inferbus_meter.eraser import ERRORS, Eraser
from inferbus_meter.erasures import Erasures

SERVICE_NAME = "inferbus.meter.v1.PrivacyService"
_TIMEOUT = timedelta(seconds=20)
_LONGEST = timedelta(minutes=10)
_POLL_SECONDS = 0.1
# Of one answer: the newest.
_MOST_LISTED = 1000
# Nothing of a stream can be changed, and its messages hold what belongs to many.
LEFT = (
    "frames on the stream TOKENS, which many requests share: they go 72 h after they were written; until then its own "
    "project can read such an answer again by its id",
    "requests that wait or run now (streams REQUESTS and WORK): they go when they have ended; their text and stored "
    "answers are erased then",
    "token ids in token_events: they are blanked after 4 days, when the log does not hold them any more",
    "replaced parts of ClickHouse's tables: the store removes their files after about 8 minutes",
)


class PrivacyServicer(privacy_pb2_grpc.PrivacyServiceServicer):
    """``eraser``: None if the operator named no user who may change rows."""

    def __init__(self, erasures: Erasures, eraser: Eraser | None) -> None:
        self._erasures = erasures
        self._eraser = eraser

    async def Erase(self, request: EraseRequest, context: Any) -> EraseResponse:  # noqa: N802 - gRPC's name
        if self._eraser is None:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_CONFLICT,
                "erase_not_configured",
                "This meter may only insert: give it INFERBUS_METER_CLICKHOUSE_REPAIR_USER for an erasure.",
            )
        record = _record(request)
        if request.dry_run:
            try:
                found = await self._eraser.count(scope_of(record))
            except STORE_ERRORS as error:
                raise store_unavailable(error) from error
            except ERRORS as error:
                raise unavailable(
                    "bus_unavailable", "The message bus refused; retry.", retry_after=RETRY_AFTER,
                    diagnostic=repr(error),
                ) from error  # fmt: skip
            record.erased.update(found)
            return EraseResponse(erasure=_shown(record), dry_run=True)
        record.erasure_id = f"erasure-{secrets.token_hex(12)}"
        await self._erasures.create(record)
        return EraseResponse(erasure=_shown(await self._done(record, _timeout(request))))

    async def ListErasures(  # noqa: N802 - gRPC's name
        self, request: ListErasuresRequest, context: Any
    ) -> ListErasuresResponse:
        records = [one for one in self._erasures.records.values() if request.tenant_id in ("", one.tenant_id)]
        records.sort(key=lambda one: (one.until_time.ToMicroseconds(), one.erasure_id), reverse=True)
        return ListErasuresResponse(erasures=[_shown(one) for one in records[:_MOST_LISTED]])

    async def _done(self, record: ErasureRecord, timeout: timedelta) -> ErasureRecord:
        """As it stands when it is done, or after ``timeout``: whoever has the lease goes on with it."""
        present = record
        try:
            async with asyncio.timeout(timeout.total_seconds()):
                while not present.HasField("done_time"):
                    await asyncio.sleep(_POLL_SECONDS)
                    present = self._erasures.records.get(record.erasure_id, record)
        except TimeoutError:
            pass
        return present


def _record(request: EraseRequest) -> ErasureRecord:
    if not request.tenant_id:
        raise invalid("Name the tenant.", param="tenant_id")
    if bool(request.end_user) == request.whole_tenant:
        raise invalid("Name an 'end_user', or say 'whole_tenant'.", param="end_user")
    record = ErasureRecord(tenant_id=request.tenant_id, actor_key_id=request.actor_key_id)
    if request.end_user:
        record.end_user_hash = end_user_hash(request.tenant_id, request.end_user)
    record.until_time.FromMicroseconds(clock.now_us())
    return record


def _timeout(request: EraseRequest) -> timedelta:
    asked = request.timeout.ToTimedelta() if request.HasField("timeout") else _TIMEOUT
    return max(timedelta(0), min(asked, _LONGEST))


def _shown(record: ErasureRecord) -> Erasure:
    shown = Erasure(
        erasure_id=record.erasure_id,
        tenant_id=record.tenant_id,
        end_user_hash=record.end_user_hash.hex(),
        until_time=record.until_time,
        actor_key_id=record.actor_key_id,
        erased=record.erased,
        left=LEFT,
    )
    if record.HasField("done_time"):
        shown.done_time.CopyFrom(record.done_time)
    return shown
