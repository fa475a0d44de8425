"""Thresholds on a real bus and a real store: told once, also after an absence and after midnight."""

import asyncio

from inferbus.bus.v1.registry_pb2 import BudgetLedgerRecord, BudgetRecord
from inferbus_bus.streams import bucket_config
from inferbus_contracts.subjects import bucket_spec
from inferbus_meter.core.budget import last_period
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock

from services.meter.tests.budgets.office import DAY, HOUR_US, MONTH, alerts_of, spend


async def test_a_threshold_is_told_once_and_again_when_the_amount_has_changed(office, frame_log) -> None:
    await office.set(amount="10", thresholds=["1", "0.5"])
    await spend(office, frame_log, 4)
    await office.rounds()
    assert office.budgets.alerts.items() == {}
    await spend(office, frame_log, 2)
    await office.rounds()
    (alert,) = office.budgets.alerts.items().values()
    assert (alert.threshold, alert.amount, alert.spent) == ("0.5", "10", "6")
    (event,) = await office.events("budget.threshold_reached")
    assert (event.tenant_id, event.target) == ("acme", "tenant:acme#month")
    await office.set(amount="12", thresholds=["0.5"])
    await office.rounds()
    assert len(office.budgets.alerts.items()) == 2
    assert len(await office.events("budget.threshold_reached")) == 2


async def test_an_alert_for_which_there_is_no_room_stops_no_other_budget(office, frame_log) -> None:
    full = bucket_config(bucket_spec("budget_alerts"), 1) | {"max_bytes": 10}
    await office.bus.api("STREAM.UPDATE.KV_budget_alerts", full, timeout=5)
    await office.set(amount="10", thresholds=["0.5"])
    await office.set(amount="100", project_id="zeta", hard=True)
    await spend(office, frame_log, 6)
    budget = office.budgets.budgets.get("project:acme/zeta#month")
    record = BudgetLedgerRecord()
    record.grants.add(edge="edge-0", boot=7, granted="40", ended=True, start_time=clock.timestamp(clock.now_us()))
    name = ledgers.ledger_name(budget, ledgers.period_at(MONTH, clock.now_us()))
    await office.budgets.ledgers.put(name, record)
    async with asyncio.timeout(30):
        while not office.ledger(name).grants:
            await asyncio.sleep(0.01)
        while office.ledger(name).grants:
            await office.rounds(1)
    assert len(await office.events("budget.threshold_reached")) == 1
    assert not office.budgets.alerts.items()


def test_a_threshold_of_the_period_before_is_told_for_a_day() -> None:
    day = 24 * HOUR_US
    start = ledgers.period_at(MONTH, 1_790_000_000_000_000).start_us
    present = ledgers.period_at(MONTH, start)
    old = BudgetRecord(period=MONTH, create_time=clock.timestamp(start - 9), update_time=clock.timestamp(start - 9))
    assert last_period(old, present, start + day - 1) == ledgers.period_at(MONTH, start - 1)
    assert last_period(old, present, start + day) is None
    changed = BudgetRecord(period=MONTH, create_time=old.create_time, update_time=clock.timestamp(start))
    assert last_period(changed, present, start) is None  # what it was then is not known
    assert last_period(old, ledgers.ALWAYS, start) is None


async def test_a_threshold_that_was_reached_just_before_midnight_is_told(office, frame_log) -> None:
    """As a keeper finds it that looks only after it: its period is the one before the present."""
    budget = (await office.set(amount="10", thresholds=["0.9"], period=DAY)).budget
    await spend(office, frame_log, 9)
    after = ledgers.period_at(DAY, clock.now_us() + 24 * HOUR_US)
    await office.keeper._tell_of_last(budget, after, after.start_us)
    assert [one.target for one in await office.events("budget.threshold_reached")] == ["tenant:acme#day"]
    (alert,) = await alerts_of(office)
    assert alert.period_start.ToMicroseconds() == ledgers.period_at(DAY, clock.now_us()).start_us
