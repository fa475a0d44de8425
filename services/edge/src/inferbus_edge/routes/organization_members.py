"""/v1/organization/users, and a project's users and service accounts, in OpenAI's shape.

Adding a user to the tenant is ours: OpenAI invites by mail, and InferBus sends none.
"""

from collections.abc import Callable

from aiohttp import web
from inferbus.bus.v1.registry_pb2 import MemberRecord
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_edge.auth import INFERENCE
from inferbus_edge.core.organization import (
    Listing,
    Object,
    deleted_object,
    key_value_object,
    page,
    project_user_object,
    service_account_object,
    user_object,
)
from inferbus_edge.core.organization_bodies import expiry, flag, many, named, page_query, scopes, text
from inferbus_edge.core.organization_rules import not_found
from inferbus_edge.routes.organization_door import PREFIX, Acting, Door, query_of, reply
from inferbus_edge.routes.organization_projects import PROJECT
from inferbus_edge.server import Call, Routes

_USERS = f"{PREFIX}/users"
_PROJECT_USERS = f"{PROJECT}/users"
_ACCOUNTS = f"{PROJECT}/service_accounts"
_ACCOUNT = f"{_ACCOUNTS}/{{account_id}}"


class UserRoutes:
    def __init__(self, door: Door) -> None:
        self._door = door
        self._directory = door.directory
        self._desk = door.directory.members

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", _USERS, self.list)
        routes.add("POST", _USERS, self.add)
        routes.add("GET", f"{_USERS}/{{user_id}}", self.retrieve)
        routes.add("POST", f"{_USERS}/{{user_id}}", self.modify)
        routes.add("DELETE", f"{_USERS}/{{user_id}}", self.delete)

    async def list(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        query = query_of(call)
        given = named(query, ("limit", "after", "emails", "emails[]"))
        emails = {email.lower() for email in many(query, "emails")}
        listing = Listing(
            self._desk.users(acting.tenant_id),
            lambda user: user.member_id,
            self._view(acting),
            lambda user: not emails or user.email.lower() in emails,
        )
        return reply(call, page(listing, page_query(given)))

    async def add(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        body = await self._door.body(call, ("email", "name", "role"))
        user = await self._desk.add_user(
            acting.tenant_id, text(body, "email"), text(body, "name", ""), text(body, "role", "reader"), acting.key
        )
        return reply(call, self._view(acting)(user))

    async def retrieve(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        return reply(call, self._view(acting)(self._desk.user(acting.tenant_id, call.path["user_id"])))

    async def modify(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        user = self._desk.user(acting.tenant_id, call.path["user_id"])
        body = await self._door.body(call, ("role",))
        changed = await self._desk.set_role(acting.tenant_id, user.member_id, text(body, "role"), acting.key)
        return reply(call, self._view(acting)(changed))

    async def delete(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        user_id = call.path["user_id"]
        await self._desk.delete_user(acting.tenant_id, user_id, acting.key)
        return reply(call, deleted_object("organization.user", user_id))

    def _view(self, acting: Acting) -> Callable[[MemberRecord], Object]:
        """How users are shown; what it takes of the tenant's projects and keys is looked up once."""
        names = {one.project_id: one.name for one in self._directory.projects.all(acting.tenant_id)}
        last_uses = self._directory.keys.last_uses(acting.tenant_id)
        return lambda user: user_object(
            user, lambda project_id: names.get(project_id, project_id), last_uses.get(user.member_id)
        )


class ProjectUserRoutes:
    def __init__(self, door: Door) -> None:
        self._door = door
        self._directory = door.directory
        self._desk = door.directory.members

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", _PROJECT_USERS, self.list)
        routes.add("POST", _PROJECT_USERS, self.add)
        routes.add("GET", f"{_PROJECT_USERS}/{{user_id}}", self.retrieve)
        routes.add("POST", f"{_PROJECT_USERS}/{{user_id}}", self.modify)
        routes.add("DELETE", f"{_PROJECT_USERS}/{{user_id}}", self.remove)

    async def list(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        query = named(query_of(call), ("limit", "after"))
        project_id = self._project(call, acting)
        listing = Listing(
            self._desk.users(acting.tenant_id, project_id),
            lambda user: user.member_id,
            lambda user: project_user_object(user, project_id),
        )
        return reply(call, page(listing, page_query(query)))

    async def add(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        project_id = self._project(call, acting, active=True)
        body = await self._door.body(call, ("user_id", "email", "role"))
        role = text(body, "role")
        user_id = text(body, "user_id", "") or self._by_email(acting, text(body, "email", ""))
        user = await self._desk.join(acting.tenant_id, user_id, project_id, role, acting.key)
        return reply(call, project_user_object(user, project_id))

    async def retrieve(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        project_id = self._project(call, acting)
        user = self._desk.user(acting.tenant_id, call.path["user_id"], project_id)
        return reply(call, project_user_object(user, project_id))

    async def modify(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        project_id = self._project(call, acting, active=True)
        user = self._desk.user(acting.tenant_id, call.path["user_id"], project_id)
        body = await self._door.body(call, ("role",))
        role = text(body, "role")
        changed = await self._desk.join(acting.tenant_id, user.member_id, project_id, role, acting.key)
        return reply(call, project_user_object(changed, project_id))

    async def remove(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        project_id, user_id = self._project(call, acting), call.path["user_id"]
        await self._desk.leave(acting.tenant_id, user_id, project_id, acting.key)
        return reply(call, deleted_object("organization.project.user", user_id))

    def _project(self, call: Call, acting: Acting, *, active: bool = False) -> str:
        find = self._directory.projects.active if active else self._directory.projects.get
        return find(acting.tenant_id, call.path["project_id"]).project_id

    def _by_email(self, acting: Acting, email: str) -> str:
        if not email:
            raise invalid("Name a user by 'user_id' or 'email'.", reason="missing_required_parameter", param="user_id")
        for user in self._desk.users(acting.tenant_id):
            if user.email.lower() == email.lower():
                return user.member_id
        raise not_found("user")


class ServiceAccountRoutes:
    def __init__(self, door: Door) -> None:
        self._door = door
        self._directory = door.directory
        self._desk = door.directory.members

    def add_to(self, routes: Routes) -> None:
        routes.add("GET", _ACCOUNTS, self.list)
        routes.add("POST", _ACCOUNTS, self.create)
        routes.add("GET", _ACCOUNT, self.retrieve)
        routes.add("POST", _ACCOUNT, self.modify)
        routes.add("DELETE", _ACCOUNT, self.delete)
        routes.add("POST", f"{_ACCOUNT}/api_keys", self.create_key)

    async def list(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        query = named(query_of(call), ("limit", "after"))
        project_id = self._project(call, acting)
        listing = Listing(
            self._desk.service_accounts(acting.tenant_id, project_id),
            lambda account: account.member_id,
            lambda account: service_account_object(account, project_id),
        )
        return reply(call, page(listing, page_query(query)))

    async def create(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        project_id = self._project(call, acting, active=True)
        body = await self._door.body(call, ("name", "create_service_account_only", "expires_in_seconds"))
        alone, name = flag(body, "create_service_account_only"), text(body, "name")
        expire_time = expiry(body, clock.now_us())
        if alone and expire_time is not None:
            raise invalid("Without a key there is nothing that expires.", param="expires_in_seconds")
        role = "none" if alone else "member"
        account = await self._desk.add_service_account(acting.tenant_id, project_id, name, role, acting.key)
        value = None
        if not alone:
            key, secret = await self._directory.keys.create(
                tenant_id=acting.tenant_id,
                project_id=project_id,
                name=name,
                scopes=[INFERENCE],
                actor=acting.key,
                expire_time=expire_time,
                owner_id=account.member_id,
            )
            value = key_value_object(key, secret)
        return reply(call, {**service_account_object(account, project_id), "api_key": value})

    async def retrieve(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        project_id = self._project(call, acting)
        return reply(call, service_account_object(self._account(call, acting, project_id), project_id))

    async def modify(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        project_id = self._project(call, acting, active=True)
        self._account(call, acting, project_id)
        body = await self._door.body(call, ("name", "role"))
        name, role = (text(body, one) if one in body else None for one in ("name", "role"))
        # Read again: while the body came, it may have been changed.
        account = self._account(call, acting, project_id)
        changed = await self._desk.update_service_account(account, project_id, name, role, acting.key)
        return reply(call, service_account_object(changed, project_id))

    async def delete(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter(call)
        project_id = self._project(call, acting)
        account = self._account(call, acting, project_id)
        await self._desk.delete_service_account(account, project_id, acting.key)
        return reply(call, deleted_object("organization.project.service_account", account.member_id))

    async def create_key(self, call: Call) -> web.StreamResponse:
        acting = self._door.enter_to_change(call)
        project_id = self._project(call, acting, active=True)
        self._account(call, acting, project_id)
        body = await self._door.body(call, ("name", "scopes", "expires_in_seconds"))
        scopes(body, INFERENCE)
        # Read again: while the body came, it may have been deleted, or its project archived.
        account = self._account(call, acting, self._project(call, acting, active=True))
        key, secret = await self._directory.keys.create(
            tenant_id=acting.tenant_id,
            project_id=project_id,
            name=text(body, "name", account.name),
            scopes=[INFERENCE],
            actor=acting.key,
            expire_time=expiry(body, clock.now_us()),
            owner_id=account.member_id,
        )
        return reply(call, key_value_object(key, secret))

    def _project(self, call: Call, acting: Acting, *, active: bool = False) -> str:
        find = self._directory.projects.active if active else self._directory.projects.get
        return find(acting.tenant_id, call.path["project_id"]).project_id

    def _account(self, call: Call, acting: Acting, project_id: str) -> MemberRecord:
        return self._desk.service_account(acting.tenant_id, call.path["account_id"], project_id)
