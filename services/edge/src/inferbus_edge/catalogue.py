"""Which models a caller may use, and what they can do."""

from collections.abc import Sequence

from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_dialect.plan import Need, Plan
from inferbus_dialect.translate import capabilities_of
from inferbus_runtime.errors import InferBusError, invalid

# Names are the caller's own text in an error: enough to recognise it.
_SHOWN_NAME = 128
# What a capability is a whole API of.
_APIS = {
    "chat": "chat (/v1/chat/completions, /v1/responses, /v1/messages)",
    "completions": "completions (/v1/completions)",
    "embeddings": "embeddings (/v1/embeddings)",
    "inference": "the Open Inference Protocol (/v2/models/…/infer)",
}


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

    def known(self, name: str) -> ModelRecord:
        """Of whoever may be asked for; one with no more than its name if there is none (any more)."""
        return self._models.get(name) or ModelRecord(name=name)

    def require(self, key: KeyRecord, plan: Plan) -> ModelRecord:
        """:meth:`get`, and that the model can do what is asked. Raises InferBusError INVALID_ARGUMENT naming the
        parameter that asks for what it cannot do."""
        return self.able(key, plan.model, plan.needs)

    def able(self, key: KeyRecord, name: str, needs: Sequence[Need]) -> ModelRecord:
        """As :meth:`require`, for who has no plan yet."""
        model = self.get(key, name)
        able = capabilities_of(model)
        name = name[:_SHOWN_NAME]
        for need in needs:
            if need.capability in able:
                continue
            if need.capability in _APIS:
                served = " and ".join(_APIS[one] for one in _APIS if one in able) or "none"
                message = f"The model '{name}' does not serve {_APIS[need.capability]}; it serves {served}."
                raise invalid(message, param=need.param, reason="model_not_supported")
            message = f"'{need.param}' is not supported by the model '{name}'; leave it out or choose another model."
            raise invalid(message, param=need.param, reason="unsupported_parameter")
        return model


def _allowed(key: KeyRecord, name: str) -> bool:
    return not key.models or name in key.models
