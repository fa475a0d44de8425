"""The operations of /inferbus/v1: the operator's administration, in protobuf's JSON."""

from inferbus.bus.v1.registry_pb2 import TenantRecord
from inferbus.edge.v1 import edge_pb2 as edge
from inferbus.meter.v1 import meter_pb2 as meter
from inferbus.meter.v1 import replay_pb2 as replay
from inferbus.scheduler.v1 import scheduler_pb2 as scheduler

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, in_path, in_query
from inferbus_edge.core.openapi_schema import NULL, TEXT, Schema, any_of, of_messages, ref, told

_GROUP, _SCOPE, _AT = "Operator", "admin", "/inferbus/v1"
_ONE = (*WITH_KEY, 404, 409, 503)
_CHANGING = (*_ONE, 429)
_ASKING = (*WITH_KEY, 429, 499, 503, 504)
_WHEN: Schema = {"type": "string", "format": "date-time"}
_KEY_ID, _TENANT_ID = in_path("key_id", "The id of a key."), in_path("tenant_id", "The id of a tenant.")
_WHOLE = of_messages(
    edge.CreateKeyRequest.DESCRIPTOR,
    edge.CreateKeyResponse.DESCRIPTOR,
    edge.GetKeyResponse.DESCRIPTOR,
    edge.ListKeysResponse.DESCRIPTOR,
    edge.UpdateKeyResponse.DESCRIPTOR,
    edge.RotateKeyResponse.DESCRIPTOR,
    edge.RevokeKeyResponse.DESCRIPTOR,
    edge.CreateTenantResponse.DESCRIPTOR,
    edge.GetTenantResponse.DESCRIPTOR,
    edge.ListTenantsResponse.DESCRIPTOR,
    edge.UpdateTenantResponse.DESCRIPTOR,
    edge.ArchiveTenantResponse.DESCRIPTOR,
    edge.RestoreTenantResponse.DESCRIPTOR,
    TenantRecord.DESCRIPTOR,
    meter.GetUsageResponse.DESCRIPTOR,
    meter.GetLiveResponse.DESCRIPTOR,
    meter.AuditResponse.DESCRIPTOR,
    replay.ReplayResponse.DESCRIPTOR,
    scheduler.WatchFleetResponse.DESCRIPTOR,
    scheduler.ListSchedulersResponse.DESCRIPTOR,
    scheduler.DrainWorkersResponse.DESCRIPTOR,
)


def _changes(message: str, *names: str, also: dict[str, Schema] | None = None) -> Schema:
    """Of a message the fields that can be set; a null clears one."""
    known: dict[str, Schema] = _WHOLE[message]["properties"]
    shown = {name: any_of(known[name], NULL) for name in names}
    return {"type": "object", "properties": {**(also or {}), **shown}, "additionalProperties": False}


def _leaves_out(message: str, but: str) -> Schema:
    """A message in whose JSON a null says what a missing field says, as protobuf's mapping has it."""
    known: dict[str, Schema] = _WHOLE[message]["properties"]
    shown = {name: field if name == but else any_of(field, NULL) for name, field in known.items()}
    return {**_WHOLE[message], "properties": shown}


_RANGE: dict[str, Schema] = {
    "start": any_of(_WHEN, NULL),
    "end": any_of(_WHEN, NULL),
    "timeout": any_of({"type": "number", "minimum": 0, "exclusiveMaximum": 1e9, "description": "Seconds."}, NULL),
}
SCHEMAS: dict[str, Schema] = {
    **_WHOLE,
    "CreateKeyRequest": {**_leaves_out("CreateKeyRequest", but="tenant_id"), "required": ["tenant_id"]},
    "KeyChanges": _changes("Key", "name", "expire_time", "models", "limits"),
    "TenantChanges": _changes("TenantRecord", "name", "limits", "hold", "weight"),
    "TenantCreate": _changes("TenantRecord", "name", "limits", "hold", "weight", also={"tenant_id": TEXT}),
    "DrainBody": {
        "type": "object",
        "properties": {
            "worker": any_of(told(TEXT, "This one."), NULL),
            "node": any_of(told(TEXT, "All of this machine."), NULL),
            "grace": any_of(
                {"type": "number", "minimum": 0, "exclusiveMaximum": 1e9},
                {"type": "string", "pattern": "^[0-9]{1,8}(\\.[0-9]+)?s$"},
                NULL,
            ),
        },
        "additionalProperties": False,
    },
    "OperatorKeyRotation": {
        "type": "object",
        "properties": {"overlap": told(TEXT, "How long the old secret still works, as 3600s.")},
        "additionalProperties": False,
    },
    "Fleet": {
        **_WHOLE["WatchFleetResponse"],
        "properties": {**_WHOLE["WatchFleetResponse"]["properties"], **_WHOLE["ListSchedulersResponse"]["properties"]},
    },
    "AuditRange": {
        "type": "object",
        "properties": _RANGE,
        "additionalProperties": NULL,
    },
    "AuditLine": any_of(ref("AuditResponse"), ref("Error")),
    "ReplayRange": {
        "type": "object",
        "properties": {
            **_RANGE,
            "dry_run": any_of(told({"type": "boolean"}, "Only say what would be changed."), NULL),
        },
        "additionalProperties": NULL,
    },
    "ReplayLine": any_of(ref("ReplayResponse"), ref("Error")),
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", f"{_AT}/key", _GROUP, "The key of this call: whose it is, and its scopes", "GetKeyResponse",
        scope="inference", description="For a key of any scope.", errors=_ONE,
    ),
    Operation(
        "GET", f"{_AT}/keys", _GROUP, "Keys of every tenant", "ListKeysResponse", scope=_SCOPE,
        parameters=(in_query("tenant", TEXT), in_query("project", TEXT)),
    ),
    Operation(
        "POST", f"{_AT}/keys", _GROUP, "Make a key", "CreateKeyResponse", scope=_SCOPE, body="CreateKeyRequest",
        status=201, errors=_CHANGING, example={"tenant_id": "acme", "project_id": "web", "scopes": ["inference"]},
    ),
    Operation(
        "GET", f"{_AT}/keys/{{key_id}}", _GROUP, "A key", "GetKeyResponse", scope=_SCOPE, parameters=(_KEY_ID,),
        errors=_ONE,
    ),
    Operation(
        "PATCH", f"{_AT}/keys/{{key_id}}", _GROUP, "Change a key", "UpdateKeyResponse", scope=_SCOPE, body="KeyChanges",
        parameters=(_KEY_ID,), errors=_CHANGING,
    ),
    Operation(
        "DELETE", f"{_AT}/keys/{{key_id}}", _GROUP, "Revoke a key", "RevokeKeyResponse", scope=_SCOPE,
        parameters=(_KEY_ID,), errors=_CHANGING,
    ),
    Operation(
        "POST", f"{_AT}/keys/{{key_id}}/rotate", _GROUP, "A new secret for a key", "RotateKeyResponse", scope=_SCOPE,
        body="OperatorKeyRotation", body_required=False, parameters=(_KEY_ID,), errors=_CHANGING,
    ),
    Operation("GET", f"{_AT}/tenants", _GROUP, "Tenants", "ListTenantsResponse", scope=_SCOPE),
    Operation(
        "POST", f"{_AT}/tenants", _GROUP, "Make a tenant", "CreateTenantResponse", scope=_SCOPE, body="TenantCreate",
        status=201, errors=_CHANGING, example={"tenant_id": "acme", "name": "Acme Ltd."},
    ),
    Operation(
        "GET", f"{_AT}/tenants/{{tenant_id}}", _GROUP, "A tenant", "GetTenantResponse", scope=_SCOPE,
        parameters=(_TENANT_ID,), errors=_ONE,
    ),
    Operation(
        "PATCH", f"{_AT}/tenants/{{tenant_id}}", _GROUP, "Change a tenant", "UpdateTenantResponse", scope=_SCOPE,
        body="TenantChanges", parameters=(_TENANT_ID,), errors=_CHANGING,
    ),
    Operation(
        "POST", f"{_AT}/tenants/{{tenant_id}}/archive", _GROUP, "Archive a tenant: its keys end",
        "ArchiveTenantResponse", scope=_SCOPE, parameters=(_TENANT_ID,), errors=_CHANGING,
    ),
    Operation(
        "POST", f"{_AT}/tenants/{{tenant_id}}/restore", _GROUP, "Restore a tenant", "RestoreTenantResponse",
        scope=_SCOPE, parameters=(_TENANT_ID,), errors=_CHANGING,
    ),
    Operation(
        "GET", f"{_AT}/usage", _GROUP, "What was used and what it costs", "GetUsageResponse", scope=_SCOPE,
        parameters=(
            in_query("start", _WHEN), in_query("end", _WHEN, "Exclusive."), in_query("tenant", TEXT),
        ),
        errors=_ASKING,
    ),
    Operation(
        "GET", f"{_AT}/live", _GROUP, "Requests, tokens and percentiles of now", "GetLiveResponse", scope=_SCOPE,
        parameters=(
            in_query("window", {"type": "number", "minimum": 0, "exclusiveMaximum": 1e9}, "Seconds."),
        ),
        errors=_ASKING,
    ),
    Operation(
        "GET", f"{_AT}/fleet", _GROUP, "Workers, queues and schedulers", "Fleet", scope=_SCOPE, errors=_ASKING
    ),
    Operation(
        "POST", f"{_AT}/fleet/drain", _GROUP, "Drain a worker, or all of a machine", "DrainWorkersResponse",
        scope=_SCOPE, body="DrainBody", errors=(*_ASKING, 404), example={"worker": "worker-0", "grace": 30},
    ),
    Operation(
        "POST", f"{_AT}/audit", _GROUP, "Whether what was billed is what was delivered", "AuditLine", scope=_SCOPE,
        body="AuditRange", body_required=False, content="application/x-ndjson", errors=_ASKING,
        description="One line an event, as it comes.",
    ),
    Operation(
        "POST", f"{_AT}/replay", _GROUP, "Make the tables from the log again", "ReplayLine", scope=_SCOPE,
        body="ReplayRange", body_required=False, content="application/x-ndjson", errors=(*_ASKING, 409),
        description="One line an event, as it comes.",
    ),
)  # fmt: skip
