"""Writes the tables of docs/*.md that the code knows best: variables, metrics, streams, registries.

    .venv/bin/python docs/generate_tables.py            write them
    .venv/bin/python docs/generate_tables.py --check    exit code 1 if one is out of date (tests do this)

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

import importlib
import re
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path

from inferbus_contracts.subjects import BUCKETS, STREAMS
from inferbus_runtime import metrics
from inferbus_runtime.config import ServiceConfig, describe
from inferbus_runtime.durations import format_duration
from prometheus_client import Counter, Gauge, Histogram, Info

DOCS = Path(__file__).parent
SERVICES = ("edge", "scheduler", "worker", "meter")
# What differs from service to service even among the shared ones is in the service's own table.
_SHARED = frozenset(ServiceConfig.model_fields)
_TABLE = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram", Info: "info"}


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def shared_variables() -> str:
    """What every service understands, written with the edge's prefix."""
    rows = (
        (f"`…_{variable.name}`", variable.type, _default(variable.default, variable.required), variable.doc)
        for variable in describe(ServiceConfig, "")
    )
    return _table(("variable", "type", "default", "what it does, and what happens at its limit"), rows)


def variables(service: str) -> str:
    """What only this service understands, or has another default for."""
    config = importlib.import_module(f"inferbus_{service}.config").Config
    prefix = f"INFERBUS_{service.upper()}_"
    shared = {variable.name: variable for variable in describe(ServiceConfig, prefix)}
    rows = (
        (f"`{variable.name}`", variable.type, _default(variable.default, variable.required), variable.doc)
        for variable in describe(config, prefix)
        if shared.get(variable.name) != variable
    )
    return _table(("variable", "type", "default", "what it does, and what happens at its limit"), rows)


def _default(text: str, required: bool) -> str:
    return "**required**" if required else f"`{text}`" if text else ""


def metric_names() -> str:
    rows = []
    for value in vars(metrics).values():
        kind = _KINDS.get(type(value))
        if kind is not None:
            # prometheus_client keeps a counter's name without its suffix.
            suffix = {"counter": "_total", "info": "_info"}.get(kind, "")
            labels = ", ".join(f"`{label}`" for label in value._labelnames)
            rows.append((f"`{value._name}{suffix}`", kind, labels, value._documentation))
    return _table(("metric", "kind", "labels", "what it says"), rows)


def streams() -> str:
    rows = (
        (
            f"`{stream.name}`",
            " ".join(f"`{subject}`" for subject in stream.subjects),
            "work queue" if stream.retention == "workqueue" else "limits",
            f"{_age(stream.max_age)}, {stream.max_bytes >> 30} GiB",
            "refuses what is new" if stream.discard_new else "drops the oldest",
            stream.description,
        )
        for stream in STREAMS
    )
    return _table(("stream", "subjects", "kind", "bounds", "when full", "holds"), rows)


def _age(duration: timedelta) -> str:
    return f"{duration.days} days" if duration >= timedelta(days=3) else format_duration(duration)


def buckets() -> str:
    rows = (
        (
            f"`{bucket.name}`",
            f"`{bucket.record.__name__}`",
            "runs out" if bucket.leases else "stays",
            bucket.description,
        )
        for bucket in BUCKETS
    )
    return _table(("bucket", "record", "an entry", "holds"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "shared-variables": shared_variables,
    **{f"{service}-variables": partial(variables, service) for service in SERVICES},
    "metrics": metric_names,
    "streams": streams,
    "buckets": buckets,
}


def rendered(text: str) -> str:
    """``text`` with its tables as the code has them. KeyError for a table that nobody makes."""
    return _TABLE.sub(lambda match: f"{match[1]}{TABLES[match['name']]()}{match[3]}", text)


def main() -> int:
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        if rendered(text) != text:
            stale.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(rendered(text))
    if stale and "--check" in sys.argv[1:]:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run python docs/generate_tables.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
