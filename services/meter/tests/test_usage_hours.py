"""Hours summed for ever, and how long the rest is kept; on the real engine."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus_meter import retention
from inferbus_meter.clickhouse import Store, open_store
from inferbus_meter.config import Config
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.rows import request_rows
from inferbus_meter.deliveries import position
from inferbus_meter.migrate import migrate, migrations
from inferbus_meter.partitions import BILLS_OF_SPAN, first_month
from inferbus_meter.rollups import MINUTE_US, Rollups
from inferbus_meter.usage_hours import UsageHours
from inferbus_rating import PriceBook
from inferbus_runtime import clock

HOUR = 3_600_000_000
BOOK = PriceBook.of([PriceRecord(rate_version="v1", currency="USD", input_per_million="1", output_per_million="2")])


async def insert(store: Store, make: Any, closes: list[tuple[bytes, int, int, int]]) -> None:
    """(request, Unix us of its end, output tokens, attempt), an insert each."""
    for number, (request, end_us, tokens, attempt) in enumerate(closes, start=1):
        gather = FrameGather(bordered=False)
        frame = make.close(Frame(time_us=end_us), request, tokens, attempt=attempt)
        assert gather.add(number, end_us, frame.SerializeToString())
        rows = request_rows(gather.finish(), BOOK)
        await store.insert(rows.table, rows.data, f"{request.hex()}-{attempt}-{end_us}-{tokens}")


async def summed(store: Store) -> list[tuple[datetime, int, int, Decimal]]:
    rows = await store.rows(
        "SELECT hour, sum(usage_hours_once.requests), sum(usage_hours_once.output_tokens), sum(usage_hours_once.cost) "
        "FROM usage_hours_once GROUP BY hour ORDER BY hour"
    )
    return [(hour.replace(tzinfo=UTC), int(requests), int(tokens), cost) for hour, requests, tokens, cost in rows]


def hour_of(unix_us: int) -> datetime:
    return datetime.fromtimestamp(unix_us // HOUR * 3600, UTC)


async def test_an_hour_is_what_bills_say_whatever_comes_later(store: Store, make: Any) -> None:
    now = clock.now_us()
    earlier, later = now - 5 * HOUR, now - 3 * HOUR
    one, two, three = (make.request_id(earlier - number) for number in range(3))
    hours = UsageHours(store)
    await insert(store, make, [(one, earlier, 10, 1), (two, earlier, 20, 1), (three, now, 40, 1)])
    assert await hours.roll(now - 80 * HOUR, now) == [hour_of(earlier)]  # the present hour is not over
    at_first = [(hour_of(earlier), 2, 30, Decimal("0.000080"))]
    assert await summed(store) == at_first
    assert await hours.roll(now - 80 * HOUR, now) == []
    # A second Close of a request, hours later: it moves from the hour of the first to its own.
    await insert(store, make, [(two, later, 25, 2)])
    assert await hours.roll(now - 80 * HOUR, now) == [hour_of(earlier), hour_of(later)]
    assert await summed(store) == [
        (hour_of(earlier), 1, 10, Decimal("0.00003")),
        (hour_of(later), 1, 25, Decimal("0.00006")),
    ]
    assert await hours.differences(now - 80 * HOUR, now) == []


async def test_an_hour_whose_requests_all_went_to_another_is_empty(store: Store, make: Any) -> None:
    now = clock.now_us()
    earlier, later = now - 5 * HOUR, now - 3 * HOUR
    request = make.request_id(earlier)
    hours = UsageHours(store)
    await insert(store, make, [(request, earlier, 10, 1)])
    await hours.roll(now - 80 * HOUR, now)
    # It was thought dead, was tried again and ended two hours later: the usual second Close.
    await insert(store, make, [(request, later, 25, 2)])
    assert await hours.roll(now - 80 * HOUR, now) == [hour_of(earlier), hour_of(later)]
    assert await summed(store) == [(hour_of(later), 1, 25, Decimal("0.00006"))]
    assert await hours.differences(now - 80 * HOUR, now) == []
    assert await hours.roll(now - 80 * HOUR, now) == []


async def test_an_end_counts_once_over_the_border_of_a_month(store: Store, make: Any) -> None:
    before, after = (round(datetime(2026, *of, tzinfo=UTC).timestamp()) * 1_000_000 for of in ((9, 30, 23), (10, 1, 1)))
    request = make.request_id(before - HOUR)
    await insert(store, make, [(request, before, 10, 1), (request, after, 25, 2)])
    hours = UsageHours(store)
    assert await hours.roll(before, before + HOUR) == []
    assert await hours.roll(after, after + HOUR) == [hour_of(after)]
    assert await summed(store) == [(hour_of(after), 1, 25, Decimal("0.00006"))]


async def test_what_is_kept_longer_is_not_read_for_the_hours_of_now(store: Store, make: Any) -> None:
    now = clock.now_us()
    times = [now - 24 * 30 * month * HOUR for month in range(12)]
    await insert(store, make, [(make.request_id(at), at, 5, 1) for at in times])
    span = {"low": now - 80 * HOUR, "high": now + HOUR}
    month = await first_month(store, span["low"], span["high"])
    rows = await store.rows(f"EXPLAIN ESTIMATE SELECT count() {BILLS_OF_SPAN}", {**span, "month": month})
    whole = await store.rows("EXPLAIN ESTIMATE SELECT * FROM requests FINAL")
    assert sum(int(row[2]) for row in rows) <= 3 < sum(int(row[2]) for row in whole)


async def test_hours_are_not_emptied_because_the_requests_were_lost(store: Store, make: Any) -> None:
    now = clock.now_us()
    times = [now - 76 * HOUR, now - 5 * HOUR]
    await insert(store, make, [(make.request_id(at), at, 5, 1) for at in times])
    hours = UsageHours(store)
    await hours.roll(now - 80 * HOUR, now)
    before = await summed(store)
    await store.command("TRUNCATE TABLE requests SYNC")
    assert await hours.roll(now - 80 * HOUR, now) == []
    assert await summed(store) == before
    # Of the log there are three days: nothing could bring the first one back.
    await insert(store, make, [(make.request_id(now), now, 7, 1)])
    assert await hours.roll(now - 80 * HOUR, now) == [hour_of(times[1])]
    assert await summed(store) == before[:1]


async def test_a_sum_changed_by_hand_is_named_and_one_that_is_older_than_the_log_is_kept(
    store: Store, make: Any
) -> None:
    now = clock.now_us()
    old, earlier = now - 200 * HOUR, now - 2 * HOUR
    await insert(store, make, [(make.request_id(old), old, 5, 1), (make.request_id(earlier), earlier, 7, 1)])
    hours = UsageHours(store)
    await hours._write_old(now)
    await hours.roll(now - 80 * HOUR, now)
    assert [row[2] for row in await summed(store)] == [5, 7]
    await store.command("ALTER TABLE requests DELETE WHERE output_tokens = 5 SETTINGS mutations_sync = 1")
    await hours._write_old(now)
    await hours.roll(now - 80 * HOUR, now)
    assert [row[2] for row in await summed(store)] == [5, 7]  # the request has gone, its hour has not
    await store.command(
        "ALTER TABLE usage_hours UPDATE output_tokens = 8 WHERE output_tokens = 7 SETTINGS mutations_sync = 1"
    )
    assert await hours.differences(now - 80 * HOUR, now) == [
        f"usage_hours has for {hour_of(earlier):%Y-%m-%d %H}:00 output_tokens 8 instead of 7"
    ]


async def test_the_meter_s_own_user_may_do_it(tmp_path: Path, make: Any) -> None:
    """It may insert and read, and no more: all that this takes."""
    server = make.ClickHouseServer(tmp_path)
    await server.start()
    try:
        async with (
            open_store(server.config("admin", "inferbus")) as admin,
            open_store(server.config("writer", "inferbus")) as writer,
        ):
            await migrate(admin, "inferbus", migrations())
            now = clock.now_us()
            await insert(writer, make, [(make.request_id(at), at, 5, 1) for at in (now - 200 * HOUR, now - 2 * HOUR)])
            hours = UsageHours(writer)
            await hours._write_old(now)
            assert await hours.roll(now - 80 * HOUR, now) == [hour_of(now - 2 * HOUR)]
            assert [row[2] for row in await summed(writer)] == [5, 5]
            assert await hours.differences(now - 80 * HOUR, now) == []
            assert await position(writer, 0) == 0
            minutes = (now - 80 * HOUR) // MINUTE_US * MINUTE_US, now // MINUTE_US * MINUTE_US
            assert await Rollups(writer).unlike(*minutes) == {}
            await admin.command(
                "ALTER TABLE request_minutes UPDATE input_tokens = 1 WHERE 1 SETTINGS mutations_sync = 1"
            )
            found = await Rollups(writer).unlike(*minutes)
            assert [list(columns.values()) for columns in found.values()] == [[["input_tokens"]]]
    finally:
        await server.kill()


async def ttl_of(store: Store, table: str) -> str:
    rows = await store.rows(
        "SELECT engine_full FROM system.tables WHERE database = currentDatabase() AND name = {name:String}",
        {"name": table},
    )
    return str(rows[0][0])


async def test_retention_is_set_changed_and_taken_away(store: Store, make: Any) -> None:
    times = retention.wanted(Config())
    assert await retention.apply(store, times) == ["captures", "deliveries", "requests", "token_events"]
    assert "TTL toDateTime(time) + toIntervalDay(30)" in await ttl_of(store, "token_events")
    assert "TTL toDateTime(end_time) + toIntervalDay(396)" in await ttl_of(store, "requests")
    assert await retention.apply(store, times) == []
    assert await retention.apply(store, {**times, "token_events": timedelta(days=7)}) == ["token_events"]
    assert "toIntervalDay(7)" in await ttl_of(store, "token_events")
    assert await retention.apply(store, {**times, "token_events": timedelta(0)}) == ["token_events"]
    assert "TTL" not in await ttl_of(store, "token_events")


async def test_what_is_too_old_goes_and_what_is_not_summed_does_not(store: Store, make: Any) -> None:
    now = clock.now_us()
    await insert(store, make, [(make.request_id(at), at, 5, 1) for at in (now - 24 * 120 * HOUR, now)])
    times = {"requests": timedelta(days=62)}
    assert await retention.apply(store, times) == []  # its hour would be lost
    await store.command(  # as it was set once, when nothing was too old
        "ALTER TABLE requests MODIFY TTL toDateTime(end_time) + toIntervalDay(62) "
        "SETTINGS materialize_ttl_after_modify = 0"
    )
    assert await retention.apply(store, times) == ["requests"]
    assert "TTL" not in await ttl_of(store, "requests")
    await UsageHours(store)._write_old(now)
    assert await retention.apply(store, times) == ["requests"]
    await store.command("OPTIMIZE TABLE requests FINAL")
    assert (await store.rows("SELECT count(), min(end_time) > now() - 60 FROM requests"))[0] == (1, 1)
    assert [row[2] for row in await summed(store)] == [5]


@pytest.mark.parametrize(
    ("name", "days"), [("retention_tokens", 3), ("retention_requests", 61), ("retention_deliveries", 4.5)]
)
def test_too_short_a_retention_is_refused(name: str, days: float) -> None:
    with pytest.raises(ValueError, match="whole number of days"):
        Config(**{name: timedelta(days=days)})
