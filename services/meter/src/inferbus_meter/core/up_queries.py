"""How long workers were up, as SQL over ``worker_minutes`` and ``watched_minutes``. Pure.

Of a range count the minutes that begin in it: nothing is known of parts of a minute.
"""

from inferbus_meter.core.usage import Query
from inferbus_meter.core.worker_time import MINUTE_US

_OF_RANGE = "minute >= toDateTime({low:UInt32}) AND minute < toDateTime({high:UInt32})"


def minutes_of(start_us: int, end_us: int) -> tuple[int, int]:
    """The first whole minute of [start, end) and the one after its last, Unix microseconds."""
    return -(-start_us // MINUTE_US) * MINUTE_US, -(-end_us // MINUTE_US) * MINUTE_US


def up_query(start_us: int, end_us: int) -> Query:
    """Rows: model, revision, worker, engine, microseconds up, of them those of starts that named no GPUs, microseconds
    of all GPUs that were named, the most of them at a time, their names."""
    # What a start of a worker names it may name a moment after it is in the fleet.
    sql = f"""
SELECT model, revision, worker, engine, sum(up), sumIf(up, most = 0), sum(up * most), max(most), max(names)
FROM (
    SELECT model, revision, worker, engine, boot, toUInt64(sum(up_us)) AS up, toUInt64(max(gpus)) AS most,
           argMax(gpu_names, gpus) AS names
    FROM worker_minutes FINAL
    WHERE {_OF_RANGE}
    GROUP BY model, revision, worker, engine, boot
)
GROUP BY model, revision, worker, engine
ORDER BY model, revision, worker, engine"""  # noqa: S608 - a constant
    return Query(sql, _parameters(start_us, end_us))


def watched_query(start_us: int, end_us: int) -> Query:
    """One row: microseconds watched; the first watched minute and the first end of a request in the range, Unix
    microseconds, 0 for none."""
    sql = f"""
SELECT toUInt64(sum(watched_us)), toInt64(min(minute)) * 1000000,
       (SELECT toUnixTimestamp64Micro(min(end_time)) FROM requests
        WHERE end_time >= fromUnixTimestamp64Micro({{start:Int64}})
          AND end_time < fromUnixTimestamp64Micro({{end:Int64}}))
FROM watched_minutes FINAL
WHERE {_OF_RANGE}"""  # noqa: S608 - a constant
    return Query(sql, {**_parameters(start_us, end_us), "start": start_us, "end": end_us})


def unwatched_us(start_us: int, end_us: int, now_us: int, row: tuple[int, int, int]) -> int:
    """``row``: of :func:`watched_query`. ``start_us`` 0 or less: none was given, and it is that of what there is."""
    watched, first_minute, first_end = row
    low, high = minutes_of(start_us, end_us)
    if start_us <= 0:
        low = min((one // MINUTE_US * MINUTE_US for one in (first_minute, first_end) if one), default=high)
    return max(0, min(high, now_us) - low - watched)


def _parameters(start_us: int, end_us: int) -> dict[str, int]:
    # What a DateTime can hold: from 1970 until 2106.
    low, high = (min(max(one // 1_000_000, 0), (1 << 32) - 1) for one in minutes_of(start_us, end_us))
    return {"low": low, "high": high}
