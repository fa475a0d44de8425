"""OpenAI's usage and costs of an organization: queries into what the meter is asked, its rows into pages of buckets.

Buckets are cut at whole minutes, hours or days of UTC; the first begins at start_time, the last ends at end_time. Pure.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inferbus.common.v1.usage_pb2 import Operation
from inferbus.meter.v1.usage_pb2 import BucketWidth, Dimension, UsageFilter
from inferbus_runtime.errors import invalid

from inferbus_edge.core.organization_bodies import Query, boolean, known_only, many

Object = dict[str, Any]
_DAY = 86_400
# Seconds, what the meter calls it, and how many buckets a page has: by default and at most.
_WIDTHS = {
    "1m": (60, BucketWidth.BUCKET_WIDTH_MINUTE, 60, 1440),
    "1h": (3600, BucketWidth.BUCKET_WIDTH_HOUR, 24, 168),
    "1d": (_DAY, BucketWidth.BUCKET_WIDTH_DAY, 7, 31),
}
_MAX_COST_BUCKETS = 180
# The end of the year 9999.
_LAST_SECOND = 253_402_300_799
_CURSOR = "page_"
# What a result can be told apart by, and what the meter tells apart for it.
_DIMENSIONS = {
    "project_id": Dimension.DIMENSION_PROJECT,
    "user_id": Dimension.DIMENSION_KEY,
    "api_key_id": Dimension.DIMENSION_KEY,
    "model": Dimension.DIMENSION_MODEL,
    "batch": Dimension.DIMENSION_PRIORITY_CLASS,
    "service_tier": Dimension.DIMENSION_PRIORITY_CLASS,
    "inferbus_end_user": Dimension.DIMENSION_END_USER,
    "inferbus_tags": Dimension.DIMENSION_TAGS,
}
_OURS = ("inferbus_end_user", "inferbus_tags")
_COMMON = ("project_id", "user_id", "api_key_id", "model")


@dataclass(frozen=True, slots=True)
class Kind:
    """One of OpenAI's parts of usage. Without ``operations`` InferBus does no such thing: its buckets are empty."""

    name: str
    operations: tuple[Operation.ValueType, ...] = ()
    groups: tuple[str, ...] = _COMMON
    filters: tuple[str, ...] = ("project_ids", "user_ids", "api_key_ids", "models")


KINDS = (
    Kind(
        "completions",
        (Operation.OPERATION_CHAT, Operation.OPERATION_TEXT_COMPLETION, Operation.OPERATION_UNSPECIFIED),
        (*_COMMON, "batch", "service_tier", *_OURS),
    ),
    Kind("embeddings", (Operation.OPERATION_EMBEDDINGS,), (*_COMMON, *_OURS)),
    # Not OpenAI's: calls of models that write no text.
    Kind("inference", (Operation.OPERATION_INFERENCE,), (*_COMMON, *_OURS)),
    Kind("decisions", groups=(*_COMMON, "batch", "service_tier")),
    Kind("moderations"),
    Kind(
        "images", groups=(*_COMMON, "size", "source"),
        filters=("project_ids", "user_ids", "api_key_ids", "models", "sizes", "sources"),
    ),
    Kind("audio_speeches"),
    Kind("audio_transcriptions"),
    Kind("vector_stores", groups=("project_id",), filters=("project_ids",)),
    Kind("code_interpreter_sessions", groups=("project_id",), filters=("project_ids",)),
    Kind(
        "file_search_calls", groups=("project_id", "user_id", "api_key_id", "vector_store_id"),
        filters=("project_ids", "user_ids", "api_key_ids", "vector_store_ids"),
    ),
    Kind(
        "web_search_calls", groups=(*_COMMON, "context_level"),
        filters=("project_ids", "user_ids", "api_key_ids", "models", "context_levels"),
    ),
)  # fmt: skip
COSTS = Kind(
    "costs",
    groups=("project_id", "user_id", "api_key_id", "line_item", *_OURS),
    filters=("project_ids", "user_ids", "api_key_ids", "line_items"),
)


@dataclass(frozen=True, slots=True)
class Page:
    """Buckets [begin, end) in Unix seconds, without a gap; ``after``: where the next page begins, None for none."""

    buckets: tuple[tuple[int, int], ...]
    after: int | None
    seconds: int
    width: BucketWidth.ValueType


@dataclass(frozen=True, slots=True)
class Asked:
    """``groups``: by what results are told apart; ``users``: whose keys alone count, empty for all."""

    page: Page
    groups: frozenset[str]
    users: frozenset[str]
    line_items: frozenset[str]
    filter: UsageFilter = field(default_factory=UsageFilter)

    @property
    def dimensions(self) -> list[Dimension.ValueType]:
        return sorted({_DIMENSIONS[one] for one in self.groups if one in _DIMENSIONS})

    def limited_to(self, tenant_id: str, owners: Mapping[str, str]) -> UsageFilter | None:
        """What the meter is asked for; ``owners``: of the tenant's keys. None: nothing can match, where an empty name
        or list would let everything through."""
        if not tenant_id:
            return None
        only = UsageFilter()
        only.CopyFrom(self.filter)
        only.tenant_id = tenant_id
        if self.users:
            keys = {key for key, owner in owners.items() if owner in self.users}
            if only.key_ids:
                keys &= set(only.key_ids)
            if not keys:
                return None
            only.key_ids[:] = sorted(keys)
        return only


def usage_asked(kind: Kind, query: Query, now: int) -> Asked:
    """``now``: Unix seconds. Raises InferBusError INVALID_ARGUMENT."""
    given = _known(kind, query)
    width = given.get("bucket_width", "1d")
    if width not in _WIDTHS:
        raise invalid("'bucket_width' is 1m, 1h or 1d.", param="bucket_width")
    seconds, name, default, most = _WIDTHS[width]
    page = _page(given, now, seconds, name, (default, most))
    return Asked(page, _groups(kind, query), many(query, "user_ids"), frozenset(), _filter(kind, query, given))


def costs_asked(query: Query, now: int) -> Asked:
    """``now``: Unix seconds. Raises InferBusError INVALID_ARGUMENT."""
    given = _known(COSTS, query)
    if given.get("bucket_width", "1d") != "1d":
        raise invalid("'bucket_width' of costs is 1d.", param="bucket_width")
    page = _page(given, now, _DAY, BucketWidth.BUCKET_WIDTH_DAY, (7, _MAX_COST_BUCKETS))
    return Asked(
        page, _groups(COSTS, query), many(query, "user_ids"), many(query, "line_items"), _filter(COSTS, query, given)
    )


def _known(kind: Kind, query: Query) -> dict[str, str]:
    lists = ("group_by", *kind.filters)
    if set(_OURS) & set(kind.groups):
        lists = (*lists, "inferbus_end_users", "inferbus_tags")
    known = {"start_time", "end_time", "bucket_width", "limit", "page", "tenant_id"}
    if "batch" in kind.groups:
        known.add("batch")
    known_only([name for name, _ in query], {*known, *lists, *(f"{name}[]" for name in lists)})
    return {name: value for name, value in query if value}


def _groups(kind: Kind, query: Query) -> frozenset[str]:
    groups = many(query, "group_by")
    unknown = sorted(groups - set(kind.groups))
    if unknown:
        raise invalid(
            f"'group_by' of {kind.name} does not take '{unknown[0][:64]}'; it takes {', '.join(kind.groups)}.",
            param="group_by",
        )
    return groups


def _filter(kind: Kind, query: Query, given: Mapping[str, str]) -> UsageFilter:
    only = UsageFilter(
        project_ids=sorted(many(query, "project_ids")), key_ids=sorted(many(query, "api_key_ids")),
        models=sorted(many(query, "models")), operations=kind.operations,
        end_users=sorted(many(query, "inferbus_end_users")),
    )  # fmt: skip
    if "batch" in given:
        only.batch = boolean(given, "batch")
    for tag in many(query, "inferbus_tags"):
        name, separator, value = tag.partition("=")
        if not separator:
            raise invalid("'inferbus_tags' is a list of NAME=VALUE.", param="inferbus_tags")
        if name in only.tags:
            raise invalid("'inferbus_tags' has each NAME once: a request has one value of it.", param="inferbus_tags")
        only.tags[name] = value
    return only


# --- pages ------------------------------------------------------------------------------------------------------------


def _page(
    given: Mapping[str, str], now: int, seconds: int, width: BucketWidth.ValueType, limits: tuple[int, int]
) -> Page:
    """``limits``: buckets of a page by default and at most."""
    start = _second(given, "start_time")
    if start is None:
        raise invalid("'start_time' must be set.", param="start_time", reason="missing_required_parameter")
    end = _second(given, "end_time")
    if end is not None and end <= start:
        raise invalid("'end_time' must be after 'start_time'.", param="end_time")
    # The bucket in progress is the last: what is to come has none.
    present = (now // seconds + 1) * seconds
    end = present if end is None else min(end, present)
    limit = _second(given, "limit")
    default, most = limits
    if limit is not None and not 1 <= limit <= most:
        raise invalid(f"'limit' is 1 to {most} with this 'bucket_width'.", param="limit")
    at = _position(given["page"], start, end, seconds) if "page" in given else start
    buckets: list[tuple[int, int]] = []
    while at < end and len(buckets) < (limit or default):
        after = (at // seconds + 1) * seconds
        buckets.append((at, min(after, end)))
        at = after
    return Page(tuple(buckets), at if at < end else None, seconds, width)


def _second(given: Mapping[str, str], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 12 or int(value) > _LAST_SECOND:
        raise invalid(f"'{name}' must be a whole number.", param=name, reason="invalid_type")
    return int(value)


def cursor(second: int) -> str:
    return _CURSOR + base64.urlsafe_b64encode(second.to_bytes(6, "big")).decode()


def _position(text: str, start: int, end: int, seconds: int) -> int:
    try:
        at = int.from_bytes(base64.b64decode(text.removeprefix(_CURSOR), b"-_", validate=True), "big")
    except (ValueError, binascii.Error):
        at = -1
    if not (text.startswith(_CURSOR) and start < at < end and at % seconds == 0):
        raise invalid("'page' is not of this query; begin without it.", param="page")
    return at


def page_object(page: Page, results: Mapping[int, Sequence[Object]]) -> Object:
    """``results`` by where the meter's bucket begins."""
    buckets = [
        {
            "object": "bucket",
            "start_time": begin,
            "end_time": end,
            "results": list(results.get(begin // page.seconds * page.seconds, ())),
        }
        for begin, end in page.buckets
    ]
    after = None if page.after is None else cursor(page.after)
    return {"object": "page", "data": buckets, "has_more": after is not None, "next_page": after}
