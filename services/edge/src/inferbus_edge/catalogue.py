"""Which models a caller may use, and what they can do."""

from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.core.plan import Plan

# Names are the caller's own text in an error: enough to recognise it.
_SHOWN_NAME = 128
# What a record without capabilities can do: it is older than the field.
_BEFORE_CAPABILITIES = ("chat",)
_ENDPOINTS = {"chat": "chat", "completions": "completions", "embeddings": "embeddings"}


class Catalogue:
    def __init__(self, models: Registry[ModelRecord]) -> None:
        self._models = models

    def of(self, key: KeyRecord) -> list[ModelRecord]:
        """What the key may use, by name."""
        records = sorted(self._models.items().values(), key=lambda one: one.name)
        return [one for one in records if _allowed(key, one.name)]

    def get(self, key: KeyRecord, name: str) -> ModelRecord:
        """Raises InferBusError NOT_FOUND ``model_not_found``, also for one that the key may not use."""
        model = self._models.get(name)
        if model is None or not _allowed(key, name):
            raise InferBusError(
                ErrorClass.ERROR_CLASS_NOT_FOUND,
                "model_not_found",
                f"The model '{name[:_SHOWN_NAME]}' does not exist or is not served here.",
                param="model",
            )
        return model

    def require(self, key: KeyRecord, plan: Plan) -> ModelRecord:
        """:meth:`get`, and that the model can do what is asked. Raises InferBusError INVALID_ARGUMENT naming the
        parameter that asks for what it cannot do."""
        model = self.get(key, plan.model)
        able = model.capabilities or _BEFORE_CAPABILITIES
        for need in plan.needs:
            if need.capability in able:
                continue
            name = plan.model[:_SHOWN_NAME]
            if need.capability in _ENDPOINTS:
                message = f"The model '{name}' does not serve {_ENDPOINTS[need.capability]}."
                raise invalid(message, param=need.param, reason="model_not_supported")
            message = f"'{need.param}' is not supported by the model '{name}'; leave it out or choose another model."
            raise invalid(message, param=need.param, reason="unsupported_parameter")
        return model


def _allowed(key: KeyRecord, name: str) -> bool:
    return not key.models or name in key.models
