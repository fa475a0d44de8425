"""The operations about deployments, in protobuf's JSON."""

from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus.scheduler.v1 import deployment_pb2 as deployments

from inferbus_edge.core.openapi_operations import WITH_KEY, Operation, in_query
from inferbus_edge.core.openapi_schema import NULL, TEXT, Schema, any_of, of_messages, told

_GROUP, _SCOPE, _AT = "Operator", "admin", "/inferbus/v1/deployments"
_ERRORS = (*WITH_KEY, 404, 499, 503, 504)
_TIME: Schema = {"type": ["number", "string", "null"]}
_TIMES = {
    "ttft_target": "Seconds to the first token, at the 95th percentile.",
    "itl_target": "Seconds between two tokens, at the 95th percentile.",
    "queue_target": "Seconds to wait, from which on fallbacks are used; 'ttft_target' without it.",
    "idle_time": "Seconds without a request after which it has no worker, if 'min_replicas' is 0.",
    "cold_start": "Seconds that a request may wait for the first worker.",
}
_WHOLE = of_messages(
    DeploymentRecord.DESCRIPTOR,
    deployments.ListDeploymentsResponse.DESCRIPTOR,
    deployments.SetDeploymentResponse.DESCRIPTOR,
    deployments.DeleteDeploymentResponse.DESCRIPTOR,
)
_OWN = ("create_time", "update_time")

SCHEMAS: dict[str, Schema] = {
    **_WHOLE,
    "DeploymentSet": {
        "type": "object",
        "properties": {
            **{
                name: any_of(field, NULL)
                for name, field in _WHOLE["DeploymentRecord"]["properties"].items()
                if name not in _OWN and name not in _TIMES
            },
            **{name: told(_TIME, text) for name, text in _TIMES.items()},
        },
        "required": ["model"],
        "additionalProperties": False,
    },
}

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET", _AT, _GROUP, "How models are served, and how many workers they should have", "ListDeploymentsResponse",
        scope=_SCOPE, errors=_ERRORS, parameters=(in_query("model", TEXT, "Only of this one."),),
    ),
    Operation(
        "PUT", _AT, _GROUP, "Say how a model is served", "SetDeploymentResponse", scope=_SCOPE, body="DeploymentSet",
        errors=(*_ERRORS, 429), example={
            "model": "smollm2-135m-instruct", "ttft_target": 1, "min_replicas": 0, "max_replicas": 4,
            "fallbacks": ["synthetic"],
        },
        description="It takes the place of what was said before: what is left out has its default. With "
        "'max_replicas' the number of its workers is decided by queue, KV cache and targets.",
    ),
    Operation(
        "DELETE", _AT, _GROUP, "Serve a model by the defaults again", "DeleteDeploymentResponse", scope=_SCOPE,
        errors=_ERRORS, parameters=(in_query("model", TEXT, "Whose."),),
    ),
)  # fmt: skip
