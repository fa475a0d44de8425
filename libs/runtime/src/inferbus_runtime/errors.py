"""One error for all rooms: what failed, classed once, nearest the cause.

InferBusError
    error_class   closed set (proto ``ErrorClass``): readers decide status codes, retries and health from it
    reason        stable, low-cardinality, snake_case: safe as a metric label
    message       public: says what to do; may be shown to the tenant
    diagnostic    operator's detail: goes to the log of this process and nowhere else
"""

from datetime import timedelta

from inferbus.common.v1.error_pb2 import Error, ErrorClass


class InferBusError(Exception):
    """A failure that a caller may see. ``str()`` gives reason and diagnostic, for logs only."""

    def __init__(
        self,
        error_class: ErrorClass.ValueType,
        reason: str,
        message: str,
        *,
        param: str = "",
        retry_after: timedelta | None = None,
        diagnostic: str = "",
    ) -> None:
        super().__init__(f"{reason}: {diagnostic or message}")
        self.error_class = error_class
        self.reason = reason
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.diagnostic = diagnostic

    def to_proto(self) -> Error:
        error = Error(error_class=self.error_class, reason=self.reason, message=self.message, param=self.param)
        if self.retry_after is not None:
            error.retry_after.FromTimedelta(self.retry_after)
        return error

    @classmethod
    def from_proto(cls, error: Error) -> "InferBusError":
        retry_after = error.retry_after.ToTimedelta() if error.HasField("retry_after") else None
        return cls(error.error_class, error.reason, error.message, param=error.param, retry_after=retry_after)


def invalid(message: str, *, param: str = "", reason: str = "invalid_value") -> InferBusError:
    """Bad input: ``message`` says what to send instead."""
    return InferBusError(ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, reason, message, param=param)


def unavailable(reason: str, message: str, *, retry_after: timedelta, diagnostic: str = "") -> InferBusError:
    """A part of the platform is away; the caller may come back after ``retry_after``."""
    return InferBusError(
        ErrorClass.ERROR_CLASS_UNAVAILABLE, reason, message, retry_after=retry_after, diagnostic=diagnostic
    )
