"""What arrives, as a file says it: one JSON object a line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inferbus_contracts.prefixes import CHUNK_TOKENS, MAX_CHUNKS

from inferbus_scheduler.core.request import Priority

_CLASSES = {priority.name.lower(): priority for priority in Priority}
# An id of a chunk has a group and a place in it, MAX_CHUNKS at most; both fit 64 bits.
_PLACE_BITS = 16


class TraceError(ValueError):
    """A line that is no request; the message says which field and why."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace. ``time``: seconds from its start; ``prefix``: hashes of the chunks that its input begins
    with, each over all before it; ``output_tokens``: what it will say, which no policy is told; ``max_tokens``: what it
    may say, 0 is as much as it will."""

    time: float
    tenant: str
    project: str
    priority: Priority
    model: str
    input_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Defaults:
    """For what a line leaves out."""

    model: str = "synthetic"
    tenant: str = "default"
    priority: Priority = Priority.INTERACTIVE


def parse(line: Mapping[str, Any], defaults: Defaults) -> Arrival:
    """A line in our form, or in that of the trace that Mooncake published (``timestamp`` in milliseconds,
    ``input_length``, ``output_length``, ``hash_ids`` of 512 tokens each). TraceError if it is neither."""
    if "timestamp" in line:
        return _mooncake(line, defaults)
    tenant = _text(line, "tenant", defaults.tenant)
    input_tokens = _count(line, "input_tokens")
    return Arrival(
        time=_time(line, "time"),
        tenant=tenant,
        project=_text(line, "project", ""),
        priority=_priority(line, defaults),
        model=_text(line, "model", defaults.model),
        input_tokens=input_tokens,
        output_tokens=max(1, _count(line, "output_tokens")),
        prefix=_prefix(line.get("prefix", ()), tenant, input_tokens),
        max_tokens=_count(line, "max_tokens"),
    )


def line_of(arrival: Arrival) -> dict[str, Any]:
    """The inverse of :func:`parse`, in our form."""
    return {
        "time": arrival.time,
        "tenant": arrival.tenant,
        "project": arrival.project,
        "class": arrival.priority.name.lower(),
        "model": arrival.model,
        "input_tokens": arrival.input_tokens,
        "output_tokens": arrival.output_tokens,
        "max_tokens": arrival.max_tokens,
        "prefix": list(arrival.prefix),
    }


def _mooncake(line: Mapping[str, Any], defaults: Defaults) -> Arrival:
    ids = line.get("hash_ids", ())
    input_tokens = _count(line, "input_length")
    chunks = tuple(chunk for block in ids for chunk in _split(block, 512 // CHUNK_TOKENS))
    return Arrival(
        time=_time(line, "timestamp") / 1000,
        tenant=defaults.tenant,
        project="",
        priority=defaults.priority,
        model=defaults.model,
        input_tokens=input_tokens,
        output_tokens=max(1, _count(line, "output_length")),
        prefix=chunks[: min(MAX_CHUNKS, input_tokens // CHUNK_TOKENS)],
    )


def _split(block: int, pieces: int) -> range:
    return range(block * pieces, (block + 1) * pieces)


def group_prefix(group: int, chunks: int) -> tuple[int, ...]:
    """Chunks of everything that begins as ``group`` does: shorter ones are prefixes of longer ones."""
    return tuple(range(group << _PLACE_BITS, (group << _PLACE_BITS) + chunks))


def _prefix(given: Any, tenant: str, input_tokens: int) -> tuple[int, ...]:
    """A list of chunk ids, or ``{"group": name, "tokens": n}``: shared with all of that tenant's group."""
    most = min(MAX_CHUNKS, input_tokens // CHUNK_TOKENS)
    if isinstance(given, Mapping):
        group = _stable_hash(f"{tenant}/{given.get('group', '')}")
        return group_prefix(group, min(most, _count(given, "tokens") // CHUNK_TOKENS))
    if not isinstance(given, list | tuple) or not all(isinstance(chunk, int) for chunk in given):
        raise TraceError("prefix: a list of chunk ids, or an object with group and tokens")
    return tuple(given[:most])


def _stable_hash(text: str) -> int:
    """FNV-1a, 31 bits: Python's own hash differs from one process to the next."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value & 0x7FFFFFFF


def _priority(line: Mapping[str, Any], defaults: Defaults) -> Priority:
    name = line.get("class")
    if name is None:
        return defaults.priority
    if name not in _CLASSES:
        raise TraceError(f"class: one of {', '.join(_CLASSES)}")
    return _CLASSES[name]


def _text(line: Mapping[str, Any], field: str, default: str) -> str:
    value = line.get(field, default)
    if not isinstance(value, str):
        raise TraceError(f"{field}: a text")
    return value


def _count(line: Mapping[str, Any], field: str) -> int:
    value = line.get(field, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TraceError(f"{field}: a number of tokens, 0 or more")
    return value


def _time(line: Mapping[str, Any], field: str) -> float:
    value = line.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise TraceError(f"{field}: a time, 0 or later")
    return float(value)
