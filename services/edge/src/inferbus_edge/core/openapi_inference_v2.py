"""The operations of /v2, the Open Inference Protocol, and what they answer."""

from inferbus_edge.core.inference_v2_request import LENGTH_HEADER
from inferbus_edge.core.openapi_operations import (
    EVERYWHERE,
    HOLD,
    IDEMPOTENCY_KEY,
    INFERENCE,
    TAGS,
    WITH_KEY,
    Operation,
    Parameter,
    in_path,
)
from inferbus_edge.core.openapi_schema import ANYTHING, FLAG, TEXT, Schema, const, many, record, told

GROUP, _SCOPE, _ERROR = "Inference", "inference", "InferenceError"
_MODEL, _VERSION = in_path("model", "Its name."), in_path("version", "The revision that is served.")
_LENGTH = Parameter(
    LENGTH_HEADER,
    "header",
    {"type": "string", "pattern": "^[0-9]{1,9}$"},
    "Bytes of the body's JSON, if binary data follows it.",
)
_LIMITS = tuple(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens"))
_KNOWN = (*WITH_KEY, 404)
_EXAMPLE: Schema = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]}
_TENSOR = {"name": TEXT, "datatype": TEXT, "shape": many({"type": "integer"})}
_PARAMETERS: Schema = {"type": "object", "additionalProperties": {"type": ["boolean", "number", "string"]}}

SCHEMAS: dict[str, Schema] = {
    "InferenceServer": record(name=const("inferbus"), version=TEXT, extensions=many(TEXT)),
    "InferenceLive": record(live=FLAG),
    "InferenceReady": record("", ("name",), name=TEXT, ready=FLAG),
    "InferenceModel": record(
        name=TEXT,
        versions=told(many(TEXT), "The revision that is served."),
        platform=TEXT,
        inputs=many(record(**_TENSOR)),
        outputs=many(record(**_TENSOR)),
    ),
    "InferenceAnswer": record(
        "With binary data behind it the type is application/octet-stream.",
        ("id", "parameters"),
        model_name=TEXT,
        model_version=told(TEXT, "The revision that answered."),
        id=TEXT,
        parameters=_PARAMETERS,
        outputs=many(
            record(
                "",
                ("data", "parameters"),
                **_TENSOR,
                data=told(many(ANYTHING), "Row after row; null for NaN and infinities. Absent if it is binary."),
                parameters=told(_PARAMETERS, "binary_data_size: its bytes come after the JSON."),
            )
        ),
    ),
    _ERROR: record(error=told(TEXT, "For people: what is wrong and what to do.")),
}


def _operations(at: str, *parameters: Parameter) -> tuple[Operation, ...]:
    return (
        Operation(
            "GET", at, GROUP, "What a model takes and gives", "InferenceModel", scope=_SCOPE,
            parameters=parameters, errors=_KNOWN, error=_ERROR,
        ),
        Operation(
            "GET", f"{at}/ready", GROUP, "Whether a model is served now", "InferenceReady", scope=_SCOPE,
            parameters=parameters, errors=(*_KNOWN, 503), error=_ERROR,
        ),
        Operation(
            "POST", f"{at}/infer", GROUP, "Ask a model that writes no text", "InferenceAnswer", scope=_SCOPE,
            body="InferenceRequest", parameters=(*parameters, _LENGTH, IDEMPOTENCY_KEY, HOLD, TAGS), errors=INFERENCE,
            error=_ERROR, headers=("x-request-id", "x-inferbus-stream", *_LIMITS), example=_EXAMPLE,
            description="With binary data as Triton's clients send and ask for it. The same over gRPC: docs/api.md.",
        ),
    )  # fmt: skip


OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/v2", GROUP, "The server", "InferenceServer", errors=EVERYWHERE, error=_ERROR),
    Operation(
        "GET", "/v2/health/live", GROUP, "Whether the process lives", "InferenceLive", errors=EVERYWHERE, error=_ERROR
    ),
    Operation(
        "GET", "/v2/health/ready", GROUP, "Whether it takes requests", "InferenceReady", errors=(*EVERYWHERE, 503),
        error=_ERROR,
    ),
    *_operations("/v2/models/{model}", _MODEL),
    *_operations("/v2/models/{model}/versions/{version}", _MODEL, _VERSION),
)  # fmt: skip
