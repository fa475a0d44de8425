"""The table ``usage_hours``: what was used and charged by hour, exact and for ever, also when the requests have gone.

An hour that is over is summed from ``bills`` and written whole, under a version. It is summed again when its rows in
``bills`` are others than those that it was summed from: a late end, a second Close, a replay. Looked at are the hours
for which the log may still bring something; what is older than that is only written if it was never written. An hour
whose requests all count in other hours by now is written as one row of no requests.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from inferbus_contracts.subjects import STREAMS
from inferbus_runtime import clock

from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.partitions import BILLS_OF_SPAN, first_month

log = logging.getLogger(__name__)
_EVERY_SECONDS = 60.0
# An hour is summed so long after its end: what comes later is summed in the next round.
_GRACE_US = 30_000_000
_HOUR_US = 3_600_000_000
_LOG_US = next(spec for spec in STREAMS if spec.name == "TOKENS").max_age // timedelta(microseconds=1)
# What is on the log may have begun before, and clocks differ.
_LOOK_BACK_US = _LOG_US + 8 * _HOUR_US
_GROUP = (
    "tenant_id, project_id, key_id, model, revision, operation, priority_class, finish_reason, error_reason, "
    "estimated, currency, rate_version"
)
_SUMMED = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens", "cost")
_FINGERPRINT = f"sum(cityHash64(request_id, attempt, {_GROUP}, {', '.join(_SUMMED)}))"
_SUMS = ", ".join(f"sum(bills.{name})" for name in _SUMMED)
_ROLL = (
    f"INSERT INTO usage_hours (hour, {_GROUP}, requests, {', '.join(_SUMMED)}, fingerprint, version) "
    f"SELECT toStartOfHour(end_time) AS hour, {_GROUP}, count(), {_SUMS}, {_FINGERPRINT}, {{version:UInt64}} "
    f"{BILLS_OF_SPAN} AND toStartOfHour(end_time) IN {{hours:Array(DateTime('UTC'))}} GROUP BY hour, {_GROUP}"
)
_EMPTY = "INSERT INTO usage_hours (hour, version) SELECT arrayJoin({hours:Array(DateTime('UTC'))}), {version:UInt64}"
_COLUMNS = (*_GROUP.split(", "), "requests", *_SUMMED, "fingerprint")
_HASHES = ", ".join(f"sum(cityHash64(bills.{name}))" for name in _GROUP.split(", "))
_IN_BILLS = (
    f"SELECT toStartOfHour(end_time) AS hour, {_HASHES}, count(), {_SUMS}, {_FINGERPRINT} {BILLS_OF_SPAN} GROUP BY hour"
)
_ANY = "SELECT count() FROM (SELECT 1 FROM requests WHERE end_time >= fromUnixTimestamp64Micro({low:Int64}) LIMIT 1)"
_ROLLED_HASHES = ", ".join(f"sum(cityHash64(once.{name}) * once.requests)" for name in _GROUP.split(", "))
_ROLLED = (
    f"SELECT hour, {_ROLLED_HASHES}, sum(once.requests), "  # noqa: S608
    f"{', '.join(f'sum(once.{name})' for name in _SUMMED)}, sum(once.fingerprint) FROM usage_hours_once AS once "
    "WHERE hour >= fromUnixTimestamp64Micro({low:Int64}) AND hour < fromUnixTimestamp64Micro({high:Int64}) "
    "GROUP BY hour"
)
_NEVER = (
    "SELECT DISTINCT toStartOfHour(end_time) AS hour FROM requests "
    "WHERE end_time < fromUnixTimestamp64Micro({low:Int64}) AND hour NOT IN (SELECT hour FROM usage_hours)"
)


_Sums = dict[datetime, list[Any]]
"""By hour, in the order of _COLUMNS: of a column to group by a hash over all requests, else the sum."""
_VERSIONS = "SELECT hour, max(version) FROM usage_hours GROUP BY hour"


class UsageHours:
    """Every call may raise one of STORE_ERRORS, and may be made by several meters at once: the last one to sum an hour
    has summed it right."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def run(self) -> None:
        """Keep the table for ever. A store that is away is asked again the next time."""
        old = True
        while True:
            try:
                now_us = clock.now_us()
                if old:
                    await self._write_old(now_us)
                    old = False
                await self.roll(now_us - _LOOK_BACK_US, now_us)
            except STORE_ERRORS as error:
                log.warning("hours are summed later", extra={"error": repr(error)[:500]})
            await asyncio.sleep(_EVERY_SECONDS)

    async def roll(self, low_us: int, high_us: int) -> list[datetime]:
        """Sum the hours of [low, high) (Unix microseconds) that are over and are not what ``bills`` says; which."""
        begun_us = clock.now_us()
        span = _whole_hours(low_us, high_us, begun_us)
        if span["low"] >= span["high"]:
            return []
        wanted, present = await self._both(span)
        stale = sorted(hour for hour, row in wanted.items() if present.get(hour) != row)
        await self._write(stale, begun_us)
        return sorted(stale + await self._empty(sorted(present.keys() - wanted.keys()), span, begun_us))

    async def _empty(self, hours: Sequence[datetime], span: dict[str, int], version: int) -> list[datetime]:
        """Say of ``hours``, which have no rows any more, that there is nothing in them; of which."""
        # What the log does not hold any more is never hidden: were the rows lost, no replay would bring it back.
        held = clock.now_us() - _LOG_US
        gone = [hour for hour in hours if _us(hour) >= held]
        if not gone:
            return []
        if not (await self._store.rows(_ANY, span))[0][0]:
            log.error(
                "there are no requests of the hours that were summed: a replay is due", extra={"hours": len(gone)}
            )
            return []
        await self._store.rows(_EMPTY, {"hours": gone, "version": version})
        return gone

    async def differences(self, low_us: int, high_us: int, ended: Mapping[datetime, int] | None = None) -> list[str]:
        """Hours of [low, high) that are over and say something else than ``bills``, in words.

        ``ended``: when the last of what ended in an hour was in the tables, Unix microseconds, as far as it is known.
        An hour that was not summed since then is summed first; with None, none is.
        """
        begun_us = clock.now_us()
        span = _whole_hours(low_us, high_us, begun_us)
        if span["low"] >= span["high"]:
            return []
        wanted, present = await self._both(span)
        unlike = [hour for hour in wanted.keys() | present.keys() if wanted.get(hour) != present.get(hour)]
        open_ones = [] if ended is None else await self._not_summed_since(unlike, ended)
        if open_ones:
            await self._write(sorted(hour for hour in open_ones if hour in wanted), begun_us)
            await self._empty(sorted(hour for hour in open_ones if hour not in wanted), span, begun_us)
            wanted, present = await self._both(span)
        return [text for hour in sorted(unlike) if (text := _difference(hour, wanted.get(hour), present.get(hour)))]

    async def _not_summed_since(self, hours: Sequence[datetime], ended: Mapping[datetime, int]) -> list[datetime]:
        """One that is not there at all would be, if any other was summed since then."""
        versions = {_utc(hour): int(version) for hour, version in await self._store.rows(_VERSIONS)}
        newest = max(versions.values(), default=0)
        return [
            hour
            for hour in hours
            if hour not in ended or versions.get(hour, newest) < max(ended[hour], _us(hour) + _HOUR_US + _GRACE_US)
        ]

    async def _write_old(self, now_us: int) -> None:
        """Hours from before the table was there."""
        low = (now_us - _LOOK_BACK_US) // _HOUR_US * _HOUR_US
        rows = await self._store.rows(_NEVER, {"low": low})
        await self._write(sorted(_utc(hour) for (hour,) in rows), now_us)

    async def _write(self, hours: Sequence[datetime], version: int) -> None:
        """A day's worth at a time, which bounds what the store holds. ``version``: Unix microseconds before ``bills``
        was read, so that whatever was in it by then is in the sum."""
        for begin in range(0, len(hours), 24):
            some = hours[begin : begin + 24]
            span = {"low": _us(some[0]), "high": _us(some[-1]) + _HOUR_US}
            month = await first_month(self._store, span["low"], span["high"])
            parameters = {"hours": list(some), **span, "month": month, "version": version}
            await self._store.rows(_ROLL, parameters)

    async def _both(self, span: dict[str, int]) -> tuple[_Sums, _Sums]:
        wanted = await self._store.rows(
            _IN_BILLS, {**span, "month": await first_month(self._store, span["low"], span["high"])}
        )
        present = await self._store.rows(_ROLLED, span)
        return {_utc(row[0]): list(row[1:]) for row in wanted}, {_utc(row[0]): list(row[1:]) for row in present}


def _whole_hours(low_us: int, high_us: int, now_us: int) -> dict[str, int]:
    """The hours that [low, high) touches and that are over, as their bounds."""
    over = (now_us - _GRACE_US) // _HOUR_US * _HOUR_US
    return {"low": max(0, low_us) // _HOUR_US * _HOUR_US, "high": min(-(-high_us // _HOUR_US) * _HOUR_US, over)}


def _difference(hour: datetime, billed: list[Any] | None, rolled: list[Any] | None) -> str:
    """In words; empty: there is none."""
    if billed == rolled:
        return ""
    if billed is None or rolled is None:
        return f"the hour {hour:%Y-%m-%d %H}:00 is in {'bills' if rolled is None else 'usage_hours'} only"
    changed = []
    for name, here, there in zip(_COLUMNS, billed, rolled, strict=True):
        is_summed = name == "requests" or name in _SUMMED
        if here != there:
            changed.append(f"{name} {_text(there)} instead of {_text(here)}" if is_summed else f"another {name}")
    return f"usage_hours has for {hour:%Y-%m-%d %H}:00 {', '.join(changed)}"


def _us(hour: datetime) -> int:
    return round(hour.timestamp()) * 1_000_000


def _utc(hour: datetime) -> datetime:
    return hour if hour.tzinfo is not None else hour.replace(tzinfo=UTC)


def _text(value: Any) -> str:
    return f"{value:f}".rstrip("0").rstrip(".") if hasattr(value, "as_tuple") else str(value)
