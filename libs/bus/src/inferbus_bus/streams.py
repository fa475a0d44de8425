"""Make the streams and buckets of the table of subjects: once at deploy, by an administrator. Safe to run again."""

from datetime import timedelta
from typing import Any

from inferbus_contracts.subjects import (
    ARTIFACTS,
    ARTIFACTS_MAX_BYTES,
    BUCKETS,
    OBJECTS,
    OBJECTS_MAX_BYTES,
    STREAMS,
    BucketSpec,
    StreamSpec,
)

from inferbus_bus.connection import Bus
from inferbus_bus.consumers import nanoseconds
from inferbus_bus.errors import STREAM_NOT_FOUND, StreamApiError

_MARKER_TTL = timedelta(minutes=5)


def stream_config(spec: StreamSpec, replicas: int) -> dict[str, Any]:
    """A stream as JetStream's API wants it; durations in nanoseconds."""
    told = {"republish": {"src": spec.subjects[0], "dest": spec.told_on}} if spec.told_on else {}
    return {
        **told,
        "name": spec.name, "subjects": list(spec.subjects), "retention": spec.retention, "storage": "file",
        "max_age": nanoseconds(spec.max_age), "max_bytes": spec.max_bytes, "max_msgs": -1, "max_consumers": -1,
        "max_msgs_per_subject": -1 if spec.newest_per_subject is None else spec.newest_per_subject,
        "discard": "new" if spec.discard_new else "old", "num_replicas": replicas, "allow_direct": True,
        "duplicate_window": nanoseconds(min(spec.duplicate_window, spec.max_age)),
        "description": spec.description, "compression": "none",
    }  # fmt: skip


def bucket_config(spec: BucketSpec, replicas: int) -> dict[str, Any]:
    """A KV bucket as a stream (ADR-8). A leased entry's end leaves a marker, so that watchers see it.

    Rollups, by which one message replaces many, are allowed only where the server needs them for these markers.
    """
    config: dict[str, Any] = {
        "name": f"KV_{spec.name}", "subjects": [f"$KV.{spec.name}.>"], "retention": "limits", "storage": "file",
        "max_msgs_per_subject": 1, "max_bytes": spec.max_bytes, "discard": "new",
        "num_replicas": replicas,
        "allow_rollup_hdrs": spec.leases, "deny_delete": True, "allow_direct": True,
        "duplicate_window": nanoseconds(timedelta(minutes=2)), "description": spec.description, "max_consumers": -1,
        "allow_msg_ttl": True,  # also without leases: what marks a deletion goes after a while
    }  # fmt: skip
    if spec.leases:
        config |= {"subject_delete_marker_ttl": nanoseconds(_MARKER_TTL)}
    if spec.write_once:  # the broker refuses whatever has a key that is there
        config |= {"discard_new_per_subject": True, "deny_purge": True}
    return config


def objects_config(bucket: str, max_bytes: int, description: str, replicas: int) -> dict[str, Any]:
    """An object store as a stream (ADR-20)."""
    return {
        "name": f"OBJ_{bucket}", "subjects": [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"], "retention": "limits",
        "storage": "file", "max_bytes": max_bytes, "discard": "new", "num_replicas": replicas,
        "allow_rollup_hdrs": True, "allow_direct": True, "max_consumers": -1,
        "allow_msg_ttl": True,  # what marks a deletion goes after a while
        "duplicate_window": nanoseconds(timedelta(minutes=2)), "description": description,
    }  # fmt: skip


# Of versions before this: a work queue takes no second consumer of the same subjects.
_FORMER_CONSUMERS = (("REQUESTS", "scheduler"),)
_CONSUMER_NOT_FOUND = 10014


async def ensure_streams(bus: Bus, *, replicas: int = 1) -> None:
    """Create what is missing, bring the rest to its present settings. Raises StreamApiError if the server refuses."""
    configs = [stream_config(spec, replicas) for spec in STREAMS] + [bucket_config(spec, replicas) for spec in BUCKETS]
    configs.append(objects_config(OBJECTS, OBJECTS_MAX_BYTES, "content of customers' files", replicas))
    configs.append(objects_config(ARTIFACTS, ARTIFACTS_MAX_BYTES, "what revisions are made of, by digest", replicas))
    for stream, consumer in _FORMER_CONSUMERS:
        try:
            await bus.api(f"CONSUMER.DELETE.{stream}.{consumer}")
        except StreamApiError as error:
            if error.err_code not in (STREAM_NOT_FOUND, _CONSUMER_NOT_FOUND):
                raise
    for config in configs:
        try:
            await bus.api(f"STREAM.UPDATE.{config['name']}", config, timeout=10)
        except StreamApiError as error:
            if error.err_code != STREAM_NOT_FOUND:
                raise
            await bus.api(f"STREAM.CREATE.{config['name']}", config, timeout=10)
