"""InferBusError on gRPC and back: a status code, a public message, and google.rpc details (AIP-193).

The reason travels as ErrorInfo's ``reason`` in upper case, the time to wait as RetryInfo. Diagnostics do not travel.
"""

from datetime import timedelta
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from inferbus.common.v1.error_pb2 import ErrorClass

from inferbus_runtime.errors import InferBusError

DOMAIN = "inferbus"
DETAILS_KEY = "grpc-status-details-bin"

CODES: dict[ErrorClass.ValueType, grpc.StatusCode] = {
    ErrorClass.ERROR_CLASS_INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorClass.ERROR_CLASS_UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorClass.ERROR_CLASS_PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorClass.ERROR_CLASS_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorClass.ERROR_CLASS_CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorClass.ERROR_CLASS_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorClass.ERROR_CLASS_CANCELLED: grpc.StatusCode.CANCELLED,
    ErrorClass.ERROR_CLASS_INTERNAL: grpc.StatusCode.INTERNAL,
}
CLASSES: dict[grpc.StatusCode, ErrorClass.ValueType] = {
    **{code: error_class for error_class, code in CODES.items()},
    grpc.StatusCode.ALREADY_EXISTS: ErrorClass.ERROR_CLASS_CONFLICT,
    grpc.StatusCode.ABORTED: ErrorClass.ERROR_CLASS_CONFLICT,
    grpc.StatusCode.OUT_OF_RANGE: ErrorClass.ERROR_CLASS_INVALID_ARGUMENT,
}
# For a status without our details: made by gRPC itself (no connection, no answer in time) or by a stranger.
PUBLIC_MESSAGES: dict[ErrorClass.ValueType, str] = {
    ErrorClass.ERROR_CLASS_UNAVAILABLE: "A part of the platform is not reachable at the moment. Try again shortly.",
    ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED: "A part of the platform did not answer in time. Try again shortly.",
    ErrorClass.ERROR_CLASS_CANCELLED: "The call was cancelled.",
}
RETRY_AFTER = timedelta(seconds=1)


def status_of(error: InferBusError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """``error`` as gRPC code, message and trailing metadata."""
    code = CODES.get(error.error_class, grpc.StatusCode.INTERNAL)
    info = error_details_pb2.ErrorInfo(reason=error.reason.upper(), domain=DOMAIN)
    if error.param:
        info.metadata["param"] = error.param
    status = status_pb2.Status(code=code.value[0], message=error.message, details=[_packed(info)])
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        status.details.append(_packed(retry))
    return code, error.message, ((DETAILS_KEY, status.SerializeToString()),)


def error_of(rpc_error: grpc.aio.AioRpcError) -> InferBusError:
    """The error behind a failed call: as it was raised on the other side, or classed by the status code alone."""
    error_class = CLASSES.get(rpc_error.code(), ErrorClass.ERROR_CLASS_INTERNAL)
    info, retry_after = _details(rpc_error)
    if info is not None:
        return InferBusError(
            error_class,
            info.reason.lower(),
            rpc_error.details() or "",
            param=info.metadata.get("param", ""),
            retry_after=retry_after,
        )
    if retry_after is None and error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE:
        retry_after = RETRY_AFTER
    return InferBusError(
        error_class,
        f"rpc_{rpc_error.code().name.lower()}",
        PUBLIC_MESSAGES.get(error_class, "A part of the platform failed. Try again; tell the operator if it stays."),
        retry_after=retry_after,
        diagnostic=rpc_error.details() or "",
    )


def _details(rpc_error: Any) -> tuple[error_details_pb2.ErrorInfo | None, timedelta | None]:
    found: error_details_pb2.ErrorInfo | None = None
    retry_after: timedelta | None = None
    for key, value in rpc_error.trailing_metadata() or ():
        if key != DETAILS_KEY:
            continue
        try:
            details = status_pb2.Status.FromString(value).details
            for detail in details:
                info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    found = info
                elif detail.Unpack(retry):
                    retry_after = retry.retry_delay.ToTimedelta()
        except DecodeError:
            return None, None  # not ours: the code alone has to do
    return found, retry_after


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
