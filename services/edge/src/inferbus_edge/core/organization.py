"""OpenAI's administration objects, made of our records. Pure.

Where a field of theirs has no meaning here it is left out or null, unless their SDK needs a number: an absent limit is
shown as the largest number that the field holds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.registry_pb2 import (
    Limits,
    MemberKind,
    MemberRecord,
    ProjectMembership,
    ProjectRecord,
    RecordState,
    TenantRecord,
)
from inferbus.edge.v1.edge_pb2 import Key
from inferbus_runtime.errors import invalid

# One entry a project: limits hold over all of its models together.
RATE_LIMIT_ID = "rl-all"
NO_LIMIT_REQUESTS = (1 << 32) - 1
# As many as a double, and so JavaScript, holds exactly.
NO_LIMIT_TOKENS = (1 << 53) - 1
Object = dict[str, Any]
ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which part of a list. ``after``: an object's id, empty for the beginning."""

    limit: int = 20
    after: str = ""


@dataclass(frozen=True, slots=True)
class Listing(Generic[ItemT]):
    """A list in its order: how an item is named, whether it is shown, and how. What is not shown (revoked, archived)
    may still be a cursor: it may have been shown when the last page was read."""

    items: Sequence[ItemT]
    name: Callable[[ItemT], str]
    show: Callable[[ItemT], Object]
    shown: Callable[[ItemT], bool] = lambda item: True


def page(listing: Listing[ItemT], query: PageQuery) -> Object:
    """OpenAI's list object. Raises InferBusError INVALID_ARGUMENT if ``after`` names nothing in the list."""
    names = [listing.name(item) for item in listing.items]
    if query.after and query.after not in names:
        raise invalid("'after' names no object of this list; list again from its beginning.", param="after")
    start = names.index(query.after) + 1 if query.after else 0
    rest = [item for item in listing.items[start:] if listing.shown(item)]
    return list_object([listing.show(item) for item in rest[: query.limit]], len(rest) > query.limit)


def list_object(data: list[Object], has_more: bool) -> Object:
    ends = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": ends[0], "last_id": ends[1], "has_more": has_more}


def seconds(stamp: Timestamp) -> int | None:
    """Unix seconds; None if it is not set."""
    return stamp.seconds or None


def project_object(project: ProjectRecord) -> Object:
    """``weight`` is ours: its part of what the tenant gets while several of its projects wait."""
    archived = project.state == RecordState.RECORD_STATE_ARCHIVED
    return {
        "object": "organization.project",
        "id": project.project_id,
        "name": project.name,
        "created_at": project.create_time.seconds,
        "archived_at": seconds(project.archive_time),
        "status": "archived" if archived else "active",
        "weight": project.weight or 1,
    }


def rate_limit_object(limits: Limits) -> Object:
    """``max_concurrent_requests`` is ours: null for no limit."""
    requests = limits.requests_per_minute if limits.HasField("requests_per_minute") else NO_LIMIT_REQUESTS
    tokens = limits.tokens_per_minute if limits.HasField("tokens_per_minute") else NO_LIMIT_TOKENS
    concurrent = limits.concurrent_requests if limits.HasField("concurrent_requests") else None
    return {
        "object": "project.rate_limit",
        "id": RATE_LIMIT_ID,
        "model": "*",
        "max_requests_per_1_minute": requests,
        "max_tokens_per_1_minute": tokens,
        "max_concurrent_requests": concurrent,
    }


def project_key_object(key: Key, owner: MemberRecord | None, access: bool) -> Object:
    """``owner``: who has it, None for the project itself. ``models`` and ``max_...`` are ours."""
    return {
        "object": "organization.project.api_key",
        "id": key.key_id,
        "name": key.name,
        "redacted_value": redacted(key),
        "created_at": key.create_time.seconds,
        "last_used_at": seconds(key.last_use_time),
        "expires_at": seconds(key.expire_time),
        "owner": _owner(owner, key.project_id),
        "owner_project_access": "active" if access else "inactive",
        "models": list(key.models),
        **_limits(key.limits),
    }


def _limits(limits: Limits) -> Object:
    names = {
        "max_requests_per_1_minute": "requests_per_minute",
        "max_tokens_per_1_minute": "tokens_per_minute",
        "max_concurrent_requests": "concurrent_requests",
    }
    return {
        ours: getattr(limits, name) if limits.HasField(name) else None  # type: ignore[arg-type]
        for ours, name in names.items()
    }


def _owner(owner: MemberRecord | None, project_id: str) -> Object:
    if owner is None:
        return {"type": None}
    shown = {
        "id": owner.member_id,
        "name": owner.name,
        "role": _project_role(owner, project_id),
        "created_at": owner.create_time.seconds,
    }
    if owner.kind == MemberKind.MEMBER_KIND_SERVICE_ACCOUNT:
        return {"type": "service_account", "service_account": shown}
    return {"type": "user", "user": {**shown, "email": owner.email}}


def redacted(key: Key) -> str:
    return f"{key.prefix}***"


def key_value_object(key: Key, secret: str) -> Object:
    """A service account's key with its value, which is shown this once."""
    return {
        "object": "organization.project.service_account.api_key",
        "id": key.key_id,
        "name": key.name,
        "value": secret,
        "created_at": key.create_time.seconds,
        "expires_at": seconds(key.expire_time),
    }


def admin_key_object(key: Key, tenant: TenantRecord) -> Object:
    """An admin key belongs to the tenant itself."""
    owner = {
        "type": "organization",
        "object": "organization",
        "id": tenant.tenant_id,
        "name": tenant.name,
        "created_at": tenant.create_time.seconds,
        "role": "owner",
    }
    return {
        "object": "organization.admin_api_key",
        "id": key.key_id,
        "name": key.name,
        "redacted_value": redacted(key),
        "created_at": key.create_time.seconds,
        "last_used_at": seconds(key.last_use_time),
        "expires_at": seconds(key.expire_time),
        "owner": owner,
    }


def user_object(user: MemberRecord, project_names: Callable[[str], str], last_use: int | None) -> Object:
    """``last_use``: Unix seconds, of his keys."""
    projects = [
        {"id": one.project_id, "name": project_names(one.project_id), "role": one.role} for one in user.projects
    ]
    return {
        "object": "organization.user",
        "id": user.member_id,
        "name": user.name,
        "email": user.email,
        "role": user.role,
        "added_at": user.create_time.seconds,
        "is_service_account": False,
        "api_key_last_used_at": last_use,
        "projects": {"object": "list", "data": projects},
    }


def project_user_object(user: MemberRecord, project_id: str) -> Object:
    return {
        "object": "organization.project.user",
        "id": user.member_id,
        "name": user.name,
        "email": user.email,
        "role": _project_role(user, project_id),
        "added_at": _membership(user.projects, project_id).create_time.seconds,
    }


def service_account_object(account: MemberRecord, project_id: str) -> Object:
    return {
        "object": "organization.project.service_account",
        "id": account.member_id,
        "name": account.name,
        "role": _project_role(account, project_id),
        "created_at": account.create_time.seconds,
    }


def deleted_object(kind: str, name: str) -> Object:
    return {"object": f"{kind}.deleted", "id": name, "deleted": True}


def _project_role(member: MemberRecord, project_id: str) -> str:
    return _membership(member.projects, project_id).role or "none"


def _membership(memberships: Iterable[ProjectMembership], project_id: str) -> ProjectMembership:
    return next((one for one in memberships if one.project_id == project_id), ProjectMembership())
