"""The price book over gRPC, and re-rating. Who may ask is the edge's business."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import prices_pb2, prices_pb2_grpc
from inferbus.meter.v1.prices_pb2 import (
    CreatePriceRequest,
    CreatePriceResponse,
    DeletePriceRequest,
    DeletePriceResponse,
    GetPriceRequest,
    GetPriceResponse,
    GetRateRequest,
    GetRateResponse,
    ListPricesRequest,
    ListPricesResponse,
    RerateRequest,
    RerateResponse,
)
from inferbus_rating import Scope
from inferbus_rating.book import price_of
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_meter.clickhouse import STORE_ERRORS, Store, store_unavailable
from inferbus_meter.core.prices import checked, shown, shown_rate
from inferbus_meter.prices import Prices
from inferbus_meter.rerate import RerateRange, Reratings

SERVICE_NAME = "inferbus.meter.v1.PriceService"
_REASON = "re-rating"
_NAMING = """SELECT count() FROM charges
WHERE rate_version = {version:String} OR charge_rate_version = {version:String}"""
_MAX_REASON = 200


class PricesServicer(prices_pb2_grpc.PriceServiceServicer):
    def __init__(self, prices: Prices, reratings: Reratings, store: Store) -> None:
        self._prices = prices
        self._reratings = reratings
        self._store = store

    async def ListPrices(  # noqa: N802 - gRPC's name
        self, request: ListPricesRequest, context: "grpc.aio.ServicerContext[ListPricesRequest, ListPricesResponse]"
    ) -> ListPricesResponse:
        book, now_us = self._prices.book, clock.now_us()
        wanted = [
            price
            for price in self._prices.by_name.values()
            if not request.tenant_id or price.scope.tenant_id in ("", request.tenant_id)
        ]
        wanted.sort(key=lambda price: (price.effective_us, price.record.rate_version))
        return ListPricesResponse(prices=[shown(price, book, now_us) for price in wanted])

    async def GetPrice(  # noqa: N802
        self, request: GetPriceRequest, context: "grpc.aio.ServicerContext[GetPriceRequest, GetPriceResponse]"
    ) -> GetPriceResponse:
        book = self._prices.book
        found = book.named(request.rate_version)
        if not found:
            raise _not_found()
        return GetPriceResponse(price=shown(found[-1], book, clock.now_us()))

    async def CreatePrice(  # noqa: N802
        self, request: CreatePriceRequest, context: "grpc.aio.ServicerContext[CreatePriceRequest, CreatePriceResponse]"
    ) -> CreatePriceResponse:
        now_us = clock.now_us()
        record = checked(request.record, now_us)
        if self._prices.names_of(record.rate_version):
            raise _exists()
        if request.validate_only:
            return CreatePriceResponse(price=prices_pb2.Price(record=record))
        try:
            await self._prices.create(record)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise
            raise _exists() from error
        return CreatePriceResponse(price=shown(price_of(record), self._prices.book, now_us))

    async def DeletePrice(  # noqa: N802
        self, request: DeletePriceRequest, context: "grpc.aio.ServicerContext[DeletePriceRequest, DeletePriceResponse]"
    ) -> DeletePriceResponse:
        names = self._prices.names_of(request.rate_version)
        if not names:
            raise _not_found()
        prices = self._prices.book.named(request.rate_version)
        if not request.force and any(price.effective_us <= clock.now_us() for price in prices):
            raise InferBusError(
                ErrorClass.ERROR_CLASS_CONFLICT,
                "price_in_force",
                "This price has been in force, and charges name it. Make a later one instead, or force it.",
                param="rate_version",
            )
        charges = await self._charges(request.rate_version) if request.force else 0
        for name in () if request.validate_only else names:
            await self._prices.delete(name)
        return DeletePriceResponse(charges=charges)

    async def GetRate(  # noqa: N802
        self, request: GetRateRequest, context: "grpc.aio.ServicerContext[GetRateRequest, GetRateResponse]"
    ) -> GetRateResponse:
        book, now_us = self._prices.book, clock.now_us()
        accepted_us = clock.unix_us(request.accepted_time) if request.HasField("accepted_time") else now_us
        scope = Scope(request.tenant_id, request.project_id, request.model, request.revision)
        found = list(book.prices_at(scope, accepted_us))
        answer = GetRateResponse(prices=[shown(price, book, now_us) for price in found])
        if found:
            answer.rate.CopyFrom(shown_rate(found[0].rate(request.operation, request.priority_class)))
        return answer

    async def Rerate(  # noqa: N802
        self, request: RerateRequest, context: "grpc.aio.ServicerContext[RerateRequest, RerateResponse]"
    ) -> AsyncIterator[RerateResponse]:
        if not request.HasField("start_time"):
            raise invalid("Say from when on: charges are corrected only where it was asked for.", param="start_time")
        if len(request.reason) > _MAX_REASON:
            raise invalid(f"'reason' has {_MAX_REASON} characters at most.", param="reason")
        start = clock.unix_us(request.start_time)
        end = clock.unix_us(request.end_time) if request.HasField("end_time") else clock.now_us()
        if start >= end:
            raise invalid("end_time must be after start_time.", param="end_time")
        wanted = RerateRange(start, end, request.tenant_id)
        reason = request.reason or _REASON
        faults = self._prices.book.faults
        if request.apply and faults:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_CONFLICT,
                "price_unreadable",
                f"The price '{faults[0][0].rate_version}' cannot be read ({faults[0][1]}), and charges that it is for "
                "would be taken for others; mend or delete it first.",
            )
        run = self._reratings.run(wanted, self._prices.book, apply=request.apply, reason=reason)
        async with aclosing(run) as events:
            async for event in events:
                yield event

    async def _charges(self, rate_version: str) -> int:
        """How many name it. Raises InferBusError UNAVAILABLE."""
        try:
            ((count,),) = await self._store.rows(_NAMING, {"version": rate_version})
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        return int(count)


def _not_found() -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND, "price_not_found", "There is no such price.", param="rate_version"
    )


def _exists() -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_CONFLICT,
        "price_exists",
        "There is a price of that version. A price is never changed: give the new one a version of its own.",
        param="rate_version",
    )
