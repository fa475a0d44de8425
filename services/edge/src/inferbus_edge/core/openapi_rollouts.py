"""The operations about revisions and rollouts, in protobuf's JSON."""

from inferbus.bus.v1.revision_pb2 import RevisionRecord
from inferbus.scheduler.v1 import revision_pb2 as revisions
from inferbus.scheduler.v1 import rollout_pb2 as rollouts

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, in_query
from inferbus_edge.core.openapi_schema import NULL, TEXT, Schema, any_of, many, of_messages, one_of, record, told

_GROUP, _SCOPE = "Operator", "admin"
_REVISIONS, _ROLLOUTS = "/inferbus/v1/revisions", "/inferbus/v1/rollouts"
_ERRORS = (*WITH_KEY, 404, 409, 499, 503, 504)
_CHANGE = (*_ERRORS, 429)
_WHOLE = of_messages(
    RevisionRecord.DESCRIPTOR,
    revisions.CreateRevisionResponse.DESCRIPTOR,
    revisions.ListRevisionsResponse.DESCRIPTOR,
    revisions.SetRevisionStageResponse.DESCRIPTOR,
    revisions.DeleteRevisionResponse.DESCRIPTOR,
    rollouts.ListRolloutsResponse.DESCRIPTOR,
    rollouts.StartRolloutResponse.DESCRIPTOR,
    rollouts.MoveRolloutResponse.DESCRIPTOR,
    rollouts.SetPinsResponse.DESCRIPTOR,
    rollouts.SetShadowResponse.DESCRIPTOR,
)
_OWN = ("stage", "create_time", "update_time")
_TIME: Schema = {"type": ["number", "string", "null"]}
_PERMILLE: Schema = {"type": "integer", "minimum": 1, "maximum": 1000}
_MODEL = told(TEXT, "Whose.")


def _set(required: tuple[str, ...], **fields: Schema) -> Schema:
    return record("", tuple(name for name in fields if name not in required), **fields)


SCHEMAS: dict[str, Schema] = {
    **_WHOLE,
    "RevisionCreate": {
        "type": "object",
        "properties": {
            name: any_of(field, NULL)
            for name, field in _WHOLE["RevisionRecord"]["properties"].items()
            if name not in _OWN
        },
        "required": ["model", "revision", "engine"],
        "additionalProperties": False,
    },
    "RevisionStageSet": _set(
        ("model", "revision", "stage"), model=_MODEL, revision=TEXT, stage=one_of("draft", "retired")
    ),
    "RolloutStart": _set(
        ("model", "revision"),
        model=_MODEL,
        revision=told(TEXT, "That is to serve it."),
        strategy=told(one_of("canary", "blue_green"), "'canary' without it."),
        step_permille=told(many(_PERMILLE), "Thousandths of the requests; 50, 250, 1000 without it."),
        policy={
            **_WHOLE["RolloutPolicy"],
            "properties": {
                **_WHOLE["RolloutPolicy"]["properties"],
                "step_time": told(_TIME, "Seconds that a step lasts at least; 60 without it."),
                "patience": told(_TIME, "Seconds that it may take to be warm, or to have its requests; 900."),
            },
        },
    ),
    "RolloutMoveSet": _set(
        ("model", "move"),
        model=_MODEL,
        move=one_of("promote", "roll_back", "pause", "resume", "return", "let_go"),
    ),
    "RolloutPinsSet": _set(
        ("model", "pins"), model=_MODEL, pins=many(_set(("tenant_id", "revision"), tenant_id=TEXT, revision=TEXT))
    ),
    "RolloutShadowSet": _set(
        ("model",), model=_MODEL, shadow=_set(("revision", "permille"), revision=TEXT, permille=_PERMILLE)
    ),
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", _REVISIONS, _GROUP, "What can serve models: revisions, how they were validated, their stage",
        "ListRevisionsResponse", scope=_SCOPE, errors=_ERRORS,
        parameters=(in_query("model", TEXT, "Only of this one."), in_query("revision", TEXT, "Only this one of it.")),
    ),
    Operation(
        "POST", _REVISIONS, _GROUP, "Make a revision known, as a draft", "CreateRevisionResponse", scope=_SCOPE,
        body="RevisionCreate", errors=_CHANGE,
        example={"model": "smollm2-135m-instruct", "revision": "f16", "engine": "llama_cpp",
                 "settings": {"LLAMA_CPP__PRECISION": "f16"}},
        description="A revision never changes: the same again is no change, another one under its name is refused.",
    ),
    Operation(
        "POST", f"{_REVISIONS}/stage", _GROUP, "Retire a revision, or make a deprecated one a draft again",
        "SetRevisionStageResponse", scope=_SCOPE, body="RevisionStageSet", errors=_CHANGE,
    ),
    Operation(
        "DELETE", _REVISIONS, _GROUP, "Delete a draft or a retired revision", "DeleteRevisionResponse", scope=_SCOPE,
        errors=_ERRORS, parameters=(in_query("model", TEXT, "Whose."), in_query("revision", TEXT, "Which.")),
    ),
    Operation(
        "GET", _ROLLOUTS, _GROUP, "Which revisions serve models, what was decided about them and by which figures",
        "ListRolloutsResponse", scope=_SCOPE, errors=_ERRORS,
        parameters=(in_query("model", TEXT, "Only of this one."),),
    ),
    Operation(
        "POST", _ROLLOUTS, _GROUP, "Roll a revision out", "StartRolloutResponse", scope=_SCOPE, body="RolloutStart",
        errors=_CHANGE, example={"model": "smollm2-135m-instruct", "revision": "f16", "step_permille": [50, 250]},
        description="A canary goes by its steps to all requests, and back by itself at the first figure that is worse "
        "than the stable revision's; a blue-green one takes over as soon as it has as many workers.",
    ),
    Operation(
        "POST", f"{_ROLLOUTS}/move", _GROUP, "Promote, roll back, pause or resume a rollout by hand, or return",
        "MoveRolloutResponse", scope=_SCOPE, body="RolloutMoveSet", errors=_CHANGE,
    ),
    Operation(
        "PUT", f"{_ROLLOUTS}/pins", _GROUP, "Pin tenants to revisions", "SetPinsResponse", scope=_SCOPE,
        body="RolloutPinsSet", errors=_CHANGE,
    ),
    Operation(
        "PUT", f"{_ROLLOUTS}/shadow", _GROUP, "Have a revision do a part of the requests, too, for nobody",
        "SetShadowResponse", scope=_SCOPE, body="RolloutShadowSet", errors=_CHANGE,
    ),
)  # fmt: skip
