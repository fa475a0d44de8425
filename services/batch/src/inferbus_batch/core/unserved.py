"""Whether a model that is asked can do it, as far as that is seen at once; the rest is found when a batch is
validated."""

from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus_dialect.plan import Plan
from inferbus_dialect.translate import capabilities_of
from inferbus_runtime.errors import InferBusError, invalid


def unserved(plan: Plan, model: ModelRecord | None, key: KeyRecord) -> InferBusError | None:
    """What a single request of the queue is refused with. ``model``: of the name that it asks; None: there is none."""
    if model is None or (key.models and plan.model not in key.models):
        message = f"The model '{plan.model[:128]}' does not exist or is not served here."
        return invalid(message, param="request.body.model", reason="model_not_found")
    able = capabilities_of(model)
    for need in plan.needs:
        if need.capability not in able:
            message = f"'{need.param}' is not supported by the model '{plan.model[:128]}'."
            return invalid(message, param=f"request.body.{need.param}", reason="unsupported_parameter")
    return None
