"""The operations of /v1/organization: OpenAI's administration API, its bodies and its objects."""

from inferbus_edge.core.openapi_operations import AFTER, LIMIT, WITH_KEY, Operation, Parameter, in_path, in_query, texts
from inferbus_edge.core.openapi_schema import (
    FLAG,
    NULL,
    TEXT,
    UNIX,
    WHOLE,
    Schema,
    any_of,
    const,
    listing,
    many,
    nullable,
    one_of,
    record,
    ref,
    told,
)

_GROUP, _SCOPE = "Organization", "tenant_admin"
_AT = "/v1/organization"
_ERRORS = (*WITH_KEY, 404, 409, 503)
_CHANGING = (*_ERRORS, 429)
_TENANT = Parameter("OpenAI-Organization", "header", TEXT, "For an operator's key: the tenant that is administered.")

# --- what is sent -----------------------------------------------------------------------------------------------------


def _sent(*required: str, **fields: Schema) -> Schema:
    """A null is the same as leaving a field out, whatever its name."""
    properties = {name: schema if name in required else nullable(schema) for name, schema in fields.items()}
    shown: Schema = {"type": "object", "properties": properties, "additionalProperties": NULL}
    return {**shown, "required": list(required)} if required else shown


_LIFE: Schema = {"type": "integer", "minimum": 1, "description": "The key ends after so many seconds."}
_LIMIT: Schema = {"type": "integer", "minimum": 0}
_LIMITS: dict[str, Schema] = {
    "max_requests_per_1_minute": told(_LIMIT, "Null: no limit."),
    "max_tokens_per_1_minute": told(_LIMIT, "Null: no limit."),
    "max_concurrent_requests": told(_LIMIT, "Null: no limit."),
}
_NAME: Schema = {"type": "string", "minLength": 1}
_WEIGHT: Schema = {
    "type": "integer", "minimum": 1, "maximum": 1000,
    "description": "Its part of what the tenant gets while several of its projects wait; left out: 1.",
}  # fmt: skip
_OF_KEY: dict[str, Schema] = {
    "name": _NAME,
    "models": told(many(TEXT), "Which ones it may use; empty: all."),
    "scopes": told(many(const("inference")), "There is no other for a key of a project."),
    "expires_in_seconds": _LIFE,
    **_LIMITS,
}
_TENANT_ROLE, _PROJECT_ROLE = one_of("owner", "reader"), one_of("owner", "member")
_ACCOUNT_ROLE = one_of("owner", "member", "none")

BODIES: dict[str, Schema] = {
    "ProjectBody": _sent("name", name=_NAME, weight=_WEIGHT),
    "ProjectChange": _sent(name=_NAME, weight=_WEIGHT),
    "RateLimitBody": _sent(**_LIMITS),
    "ProjectKeyCreate": _sent("name", **_OF_KEY, user_id=told(TEXT, "Whose key it is; left out: the project's.")),
    "ProjectKeyChange": _sent(**_OF_KEY),
    "KeyRotation": _sent(
        overlap_seconds=told({"type": "integer", "minimum": 0}, "How long the old secret still works.")
    ),
    "AdminKeyCreate": _sent("name", name=_NAME, expires_in_seconds=_LIFE),
    "UserCreate": _sent("email", email={"type": "string", "pattern": "^[^@ ]+@[^@ ]+$"}, name=TEXT, role=_TENANT_ROLE),
    "UserChange": _sent("role", role=_TENANT_ROLE),
    "ProjectUserCreate": _sent("role", user_id=TEXT, email=TEXT, role=_PROJECT_ROLE),
    "ProjectUserChange": _sent("role", role=_PROJECT_ROLE),
    "ServiceAccountCreate": _sent(
        "name", name=_NAME, create_service_account_only=told(FLAG, "Without a key."), expires_in_seconds=_LIFE
    ),
    "ServiceAccountChange": _sent(name=_NAME, role=_ACCOUNT_ROLE),
    "ServiceAccountKeyCreate": _sent(name=TEXT, scopes=many(const("inference")), expires_in_seconds=_LIFE),
}

# --- what is shown ----------------------------------------------------------------------------------------------------

_SEEN: dict[str, Schema] = {"created_at": UNIX, "last_used_at": nullable(UNIX), "expires_at": nullable(UNIX)}
_VALUE = told(TEXT, "The secret: in this answer and never again.")
_SHOWN_LIMITS: dict[str, Schema] = {name: nullable(WHOLE) for name in _LIMITS}


def _key_of_project(**more: Schema) -> Schema:
    return record(
        object=const("organization.project.api_key"), id=TEXT, name=TEXT, redacted_value=TEXT, **_SEEN,
        owner=ref("ProjectKeyOwner"), owner_project_access=one_of("active", "inactive"), models=many(TEXT),
        **_SHOWN_LIMITS, **more,
    )  # fmt: skip


def _admin_key(**more: Schema) -> Schema:
    owner = record(
        type=const("organization"), object=const("organization"), id=TEXT, name=TEXT, created_at=UNIX,
        role=const("owner"),
    )  # fmt: skip
    return record(
        object=const("organization.admin_api_key"), id=TEXT, name=TEXT, redacted_value=TEXT, **_SEEN, owner=owner,
        **more,
    )  # fmt: skip


def _deleted(kind: str) -> Schema:
    return record(object=const(f"{kind}.deleted"), id=TEXT, deleted=FLAG)


_ACCOUNT: dict[str, Schema] = {
    "object": const("organization.project.service_account"), "id": TEXT, "name": TEXT, "role": TEXT, "created_at": UNIX,
}  # fmt: skip
_MEMBER: dict[str, Schema] = {"id": TEXT, "name": TEXT, "role": TEXT, "created_at": UNIX}

OBJECTS: dict[str, Schema] = {
    "Project": record(
        object=const("organization.project"), id=TEXT, name=TEXT, created_at=UNIX, archived_at=nullable(UNIX),
        status=one_of("active", "archived"), weight=WHOLE,
    ),
    "ProjectList": listing("Project"),
    "RateLimit": record(
        object=const("project.rate_limit"), id=TEXT, model=const("*"), max_requests_per_1_minute=WHOLE,
        max_tokens_per_1_minute=WHOLE, max_concurrent_requests=nullable(WHOLE),
    ),
    "RateLimitList": listing("RateLimit"),
    "ProjectKeyOwner": any_of(
        record(type=told({"type": "null"}, "The project itself.")),
        record(type=const("user"), user=record(**_MEMBER, email=TEXT)),
        record(type=const("service_account"), service_account=record(**_MEMBER)),
    ),
    "ProjectKey": _key_of_project(),
    "ProjectKeyWithValue": _key_of_project(value=_VALUE),
    "ProjectKeyList": listing("ProjectKey"),
    "ProjectKeyDeleted": _deleted("organization.project.api_key"),
    "AdminKey": _admin_key(),
    "AdminKeyWithValue": _admin_key(value=_VALUE),
    "AdminKeyList": listing("AdminKey"),
    "AdminKeyDeleted": _deleted("organization.admin_api_key"),
    "User": record(
        object=const("organization.user"), id=TEXT, name=TEXT, email=TEXT, role=TEXT, added_at=UNIX,
        is_service_account=FLAG, api_key_last_used_at=nullable(UNIX),
        projects=record(object=const("list"), data=many(record(id=TEXT, name=TEXT, role=TEXT))),
    ),
    "UserList": listing("User"),
    "UserDeleted": _deleted("organization.user"),
    "ProjectUser": record(
        object=const("organization.project.user"), id=TEXT, name=TEXT, email=TEXT, role=TEXT, added_at=UNIX
    ),
    "ProjectUserList": listing("ProjectUser"),
    "ProjectUserDeleted": _deleted("organization.project.user"),
    "ServiceAccount": record(**_ACCOUNT),
    "ServiceAccountWithKey": record(**_ACCOUNT, api_key=nullable(ref("ServiceAccountKey"))),
    "ServiceAccountList": listing("ServiceAccount"),
    "ServiceAccountDeleted": _deleted("organization.project.service_account"),
    "ServiceAccountKey": record(
        object=const("organization.project.service_account.api_key"), id=TEXT, name=TEXT, value=_VALUE, created_at=UNIX,
        expires_at=nullable(UNIX),
    ),
    "AuditLog": {
        "type": "object",
        "description": "What was changed stands under the name of its type.",
        "properties": {
            "object": const("organization.audit_log"), "id": TEXT, "type": TEXT, "effective_at": UNIX,
            "actor": {"type": "object"}, "project": record(id=TEXT, name=TEXT),
        },
        "required": ["object", "id", "type", "effective_at", "actor"],
    },
    "AuditLogList": listing("AuditLog"),
}  # fmt: skip

# --- what can be done -------------------------------------------------------------------------------------------------

_PATHS = {
    "project_id": in_path("project_id", "A project of this tenant."),
    "key_id": in_path("key_id", "The id of a key, not its secret."),
    "user_id": in_path("user_id", "The id of a user."),
    "account_id": in_path("account_id", "The id of a service account."),
    "rate_limit_id": in_path("rate_limit_id", "There is one: rl-all."),
}
_IN_AUDIT = (
    LIMIT, AFTER, in_query("before", TEXT, "The id of the first object of the page after."),
    *(in_query(f"effective_at[{bound}]", {"type": "integer", "minimum": 0, "maximum": 253402300799}, "Unix seconds.")
      for bound in ("gt", "gte", "lt", "lte")),
    texts("event_types", "Of these types."), texts("project_ids", "Of these projects."),
    texts("actor_ids", "By these keys, or keys of these users and service accounts."),
    texts("actor_emails", "By keys of these users."), texts("resource_ids", "Done to these."),
)  # fmt: skip


def _operation(method: str, path: str, summary: str, answer: str, body: str = "", *query: Parameter) -> Operation:
    named = tuple(parameter for name, parameter in _PATHS.items() if f"{{{name}}}" in path)
    return Operation(
        method, _AT + path, _GROUP, summary, answer, scope=_SCOPE, body=body, parameters=(*named, *query, _TENANT),
        errors=_ERRORS if method == "GET" else _CHANGING,
    )  # fmt: skip


_PROJECT = "/projects/{project_id}"
_KEY = f"{_PROJECT}/api_keys/{{key_id}}"
_ONE_USER = f"{_PROJECT}/users/{{user_id}}"
_ONE_ACCOUNT = f"{_PROJECT}/service_accounts/{{account_id}}"
_EMPTY = ""
_ACCESS = in_query(
    "owner_project_access", one_of("any", "active", "inactive"), "Whether their owner is in the project."
)

OPERATIONS: tuple[Operation, ...] = (
    _operation("GET", "/projects", "Projects", "ProjectList", _EMPTY, LIMIT, AFTER, in_query("include_archived", FLAG)),
    _operation("POST", "/projects", "Make a project", "Project", "ProjectBody"),
    _operation("GET", _PROJECT, "A project", "Project"),
    _operation("POST", _PROJECT, "Rename a project, or give it another weight", "Project", "ProjectChange"),
    _operation("POST", f"{_PROJECT}/archive", "Archive a project: its keys end", "Project"),
    _operation(
        "GET", f"{_PROJECT}/rate_limits", "A project's limits", "RateLimitList", _EMPTY,
        in_query("limit", {"type": "integer", "minimum": 1, "maximum": 100}), AFTER, in_query("before", TEXT),
    ),
    _operation(
        "POST", f"{_PROJECT}/rate_limits/{{rate_limit_id}}", "Set a project's limits", "RateLimit", "RateLimitBody"
    ),
    _operation("GET", f"{_PROJECT}/api_keys", "A project's keys", "ProjectKeyList", _EMPTY, LIMIT, AFTER, _ACCESS),
    _operation("POST", f"{_PROJECT}/api_keys", "Make a key", "ProjectKeyWithValue", "ProjectKeyCreate"),
    _operation("GET", _KEY, "A key", "ProjectKey"),
    _operation("POST", _KEY, "Change a key", "ProjectKey", "ProjectKeyChange"),
    _operation("DELETE", _KEY, "Revoke a key", "ProjectKeyDeleted"),
    _operation("POST", f"{_KEY}/rotate", "A new secret for a key", "ProjectKeyWithValue", "KeyRotation"),
    _operation(
        "GET", "/admin_api_keys", "Keys that administer the tenant", "AdminKeyList", _EMPTY, LIMIT, AFTER,
        in_query("order", one_of("asc", "desc")),
    ),
    _operation("POST", "/admin_api_keys", "Make an admin key", "AdminKeyWithValue", "AdminKeyCreate"),
    _operation("GET", "/admin_api_keys/{key_id}", "An admin key", "AdminKey"),
    _operation("DELETE", "/admin_api_keys/{key_id}", "Revoke an admin key", "AdminKeyDeleted"),
    _operation("GET", "/users", "Users", "UserList", _EMPTY, LIMIT, AFTER, texts("emails", "With these addresses.")),
    _operation("POST", "/users", "Add a user", "User", "UserCreate"),
    _operation("GET", "/users/{user_id}", "A user", "User"),
    _operation("POST", "/users/{user_id}", "Change a user's role", "User", "UserChange"),
    _operation("DELETE", "/users/{user_id}", "Remove a user", "UserDeleted"),
    _operation("GET", f"{_PROJECT}/users", "A project's users", "ProjectUserList", _EMPTY, LIMIT, AFTER),
    _operation("POST", f"{_PROJECT}/users", "Put a user into a project", "ProjectUser", "ProjectUserCreate"),
    _operation("GET", _ONE_USER, "A project's user", "ProjectUser"),
    _operation("POST", _ONE_USER, "Change a user's role in a project", "ProjectUser", "ProjectUserChange"),
    _operation("DELETE", _ONE_USER, "Take a user out of a project", "ProjectUserDeleted"),
    _operation(
        "GET", f"{_PROJECT}/service_accounts", "A project's service accounts", "ServiceAccountList", _EMPTY, LIMIT,
        AFTER,
    ),
    _operation(
        "POST", f"{_PROJECT}/service_accounts", "Make a service account with a key", "ServiceAccountWithKey",
        "ServiceAccountCreate",
    ),
    _operation("GET", _ONE_ACCOUNT, "A service account", "ServiceAccount"),
    _operation("POST", _ONE_ACCOUNT, "Change a service account", "ServiceAccount", "ServiceAccountChange"),
    _operation("DELETE", _ONE_ACCOUNT, "Delete a service account and its keys", "ServiceAccountDeleted"),
    _operation(
        "POST", f"{_ONE_ACCOUNT}/api_keys", "A further key of a service account", "ServiceAccountKey",
        "ServiceAccountKeyCreate",
    ),
    _operation("GET", "/audit_logs", "Who changed what, newest first", "AuditLogList", _EMPTY, *_IN_AUDIT),
)  # fmt: skip
