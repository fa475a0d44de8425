"""Changes: how one is told to AUDIT, and how the audit log reads in OpenAI's shape. Pure."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus_runtime.errors import invalid

# What we say → what OpenAI calls it. An action that is not here has no name there and keeps ours.
_TYPES = {
    "key.created": "api_key.created",
    "key.updated": "api_key.updated",
    "key.rotated": "api_key.updated",
    "key.revoked": "api_key.deleted",
    "tenant.updated": "organization.updated",
    "project_user.added": "user.added",
    "project_user.updated": "user.updated",
    "project_user.removed": "user.deleted",
}
_DATA = (".created", ".added")
_CHANGES = (".updated",)
MAX_DETAILS_BYTES = 2 << 10


@dataclass(frozen=True, slots=True)
class Change:
    """What is about to be done, by whom, to what. ``details`` has no secret."""

    action: str
    actor_key_id: str
    tenant_id: str
    target: str
    project_id: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def event_of(change: Change, revision: int) -> AuditEvent:
    """The event without its time. Its id is the same for the same change of the same ``revision`` by the same actor,
    so that saying it twice is saying it once, and differs from that of any other change. Its details have
    MAX_DETAILS_BYTES at most."""
    details = _json(change.details).decode()
    parts = (change.action, change.actor_key_id, change.tenant_id, change.target, change.project_id)
    named = orjson.dumps([*parts, revision, details])
    return AuditEvent(
        event_id=f"audit_log-{hashlib.sha256(named).hexdigest()[:24]}",
        actor_key_id=change.actor_key_id,
        tenant_id=change.tenant_id,
        action=change.action,
        target=change.target,
        project_id=change.project_id,
        details=_json(_short(change.details)).decode(),
    )


def _short(details: Mapping[str, Any]) -> dict[str, Any]:
    """``details`` in which the largest values, until all of it is small enough, are told by their size and hash: the
    log keeps so many bytes, and long lists must not push out what else was done."""
    short = dict(details)
    for name in sorted(details, key=lambda name: -len(_json(details[name]))):
        if len(_json(short)) <= MAX_DETAILS_BYTES:
            break
        value = details[name]
        counted = {"count": len(value)} if isinstance(value, list) else {}
        short[name] = {**counted, "sha256": hashlib.sha256(_json(value)).hexdigest()}
    return short


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def type_of(event: AuditEvent) -> str:
    """OpenAI's name of what happened."""
    return _TYPES.get(event.action, event.action)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose key it was: ``kind`` user or service_account."""

    kind: str
    member_id: str
    email: str = ""


def audit_object(event: AuditEvent, actor: Owner | None, project_name: str) -> dict[str, Any]:
    """One entry as OpenAI shows it."""
    kind = type_of(event)
    details = orjson.loads(event.details or b"{}")
    key: dict[str, Any] = {"id": event.actor_key_id, "type": None if actor is None else actor.kind}
    if actor is not None:
        member = {"id": actor.member_id} | ({"email": actor.email} if actor.kind == "user" else {})
        key[actor.kind] = member
    shown: dict[str, Any] = {
        "object": "organization.audit_log",
        "id": event.event_id,
        "type": kind,
        "effective_at": event.event_time.seconds,
        "actor": {"type": "api_key", "api_key": key},
    }
    if event.project_id:
        shown["project"] = {"id": event.project_id, "name": project_name}
    payload: dict[str, Any] = {"id": event.target}
    if kind.endswith(_DATA):
        payload["data"] = details
    elif kind.endswith(_CHANGES):
        payload["changes_requested"] = details
    shown[kind] = payload
    return shown


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries: an empty set takes all. Times are Unix seconds, both ends included."""

    limit: int = 20
    after: str = ""
    before: str = ""
    start: int = 0
    end: int | None = None
    types: frozenset[str] = frozenset()
    projects: frozenset[str] = frozenset()
    actors: frozenset[str] = frozenset()
    targets: frozenset[str] = frozenset()

    def with_actors(self, actors: Iterable[str]) -> "AuditQuery":
        """The same of these actors, too: ids of keys or of their owners."""
        return replace(self, actors=self.actors | frozenset(actors))

    def wants(self, event: AuditEvent, owner_id: str) -> bool:
        """``owner_id``: of the key that did it."""
        at = event.event_time.seconds
        return (
            self.start <= at
            and (self.end is None or at <= self.end)
            and (not self.types or type_of(event) in self.types)
            and (not self.projects or event.project_id in self.projects)
            and (not self.actors or event.actor_key_id in self.actors or (owner_id != "" and owner_id in self.actors))
            and (not self.targets or event.target in self.targets)
        )


class AuditPage:
    """Takes the log from old to new and keeps the page that was asked for, newest first; holds ``limit`` + 1 events at
    most, however long the log is."""

    def __init__(self, query: AuditQuery, owner_of: Callable[[str], str]) -> None:
        self._query = query
        self._owner_of = owner_of
        # Towards the newest for "before"; else what is left at the end, or at "after", is the page.
        self._kept: deque[AuditEvent] = deque(maxlen=None if query.before else query.limit + 1)
        self._met = False

    def take(self, event: AuditEvent) -> bool:
        """False: the page is full, the rest need not be read."""
        query = self._query
        cursor = query.after or query.before
        if cursor and event.event_id == cursor:
            self._met = True
            return bool(query.before)
        if query.before and not self._met:
            return True
        if query.wants(event, self._owner_of(event.actor_key_id)):
            self._kept.append(event)
        return not query.before or len(self._kept) <= query.limit

    @property
    def complete(self) -> bool:
        """Whether reading from an earlier time could not add to it."""
        if self._query.before:
            return self._met
        return len(self._kept) > self._query.limit and (self._met or not self._query.after)

    def result(self) -> tuple[list[AuditEvent], bool]:
        """(the page, newest first; whether there is more in its direction).

        Raises InferBusError INVALID_ARGUMENT if the cursor names no entry of this log.
        """
        query = self._query
        if (query.after or query.before) and not self._met:
            name = "after" if query.after else "before"
            raise invalid(f"'{name}' names no entry of this audit log.", param=name)
        events = list(self._kept)
        more = len(events) > query.limit
        events = events[: query.limit] if query.before else events[-query.limit :]
        return events[::-1], more
