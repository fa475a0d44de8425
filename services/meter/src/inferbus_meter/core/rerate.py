"""Re-rating, as values: what the present price book makes of a charge, and the correction that takes it there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

import numpy as np
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass, Usage
from inferbus_contracts.ids import choice_of
from inferbus_rating import PriceBook, Scope, cost
from inferbus_rating.amounts import EXACT, SCALE

from inferbus_meter.core.native import NativeBlock, uuids
from inferbus_meter.core.rows import TIME, Rows

CURRENCY = "currency"
"""Refused: a charge stays in its currency."""
_HOUR_US = 3_600_000_000
_ANSWERED = ("stop", "length")
# As the columns say them: ``chat``, ``batch``.
OPERATIONS = {name.removeprefix("OPERATION_").lower(): number for name, number in Operation.items()}
PRIORITIES = {name.removeprefix("PRIORITY_CLASS_").lower(): number for name, number in PriorityClass.items()}


@dataclass(frozen=True, slots=True)
class Charged:
    """A request as it stands in the tables, with its present charge: cost and corrections."""

    request_id: bytes
    scope: Scope
    key_id: str
    operation: str
    priority_class: str
    finish_reason: str
    accepted_us: int
    end_us: int
    usage: Usage
    charge: Decimal
    currency: str
    rate_version: str
    corrections: int
    """How many it has."""


@dataclass(frozen=True, slots=True)
class Correction:
    """What is to be added to a charge. ``refused`` set: it is not, and why."""

    of: Charged
    to_charge: Decimal
    to_rate_version: str
    currency: str
    refused: str = ""

    @property
    def delta(self) -> Decimal:
        return EXACT.subtract(self.to_charge, self.of.charge)


@dataclass(slots=True)
class Change:
    """The sum of corrections that are alike."""

    requests: int = 0
    from_charge: Decimal = Decimal(0)
    to_charge: Decimal = Decimal(0)


ChangeKey = tuple[str, str, str, str, str, str]
"""Tenant, model, from rate version, to rate version, currency, why it is refused."""


def correction_of(charged: Charged, book: PriceBook) -> Correction | None:
    """None if the charge is what the book makes of it; the name of the price alone is no reason to correct it."""
    rate = book.rate_at(
        charged.scope,
        OPERATIONS.get(charged.operation, Operation.OPERATION_UNSPECIFIED),
        PRIORITIES.get(charged.priority_class, PriorityClass.PRIORITY_CLASS_UNSPECIFIED),
        charged.accepted_us,
    )
    answered = charged.finish_reason in _ANSWERED
    to_charge = cost(charged.usage, rate, first_choice=choice_of(charged.request_id) == 0, answered=answered)
    if to_charge == charged.charge and (not to_charge or rate.currency == charged.currency):
        return None
    refused = CURRENCY if charged.currency and rate.currency and rate.currency != charged.currency else ""
    return Correction(charged, to_charge, rate.version, charged.currency or rate.currency, refused)


def sum_up(changes: dict[ChangeKey, Change], corrections: Iterable[Correction]) -> None:
    """Add ``corrections`` to ``changes``."""
    for one in corrections:
        scope, was = one.of.scope, one.of.rate_version
        key = (scope.tenant_id, scope.model, was, one.to_rate_version, one.currency, one.refused)
        change = changes.setdefault(key, Change())
        change.requests += 1
        change.from_charge = EXACT.add(change.from_charge, one.of.charge)
        change.to_charge = EXACT.add(change.to_charge, one.to_charge)


def windows(requests_by_hour: Mapping[int, int], start_us: int, end_us: int, most: int) -> list[tuple[int, int]]:
    """[start_us, end_us) cut into parts [from, to) of about ``most`` requests each, so that memory does not grow with
    the range. ``requests_by_hour``: by the hour's beginning, Unix microseconds; hours without any may be missing."""
    cuts: list[tuple[int, int]] = []
    begin, held = start_us, 0
    for hour, count in sorted(requests_by_hour.items()):
        if held and held + count > most:
            cuts.append((begin, hour))
            begin, held = hour, 0
        held += count
        if held > most:
            # One hour alone is too many: equal parts of it. What came before it in this part was nothing.
            begin = max(begin, hour)
            end = min(hour + _HOUR_US, end_us)
            pieces = min(-(-count // most), end - begin)
            borders = [begin + (end - begin) * number // pieces for number in range(pieces + 1)]
            cuts += pairwise(borders)
            begin, held = end, 0
    if held:
        cuts.append((begin, end_us))
    return cuts


def adjustment_rows(corrections: Sequence[Correction], rerate_id: str, reason: str, now_us: int) -> Rows:
    """Rows of ``adjustments``. A correction is named by its request and number: two runs that correct the same charge
    write the same row."""
    of = [one.of for one in corrections]
    block = NativeBlock(len(of))
    ids = np.frombuffer(b"".join(one.request_id for one in of), np.uint8).reshape(-1, 16)
    block.fixed("request_id", "UUID", uuids(ids))
    block.fixed("number", "UInt16", np.array([one.corrections + 1 for one in of], np.uint16))
    for name in ("tenant_id", "project_id", "model", "revision"):
        block.strings(name, [getattr(one.scope, name) for one in of])
    block.strings("key_id", [one.key_id for one in of])
    block.fixed("end_time", TIME, np.array([one.end_us for one in of], np.int64))
    block.decimals("delta", [one.delta for one in corrections], SCALE)
    block.strings("currency", [one.currency for one in corrections])
    block.strings("from_rate_version", [one.rate_version for one in of])
    block.strings("to_rate_version", [one.to_rate_version for one in corrections])
    block.strings("reason", [reason] * len(of))
    block.fixed("created_time", TIME, np.full(len(of), now_us, np.int64))
    block.strings("rerate_id", [rerate_id] * len(of))
    return Rows("adjustments", len(of), block.encode())
