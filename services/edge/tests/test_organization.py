"""/v1/organization and /inferbus/v1/tenants on a real edge: what a tenant's administrator, and an operator, do."""

import asyncio
import itertools
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.registry_pb2 import KeyUseRecord
from inferbus_bus.log import FrameLog
from inferbus_bus.registry import Registry
from inferbus_contracts.keys import is_key
from inferbus_contracts.subjects import tenant_audit
from inferbus_edge.key_uses import KeyUses
from inferbus_runtime import clock

ORGANIZATION = "/v1/organization"
PROJECTS = f"{ORGANIZATION}/projects"
KEYS = "/inferbus/v1/keys"
TENANTS = "/inferbus/v1/tenants"
_names = itertools.count(1)


@pytest.fixture
async def operator(edge: Any, rig: Any) -> Any:
    async with rig.session(edge, rig.ADMIN_KEY) as one:
        yield one


class Tenant:
    """A tenant of the test's own, and a session of its administrator."""

    def __init__(self, tenant_id: str, key_id: str, http: aiohttp.ClientSession) -> None:
        self.id, self.key_id, self.http = tenant_id, key_id, http

    async def ask(self, method: str, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
        return await ask(self.http, method, path, status, **options)

    async def project(self, name: str = "Web") -> dict[str, Any]:
        return await self.ask("POST", PROJECTS, json={"name": name})


async def ask(http: aiohttp.ClientSession, method: str, path: str, status: int = 200, **options: Any) -> dict[str, Any]:
    async with http.request(method, path, **options) as response:
        body = await response.json()
        assert response.status == status, body
        return body


async def made_tenant(operator: aiohttp.ClientSession) -> tuple[str, dict[str, Any]]:
    """(its id, the answer to the making of its first admin key)."""
    tenant_id = f"tenant-{next(_names)}"
    await ask(operator, "POST", TENANTS, 201, json={"tenant_id": tenant_id, "name": tenant_id.title()})
    key = await ask(operator, "POST", KEYS, 201, json={"tenant_id": tenant_id, "scopes": ["tenant_admin"]})
    return tenant_id, key


@pytest.fixture
async def tenant(operator: Any, edge: Any, rig: Any) -> Any:
    tenant_id, key = await made_tenant(operator)
    async with rig.session(edge, key["secret"]) as http:
        yield Tenant(tenant_id, key["key"]["key_id"], http)


@pytest.fixture
async def other(operator: Any, edge: Any, rig: Any) -> Any:
    tenant_id, key = await made_tenant(operator)
    async with rig.session(edge, key["secret"]) as http:
        yield Tenant(tenant_id, key["key"]["key_id"], http)


async def status_with(edge: Any, rig: Any, secret: str) -> tuple[int, str]:
    """What the key may do at the door of inference: (status, code of the error)."""
    async with rig.session(edge, secret) as http, http.get("/v1/models") as response:
        return response.status, "" if response.status == 200 else (await response.json())["error"]["code"]


def ids(listed: dict[str, Any]) -> list[str]:
    assert listed["object"] == "list"
    found = [one["id"] for one in listed["data"]]
    assert (listed["first_id"], listed["last_id"]) == ((found[0], found[-1]) if found else (None, None))
    return found


async def test_a_project_lives_and_is_archived(tenant: Tenant, edge: Any, rig: Any) -> None:
    project = await tenant.project("Shop")
    assert (project["object"], project["name"], project["status"]) == ("organization.project", "Shop", "active")
    assert project["archived_at"] is None
    one = f"{PROJECTS}/{project['id']}"
    assert (await tenant.ask("POST", one, json={"name": "Store"}))["name"] == "Store"
    key = await tenant.ask("POST", f"{one}/api_keys", json={"name": "server"})
    assert (await status_with(edge, rig, key["value"]))[0] == 200

    archived = await tenant.ask("POST", f"{one}/archive")
    assert archived["status"] == "archived"
    assert archived["archived_at"] >= project["created_at"]
    assert await status_with(edge, rig, key["value"]) == (401, "project_archived")
    assert ids(await tenant.ask("GET", PROJECTS)) == ["default"]
    assert ids(await tenant.ask("GET", PROJECTS, params={"include_archived": "true"})) == ["default", project["id"]]
    assert (await tenant.ask("GET", one))["name"] == "Store"
    assert (await tenant.ask("POST", one, 400, json={"name": "x"}))["error"]["code"] == "project_archived"
    assert (await tenant.ask("POST", f"{one}/api_keys", 400, json={"name": "x"}))["error"]["code"] == "project_archived"
    assert (await tenant.ask("POST", f"{PROJECTS}/default/archive", 400))["error"]["code"] == "default_project"


async def test_lists_come_in_pages(tenant: Tenant) -> None:
    made = ["default", *[(await tenant.project(f"P{number}"))["id"] for number in range(4)]]
    found: list[str] = []
    query = {"limit": "2"}
    for more in (True, True, False):
        listed = await tenant.ask("GET", PROJECTS, params=query)
        assert listed["has_more"] is more
        found += ids(listed)
        query["after"] = listed["last_id"]
    assert found == made
    # An archived project may have been the last of the page before.
    await tenant.ask("POST", f"{PROJECTS}/{made[2]}/archive")
    assert ids(await tenant.ask("GET", PROJECTS, params={"after": made[2]})) == made[3:]


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"limit": "0"}, "invalid_value"), ({"limit": "101"}, "invalid_value"), ({"limit": "ten"}, "invalid_type"),
        ({"after": "proj_none"}, "invalid_value"), ({"color": "red"}, "unknown_parameter"),
        ({"include_archived": "perhaps"}, "invalid_type"),
    ],
)  # fmt: skip
async def test_a_bad_query(tenant: Tenant, params: dict[str, str], code: str) -> None:
    assert (await tenant.ask("GET", PROJECTS, 400, params=params))["error"]["code"] == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_required_parameter"), ({"name": ""}, "missing_required_parameter"), ({"name": 5}, "invalid_type"),
        ({"name": "x", "geography": "EU"}, "unsupported_parameter"), ({"name": "x", "color": 1}, "unknown_parameter"),
        ({"name": "a\nb"}, "invalid_value"), ({"name": "x" * 201}, "invalid_value"), ([], "invalid_type"),
    ],
)  # fmt: skip
async def test_a_bad_project(tenant: Tenant, body: Any, code: str) -> None:
    error = (await tenant.ask("POST", PROJECTS, 400, json=body))["error"]
    assert error["code"] == code, error


async def test_a_key_of_a_project(tenant: Tenant, edge: Any, rig: Any) -> None:
    project = await tenant.project()
    keys = f"{PROJECTS}/{project['id']}/api_keys"
    settings = {"name": "server", "models": ["m1"], "expires_in_seconds": 3600, "max_requests_per_1_minute": 60}
    made = await tenant.ask("POST", keys, json=settings)
    assert is_key(made["value"])
    assert (made["object"], made["name"], made["models"]) == ("organization.project.api_key", "server", ["m1"])
    assert made["max_requests_per_1_minute"] == 60
    assert 3599 <= made["expires_at"] - made["created_at"] <= 3602
    assert (await status_with(edge, rig, made["value"]))[0] == 200

    listed = await tenant.ask("GET", keys)
    assert ids(listed) == [made["id"]]
    assert made["value"] not in str(listed)
    one = f"{keys}/{made['id']}"
    changed = await tenant.ask(
        "POST", one, json={"models": [], "expires_in_seconds": None, "max_requests_per_1_minute": None}
    )
    assert (changed["models"], changed["expires_at"], changed["max_requests_per_1_minute"]) == ([], None, None)
    assert await tenant.ask("DELETE", one) == {
        "object": "organization.project.api_key.deleted", "id": made["id"], "deleted": True,
    }  # fmt: skip
    assert await status_with(edge, rig, made["value"]) == (401, "invalid_api_key")
    assert ids(await tenant.ask("GET", keys)) == []
    for method in ("GET", "DELETE", "POST"):
        assert (await tenant.ask(method, one, 404))["error"]["code"] == "key_not_found"


async def test_rotation_overlaps_as_long_as_asked(tenant: Tenant, edge: Any, rig: Any) -> None:
    keys = f"{PROJECTS}/{(await tenant.project())['id']}/api_keys"
    first = await tenant.ask("POST", keys, json={"name": "server"})
    rotate = f"{keys}/{first['id']}/rotate"

    second = await tenant.ask("POST", rotate, json={"overlap_seconds": 3600})
    assert (second["id"], second["created_at"]) == (first["id"], first["created_at"])
    assert second["redacted_value"] != first["redacted_value"]
    for secret in (first["value"], second["value"]):
        assert (await status_with(edge, rig, secret))[0] == 200
    assert ids(await tenant.ask("GET", keys)) == [first["id"]]

    third = await tenant.ask("POST", rotate)
    assert await status_with(edge, rig, second["value"]) == (401, "invalid_api_key")
    assert await status_with(edge, rig, first["value"]) == (401, "invalid_api_key")
    assert (await status_with(edge, rig, third["value"]))[0] == 200

    fourth = await tenant.ask("POST", rotate, json={"overlap_seconds": 3600})
    await tenant.ask("DELETE", f"{keys}/{first['id']}")
    for secret in (third["value"], fourth["value"]):
        assert await status_with(edge, rig, secret) == (401, "invalid_api_key")


async def test_an_overlap_ends(tenant: Tenant, edge: Any, rig: Any) -> None:
    keys = f"{PROJECTS}/default/api_keys"
    first = await tenant.ask("POST", keys, json={"name": "server"})
    asked = clock.monotonic()
    await tenant.ask("POST", f"{keys}/{first['id']}/rotate", json={"overlap_seconds": 1})
    async with asyncio.timeout(30):
        while (await status_with(edge, rig, first["value"]))[0] == 200:
            await asyncio.sleep(0.1)
    assert clock.monotonic() - asked >= 0.9  # and not before


async def test_a_key_expires(tenant: Tenant, edge: Any, rig: Any) -> None:
    keys = f"{PROJECTS}/default/api_keys"
    made = await tenant.ask("POST", keys, json={"name": "short", "expires_in_seconds": 1})
    async with asyncio.timeout(30):
        while await status_with(edge, rig, made["value"]) != (401, "expired_api_key"):
            await asyncio.sleep(0.1)
    refused = await tenant.ask("POST", f"{keys}/{made['id']}/rotate", 400)
    assert refused["error"]["code"] == "key_ended"


async def test_of_two_rotations_at_once_one_wins(tenant: Tenant, operator: Any, edge: Any, rig: Any) -> None:
    keys = f"{PROJECTS}/default/api_keys"
    made = await tenant.ask("POST", keys, json={"name": "server"})

    async def rotate() -> tuple[int, dict[str, Any]]:
        async with tenant.http.post(f"{keys}/{made['id']}/rotate") as response:
            return response.status, await response.json()

    answers = await asyncio.gather(*(rotate() for _ in range(8)))
    won = [body["value"] for status, body in answers if status == 200]
    lost = [body["error"] for status, body in answers if status != 200]
    assert won
    assert {error["code"] for error in lost} <= {"changed_meanwhile"}
    valid = [secret for secret in won if (await status_with(edge, rig, secret))[0] == 200]
    assert len(valid) == 1  # each of the others was rotated away by the next
    assert (await status_with(edge, rig, made["value"]))[0] == 401
    records = [key for key in (await ask(operator, "GET", KEYS))["keys"] if key["key_id"] == made["id"]]
    assert len(records) == 1
    assert valid[0].startswith(records[0]["prefix"])


async def test_a_service_account_comes_with_its_key(tenant: Tenant, edge: Any, rig: Any) -> None:
    project = await tenant.project()
    accounts = f"{PROJECTS}/{project['id']}/service_accounts"
    made = await tenant.ask("POST", accounts, json={"name": "Robot"})
    assert (made["object"], made["role"]) == ("organization.project.service_account", "member")
    assert made["api_key"]["object"] == "organization.project.service_account.api_key"
    secret = made["api_key"]["value"]
    assert (await status_with(edge, rig, secret))[0] == 200
    one = f"{accounts}/{made['id']}"
    assert await tenant.ask("GET", one) == {name: made[name] for name in ("object", "id", "name", "role", "created_at")}
    assert (await tenant.ask("POST", one, json={"role": "owner", "name": "R2"}))["role"] == "owner"
    second = (await tenant.ask("POST", f"{one}/api_keys", json={"name": "spare"}))["value"]

    listed = await tenant.ask("GET", f"{PROJECTS}/{project['id']}/api_keys")
    owners = {key["owner"]["service_account"]["id"] for key in listed["data"]}
    assert (len(listed["data"]), owners) == (2, {made["id"]})
    assert {key["owner_project_access"] for key in listed["data"]} == {"active"}

    alone = await tenant.ask("POST", accounts, json={"name": "Bare", "create_service_account_only": True})
    assert (alone["api_key"], alone["role"]) == (None, "none")
    assert ids(await tenant.ask("GET", accounts)) == [made["id"], alone["id"]]
    assert (await tenant.ask("DELETE", one))["deleted"] is True
    for gone in (secret, second):
        assert await status_with(edge, rig, gone) == (401, "invalid_api_key")
    assert (await tenant.ask("GET", one, 404))["error"]["code"] == "service_account_not_found"


async def test_users_and_their_projects(tenant: Tenant, edge: Any, rig: Any) -> None:
    users = f"{ORGANIZATION}/users"
    ada = await tenant.ask("POST", users, json={"email": "ada@example.com", "name": "Ada", "role": "owner"})
    bob = await tenant.ask("POST", users, json={"email": "bob@example.com"})
    assert (ada["object"], ada["role"], bob["role"]) == ("organization.user", "owner", "reader")
    assert (await tenant.ask("POST", users, 409, json={"email": "ADA@example.com"}))["error"]["code"] == "user_exists"
    assert ids(await tenant.ask("GET", users)) == [ada["id"], bob["id"]]
    assert ids(await tenant.ask("GET", users, params={"emails[]": "bob@example.com"})) == [bob["id"]]
    assert (await tenant.ask("POST", f"{users}/{bob['id']}", json={"role": "owner"}))["role"] == "owner"
    assert (await tenant.ask("POST", f"{users}/{bob['id']}", 400, json={"role": "king"}))["error"]["param"] == "role"

    project = await tenant.project()
    members = f"{PROJECTS}/{project['id']}/users"
    joined = await tenant.ask("POST", members, json={"user_id": ada["id"], "role": "member"})
    assert (joined["object"], joined["role"]) == ("organization.project.user", "member")
    await tenant.ask("POST", members, json={"email": "bob@example.com", "role": "owner"})
    assert ids(await tenant.ask("GET", members)) == [ada["id"], bob["id"]]
    assert (await tenant.ask("POST", f"{members}/{ada['id']}", json={"role": "owner"}))["role"] == "owner"
    shown = await tenant.ask("GET", f"{users}/{ada['id']}")
    assert shown["projects"]["data"] == [{"id": project["id"], "name": "Web", "role": "owner"}]

    keys = f"{PROJECTS}/{project['id']}/api_keys"
    secrets = [(await tenant.ask("POST", keys, json={"name": "k", "user_id": u["id"]}))["value"] for u in (ada, bob)]
    assert (await tenant.ask("DELETE", f"{members}/{ada['id']}"))["object"] == "organization.project.user.deleted"
    assert (await tenant.ask("DELETE", f"{users}/{bob['id']}"))["object"] == "organization.user.deleted"
    for secret in secrets:
        assert await status_with(edge, rig, secret) == (401, "invalid_api_key")
    assert ids(await tenant.ask("GET", members)) == []
    assert ids(await tenant.ask("GET", users)) == [ada["id"]]


async def test_the_rate_limit_of_a_project(tenant: Tenant) -> None:
    limits = f"{PROJECTS}/{(await tenant.project())['id']}/rate_limits"
    (shown,) = (await tenant.ask("GET", limits))["data"]
    assert (shown["object"], shown["max_requests_per_1_minute"]) == ("project.rate_limit", 2**32 - 1)
    one = f"{limits}/{shown['id']}"
    changed = await tenant.ask("POST", one, json={"max_requests_per_1_minute": 60, "max_concurrent_requests": 4})
    assert (changed["max_requests_per_1_minute"], changed["max_concurrent_requests"]) == (60, 4)
    assert changed["max_tokens_per_1_minute"] == 2**53 - 1
    assert (await tenant.ask("GET", limits))["data"] == [changed]
    assert (await tenant.ask("POST", one, json={"max_concurrent_requests": None}))["max_concurrent_requests"] is None
    refused = await tenant.ask("POST", one, 400, json={"max_images_per_1_minute": 1})
    assert refused["error"]["code"] == "unsupported_parameter"
    await tenant.ask("POST", one, 400, json={"max_tokens_per_1_minute": -1})
    await tenant.ask("POST", f"{limits}/rl-none", 404, json={})


async def test_admin_keys_of_a_tenant(tenant: Tenant, edge: Any, rig: Any) -> None:
    path = f"{ORGANIZATION}/admin_api_keys"
    made = await tenant.ask("POST", path, json={"name": "deputy", "expires_in_seconds": 600})
    assert (made["object"], made["owner"]["id"]) == ("organization.admin_api_key", tenant.id)
    assert ids(await tenant.ask("GET", path)) == [tenant.key_id, made["id"]]
    assert ids(await tenant.ask("GET", path, params={"order": "desc"})) == [made["id"], tenant.key_id]
    async with rig.session(edge, made["value"]) as deputy:
        assert (await ask(deputy, "GET", f"{path}/{made['id']}"))["name"] == "deputy"
        assert (await ask(deputy, "GET", KEYS, 403))["error"]["code"] == "insufficient_scope"
        assert (await ask(deputy, "GET", TENANTS, 403))["error"]["code"] == "insufficient_scope"
    assert await status_with(edge, rig, made["value"]) == (403, "insufficient_scope")
    assert (await tenant.ask("DELETE", f"{path}/{made['id']}"))["object"] == "organization.admin_api_key.deleted"
    assert await status_with(edge, rig, made["value"]) == (401, "invalid_api_key")


async def test_a_tenant_cannot_see_another(tenant: Tenant, other: Tenant) -> None:
    project = (await other.project())["id"]
    account = await other.ask("POST", f"{PROJECTS}/{project}/service_accounts", json={"name": "Robot"})
    user = (await other.ask("POST", f"{ORGANIZATION}/users", json={"email": "eve@example.com"}))["id"]
    key, mine = account["api_key"]["id"], (await tenant.project())["id"]
    # Both have a project "default": its name alone must not be the way to what is in it.
    default = (await other.ask("POST", f"{PROJECTS}/default/api_keys", json={"name": "theirs"}))["id"]
    paths = [
        ("GET", "/projects/{}", project), ("POST", "/projects/{}", project), ("POST", "/projects/{}/archive", project),
        ("GET", "/projects/{}/api_keys", project), ("GET", "/projects/{}/rate_limits", project),
        ("POST", "/projects/{}/rate_limits/rl-all", project), ("POST", "/projects/{}/service_accounts", project),
        ("POST", "/projects/{}/api_keys", project), ("GET", "/projects/{}/users", project),
        ("GET", f"/projects/{mine}/api_keys/{{}}", key), ("POST", f"/projects/{mine}/api_keys/{{}}", key),
        ("DELETE", f"/projects/{mine}/api_keys/{{}}", key), ("POST", f"/projects/{mine}/api_keys/{{}}/rotate", key),
        ("GET", "/projects/default/api_keys/{}", default), ("DELETE", "/projects/default/api_keys/{}", default),
        ("POST", "/projects/default/api_keys/{}/rotate", default),
        ("GET", "/admin_api_keys/{}", other.key_id), ("DELETE", "/admin_api_keys/{}", other.key_id),
        ("GET", "/users/{}", user), ("POST", "/users/{}", user), ("DELETE", "/users/{}", user),
        ("GET", f"/projects/{mine}/service_accounts/{{}}", account["id"]),
        ("DELETE", f"/projects/{mine}/service_accounts/{{}}", account["id"]),
        ("DELETE", f"/projects/{mine}/users/{{}}", user),
    ]  # fmt: skip
    for method, path, theirs in paths:
        body = None if method == "GET" else {}
        seen = await tenant.ask(method, ORGANIZATION + path.format(theirs), 404, json=body)
        assert seen == await tenant.ask(method, ORGANIZATION + path.format("nothing"), 404, json=body)
    joined = await tenant.ask("POST", f"{PROJECTS}/{mine}/users", 404, json={"user_id": user, "role": "member"})
    assert joined["error"]["code"] == "user_not_found"
    assert (await other.ask("GET", f"{PROJECTS}/{project}"))["status"] == "active"
    named = {"OpenAI-Organization": other.id}
    refused = await tenant.ask("GET", PROJECTS, 401, headers=named)
    assert refused == await tenant.ask("GET", PROJECTS, 401, headers={"OpenAI-Organization": "nothing"})
    assert ids(await tenant.ask("GET", PROJECTS, headers={"OpenAI-Organization": tenant.id})) == ["default", mine]


async def test_an_operator_acts_on_the_tenant_that_he_names(operator: Any, tenant: Tenant) -> None:
    named = {"OpenAI-Organization": tenant.id}
    made = await ask(operator, "POST", PROJECTS, json={"name": "Ops"}, headers=named)
    assert made["id"] in ids(await tenant.ask("GET", PROJECTS))
    assert made["id"] not in ids(await ask(operator, "GET", PROJECTS, params={"limit": "100"}))
    missing = await ask(operator, "GET", PROJECTS, 404, headers={"OpenAI-Organization": "nothing"})
    assert missing["error"]["code"] == "tenant_not_found"


async def test_an_operator_s_key_is_out_of_a_tenant_admin_s_reach(operator: Any, tenant: Tenant) -> None:
    """Who could rotate an operator's key would become an operator."""
    body = {"tenant_id": tenant.id, "project_id": "default", "scopes": ["inference", "admin"]}
    key = (await ask(operator, "POST", KEYS, 201, json=body))["key"]["key_id"]
    paths = [
        ("POST", f"{PROJECTS}/default/api_keys/{key}/rotate"), ("DELETE", f"{PROJECTS}/default/api_keys/{key}"),
        ("GET", f"{ORGANIZATION}/admin_api_keys/{key}"), ("DELETE", f"{ORGANIZATION}/admin_api_keys/{key}"),
    ]  # fmt: skip
    for method, path in paths:
        assert (await tenant.ask(method, path, 404))["error"]["code"] == "key_not_found"
    assert key not in ids(await tenant.ask("GET", f"{ORGANIZATION}/admin_api_keys"))
    named = {"OpenAI-Organization": tenant.id}
    assert key in ids(await ask(operator, "GET", f"{ORGANIZATION}/admin_api_keys", headers=named))
    for scope in ("admin", "tenant_admin"):
        refused = await tenant.ask("POST", f"{PROJECTS}/default/api_keys", 400, json={"name": "x", "scopes": [scope]})
        assert refused["error"]["param"] == "scopes"


async def test_tenants_are_the_operator_s(operator: Any, edge: Any, rig: Any) -> None:
    name = f"tenant-{next(_names)}"
    settings = {"tenant_id": name, "name": "Acme", "limits": {"requests_per_minute": 600}, "hold": "30s"}
    made = (await ask(operator, "POST", TENANTS, 201, json=settings))["tenant"]
    assert (made["name"], made["state"], made["hold"]) == ("Acme", "RECORD_STATE_ACTIVE", "30s")
    assert made["limits"] == {"requests_per_minute": 600}
    assert (await ask(operator, "POST", TENANTS, 409, json=settings))["error"]["code"] == "tenant_exists"
    one = f"{TENANTS}/{name}"
    changed = (await ask(operator, "PATCH", one, json={"limits": None, "name": "Acme Ltd"}))["tenant"]
    assert (changed["name"], changed.get("limits"), changed["hold"]) == ("Acme Ltd", None, "30s")
    assert changed in (await ask(operator, "GET", TENANTS))["tenants"]
    assert (await ask(operator, "GET", one))["tenant"] == changed

    key = (await ask(operator, "POST", KEYS, 201, json={"tenant_id": name}))["secret"]
    assert (await status_with(edge, rig, key))[0] == 200
    assert (await ask(operator, "POST", f"{one}/archive"))["tenant"]["state"] == "RECORD_STATE_ARCHIVED"
    assert await status_with(edge, rig, key) == (401, "organization_archived")
    await ask(operator, "POST", f"{one}/restore")
    assert (await status_with(edge, rig, key))[0] == 200
    assert (await ask(operator, "POST", f"{TENANTS}/acme/archive", 400))["error"]["param"] == "tenant_id"


@pytest.mark.parametrize(
    "body",
    [
        {"tenant_id": "a/b"}, {"tenant_id": "x", "state": "RECORD_STATE_ARCHIVED"}, {"hold": "2h"}, {"hold": "-1s"},
        {"hold": "7200s"}, {"limits": {"requests_per_minute": -1}}, {"limits": {"color": 1}}, {"name": " x"},
    ],
)  # fmt: skip
async def test_a_bad_tenant(operator: Any, body: Any) -> None:
    await ask(operator, "POST", TENANTS, 400, json=body)


async def test_missing_tenants_and_empty_changes(operator: Any) -> None:
    for method, path in (("GET", ""), ("PATCH", ""), ("POST", "/archive"), ("POST", "/restore")):
        body = {"name": "x"} if method == "PATCH" else None
        refused = await ask(operator, method, f"{TENANTS}/nothing{path}", 404, json=body)
        assert refused["error"]["code"] == "tenant_not_found"
    await ask(operator, "PATCH", f"{TENANTS}/acme", 400, json={})


async def test_what_is_not_here_says_so(tenant: Tenant, http: Any) -> None:
    for path, word in (
        ("invites", "mail"), ("certificates", "TLS"), ("usage/nothing", "usage/completions"),
        ("projects/default/groups", "groups"), ("projects/default/certificates/activate", "TLS"),
    ):  # fmt: skip
        error = (await tenant.ask("GET", f"{ORGANIZATION}/{path}", 404))["error"]
        assert error["code"] == "unsupported_url"
        assert word in error["message"]
    assert (await ask(http, "GET", f"{ORGANIZATION}/invites", 403))["error"]["code"] == "insufficient_scope"


async def test_the_audit_log_tells_every_change(tenant: Tenant, other: Tenant, worker: Any) -> None:
    await other.project("Theirs")
    project = (await tenant.project("Shop"))["id"]
    one = f"{PROJECTS}/{project}"
    await tenant.ask("POST", one, json={"name": "Store"})
    await tenant.ask("POST", one, json={"name": "Shop"})
    await tenant.ask("POST", one, json={"name": "Store"})  # the same change again is another event
    account = await tenant.ask("POST", f"{one}/service_accounts", json={"name": "Robot"})
    await tenant.ask("POST", f"{one}/rate_limits/rl-all", json={"max_requests_per_1_minute": 60})
    await tenant.ask("DELETE", f"{one}/service_accounts/{account['id']}")
    await tenant.ask("POST", f"{one}/archive")

    logs = f"{ORGANIZATION}/audit_logs"
    listed = await tenant.ask("GET", logs)
    types = [
        "project.archived", "service_account.deleted", "api_key.deleted", "rate_limit.updated", "api_key.created",
        "service_account.created", "project.updated", "project.updated", "project.updated", "project.created",
        "api_key.created", "tenant.created",
    ]  # fmt: skip
    assert [entry["type"] for entry in listed["data"]] == types
    assert len(set(ids(listed))) == len(types)
    updated = listed["data"][6]
    assert updated["project.updated"] == {"id": project, "changes_requested": {"name": "Store", "title": "Store"}}
    assert updated["project"] == {"id": project, "name": "Store"}
    assert (updated["actor"]["type"], updated["actor"]["api_key"]["id"]) == ("api_key", tenant.key_id)
    assert listed["data"][-1]["actor"]["api_key"]["id"] == "key_admin"

    found: list[str] = []
    query = {"limit": "5"}
    for more in (True, True, False):
        page = await tenant.ask("GET", logs, params=query)
        assert page["has_more"] is more
        found += ids(page)
        query["after"] = page["last_id"]
    assert found == ids(listed)
    before = await tenant.ask("GET", logs, params={"before": found[6], "limit": "4"})
    assert (ids(before), before["has_more"]) == (found[2:6], True)

    async def filtered(params: Any) -> list[str]:
        return [entry["type"] for entry in (await tenant.ask("GET", logs, params=params))["data"]]

    assert await filtered([("event_types[]", "api_key.created"), ("event_types[]", "project.archived")]) == [
        "project.archived", "api_key.created", "api_key.created",
    ]  # fmt: skip
    assert await filtered({"resource_ids[]": account["id"]}) == ["service_account.deleted", "service_account.created"]
    assert await filtered({"project_ids[]": "default"}) == ["api_key.created"]
    assert await filtered({"actor_ids[]": "key_admin"}) == ["api_key.created", "tenant.created"]
    assert await filtered({"actor_emails[]": "nobody@example.com"}) == []
    assert await filtered({"effective_at[gt]": "9999999999"}) == []
    assert len(await filtered({"effective_at[gte]": str(listed["data"][-1]["effective_at"])})) == len(types)
    for params in ({"after": "audit_log-none"}, {"after": found[0], "before": found[1]}, {"tenant_only": "true"}):
        await tenant.ask("GET", logs, 400, params=params)

    log = FrameLog(worker.bus, "AUDIT")
    first, last = await log.bounds()
    batches = log.read(first, last, subject=tenant_audit(tenant.id))
    stored = [AuditEvent.FromString(data) async for batch in batches for _, _, data in batch]
    assert account["api_key"]["value"] not in str(stored)


async def test_the_last_use_of_a_key_is_written(tenant: Tenant, worker: Any, edge: Any, rig: Any) -> None:
    made = await tenant.ask("POST", f"{PROJECTS}/default/api_keys", json={"name": "server"})
    assert made["last_used_at"] is None
    uses = Registry(worker.bus, "key_uses", KeyUseRecord)
    await uses.start()
    try:
        for _ in range(5):
            assert (await status_with(edge, rig, made["value"]))[0] == 200
        await rig.until(lambda: uses.get(made["id"]) is not None, 30)
        one = f"{PROJECTS}/default/api_keys/{made['id']}"
        async with asyncio.timeout(30):  # the edge's own watch brings it there
            while (shown := await tenant.ask("GET", one))["last_used_at"] is None:
                await asyncio.sleep(0.02)
        assert made["created_at"] <= shown["last_used_at"] <= made["created_at"] + 60
    finally:
        await uses.stop()


async def test_the_last_use_of_a_key_is_written_once_a_minute_and_at_the_end(worker: Any, rig: Any) -> None:
    uses = Registry(worker.bus, "key_uses", KeyUseRecord)
    await uses.start()
    try:
        writer, key, now = KeyUses(uses), f"key-{uuid4().hex}", clock.now_us()
        for look in range(3):  # the minute has not passed
            writer.note(key, now + look)
            await writer.write()
        await rig.until(lambda: uses.get(key) is not None, 30)
        written = uses.revision(key)
        assert uses.get(key) == KeyUseRecord(last_use_time=clock.timestamp(now))
        await writer.write(all_of_them=True)
        await rig.until(lambda: uses.revision(key) > written, 30)
        assert uses.get(key) == KeyUseRecord(last_use_time=clock.timestamp(now + 2))
    finally:
        await uses.stop()
