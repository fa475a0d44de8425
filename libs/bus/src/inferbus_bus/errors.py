"""What JetStream answers, as errors that a caller can act on."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, unavailable

RETRY_AFTER = timedelta(seconds=1)
# https://github.com/nats-io/nats-server/blob/main/server/errors.json
CONSUMER_NOT_FOUND = 10014
STREAM_NOT_FOUND = 10059
WRONG_LAST_SEQUENCE = 10071
_FULL = frozenset((10023, 10047, 10077))  # insufficient resources, storage resources exceeded, maximum bytes/messages


class StreamApiError(Exception):
    """JetStream's own refusal, with its ``code`` (HTTP-like) and ``err_code``."""

    def __init__(self, error: Mapping[str, Any], subject: str) -> None:
        super().__init__(f"{subject}: {error.get('description')} ({error.get('err_code')})")
        self.code = int(error.get("code", 0))
        self.err_code = int(error.get("err_code", 0))


def publish_error(error: Mapping[str, Any]) -> InferBusError:
    """The error of a refused publish."""
    detail = f"JetStream refused: {error.get('description')} ({error.get('err_code')})"
    if error.get("err_code") == WRONG_LAST_SEQUENCE:
        return InferBusError(
            ErrorClass.ERROR_CLASS_CONFLICT, "changed_meanwhile", "It was changed meanwhile; read it again.",
            diagnostic=detail,
        )  # fmt: skip
    if error.get("err_code") in _FULL:
        return InferBusError(
            ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, "stream_full", "The service is overloaded; retry later.",
            retry_after=RETRY_AFTER, diagnostic=detail,
        )  # fmt: skip
    return bus_unavailable(detail)


def bus_unavailable(diagnostic: str) -> InferBusError:
    return unavailable(
        "bus_unavailable", "The service is restarting; retry.", retry_after=RETRY_AFTER, diagnostic=diagnostic
    )


class NotSentError(InferBusError):
    """UNAVAILABLE ``bus_unavailable``, and what was to be published is certainly not stored."""

    def __init__(self, diagnostic: str) -> None:
        known = bus_unavailable(diagnostic)
        super().__init__(
            known.error_class, known.reason, known.message, retry_after=known.retry_after, diagnostic=diagnostic
        )
