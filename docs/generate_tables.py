"""Writes the tables of docs/*.md that the code knows best: variables, metrics, streams, registries, the API, engines.

    .venv/bin/python docs/generate_tables.py            write them
    .venv/bin/python docs/generate_tables.py --check    exit code 1 if one is out of date (tests do this)

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from inferbus_contracts.subjects import BUCKETS, STREAMS, StreamSpec
from inferbus_edge.core.openapi import OPERATIONS, schemas
from inferbus_edge.core.openapi_schema import REF
from inferbus_runtime import metrics
from inferbus_runtime.config import ServiceConfig, describe
from inferbus_runtime.durations import format_duration
from prometheus_client import Counter, Gauge, Histogram, Info

DOCS = Path(__file__).parent
SERVICES = ("edge", "scheduler", "worker", "batch", "meter")
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
            _bounds_of(stream),
            "refuses what is new" if stream.discard_new else "drops the oldest",
            stream.description,
        )
        for stream in STREAMS
    )
    return _table(("stream", "subjects", "kind", "bounds", "when full", "holds"), rows)


def _bounds_of(stream: StreamSpec) -> str:
    newest = "" if stream.newest_per_subject is None else f", {stream.newest_per_subject:,} of a subject"
    return f"{_age(stream.max_age)}, {stream.max_bytes >> 30} GiB{newest}"


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


def endpoints() -> str:
    rows = ((f"`{one.method} {one.path}`", one.summary, one.scope or "no key") for one in OPERATIONS)
    return _table(("method and path", "what", "key's scope"), rows)


def parameters(component: str) -> str:
    """Of a request's body: every parameter, and whether it works, is taken without effect, or is refused."""
    known = schemas()
    rows: dict[str, list[str]] = {}
    for name, *row in _rows(known[component], "", known, ()):
        # The members of a union have a field of one name each, which says which member it is.
        shown = rows.setdefault(name, row)
        if shown is not row and row[0] not in shown[0]:
            shown[0] = f"{row[0].removesuffix(_REQUIRED)}, {shown[0]}"
    return _table(("parameter", "takes", "here", ""), ((name, *row) for name, row in rows.items()))


_REQUIRED = ", **required**"
_SAID_BY_THE_COLUMN = re.compile(r"[Rr]efused(?: \(400 unsupported_parameter\))?(?: (?:unless|if) [^.:;]*)?[.:]? ?")


def _rows(schema: Any, path: str, known: dict[str, Any], above: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    required = schema.get("required", ())
    for name, given in schema["properties"].items():
        text = given.get("description", "")
        if "x-refused" in given:
            neutral = ", ".join(f"`{json.dumps(one)}`" for one in given["enum"])
            advice = _SAID_BY_THE_COLUMN.sub("", text) or given["x-refused"].removeprefix("leave it out").lstrip(": ")
            yield f"`{path}{name}`", f"only {neutral}", "refused, 400 `unsupported_parameter`", advice
            continue
        effect = "no effect" if re.search(r"without (an )?effect", text) else "works"
        yield f"`{path}{name}`", _takes(given, known) + _REQUIRED * (name in required), effect, text
        for target, suffix in _objects(given, known):
            if target not in above and not _is_message(target):
                yield from _rows(known[target], f"{path}{name}{suffix}.", known, (*above, target))


def _is_message(name: str) -> bool:
    """Conversations are described in words: their tables would be longer than all else."""
    return name.endswith(("Message", "Item", "ItemReference", "Block", "Part"))


def _objects(schema: Any, known: dict[str, Any], suffix: str = "") -> list[tuple[str, str]]:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(REF)
        return [(name, suffix)] if "properties" in known[name] else _objects(known[name], known, suffix)
    found = _objects(schema["items"], known, suffix + "[]") if schema.get("type") == "array" else []
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        found += _objects(one, known, suffix)
    return found


def _takes(schema: Any, known: dict[str, Any]) -> str:
    if "$ref" in schema:
        target = known[schema["$ref"].removeprefix(REF)]
        return "object" if "properties" in target else _takes(target, known)
    options = [one for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())) if one.get("type") != "null"]
    if options:
        return " or ".join(dict.fromkeys(_takes(one, known) for one in options))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", (schema.get("const"),)))
    kind: str = schema.get("type", "anything")
    if kind == "array":
        kind = f"array of {_takes(schema['items'], known)}"
    return kind + _bounds(schema)


def _bounds(schema: Any) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if high is not None and high >= (1 << 31) - 1:
        high = None  # no bound that anybody meets
    text = ""
    if low is not None and low > -(1 << 53):
        above = "above" if "exclusiveMinimum" in schema else "from"
        text = f", {low:g} to {high:g}" if high is not None and above == "from" else f", {above} {low:g}"
        text += f" to {high:g}" if high is not None and above == "above" else ""
    if (most := schema.get("maxLength", schema.get("maxItems", schema.get("maxProperties")))) is not None:
        text += f", up to {most}"
    return text


_BODIES = {
    "chat": "ChatCompletionRequest",
    "completions": "CompletionRequest",
    "embeddings": "EmbeddingRequest",
    "inference": "InferenceRequest",
    "responses": "ResponseRequest",
    "messages": "MessageRequest",
    "tokenize-prompt": "TokenizePrompt",
    "tokenize-chat": "TokenizeChat",
    "detokenize": "DetokenizeRequest",
}


def engines() -> str:
    """What each engine does, by what the tests of the contract show of it."""
    head, rows, notes = _matrix().matrix()
    said = "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))
    return f"{_table(head, rows)}\n{said}"


def engine_proofs() -> str:
    return _table(*_matrix().proofs())


def _matrix() -> Any:
    sys.path.insert(0, str(DOCS.parent))
    return importlib.import_module("services.worker.tests.contract.matrix")


TABLES: dict[str, Callable[[], str]] = {
    "shared-variables": shared_variables,
    **{f"{service}-variables": partial(variables, service) for service in SERVICES},
    "metrics": metric_names,
    "streams": streams,
    "buckets": buckets,
    "endpoints": endpoints,
    "engines": engines,
    "engine-proofs": engine_proofs,
    **{f"{name}-parameters": partial(parameters, component) for name, component in _BODIES.items()},
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
