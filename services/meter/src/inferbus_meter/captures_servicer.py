"""The gRPC API of captured text."""

from typing import Any

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1 import captures_pb2_grpc
from inferbus.meter.v1.captures_pb2 import (
    GetCaptureRequest,
    GetCaptureResponse,
    ListCapturesRequest,
    ListCapturesResponse,
)
from inferbus_contracts.ids import parse_uuid
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_meter.captures import CaptureQuery, Captures
from inferbus_meter.clickhouse import STORE_ERRORS, store_unavailable

SERVICE_NAME = "inferbus.meter.v1.CaptureService"
_PAGE, _LONGEST_PAGE = 100, 1000


class CaptureServicer(captures_pb2_grpc.CaptureServiceServicer):
    """``captures``: None if the operator named no reader."""

    def __init__(self, captures: Captures | None) -> None:
        self._captures = captures

    async def ListCaptures(  # noqa: N802 - gRPC's name
        self, request: ListCapturesRequest, context: Any
    ) -> ListCapturesResponse:
        if request.page_size > _LONGEST_PAGE:
            raise invalid(f"'page_size' is 1 to {_LONGEST_PAGE}.", param="page_size")
        query = CaptureQuery(
            request.tenant_id,
            request.project_id,
            clock.unix_us(request.start_time) if request.HasField("start_time") else 0,
            clock.unix_us(request.end_time) if request.HasField("end_time") else None,
            request.page_size or _PAGE,
            request.page_token,
        )
        try:
            captures, following = await self._readable().page(query)
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        return ListCapturesResponse(captures=captures, next_page_token=following)

    async def GetCapture(self, request: GetCaptureRequest, context: Any) -> GetCaptureResponse:  # noqa: N802
        try:
            request_id = parse_uuid(request.request_id)
        except ValueError:
            raise _not_found() from None
        try:
            found = await self._readable().get(request_id, request.tenant_id)
        except STORE_ERRORS as error:
            raise store_unavailable(error) from error
        if found is None:
            raise _not_found()
        return GetCaptureResponse(capture=found)

    def _readable(self) -> Captures:
        if self._captures is None:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_CONFLICT,
                "captures_not_configured",
                "This meter may not read captured text: give it INFERBUS_METER_CLICKHOUSE_CAPTURE_READER.",
            )
        return self._captures


def _not_found() -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND, "capture_not_found", "Nothing is kept of the text of such a request."
    )
