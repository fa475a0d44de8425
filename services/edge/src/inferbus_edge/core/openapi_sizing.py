"""The operations about sizing."""

from typing import Any

from inferbus_sizing import KV_BYTES, PRECISIONS

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, whole
from inferbus_edge.core.openapi_schema import (
    NUMBER,
    TEXT,
    WHOLE,
    Schema,
    any_of,
    const,
    many,
    nullable,
    one_of,
    record,
    ref,
    told,
)

_PATH, _GROUP, _SCOPE = "/inferbus/v1/sizing", "Sizing", "tenant_admin"
_MOST = 1_000_000
_FITS: Schema = {"type": "boolean", "const": True}
_MISFITS: Schema = {"type": "boolean", "const": False}
_BELOW: Schema = {"type": "number", "minimum": 0}


def _optional(schema: Schema, description: str) -> Schema:
    return told(nullable(schema), description)


_WANTED: dict[str, Schema] = {
    "model": _optional(TEXT, "A built-in model, by the name that GET has. This or 'config'."),
    "config": _optional({"type": "object", "maxProperties": 500}, "A Hugging Face config.json."),
    "gpu": _optional(TEXT, "One kind of GPU, as GET names it; left out: all are compared."),
    "precision": _optional(TEXT, f"Of the weights: {', '.join(PRECISIONS)}; left out: as published."),
    "kv_precision": _optional(TEXT, f"Of the KV cache: {', '.join(KV_BYTES)}."),
    "context": _optional(whole(1, 1 << 24), "Tokens of the longest sequence; left out: 8192, or the model's limit."),
    "concurrency": _optional(whole(1, _MOST), "Sequences at once; left out: 32."),
    "input_tokens": _optional(whole(1, 1 << 24), "Of a usual prompt; left out: 1000."),
    "output_tokens": _optional(whole(1, 1 << 24), "Of a usual answer; left out: 500."),
    "ttft_seconds": _optional({"type": "number", "minimum": 0, "maximum": 3600}, "That may not be exceeded; 0: any."),
    "itl_seconds": _optional({"type": "number", "minimum": 0, "maximum": 3600}, "That may not be exceeded; 0: any."),
    "gpus_per_replica": _optional(whole(0, 64), "0: as many as it takes."),
    "dollars_per_hour": _optional(_BELOW, "Of one GPU; needs 'gpu'. Left out: GET's example."),
    "dollars_per_kwh": _optional(_BELOW, "If power is paid apart."),
    "api_price_in": _optional(_BELOW, "Dollars of an API's million input tokens."),
    "api_price_out": _optional(_BELOW, "The same of output tokens."),
    "requests_per_month": _optional(_BELOW, "To compare both at."),
}
_SAID: dict[str, Schema] = {
    name: TEXT if name in ("model", "precision", "kv_precision")
    else nullable(NUMBER) if name in ("dollars_per_hour", "api_price_in", "api_price_out")
    else NUMBER
    for name in _WANTED if name not in ("config", "gpu")
}  # fmt: skip
_NAMED: dict[str, Schema] = {"name": TEXT, "title": TEXT, "source": TEXT}

SCHEMAS: dict[str, Schema] = {
    "SizingRequest": {"type": "object", "properties": _WANTED, "additionalProperties": False},
    "SizingFigure": record(
        "A number that says where it comes from.",
        title=TEXT,
        value=told(nullable(NUMBER), "Null: there is none, and the formula says why."),
        unit=TEXT, formula=TEXT, source=TEXT,
    ),
    "SizingPlan": record(
        "The fewest of these GPUs that do what was asked.",
        gpu=TEXT, title=TEXT, fits=_FITS, parallel=TEXT, precision=TEXT, arithmetic=TEXT, kv_precision=TEXT,
        figures={"type": "object", "additionalProperties": ref("SizingFigure")},
        memory=record("Bytes of the fullest GPU.", weights=NUMBER, reserve=NUMBER, kv=NUMBER, total=NUMBER,
                      spare=NUMBER),
        timing=record(
            "One replica as the scheduler's simulator knows it.", step_seconds=NUMBER,
            step_seconds_per_sequence=NUMBER, prefill_tokens_per_second=NUMBER, kv_blocks=WHOLE, kv_block_tokens=WHOLE,
            capacity=WHOLE,
        ),
        crossover=nullable(record(
            "Against the API's prices.",
            requests=told(nullable(NUMBER), "A month, from which on own GPUs are cheaper; null: never."),
            capacity=told(NUMBER, "Requests a month at full load."),
            points=many(record("Dollars a month.", requests=NUMBER, own=NUMBER, api=NUMBER)),
        )),
    ),
    "SizingMisfit": record("Why there is no plan.", gpu=TEXT, title=TEXT, fits=_MISFITS, reason=TEXT),
    "Sizing": record(
        object=const("inferbus.sizing"),
        wanted=record("As it was understood, defaults included.", **_SAID),
        plans=many(any_of(ref("SizingPlan"), ref("SizingMisfit"))),
    ),
    "SizingCatalogue": record(
        object=const("inferbus.sizing.catalogue"),
        models=many(record(**_NAMED, parameters=WHOLE, active_parameters=WHOLE, context_limit=WHOLE,
                           precision=one_of(*PRECISIONS))),
        gpus=many(record(
            **_NAMED, memory=WHOLE, bandwidth=NUMBER, flops={"type": "object", "additionalProperties": NUMBER},
            watts=WHOLE, link=NUMBER, link_title=TEXT, dollars_per_hour=NUMBER, price_source=TEXT,
        )),
        precisions=many(record(**_NAMED, bytes=NUMBER)),
        kv_precisions=many(record(name=TEXT, bytes=NUMBER)),
    ),
}  # fmt: skip

_EXAMPLE: dict[str, Any] = {
    "model": "llama-3.1-70b", "gpu": "h100", "precision": "fp8", "concurrency": 64, "input_tokens": 1000,
    "output_tokens": 500, "ttft_seconds": 0.5, "itl_seconds": 0.05,
}  # fmt: skip
OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", _PATH, _GROUP, "The models, GPUs and precisions that sizing knows", "SizingCatalogue", scope=_SCOPE,
        errors=WITH_KEY,
    ),
    Operation(
        "POST", _PATH, _GROUP, "GPUs, speed, power and cost of a model, each figure with its formula", "Sizing",
        scope=_SCOPE, body="SizingRequest", errors=(*WITH_KEY, 429), example=_EXAMPLE,
        description="Worked out, not measured: docs/sizing.md says against what it was checked and how far off it is.",
    ),
)  # fmt: skip
