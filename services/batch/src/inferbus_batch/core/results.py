"""One line of a batch's output, or of its file of errors, in the form that OpenAI publishes for them."""

import orjson
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_dialect.errors import error_object, http_status
from inferbus_runtime.errors import InferBusError

EXPIRED = InferBusError(
    ErrorClass.ERROR_CLASS_UNAVAILABLE, "batch_expired",
    "This request could not be executed before the completion window expired.",
)  # fmt: skip
CANCELLED = InferBusError(
    ErrorClass.ERROR_CLASS_CANCELLED, "batch_cancelled", "The batch was cancelled before this request had its result."
)
# Ends of the batch, and not of the request.
_OF_BATCH = frozenset({EXPIRED.reason, CANCELLED.reason})


def answered(custom_id: str, name: str, body: bytes) -> bytes:
    """``name``: of the request, in hex; ``body``: JSON of its answer. With its line end."""
    head = orjson.dumps({"id": f"batch_req_{name}", "custom_id": custom_id})
    return b'%s,"response":{"status_code":200,"request_id":"%s","body":%s},"error":null}\n' % (
        head[:-1], name.encode(), body,
    )  # fmt: skip


def failed(custom_id: str, name: str, error: InferBusError) -> bytes:
    """As :func:`answered`, for the file of errors."""
    said: dict[str, object] = {"id": f"batch_req_{name}", "custom_id": custom_id, "response": None, "error": None}
    if error.reason in _OF_BATCH:
        said["error"] = {"code": error.reason, "message": error.message}
    else:
        said["response"] = {"status_code": http_status(error), "request_id": name, "body": error_object(error)}
    return orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)
