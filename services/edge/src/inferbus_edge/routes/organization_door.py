"""What every route of /v1/organization does first: who acts, for which tenant, with which body."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import orjson
from aiohttp import web
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError

from inferbus_edge.auth import ADMIN, TENANT_ADMIN
from inferbus_edge.core.organization_bodies import Query, fields
from inferbus_edge.directory import Directory
from inferbus_edge.routes.messages import body_object
from inferbus_edge.server import Call, json_response

PREFIX = "/v1/organization"
_HEADER = "OpenAI-Organization"


@dataclass(frozen=True, slots=True)
class Acting:
    """Whose key it is, and the tenant that he administers now. ``operator``: he has the scope admin."""

    key: KeyRecord
    tenant_id: str
    operator: bool


class Door:
    def __init__(self, directory: Directory, body_timeout: timedelta) -> None:
        self.directory = directory
        self._body_timeout = body_timeout

    def enter(self, call: Call) -> Acting:
        """A tenant_admin acts on his own tenant; an operator on his own or on the one that the header names.

        Raises InferBusError UNAUTHENTICATED, PERMISSION_DENIED, or NOT_FOUND if there is no such tenant.
        """
        return self._acting(call, self.directory.auth.require(call.http.headers, TENANT_ADMIN))

    def enter_to_change(self, call: Call) -> Acting:
        """:meth:`enter` for a call that makes or changes something, of which a tenant has so many a minute.

        Raises RateLimitError, too.
        """
        return self._acting(call, self.directory.auth.require_for_change(call.http.headers, TENANT_ADMIN))

    def _acting(self, call: Call, key: KeyRecord) -> Acting:
        operator = ADMIN in key.scopes
        named = call.http.headers.get(_HEADER, "")
        if not named or named == key.tenant_id:
            return Acting(key, key.tenant_id, operator)
        if not operator:
            # The same for a tenant that is there and for one that is not.
            message = f"'{_HEADER}' must name the organization of this API key; leave the header out."
            raise InferBusError(ErrorClass.ERROR_CLASS_UNAUTHENTICATED, "mismatched_organization", message)
        return Acting(key, self.directory.tenants.get(named).tenant_id, operator)

    async def body(self, call: Call, known: Collection[str]) -> dict[str, Any]:
        """The body without its nulls. Raises InferBusError INVALID_ARGUMENT for a field that is not ``known``."""
        return fields(await body_object(call, self._body_timeout), known)

    async def whole_body(self, call: Call) -> dict[str, Any]:
        """The body as it is, for who gives a null a meaning."""
        return await body_object(call, self._body_timeout)


def query_of(call: Call) -> Query:
    return list(call.http.query.items())


def reply(call: Call, shown: dict[str, Any]) -> web.Response:
    return json_response(orjson.dumps(shown), call.request_id)
