"""Which months of ``requests`` a question about a span of time has to read.

Under FINAL ClickHouse does not prune by the time of the end, which is no part of the sorting key, and reads all that is
kept. But no row of a request lies in a month before it was accepted: so the earliest acceptance is asked for first, in
a read that is pruned, and the partitions before it are left out by name. What is kept longer then costs nothing.
"""

from datetime import UTC, datetime

from inferbus_meter.clickhouse import Store

OF_SPAN = "end_time >= fromUnixTimestamp64Micro({low:Int64}) AND end_time < fromUnixTimestamp64Micro({high:Int64})"
"""``low``, ``high``: Unix microseconds."""
BILLS_OF_SPAN = f"FROM requests AS bills FINAL WHERE _partition_id >= {{month:String}} AND {OF_SPAN}"
"""What ``bills`` has of it. ``month``: see :func:`first_month`."""
_ACCEPTED = f"SELECT toUnixTimestamp64Micro(min(accepted_time)), count() FROM requests WHERE {OF_SPAN}"  # noqa: S608
# Clocks of edges and workers may differ by so much.
_SKEW_US = 48 * 3_600_000_000


async def first_month(store: Store, low_us: int, high_us: int) -> str:
    """From this partition on lie all rows of the requests that ended in [low, high). Raises one of STORE_ERRORS."""
    ((accepted_us, count),) = await store.rows(_ACCEPTED, {"low": low_us, "high": high_us})
    since = min(low_us, int(accepted_us)) if count else low_us
    return f"{datetime.fromtimestamp(max(0, since - _SKEW_US) / 1e6, UTC):%Y%m}"
