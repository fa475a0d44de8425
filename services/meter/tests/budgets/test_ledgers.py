"""Ledgers on a real bus and a real store: settled by the charges, whatever died meanwhile."""

import asyncio
from contextlib import suppress
from datetime import timedelta

from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_bus.lease import hold
from inferbus_bus.publish import Publisher
from inferbus_bus.workqueue import WorkQueue
from inferbus_meter.core.replay import LEASE as REPLAY
from inferbus_rating import ledger as ledgers
from inferbus_runtime import clock

from services.meter.tests.budgets.office import MONTH, lease, spend


async def test_what_was_spent_before_counts(office, frame_log) -> None:
    await spend(office, frame_log, 5)
    await frame_log.request(3, tenant="other")
    status = await office.set(amount="100.50", hard=True)
    assert (status.amount, status.spent, status.reserved, status.left) == ("100.5", "5", "0", "95.5")
    name = ledgers.ledger_name(status.budget, ledgers.period_at(MONTH, clock.now_us()))
    await office.seen(name, office.budgets.ledgers)
    assert office.ledger(name).settled == "5"
    assert status.period_end.ToMicroseconds() > clock.now_us() >= status.period_start.ToMicroseconds()


async def test_a_grant_that_was_given_back_is_settled_by_the_charges(office, frame_log) -> None:
    await office.set(amount="100", hard=True)
    await spend(office, frame_log, 5)
    name = await office.grant("50", ended=False)
    shown = await office.status()
    assert (shown.spent, shown.reserved, shown.left) == ("5", "45", "50")
    await office.budgets.ledgers.delete(name)
    await office.caught_up()
    await office.grant("6", ended=True)
    await office.rounds()
    assert list(office.ledger(name).grants) == []
    assert office.ledger(name).settled == "5"


async def test_what_costs_more_than_was_granted_is_settled_at_once(office, frame_log) -> None:
    await office.set(amount="100", hard=True)
    name = await office.grant("3", ended=False)
    await lease(office, boot=7)
    await spend(office, frame_log, 5)
    await office.rounds()
    assert (office.ledger(name).settled, len(office.ledger(name).grants)) == ("2", 1)


async def test_charges_that_were_lost_open_no_budget(office, frame_log, store) -> None:
    status = await office.set(amount="10", hard=True)
    name = ledgers.ledger_name(status.budget, ledgers.period_at(MONTH, clock.now_us()))
    await spend(office, frame_log, 4)
    await spend(office, frame_log, 6)
    await office.rounds()
    assert (office.ledger(name).settled, office.ledger(name).requests) == ("10", 2)
    await store.command("CREATE TABLE saved AS requests")
    await store.command("INSERT INTO saved SELECT * FROM requests")
    await store.command("TRUNCATE TABLE requests SYNC")
    await office.rounds()
    assert office.ledger(name).settled == "10"
    office.keeper._counted.clear()  # another meter keeps them by now
    await office.rounds()
    assert office.ledger(name).settled == "10"
    # They are back, and a correction is no loss.
    await store.command("INSERT INTO requests SELECT * REPLACE (cost / 2 AS cost) FROM saved")
    await office.rounds()
    assert office.ledger(name).settled == "5"


async def test_nothing_is_settled_while_a_replay_runs(office, frame_log) -> None:
    status = await office.set(amount="10", hard=True)
    name = ledgers.ledger_name(status.budget, ledgers.period_at(MONTH, clock.now_us()))
    async with hold(office.bus, REPLAY, "a meter", timedelta(seconds=30)):
        async with asyncio.timeout(30):
            while office.keeper._leases.get(REPLAY) is None:
                await asyncio.sleep(0.01)
        await spend(office, frame_log, 4)
        await office.rounds()
        assert office.ledger(name).settled in ("", "0")
    async with asyncio.timeout(30):
        while office.ledger(name).settled != "4":
            await office.rounds(1)


async def test_a_dead_edge_s_grant_stays_until_all_that_it_accepted_has_ended(office, frame_log) -> None:
    await office.set(amount="100", hard=True)
    name = await office.grant("40", ended=False)
    await lease(office, boot=7)
    await office.rounds()
    assert len(office.ledger(name).grants) == 1  # it lives

    waiting = GenerateRequest(request_id=bytes(16), context=RequestContext(tenant_id="acme", model="m"), edge="edge-0")
    publisher = Publisher(office.bus)
    await publisher.start()
    await publisher.publish(waiting)
    await lease(office, boot=8)  # it was started anew: the one before is dead
    await office.rounds()
    assert len(office.ledger(name).grants) == 1  # one of its requests is queued

    queue = WorkQueue(
        office.bus, stream="REQUESTS", durable="scheduler", subject="req.>", on_delivery=lambda one: one.ack(),
        in_flight=10,
    )  # fmt: skip
    await queue.start()
    await spend(office, frame_log, 5)  # what it had running ends
    async with asyncio.timeout(30):
        while office.ledger(name).grants:
            await office.rounds(1)
    await queue.stop()
    assert office.ledger(name).settled == "5"


async def test_the_keeper_runs_by_itself_while_it_has_the_lease(office, frame_log) -> None:
    await office.keeper._leases.stop()
    running = asyncio.create_task(office.keeper.run())
    try:
        await office.set(amount="10", thresholds=["0.1"])
        await frame_log.publish(Frame())
        await spend(office, frame_log, 6)
        async with asyncio.timeout(30):
            while not office.budgets.alerts.items():
                await asyncio.sleep(0.05)
        assert office.keeper.holds
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await office.keeper._leases.start()


async def test_what_happened_while_no_meter_was_there_is_made_up_for_when_one_is_back(office, frame_log) -> None:
    await office.keeper._leases.stop()
    await office.set(amount="10", hard=True, thresholds=["0.5"])
    name = await office.grant("4", ended=False)  # of an edge that dies
    await office.grant("3", ended=True, edge="edge-1")
    await spend(office, frame_log, 6)
    assert ledgers.total_granted(office.ledger(name)) == 7
    assert await office.events("budget.threshold_reached") == []
    running = asyncio.create_task(office.keeper.run())
    try:
        async with asyncio.timeout(30):
            while office.ledger(name).grants or not office.budgets.alerts.items():
                await asyncio.sleep(0.05)
        assert office.ledger(name).settled == "6"
        assert len(await office.events("budget.threshold_reached")) == 1
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await office.keeper._leases.start()
