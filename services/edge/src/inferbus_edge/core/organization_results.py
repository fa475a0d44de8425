"""The meter's rows as results of OpenAI's usage and costs. What is told apart by less than the meter's rows is summed
here; counted and estimated tokens never are, nor are two currencies. Pure."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any

import orjson
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.meter.v1.usage_pb2 import CostBucket, UsageBucket, UsageGroup
from inferbus_rating.amounts import EXACT

from inferbus_edge.core.organization_usage import COSTS, Asked, Kind, Object

Results = dict[int, list[Object]]
# The tier by which a request of the class is asked for; all others are "default".
_TIERS = {PriorityClass.PRIORITY_CLASS_BACKGROUND: "flex", PriorityClass.PRIORITY_CLASS_BATCH: "batch"}
_COUNTS = (
    "requests", "choices", "errors", "input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens",
)  # fmt: skip


def usage_results(kind: Kind, asked: Asked, rows: Iterable[UsageBucket], owners: Mapping[str, str]) -> Results:
    """By where the bucket begins. ``owners``: of the tenant's keys ("": the project's own)."""
    sums: dict[Any, list[int]] = defaultdict(lambda: [0] * len(_COUNTS))
    for row in rows:
        key = (row.bucket_time.seconds, _told_apart(asked.groups, row.group, owners), row.estimated)
        for at, name in enumerate(_COUNTS):
            sums[key][at] += getattr(row, name)
    results: Results = defaultdict(list)
    for (bucket, group, estimated), counts in sums.items():
        values = dict(zip(_COUNTS, counts, strict=True))
        results[bucket].append(
            {
                "object": f"organization.usage.{kind.name}.result",
                **_COUNTS_OF[kind.name](values),
                "num_model_requests": values["requests"],
                **_group_object(kind.groups, group),
                "inferbus_choices": values["choices"],
                "inferbus_errors": values["errors"],
                "inferbus_estimated": estimated,
            }
        )
    return results


def cost_results(asked: Asked, rows: Iterable[CostBucket], owners: Mapping[str, str]) -> Results:
    """By where the bucket begins. An amount is a JSON number with all of its digits."""
    amounts: dict[Any, Decimal] = defaultdict(Decimal)
    quantities: dict[Any, int | None] = {}
    for row in rows:
        if asked.line_items and row.line_item not in asked.line_items:
            continue
        line = row.line_item if "line_item" in asked.groups else None
        group = _told_apart(asked.groups, row.group, owners)
        key = (row.bucket_time.seconds, group, line, row.estimated, row.currency)
        amounts[key] = EXACT.add(amounts[key], Decimal(row.amount))
        if line is not None and row.HasField("quantity"):
            quantities[key] = (quantities.get(key) or 0) + row.quantity
    results: Results = defaultdict(list)
    for key, amount in amounts.items():
        bucket, group, line, estimated, currency = key
        quantity = quantities.get(key)
        results[bucket].append(
            {
                "object": "organization.costs.result",
                "amount": {"value": orjson.Fragment(f"{amount:f}"), "currency": currency.lower()},
                "line_item": line,
                "quantity": quantity,
                "quantity_unit": None if quantity is None else "tokens",
                **_group_object([one for one in COSTS.groups if one != "line_item"], group),
                "inferbus_estimated": estimated,
            }
        )
    return results


def _completions(values: Mapping[str, int]) -> Object:
    """All of it is text. Cached input is a part of the input, reasoning of the output."""
    fresh = values["input_tokens"] - values["cached_input_tokens"]
    return {
        "input_tokens": values["input_tokens"],
        "input_cached_tokens": values["cached_input_tokens"],
        "input_uncached_tokens": fresh,
        "input_text_tokens": fresh,
        "input_cached_text_tokens": values["cached_input_tokens"],
        "input_audio_tokens": 0,
        "output_tokens": values["output_tokens"],
        "output_text_tokens": values["output_tokens"],
        "output_audio_tokens": 0,
        "inferbus_output_reasoning_tokens": values["reasoning_tokens"],
    }


_COUNTS_OF: dict[str, Callable[[Mapping[str, int]], Object]] = {
    "completions": _completions,
    "embeddings": lambda values: {"input_tokens": values["input_tokens"]},
    "inference": lambda values: {},
}


def _told_apart(groups: Collection[str], group: UsageGroup, owners: Mapping[str, str]) -> tuple[tuple[str, Any], ...]:
    """The values of the groups that were asked for, each as something that can be a key."""
    values: dict[str, Any] = {
        "project_id": group.project_id,
        # A key without an owner is its project's.
        "user_id": owners.get(group.key_id) or None,
        "api_key_id": group.key_id,
        "model": group.model,
        "batch": group.priority_class == PriorityClass.PRIORITY_CLASS_BATCH,
        "service_tier": _TIERS.get(group.priority_class, "default"),
        "inferbus_end_user": group.end_user,
        "inferbus_tags": tuple(sorted(group.tags.items())),
    }
    return tuple((name, value) for name, value in values.items() if name in groups)


def _group_object(names: Iterable[str], group: tuple[tuple[str, Any], ...]) -> Object:
    """Null for what results are not told apart by."""
    values = dict(group)
    if "inferbus_tags" in values:
        values["inferbus_tags"] = dict(values["inferbus_tags"])
    return {name: values.get(name) for name in names}
