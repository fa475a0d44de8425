"""Credits that were paid in beforehand, and what of them pays for an invoice."""

from collections.abc import Iterable, Mapping
from decimal import ROUND_FLOOR, Decimal
from typing import NamedTuple

from inferbus.bus.v1.registry_pb2 import CreditRecord
from inferbus_rating.amounts import EXACT

from inferbus_meter.core.invoice import minor_units
from inferbus_meter.core.months import begin_us, end_us


class Applied(NamedTuple):
    """``amount`` of the credit pays for an invoice."""

    credit_id: str
    amount: Decimal


def apply_credits(
    credits: Iterable[CreditRecord], used: Mapping[str, Decimal], month: str, currency: str, total: Decimal
) -> list[Applied]:
    """What pays for ``total``, the credit first that ends first. ``used``: what invoices in force have, by credit.

    Only credits of the whole tenant, in the currency, that were paid in before the month ended and had not expired when
    it began.
    """
    open_amount, applied = total, []
    for credit in sorted((one for one in credits if _counts(one, month, currency)), key=_order):
        rest = EXACT.subtract(Decimal(credit.amount), used.get(credit.credit_id, Decimal(0)))
        # What is left to pay must be payable, so a credit gives whole minor units.
        step = Decimal(1).scaleb(-minor_units(currency))
        taken = min(rest.quantize(step, ROUND_FLOOR, EXACT), open_amount)
        if taken > 0:
            applied.append(Applied(credit.credit_id, taken))
            open_amount = EXACT.subtract(open_amount, taken)
    return applied


def _counts(credit: CreditRecord, month: str, currency: str) -> bool:
    whole = not credit.project_id and not credit.key_id
    in_time = credit.create_time.ToMicroseconds() < end_us(month)
    alive = not credit.HasField("expire_time") or credit.expire_time.ToMicroseconds() > begin_us(month)
    return whole and in_time and alive and credit.currency == currency


def _order(credit: CreditRecord) -> tuple[bool, int, int, str]:
    ends = credit.expire_time.ToMicroseconds()
    return not credit.HasField("expire_time"), ends, credit.create_time.ToMicroseconds(), credit.credit_id
