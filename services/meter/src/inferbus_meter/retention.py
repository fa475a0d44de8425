"""How long the tables keep their rows: settings, written into the tables as ClickHouse's TTL when they change.

By the one-shot job that brings the schema up to date, since a meter that runs may insert and nothing else. Parts are
dropped whole, once all of their rows are too old: tables are partitioned by month, so a row may stay a month longer;
captured text is by day.
"""

import logging
import re
from collections.abc import Mapping
from datetime import timedelta

from inferbus_meter.clickhouse import Store
from inferbus_meter.config import Config

log = logging.getLogger(__name__)
_TIMES = {"token_events": "time", "requests": "end_time", "deliveries": "stored_time", "captures": "time"}
_TTL = re.compile(r"\bTTL (.+?)(?= SETTINGS |$)")


def wanted(config: Config) -> dict[str, timedelta]:
    """By table; 0: for ever."""
    return {
        "token_events": config.retention_tokens,
        "requests": config.retention_requests,
        "deliveries": config.retention_deliveries,
        "captures": config.retention_captures,
    }


async def apply(store: Store, times: Mapping[str, timedelta]) -> list[str]:
    """Bring the tables' TTL to ``times``; the names of those changed. Needs the right to alter them. Raises one of
    STORE_ERRORS.

    Rows that are too old by the new setting go with the store's next merges, not within this call.
    """
    rows = await store.rows(
        "SELECT name, engine_full FROM system.tables "
        "WHERE database = currentDatabase() AND name IN {names:Array(String)}",
        {"names": list(times)},
    )
    changed = []
    for name, engine in sorted((str(name), str(engine)) for name, engine in rows):
        match = _TTL.search(engine)
        present, needed = match[1] if match else "", _expression(_TIMES[name], times[name])
        # Also of a time that was set before: hours may not have been summed since.
        if name == "requests" and needed and await _lost_by(store, times[name]):
            log.error("requests are kept until their hours are in usage_hours; it is tried at the next start")
            needed = ""
        if present == needed:
            continue
        # Only what each part needs to know is worked out for the rows of before; nothing is rewritten.
        await store.command(f"ALTER TABLE {name} MODIFY SETTING materialize_ttl_recalculate_only = 1")
        await store.command(f"ALTER TABLE {name} MODIFY TTL {needed}" if needed else f"ALTER TABLE {name} REMOVE TTL")
        await store.command(f"ALTER TABLE {name} RESET SETTING materialize_ttl_recalculate_only")
        log.info("retention changed", extra={"table": name, "days": times[name].days})
        changed.append(name)
    return changed


async def _lost_by(store: Store, keep: timedelta) -> int:
    """Requests that would go without their hour being summed for ever (by a meter that runs)."""
    rows = await store.rows(
        "SELECT count() FROM requests WHERE end_time < now() - toIntervalDay({days:UInt32}) "
        "AND toStartOfHour(end_time) NOT IN (SELECT hour FROM usage_hours)",
        {"days": keep.days},
    )
    return int(rows[0][0])


def _expression(column: str, keep: timedelta) -> str:
    return f"toDateTime({column}) + toIntervalDay({keep.days})" if keep else ""
