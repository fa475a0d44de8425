"""The query of analytics as what the meter is asked: the operator's over all tenants, a tenant's of its own. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferbus_runtime.durations import parse_duration
from inferbus_runtime.errors import invalid

from inferbus_edge.core.organization_bodies import Query, known_only, many

# What only the operator asks: how his machines fare.
_OPERATORS = ("output", "interruptions", "billing_lag", "energy")
_TENANTS = (
    "ttft", "itl", "tpot", "e2e", "queue", "requests", "tokens", "goodput", "stalls", "cache", "errors", "cost",
    "in_flight",
)  # fmt: skip
# Names in a query, the meter's dimension, and the field of its filter.
_DIMENSIONS = {
    "tenant": ("TENANT", "tenant_ids"), "project": ("PROJECT", "project_ids"), "model": ("MODEL", "models"),
    "revision": ("REVISION", "revisions"), "worker": ("WORKER", "workers"),
    "class": ("PRIORITY_CLASS", "priority_classes"),
}  # fmt: skip
CLASSES = ("interactive", "background", "batch")
TARGETS = ("ttft", "tpot", "e2e")
_RANGE = ("start", "end")
_MOST_GROUPS = 1000


@dataclass(frozen=True, slots=True)
class Scope:
    """What somebody may ask: measures, and names to group and to filter by."""

    measures: Sequence[str]
    names: Sequence[str]


OPERATOR = Scope((*_TENANTS, *_OPERATORS), tuple(_DIMENSIONS))
# Whose machines they are, and who else uses them, is not a tenant's to know.
TENANT = Scope(_TENANTS, ("project", "model", "revision", "class"))


def asked_of(scope: Scope, query: Query, tenant_id: str = "") -> dict[str, Any]:
    """QueryAnalyticsRequest as protobuf's JSON. ``tenant_id``: of this tenant only, whatever the query says; its
    requests are then counted exactly. Raises InferBusError INVALID_ARGUMENT."""
    known = ("measure", "step", "by", "groups", *_RANGE, *scope.names, *(f"{name}_target" for name in TARGETS))
    known_only([name.removesuffix("[]") for name, _ in query], known)
    given = {name: value for name, value in query if value}
    asked = range_of(given) | {
        "measure": f"ANALYTICS_MEASURE_{_measure(scope, given).upper()}",
        "group_by": _group_by(scope, query),
        "filter": _filter(scope, query),
        "targets": {name: _duration(given, f"{name}_target") for name in TARGETS if f"{name}_target" in given},
    }
    if "step" in given:
        asked["step"] = _duration(given, "step")
    if "groups" in given:
        asked["most_groups"] = _groups(given["groups"])
    if tenant_id:
        asked["filter"]["tenant_ids"] = [tenant_id]
        asked["exact"] = True
    return asked


def values_of(query: Query, tenant_id: str = "") -> dict[str, Any]:
    """ListAnalyticsValuesRequest as protobuf's JSON. Raises InferBusError INVALID_ARGUMENT."""
    known_only([name for name, _ in query], _RANGE)
    return range_of({name: value for name, value in query if value}) | {"tenant_id": tenant_id}


def range_of(given: Mapping[str, str]) -> dict[str, Any]:
    if "start" not in given:
        raise invalid("'start' must be set.", param="start", reason="missing_required_parameter")
    return {f"{name}_time": given[name] for name in _RANGE if name in given}


def _measure(scope: Scope, given: Mapping[str, str]) -> str:
    name = given.get("measure", "")
    if name not in scope.measures:
        raise invalid(f"'measure' is one of {', '.join(scope.measures)}.", param="measure")
    return name


def _group_by(scope: Scope, query: Query) -> list[str]:
    names = [name.strip() for key, value in query if key == "by" for name in value.split(",") if name.strip()]
    for name in names:
        if name not in scope.names:
            raise invalid(f"'by' takes {', '.join(scope.names)}; not '{name[:64]}'.", param="by")
    return [f"ANALYTICS_DIMENSION_{_DIMENSIONS[name][0]}" for name in dict.fromkeys(names)]


def _filter(scope: Scope, query: Query) -> dict[str, Any]:
    chosen = {name: sorted(value for value in many(query, name) if value) for name in scope.names}
    for name in chosen.get("class", ()):
        if name not in CLASSES:
            raise invalid(f"'class' is one of {', '.join(CLASSES)}.", param="class")
    chosen["class"] = [f"PRIORITY_CLASS_{name.upper()}" for name in chosen.get("class", ())]
    return {_DIMENSIONS[name][1]: values for name, values in chosen.items() if values}


def _duration(given: Mapping[str, str], name: str) -> str:
    """As protobuf's JSON has it."""
    value = parse_duration(given[name])
    if value is None:
        raise invalid(f"'{name}' is a duration, as 200ms, 5m or 1h.", param=name)
    return f"{value.total_seconds():.6f}s"


def _groups(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= _MOST_GROUPS):
        raise invalid(f"'groups' is 1 to {_MOST_GROUPS}.", param="groups")
    return int(text)
