"""What a caller of the administration sends: bodies and queries, checked by name and type. Pure."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.registry_pb2 import Limits
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_edge.core.organization import NO_LIMIT_REQUESTS, NO_LIMIT_TOKENS, PageQuery
from inferbus_edge.core.organization_audit import AuditQuery
from inferbus_edge.core.organization_rules import MAX_EXPIRY_SECONDS

Body = Mapping[str, Any]
Query = Sequence[tuple[str, str]]
_MAX_LIMIT = 100
_MAX_LIST = 100
# Parameters of OpenAI's that stand for something that InferBus has not.
_UNSUPPORTED = frozenset(
    (
        "external_key_id", "geography", "residency", "role_id", "developer_persona", "technical_level", "tenant_only",
        "batch_1_day_max_input_tokens", "max_audio_megabytes_per_1_minute", "max_images_per_1_minute",
        "max_requests_per_1_day",
    )
)  # fmt: skip
LIMIT_FIELDS = ("max_requests_per_1_minute", "max_tokens_per_1_minute", "max_concurrent_requests")


def known_only(given: Collection[str], known: Collection[str]) -> None:
    """Raises InferBusError INVALID_ARGUMENT for a name that is not in ``known``."""
    for name in given:
        if name in known:
            continue
        shown = name[:64]
        if name in _UNSUPPORTED:
            raise invalid(
                f"InferBus does not support '{shown}'; leave it out.", param=shown, reason="unsupported_parameter"
            )
        raise invalid(f"Unknown parameter: '{shown}'.", param=shown, reason="unknown_parameter")


def fields(body: Body, known: Collection[str]) -> dict[str, Any]:
    """The body without its nulls, which stand for what was left out. Raises InferBusError INVALID_ARGUMENT."""
    given = {name: value for name, value in body.items() if value is not None}
    known_only(given, known)
    return given


def text(body: Body, name: str, default: str | None = None) -> str:
    """Raises InferBusError INVALID_ARGUMENT if it is no text, or is missing or empty and has no ``default``."""
    value = body.get(name, default)
    if value is None or (value == "" and default is None):
        raise invalid(f"'{name}' must be set.", param=name, reason="missing_required_parameter")
    if not isinstance(value, str):
        raise _type(name, "a string")
    return value


def flag(body: Body, name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise _type(name, "true or false")
    return value


def texts(body: Body, name: str) -> list[str]:
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise _type(name, "an array of strings")
    return value


def whole(body: Body, name: str, least: int, most: int) -> int | None:
    """A whole number; None if it is not there."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise _type(name, "a whole number")
    if not least <= value <= most:
        raise invalid(f"'{name}' is {least} to {most}.", param=name)
    return value


def expiry(body: Body, now_us: int) -> Timestamp | None:
    """When a key ends that lives for ``expires_in_seconds``; None if it does not end."""
    now = math.ceil(now_us / 1_000_000)
    lifetime = whole(body, "expires_in_seconds", 1, MAX_EXPIRY_SECONDS - now)
    return None if lifetime is None else Timestamp(seconds=now + lifetime)


def with_limits(limits: Limits, body: Body) -> Limits:
    """``limits`` with what the body says. A null, or the number that stands for no limit, takes one away."""
    changed = Limits()
    changed.CopyFrom(limits)
    fields_of = zip(LIMIT_FIELDS, ("requests_per_minute", "tokens_per_minute", "concurrent_requests"), strict=True)
    for name, field in fields_of:
        if name not in body:
            continue
        most = NO_LIMIT_TOKENS if field == "tokens_per_minute" else NO_LIMIT_REQUESTS
        value = whole(body, name, 0, most)
        changed.ClearField(field)  # type: ignore[arg-type]
        if value is not None and value < most:
            setattr(changed, field, value)
    return changed


def scopes(body: Body, allowed: str) -> None:
    """A key of a project has one scope; that may be said. Raises InferBusError INVALID_ARGUMENT for any other."""
    if set(texts(body, "scopes")) - {allowed}:
        raise invalid(f"A key of a project has the scope '{allowed}' only; leave 'scopes' out.", param="scopes")


def named(query: Query, known: Collection[str]) -> dict[str, str]:
    """Parameters that are given once. Raises InferBusError INVALID_ARGUMENT."""
    known_only([name for name, _ in query], known)
    return {name: value for name, value in query if value}


def page_query(given: Mapping[str, str], default_limit: int = 20) -> PageQuery:
    return PageQuery(_limit(given, default_limit), given.get("after", ""))


def boolean(given: Mapping[str, str], name: str) -> bool:
    value = given.get(name, "false").lower()
    if value not in ("true", "false"):
        raise _type(name, "true or false")
    return value == "true"


def choice(given: Mapping[str, str], name: str, known: Sequence[str]) -> str:
    """One of ``known``, the first by default."""
    value = given.get(name, known[0])
    if value not in known:
        raise invalid(f"'{name}' is one of {', '.join(known)}.", param=name)
    return value


def many(query: Query, name: str) -> frozenset[str]:
    """A list as OpenAI's SDK writes it (``name[]=a&name[]=b``), or without the brackets."""
    values = frozenset(value for key, value in query if key in (name, f"{name}[]"))
    if len(values) > _MAX_LIST:
        raise invalid(f"'{name}' has more than {_MAX_LIST} values.", param=name)
    return values


_LISTS = ("event_types", "project_ids", "actor_ids", "actor_emails", "resource_ids")
# The end of the year 9999.
_LAST_SECOND = 253_402_300_799
_BOUNDS = ("gt", "gte", "lt", "lte")


def audit_query(query: Query) -> tuple[AuditQuery, frozenset[str]]:
    """(which entries; of users with which addresses). Raises InferBusError INVALID_ARGUMENT."""
    known = {"limit", "after", "before", *_LISTS, *(f"{name}[]" for name in _LISTS)}
    known |= {f"effective_at[{bound}]" for bound in _BOUNDS}
    given = named(query, known)
    if "after" in given and "before" in given:
        raise invalid("Give 'after' or 'before', not both.", param="before")
    start, end = _range(given)
    asked = AuditQuery(
        limit=_limit(given, 20),
        after=given.get("after", ""),
        before=given.get("before", ""),
        start=start,
        end=end,
        types=many(query, "event_types"),
        projects=many(query, "project_ids"),
        actors=many(query, "actor_ids"),
        targets=many(query, "resource_ids"),
    )
    return asked, many(query, "actor_emails")


def _range(given: Mapping[str, str]) -> tuple[int, int | None]:
    """``effective_at[...]`` as whole seconds, both ends included."""
    at: dict[str, int | None] = {bound: _number(given, f"effective_at[{bound}]") for bound in _BOUNDS}
    for bound, seconds in at.items():
        if seconds is not None and seconds > _LAST_SECOND:
            raise invalid(f"'effective_at' is at most {_LAST_SECOND}.", param=f"effective_at[{bound}]")
    starts = [0 if at["gte"] is None else at["gte"], 0 if at["gt"] is None else at["gt"] + 1]
    ends = [end for end in (at["lte"], None if at["lt"] is None else at["lt"] - 1) if end is not None]
    return max(starts), min(ends) if ends else None


def _limit(given: Mapping[str, str], default: int) -> int:
    limit = _number(given, "limit")
    if limit is None:
        return default
    if not 1 <= limit <= _MAX_LIMIT:
        raise invalid(f"'limit' is 1 to {_MAX_LIMIT}.", param="limit")
    return limit


def _number(given: Mapping[str, str], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 12:
        raise _type(name, "a whole number")
    return int(value)


Kind = Literal["a string", "a whole number", "an array of strings", "true or false"]


def _type(name: str, kind: Kind) -> InferBusError:
    return invalid(f"'{name}' must be {kind}.", param=name, reason="invalid_type")
