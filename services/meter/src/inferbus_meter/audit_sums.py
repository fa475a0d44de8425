"""The sums that are kept of a range, against the rows that they are made of: minutes of the rollups, and hours."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from inferbus_runtime import clock

from inferbus_meter.claims import STREAM
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.audit import Difference
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.expected import Part
from inferbus_meter.rollups import MINUTE_US, OPEN_US, Rollups
from inferbus_meter.usage_hours import UsageHours

# Rows that come meanwhile are in the one before they are in the other: what differs then does not, a moment later.
_AGAIN_SECONDS = 1.0
_HOUR_US = 3_600_000_000
_DONE = (
    "SELECT sequence, argMin(done_us, last_seq) "
    "FROM (SELECT last_seq, toUnixTimestamp64Micro(max(intent_time)) AS done_us FROM ingest_batches "
    "WHERE stream = {stream:String} AND epoch = {epoch:UInt32} AND done GROUP BY last_seq) AS claims "
    "CROSS JOIN (SELECT arrayJoin({sequences:Array(UInt64)}) AS sequence) AS wanted "
    "WHERE last_seq >= sequence GROUP BY sequence"
)


@dataclass(slots=True)
class Span:
    """What time a range is about, by the times of its frames, Unix microseconds."""

    first_us: int = 0
    last_us: int = 0
    left_out: set[int] = field(default_factory=set)
    last_ends: dict[datetime, int] = field(default_factory=dict)
    """By hour, the sequence of the last end in it."""

    def add(self, part: Part) -> None:
        times = part.batch.frame_time_us
        if len(times):
            self.first_us = min(self.first_us or int(times.min()), int(times.min()))
            self.last_us = max(self.last_us, int(times.max()))
        for item in part.batch.closes:
            hour = datetime.fromtimestamp(item.time_us // _HOUR_US * 3600, UTC)
            self.last_ends[hour] = max(item.sequence, self.last_ends.get(hour, 0))

    def leave_out(self, times_us: Iterable[int]) -> None:
        """Minutes in which a request ended that ended again: it counts twice in sums of requests, until its first row
        has gone and they are worked out anew."""
        self.left_out.update(one // MINUTE_US * MINUTE_US for one in times_us)


async def sums_unlike(store: Store, span: Span, epoch: Epoch) -> list[Difference]:
    """Of what is over by now. ``epoch``: of the stream that was read. Raises one of STORE_ERRORS."""
    if not span.last_us:
        return []
    ended = await _in_tables(store, span.last_ends, epoch)
    texts = await _unlike(store, span, ended)
    if texts:
        await asyncio.sleep(_AGAIN_SECONDS)
        again = frozenset(await _unlike(store, span, ended))
        texts = [text for text in texts if text in again]
    return [Difference(b"", "rollup", detail=text) for text in texts]


async def _in_tables(store: Store, last_ends: Mapping[datetime, int], epoch: Epoch) -> dict[datetime, int]:
    """When what ended last in each hour was in the tables, Unix microseconds: by the claims that it was in."""
    asked = {"sequences": sorted(set(last_ends.values())), "epoch": epoch.number, "stream": STREAM}
    rows = await store.rows(_DONE, asked)
    done = {int(sequence): int(at_us) for sequence, at_us in rows}
    return {hour: done[sequence] for hour, sequence in last_ends.items() if sequence in done}


async def _unlike(store: Store, span: Span, ended: Mapping[datetime, int]) -> list[str]:
    hours = await UsageHours(store).differences(span.first_us, span.last_us + 1, ended)
    low = span.first_us // MINUTE_US * MINUTE_US
    high = min((span.last_us // MINUTE_US + 1) * MINUTE_US, (clock.now_us() - OPEN_US) // MINUTE_US * MINUTE_US)
    if low >= high:
        return hours
    found = await Rollups(store).unlike(low, high)
    return hours + [text for target, minutes in found.items() for text in _texts(target, minutes, span.left_out)]


def _texts(target: str, minutes: Mapping[datetime, list[str]], left_out: set[int]) -> list[str]:
    return [
        f"{target} differs from its rows at {minute:%Y-%m-%d %H:%M} in {', '.join(columns)}"
        for minute, columns in minutes.items()
        if round(minute.timestamp()) * 1_000_000 not in left_out
    ]
