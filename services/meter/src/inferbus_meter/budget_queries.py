"""What the requests of a budget have cost, from the charges."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from inferbus_rating.ledger import Charged, Ledger

from inferbus_meter.clickhouse import Store

_NEVER_US = 4_102_444_800_000_000  # 2100: what a DateTime64 of microseconds surely holds
_OF_SCOPE = """tenant_id = {tenant:String} AND currency = {currency:String}
  AND ({project:String} = '' OR project_id = {project:String}) AND ({key:String} = '' OR key_id = {key:String})"""
_ACCEPTED = """accepted_time >= fromUnixTimestamp64Micro({start:Int64}, 'UTC')
  AND accepted_time < fromUnixTimestamp64Micro({end:Int64}, 'UTC')"""
_CHARGED = f"""
SELECT count(), sum(charge){{grants}}
FROM charges
WHERE {_OF_SCOPE}
  AND {_ACCEPTED}
"""  # noqa: S608 - constants of ours
_CORRECTED = f"""
WITH corrections AS
(
    SELECT request_id, delta FROM adjustments FINAL
    WHERE {_OF_SCOPE} AND created_time >= fromUnixTimestamp64Micro({{made:Int64}}, 'UTC')
)
SELECT sum(delta) FROM corrections WHERE request_id IN
(
    SELECT request_id FROM requests
    WHERE tenant_id = {{tenant:String}} AND request_id IN (SELECT request_id FROM corrections) AND {_ACCEPTED}
)
"""  # noqa: S608 - constants of ours
_GRANT = """,
       sumIf(charge, edge = {{edge{n}:String}}
             AND accepted_time >= fromUnixTimestamp64Micro({{from{n}:Int64}}, 'UTC')
             AND accepted_time < fromUnixTimestamp64Micro({{to{n}:Int64}}, 'UTC'))"""


async def charged(store: Store, of: Ledger, since_us: int, windows: Sequence[tuple[str, int, int]]) -> Charged:
    """Of requests that were accepted in the ledger's period, from ``since_us`` on. ``windows``: see
    :func:`inferbus_rating.ledger.grant_windows`. Raises one of STORE_ERRORS."""
    return await _charged(store, of, max(of.period.start_us, since_us), of.period.end_us, windows)


async def charged_before(store: Store, of: Ledger, since_us: int, until_us: int) -> Decimal:
    """The total of [``since_us``, ``until_us``)."""
    return (await _charged(store, of, since_us, until_us, ())).total


async def corrected(store: Store, of: Ledger, between: tuple[int, int], made_us: int) -> Decimal:
    """Corrections made from ``made_us`` on, of requests that were accepted in [start, end) of ``between``."""
    values = {**_scope(of), "start": between[0], "end": between[1], "made": made_us}
    ((total,),) = await store.rows(_CORRECTED, values)
    return Decimal(total)


async def _charged(
    store: Store, of: Ledger, start_us: int, end_us: int | None, windows: Sequence[tuple[str, int, int]]
) -> Charged:
    values = {**_scope(of), "start": start_us, "end": min(end_us or _NEVER_US, _NEVER_US)}
    for n, (edge, since, until) in enumerate(windows):
        values |= {f"edge{n}": edge, f"from{n}": since, f"to{n}": min(until, _NEVER_US)}
    grants = "".join(_GRANT.format(n=n) for n in range(len(windows)))
    (row,) = await store.rows(_CHARGED.replace("{grants}", grants), values)
    requests, total, *of_grants = row
    return Charged(Decimal(total), [Decimal(one) for one in of_grants], int(requests))


def _scope(of: Ledger) -> dict[str, Any]:
    return {"tenant": of.tenant_id, "project": of.project_id, "key": of.key_id, "currency": of.currency}
