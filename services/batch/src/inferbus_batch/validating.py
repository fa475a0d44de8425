"""All lines of an input, looked at before anything runs: what is wrong with them, and in which order they are to run.

For a process of its own: it computes for a minute where there are a million lines. Memory stays flat: what grows with
the lines is in a database beside the input.
"""

import hashlib
import heapq
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus_budgets.amounts import bounds_of, most_of
from inferbus_contracts.prefixes import HASH_BYTES, prefix_of
from inferbus_dialect.plan import Plan
from inferbus_rating import Rate

from inferbus_batch.core.index import Place, packed
from inferbus_batch.core.lengths import Length, length_of, too_long
from inferbus_batch.core.lines import MAX_LINE_BYTES, Fault, Line, plan_line, read_line

MAX_FAULTS = 1000
MAX_MODELS = 64
MAX_LONG = 2000
_READ_BYTES = 1 << 20
# Of the chain of hashes of what a line begins with: 4 KiB of it. Lines that share more stand beside each other all the
# same if nothing else shares that much.
_PREFIX_HASHES = 16
_TABLE = """
CREATE TABLE lines (custom_id BLOB PRIMARY KEY, number INTEGER, start INTEGER, size INTEGER, prefix BLOB) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that may be asked. ``context_length`` 0: not known. ``rate``: of this endpoint in class batch; None: no
    price is known."""

    capabilities: frozenset[str]
    context_length: int = 0
    rate: Rate | None = None


@dataclass(slots=True)
class Report:
    """``faults``: the first MAX_FAULTS of ``fault_count``, in order. ``models``: all that lines ask, by name.

    ``long``: lines that only the model's tokenizer can judge, the longest MAX_LONG. ``highest_cost``: of all lines
    together; None if that of one is not known, or they have several currencies.
    """

    lines: int = 0
    faults: list[Fault] = field(default_factory=list)
    fault_count: int = 0
    models: list[str] = field(default_factory=list)
    long: list[Place] = field(default_factory=list)
    highest_cost: Decimal | None = Decimal(0)
    currency: str = ""

    def add(self, fault: Fault) -> None:
        self.fault_count += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(fault)

    def insert(self, faults: list[Fault]) -> None:
        """Of lines that were judged later."""
        self.fault_count += len(faults)
        self.faults = sorted([*self.faults, *faults], key=lambda fault: fault.line)[:MAX_FAULTS]

    def count(self, cost: Decimal | None, currency: str) -> None:
        if cost is None or self.highest_cost is None or self.currency not in ("", currency):
            self.highest_cost = None
        else:
            self.highest_cost += cost
            self.currency = currency


def validate(source: Path, index: Path, endpoint: str, models: Mapping[str, Served], max_lines: int) -> Report:
    """``models``: those that may be asked, by name. Writes ``index`` if there are no faults."""
    report, asked = Report(), set[str]()
    long: list[tuple[int, Place]] = []
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
            plan = _judged(place, raw, endpoint, models, database)
            if isinstance(plan, Fault):
                report.add(plan)
                continue
            asked.add(plan.model)
            served = models[plan.model]
            report.count(*_most(plan, served))
            if length_of(plan, served.context_length) is Length.MAYBE:
                keep = heapq.heappush if len(long) < MAX_LONG else heapq.heappushpop
                keep(long, (place.size, place))
        if not report.lines:
            report.add(Fault(0, "empty_file", "The file has no lines."))
        report.models = sorted(asked)
        report.long = [place for _, place in sorted(long, reverse=True)]
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
    place: Place, raw: bytes, endpoint: str, models: Mapping[str, Served], database: sqlite3.Connection
) -> Plan | Fault:
    """What the line asks, once it is noted; or what is wrong with it."""
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
    return plan


def _most(plan: Plan, served: Served) -> tuple[Decimal | None, str]:
    """What a line can cost at most, and its currency."""
    if served.rate is None:
        return None, ""
    bounds = bounds_of(plan, ModelRecord(context_length=served.context_length))
    return sum(most_of(served.rate, bounds), Decimal(0)), served.rate.currency


def _note(database: sqlite3.Connection, line: Line, place: Place, prefix: bytes) -> bool:
    """False if its ``custom_id`` is there already."""
    name = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
    row = (name, place.number, place.offset, place.size, prefix)
    return database.execute("INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?, ?)", row).rowcount == 1


def _unserved(number: int, plan: Plan, models: Mapping[str, Served]) -> Fault | None:
    served = models.get(plan.model)
    if served is None:
        message = f"The model '{plan.model[:128]}' does not exist or is not served here."
        return Fault(number, "model_not_found", message, "body.model")
    for need in plan.needs:
        if need.capability not in served.capabilities:
            message = f"'{need.param}' is not supported by the model '{plan.model[:128]}'."
            return Fault(number, "unsupported_parameter", message, f"body.{need.param}")
    return too_long(number, served.context_length) if length_of(plan, served.context_length) is Length.OVER else None
