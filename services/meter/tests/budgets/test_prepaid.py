"""Prepaid budgets and credits: counted from their beginning, paid in once, and told on AUDIT if they were."""

import asyncio

from inferbus.bus.v1.registry_pb2 import BudgetLedgerRecord, BudgetRecord, CreditRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.meter.v1.budgets_pb2 import AddCreditRequest, DeleteBudgetRequest, ListCreditsRequest, SetBudgetRequest
from inferbus_bus.registry import Registry
from inferbus_runtime import clock

from services.meter.tests.budgets.office import HOUR_US, MONTH, PREPAID, paid_in, refusal, spend


async def test_prepaid_credits_are_counted_and_paid_in_once(office, frame_log) -> None:
    await office.set(period=PREPAID, hard=True)
    credit = CreditRecord(credit_id="order-1", tenant_id="acme", currency="USD", amount="8.0")
    for _ in range(2):
        paid = (await office.api.AddCredit(AddCreditRequest(credit=credit))).credit
        assert paid.amount == "8"
        await office.seen("order-1", office.budgets.credits)
    credit.amount = "9"
    assert await refusal(office.api.AddCredit(AddCreditRequest(credit=credit))) == (
        ErrorClass.ERROR_CLASS_CONFLICT, "credit_exists", "credit_id",
    )  # fmt: skip
    await spend(office, frame_log, 5)
    shown = await office.status()
    assert (shown.amount, shown.spent, shown.left) == ("8", "5", "3")
    assert len((await office.api.ListCredits(ListCreditsRequest(tenant_id="acme"))).credits) == 1
    assert len((await office.api.ListCredits(ListCreditsRequest(tenant_id="other"))).credits) == 0


async def test_a_prepaid_budget_begins_when_it_is_made(office, frame_log) -> None:
    await spend(office, frame_log, 5)  # paid for otherwise
    for hard in (True, False):
        await office.set(period=PREPAID, hard=hard)
    await paid_in(office, "100")
    shown = await office.status()
    assert (shown.amount, shown.spent, shown.left) == ("100", "0", "100")
    await spend(office, frame_log, 3)
    await office.rounds()
    await office.api.DeleteBudget(DeleteBudgetRequest(tenant_id="acme", period=PREPAID))
    async with asyncio.timeout(30):
        while office.budgets.budgets.items():
            await asyncio.sleep(0.01)
    await office.set(period=PREPAID)  # it goes on: what was spent of the credits stays spent
    assert (await office.status()).spent == "3"


async def test_a_correction_of_what_is_carried_counts(office, store) -> None:
    day = 24 * HOUR_US
    now = clock.now_us()
    await office.set(period=PREPAID)
    await paid_in(office, "100")
    name = next(iter(office.budgets.ledgers.items()))
    begun = BudgetLedgerRecord(start_time=clock.timestamp(now - 60 * day))
    await office.budgets.ledgers.put(name, begun)
    await store.command(
        "INSERT INTO requests (request_id, tenant_id, project_id, key_id, model, accepted_time, end_time, cost, "
        "currency, rate_version, edge, attempt) SELECT generateUUIDv4(), 'acme', 'p', 'k', 'm', "
        "fromUnixTimestamp64Micro(moment), fromUnixTimestamp64Micro(moment), 50, 'USD', '1', 'e', 1 "
        f"FROM (SELECT arrayJoin([{now - 70 * day}, {now - 45 * day}]) AS moment)"
    )

    async def corrected(number: int, days_ago: int, delta: int) -> None:
        await store.command(
            "INSERT INTO adjustments (request_id, number, tenant_id, project_id, key_id, model, revision, end_time, "
            "delta, currency, from_rate_version, to_rate_version, rerate_id, created_time, reason) "
            f"SELECT request_id, {number}, tenant_id, project_id, key_id, model, revision, end_time, {delta}, "
            f"currency, '1', '2', 'r', now64(6) - INTERVAL {days_ago} DAY, '' FROM bills WHERE tenant_id = 'acme'"
        )

    await corrected(1, 3, -1)
    async with asyncio.timeout(30):
        while not office.ledger(name).HasField("carried_time"):
            await office.rounds(1)
    assert (await office.status()).spent == "49"
    await corrected(2, 0, -20)
    await office.rounds()
    # The one that was accepted before the budget's beginning is no part of it, corrected or not.
    assert (await office.status()).spent == "29"
    # Fewer requests are counted than before some were carried: that is no loss.
    assert office.ledger(name).settled == "29"


async def test_the_same_credit_at_once_is_paid_in_once_and_each_is_told_so(office) -> None:
    credit = CreditRecord(credit_id="order-2", tenant_id="acme", currency="USD", amount="100")
    answers = await asyncio.gather(*(office.api.AddCredit(AddCreditRequest(credit=credit)) for _ in range(5)))
    assert {one.credit.create_time.ToMicroseconds() for one in answers} == {
        answers[0].credit.create_time.ToMicroseconds()
    }
    await office.set(period=PREPAID)
    assert (await office.status()).amount == "100"


async def test_a_credit_that_is_refused_is_not_told(office) -> None:
    """Another meter has taken the same id for another one, and this one does not know it yet."""
    elsewhere: Registry[CreditRecord] = Registry(office.bus, "credits", CreditRecord)
    await elsewhere.start()
    await office.budgets.credits.stop()
    other = CreditRecord(credit_id="order-3", tenant_id="acme", currency="USD", amount="1")
    await elsewhere.create("order-3", other)
    credit = CreditRecord(credit_id="order-3", tenant_id="acme", currency="USD", amount="100")
    refused = asyncio.create_task(refusal(office.api.AddCredit(AddCreditRequest(credit=credit))))
    await asyncio.sleep(0.3)
    await office.budgets.credits.start()
    assert (await refused)[:2] == (ErrorClass.ERROR_CLASS_CONFLICT, "credit_exists")
    assert await office.events("credit.added") == []
    await elsewhere.stop()


async def test_who_pays_in_hears_that_it_could_not_be_told_and_tells_it_by_asking_again(office) -> None:
    known = (await office.bus.api("STREAM.INFO.AUDIT", {}, timeout=5))["config"]
    await office.bus.api("STREAM.UPDATE.AUDIT", {**known, "max_msg_size": 1}, timeout=5)
    credit = CreditRecord(credit_id="order-4", tenant_id="acme", currency="USD", amount="100")
    asked = AddCreditRequest(credit=credit, actor_key_id="key_op")
    for _ in range(2):
        assert (await refusal(office.api.AddCredit(asked)))[:2] == (
            ErrorClass.ERROR_CLASS_UNAVAILABLE, "not_announced",
        )  # fmt: skip
    budget = BudgetRecord(tenant_id="acme", period=MONTH, currency="USD", amount="5")
    assert (await refusal(office.api.SetBudget(SetBudgetRequest(budget=budget))))[1] == "not_announced"
    await office.seen("tenant:acme#month", office.budgets.budgets)
    await office.bus.api("STREAM.UPDATE.AUDIT", known, timeout=5)
    for _ in range(3):
        paid = (await office.api.AddCredit(asked)).credit
    (event,) = await office.events("credit.added")
    assert (event.actor_key_id, event.event_time) == ("key_op", paid.create_time)
