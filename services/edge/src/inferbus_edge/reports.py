"""How many questions to the meter run at once, over all edges: the store answers only so many at a time, and what one
tenant asks must leave room for the others."""

from aiohttp import web

from inferbus_edge.auth import ADMIN, TENANT_ADMIN, Auth
from inferbus_edge.limits import RateLimits
from inferbus_edge.routes.organization_door import PREFIX as ORGANIZATION
from inferbus_edge.server import Call, Handler


class Reports:
    """``of_tenant``: of each tenant; ``of_operators``: of all keys with the scope admin together, whomever they ask
    about."""

    def __init__(self, auth: Auth, limits: RateLimits, *, of_tenant: int, of_operators: int) -> None:
        self._auth = auth
        self._limits = limits
        self._of_tenant = of_tenant
        self._of_operators = of_operators

    def bound(self, method: str, path: str, handler: Handler) -> Handler:
        """``handler`` with a place as long as it answers; without one it is a RateLimitError. As it is for what an
        operator changes, and for what takes away or replaces: neither waits for reports."""
        own = path.startswith(ORGANIZATION)
        if method not in (("GET", "POST") if own else ("GET",)):
            return handler
        return self.always(handler, TENANT_ADMIN if own else ADMIN)

    def always(self, handler: Handler, scope: str) -> Handler:
        """:meth:`bound` for what costs as much as a report, whatever its method and path are."""

        async def report(call: Call) -> web.StreamResponse:
            key = self._auth.require(call.http.headers, scope)
            operator = ADMIN in key.scopes
            place = self._limits.report(
                "" if operator else key.tenant_id, self._of_operators if operator else self._of_tenant
            )
            try:
                return await handler(call)
            finally:
                place.settle(0)

        return report
