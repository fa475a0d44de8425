"""/v1/organization: OpenAI's administration API. Its parts, its audit log, and a clear answer for what is not here."""

from datetime import timedelta

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import MemberKind
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError

from inferbus_edge.core.organization import list_object
from inferbus_edge.core.organization_audit import Owner, audit_object
from inferbus_edge.core.organization_bodies import audit_query
from inferbus_edge.directory import Directory
from inferbus_edge.routes.organization_door import PREFIX, Door, query_of, reply
from inferbus_edge.routes.organization_keys import AdminKeyRoutes, ProjectKeyRoutes
from inferbus_edge.routes.organization_members import ProjectUserRoutes, ServiceAccountRoutes, UserRoutes
from inferbus_edge.routes.organization_projects import ProjectRoutes
from inferbus_edge.server import Call, Routes

# Parts of OpenAI's API that stand for something that InferBus has not, and what to do instead.
_ELSEWHERE = {
    "invites": "InferBus sends no mail: add a user with POST /v1/organization/users.",
    "certificates": "TLS certificates are the operator's settings.",
    "usage": "Usage is at GET /v1/organization/usage/completions, and what it costs at /v1/organization/costs.",
    "groups": "There are no groups: put users into projects.",
    "roles": "Roles are fixed: owner and reader in the organization, owner and member in a project.",
    "model_permissions": "The models that a key may use are set at the key, as 'models'.",
    "spend_alerts": "Budgets are the operator's settings; GET /v1/organization/budgets shows them.",
    "spend_limit": "Budgets are the operator's settings; GET /v1/organization/budgets shows them.",
    "data_retention": "Prompts and completions are gone with the age of the stream, for all alike.",
}


class OrganizationRoutes:
    def __init__(self, directory: Directory, body_timeout: timedelta) -> None:
        self._directory = directory
        self._door = Door(directory, body_timeout)

    def add_to(self, routes: Routes) -> None:
        for part in (
            ProjectRoutes, ProjectKeyRoutes, AdminKeyRoutes, UserRoutes, ProjectUserRoutes, ServiceAccountRoutes,
        ):  # fmt: skip
            part(self._door).add_to(routes)
        routes.add("GET", f"{PREFIX}/audit_logs", self.audit_logs)
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            routes.add(method, f"{PREFIX}/", self.elsewhere)

    async def audit_logs(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        query, emails = audit_query(query_of(call))
        directory, tenant_id = self._directory, acting.tenant_id
        if emails:
            wanted = {email.lower() for email in emails}
            users = [one.member_id for one in directory.members.users(tenant_id) if one.email.lower() in wanted]
            # Nobody has the address: then nothing is wanted, which an empty set would not say.
            query = query.with_actors(users or [""])
        owners = directory.keys.owners(tenant_id)
        events, more = await directory.audit_log.page(tenant_id, query, lambda key_id: owners.get(key_id, ""))
        names = {one.project_id: one.name for one in directory.projects.all(tenant_id)}
        shown = []
        for event in events:
            actor = self._owner(tenant_id, owners.get(event.actor_key_id, ""))
            shown.append(audit_object(event, actor, names.get(event.project_id, "")))
        return reply(call, list_object(shown, more))

    def _owner(self, tenant_id: str, owner_id: str) -> Owner | None:
        member = self._directory.members.find(tenant_id, owner_id)
        if member is None:
            return None
        kind = "user" if member.kind == MemberKind.MEMBER_KIND_USER else "service_account"
        return Owner(kind, member.member_id, member.email)

    async def elsewhere(self, call: Call) -> web.StreamResponse:
        """What OpenAI has below /v1/organization and InferBus has not."""
        self._door.enter(call)
        segments = call.tail.split("/")
        reason = next((_ELSEWHERE[one] for one in reversed(segments) if one in _ELSEWHERE), None)
        message = f"InferBus has no such part of the administration API. {reason or ''}".strip()
        raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "unsupported_url", message)
