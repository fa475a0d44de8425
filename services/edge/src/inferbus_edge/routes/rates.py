"""GET /inferbus/v1/rates: what the key of this call pays for a model. From the price book that this edge has for its
budgets: no round trip."""

from typing import Any

import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus.meter.v1 import prices_pb2
from inferbus_budgets.amounts import unreadable
from inferbus_budgets.budgets import Budgets
from inferbus_rating import Rate, Scope
from inferbus_rating.ledger import text
from inferbus_runtime.errors import invalid

from inferbus_edge.auth import INFERENCE, Auth
from inferbus_edge.catalogue import Catalogue
from inferbus_edge.routes.messages import as_dict
from inferbus_edge.routes.relay import named
from inferbus_edge.server import Call, Routes, json_response

PATH = "/inferbus/v1/rates"
_NAMES = {name: name for name in ("model", "revision", "operation", "priority_class")}


class RateRoutes:
    def __init__(self, auth: Auth, catalogue: Catalogue, budgets: Budgets) -> None:
        self._auth = auth
        self._catalogue = catalogue
        self._budgets = budgets

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", PATH, self.get)

    async def get(self, call: Call) -> web.StreamResponse:
        """Of the model that is asked, and of the fallbacks that may answer for it. What the key's tenant and project do
        not pay themselves is not told: neither whose price it is nor which others there are."""
        key = self._auth.require(call.http.headers, INFERENCE)
        query = named(call, _NAMES)
        model = query.get("model")
        if model is None:
            raise invalid("'model' is missing.", param="model", reason="missing_required_parameter")
        record = self._catalogue.get(key, model)
        operation = _spoken(Operation, "OPERATION_", "operation", query.get("operation", "chat"))
        priority = _spoken(
            PriorityClass, "PRIORITY_CLASS_", "priority_class", query.get("priority_class", "interactive")
        )
        rates = []
        for name in self._budgets.answering(model):
            known = record if name == model else self._catalogue.known(name)
            revision = query.get("revision", known.revision) if name == model else known.revision
            rates.append(self._rate(key, name, revision, operation, priority, call.accepted_us))
        return json_response(orjson.dumps({"rates": rates}), call.request_id)

    def _rate(
        self, key: KeyRecord, model: str, revision: str, operation: Any, priority: Any, accepted_us: int
    ) -> dict[str, Any]:
        """Raises InferBusError UNAVAILABLE if a price that may be meant is malformed."""
        scope = Scope(key.tenant_id, key.project_id, model, revision)
        rate = self._budgets.rate(key, scope, operation, priority, accepted_us)
        if rate is None:
            raise unreadable()
        entry: dict[str, Any] = {"model": model, "revision": revision}
        return {**entry, "rate": as_dict(_shown(rate))} if rate.version else entry


def _shown(rate: Rate) -> prices_pb2.Rate:
    return prices_pb2.Rate(
        rate_version=rate.version,
        currency=rate.currency,
        input_per_million=text(rate.input_per_million),
        cached_input_per_million=text(rate.cached_input_per_million),
        output_per_million=text(rate.output_per_million),
        reasoning_per_million=text(rate.reasoning_per_million),
        per_call=text(rate.per_call),
        minimum=text(rate.minimum),
        factor=text(rate.factor),
    )


def _spoken(kind: Any, prefix: str, param: str, said: str) -> Any:
    """The enum's value that ``said`` names, as in ``chat``. Raises InferBusError INVALID_ARGUMENT."""
    values = {name.removeprefix(prefix).lower(): value for name, value in kind.items() if value}
    if said not in values:
        raise invalid(f"'{param}' is one of {', '.join(values)}.", param=param)
    return values[said]
