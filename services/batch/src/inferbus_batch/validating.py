"""All lines of an input, looked at before anything runs: what is wrong with them, and in which order they are to run.

For a process of its own: it computes for a minute where there are a million lines. Memory stays flat: what grows with
the lines is in a database beside the input.
"""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from inferbus_contracts.prefixes import HASH_BYTES, prefix_of
from inferbus_dialect.plan import Plan

from inferbus_batch.core.index import Place, packed
from inferbus_batch.core.lines import MAX_LINE_BYTES, Fault, Line, plan_line, read_line

MAX_FAULTS = 1000
MAX_MODELS = 64
_READ_BYTES = 1 << 20
# Of the chain of hashes of what a line begins with: 4 KiB of it. Lines that share more stand beside each other all the
# same if nothing else shares that much.
_PREFIX_HASHES = 16
_TABLE = """
CREATE TABLE lines (custom_id BLOB PRIMARY KEY, number INTEGER, start INTEGER, size INTEGER, prefix BLOB) WITHOUT ROWID
"""


@dataclass(slots=True)
class Report:
    """``faults``: the first MAX_FAULTS of ``fault_count``, in order. ``models``: all that lines ask, by name."""

    lines: int = 0
    faults: list[Fault] = field(default_factory=list)
    fault_count: int = 0
    models: list[str] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        self.fault_count += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)


def validate(source: Path, index: Path, endpoint: str, models: Mapping[str, frozenset[str]], max_lines: int) -> Report:
    """``models``: what those that may be asked can do, by name. Writes ``index`` if there are no faults."""
    report, asked = Report(), set[str]()
    scratch = index.with_suffix(".sqlite")
    scratch.unlink(missing_ok=True)
    with closing(sqlite3.connect(scratch, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = OFF")
        database.execute("PRAGMA synchronous = OFF")
        database.execute(_TABLE)
        database.execute("BEGIN")
        for place, raw in lines_of(source):
            report.lines += 1
            if report.lines > max_lines:
                message = f"A batch has {max_lines} lines at most; make several of it."
                report.add(Fault(place.number, "too_many_lines", message))
                break
            found = _judged(place, raw, endpoint, models, database)
            if isinstance(found, Fault):
                report.add(found)
            else:
                asked.add(found)
        if not report.lines:
            report.add(Fault(0, "empty_file", "The file has no lines."))
        report.models = sorted(asked)
        if len(asked) > MAX_MODELS:
            report.add(Fault(0, "too_many_models", f"A batch asks {MAX_MODELS} models at most; make several of it."))
        if not report.fault_count:
            rows = database.execute("SELECT start, size, number FROM lines ORDER BY prefix, number")
            with index.open("wb") as out:
                out.writelines(packed(Place(*row) for row in rows))
    scratch.unlink(missing_ok=True)
    return report


def lines_of(source: Path) -> Iterator[tuple[Place, bytes]]:
    """Each line with its place; those of white space alone are no lines. Of one that is too long only the beginning is
    given, and its whole size."""
    with source.open("rb", buffering=_READ_BYTES) as data:
        start = number = 0
        while raw := data.readline(MAX_LINE_BYTES + 2):
            number += 1
            size = len(raw)
            while not raw.endswith(b"\n") and (more := data.readline(_READ_BYTES)):
                size += len(more)
                if more.endswith(b"\n"):
                    break
            line = raw.rstrip(b"\r\n") if size == len(raw) else raw
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                skipped = 3 if number == 1 and raw.startswith(b"\xef\xbb\xbf") else 0
                yield Place(start + skipped, len(line) if size == len(raw) else size, number), line
            start += size


def _judged(
    place: Place, raw: bytes, endpoint: str, models: Mapping[str, frozenset[str]], database: sqlite3.Connection
) -> Fault | str:
    """The model that the line asks, once it is noted; or what is wrong with it."""
    number = place.number
    if place.size > MAX_LINE_BYTES:
        return Fault(number, "line_too_long", f"The line has {place.size} bytes; the most is {MAX_LINE_BYTES}.")
    line = read_line(number, raw, endpoint)
    if isinstance(line, Fault):
        return line
    plan = plan_line(number, line.body, endpoint)
    if isinstance(plan, Plan):
        plan = _unserved(number, plan, models) or plan
    if isinstance(plan, Fault):
        # Its name is taken all the same: whoever has it, too, is told.
        _note(database, line, place, b"")
        return plan
    if not _note(database, line, place, prefix_of(plan.requests[0])[: _PREFIX_HASHES * HASH_BYTES]):
        message = "Another line before it has the same 'custom_id'."
        return Fault(number, "duplicate_custom_id", message, "custom_id")
    return plan.model


def _note(database: sqlite3.Connection, line: Line, place: Place, prefix: bytes) -> bool:
    """False if its ``custom_id`` is there already."""
    name = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
    row = (name, place.number, place.offset, place.size, prefix)
    return database.execute("INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?, ?)", row).rowcount == 1


def _unserved(number: int, plan: Plan, models: Mapping[str, frozenset[str]]) -> Fault | None:
    able = models.get(plan.model)
    if able is None:
        message = f"The model '{plan.model[:128]}' does not exist or is not served here."
        return Fault(number, "model_not_found", message, "body.model")
    for need in plan.needs:
        if need.capability not in able:
            message = f"'{need.param}' is not supported by the model '{plan.model[:128]}'."
            return Fault(number, "unsupported_parameter", message, f"body.{need.param}")
    return None
