"""The query of the operator's reports of usage as what the meter is asked. Pure."""

from typing import Any

from inferbus_runtime.errors import invalid

from inferbus_edge.core.organization_bodies import Query, boolean, choice, known_only, many

# Names in a query, and the meter's. The first bucket is the default: all of the time as one.
BUCKETS = ("all", "minute", "hour", "day", "month")
DIMENSIONS = {
    "tenant": "TENANT", "project": "PROJECT", "key": "KEY", "model": "MODEL", "revision": "REVISION",
    "operation": "OPERATION", "class": "PRIORITY_CLASS", "user": "END_USER", "tags": "TAGS",
}  # fmt: skip
FORMATS = {"csv": "CSV", "parquet": "PARQUET", "jsonl": "JSON_LINES"}
_LISTS = {"project": "project_ids", "key": "key_ids", "model": "models", "user": "end_users"}
_FILTER = ("tenant", *_LISTS, "tag", "batch")


def range_of(query: Query, *also: str) -> dict[str, Any]:
    """``start`` and ``end``, under the message's names. Raises InferBusError INVALID_ARGUMENT for a name that is
    neither, nor one of ``also``."""
    known_only([name for name, _ in query], ("start", "end", *also))
    given = {name: value for name, value in query if value}
    return {f"{name}_time": given[name] for name in ("start", "end") if name in given}


def report_of(query: Query, *also: str) -> dict[str, Any]:
    """Range, buckets and filter of a message, as protobuf's JSON. Raises InferBusError INVALID_ARGUMENT."""
    asked = range_of(query, "bucket", *_FILTER, *also)
    given = {name: value for name, value in query if value}
    bucket = choice(given, "bucket", BUCKETS)
    if bucket != "all":
        asked["bucket_width"] = f"BUCKET_WIDTH_{bucket.upper()}"
    return asked | {"filter": _filter(query, given)}


def dimensions_of(query: Query) -> list[str]:
    """``by=tenant,project``: by what the rows are told apart."""
    names = [name.strip() for key, value in query if key == "by" for name in value.split(",") if name.strip()]
    for name in names:
        if name not in DIMENSIONS:
            raise invalid(f"'by' takes {', '.join(DIMENSIONS)}; not '{name[:64]}'.", param="by")
    return [f"DIMENSION_{DIMENSIONS[name]}" for name in dict.fromkeys(names)]


def _filter(query: Query, given: dict[str, str]) -> dict[str, Any]:
    only: dict[str, Any] = {field: sorted(many(query, name)) for name, field in _LISTS.items()}
    only["tenant_id"] = given.get("tenant", "")
    if "batch" in given:
        only["batch"] = boolean(given, "batch")
    tags = [value.partition("=") for value in many(query, "tag")]
    if not all(separator for _, separator, _ in tags):
        raise invalid("'tag' is NAME=VALUE.", param="tag")
    named = {name: value for name, _, value in tags}
    if len(named) < len(tags):
        raise invalid("'tag' has each NAME once: a request has one value of it.", param="tag")
    return only | {"tags": named}
