"""What stands in the place of erased names is nobody's name; and erasures, however many: their order and their list."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from inferbus.bus.v1.registry_pb2 import ErasureRecord
from inferbus.meter.v1.privacy_pb2 import ListErasuresRequest
from inferbus_contracts.erasure import ERASED, end_user_hash
from inferbus_meter.clickhouse import Store
from inferbus_meter.core.answers import MOST_BYTES
from inferbus_meter.core.erasing import ErasureScope
from inferbus_meter.eraser import Eraser, keep_erased
from inferbus_meter.erasures import follow_erasures
from inferbus_meter.kept_answers import KeptAnswers
from inferbus_meter.privacy_servicer import PrivacyServicer
from inferbus_runtime import clock


async def test_of_a_whole_tenant_tags_go_also_where_the_name_says_erased(own_bus: Any, store: Any) -> None:
    """Rows of somebody who called himself so, from before nobody could."""
    for tenant, user in (("acme", ERASED), ("acme", "ada"), ("acme", ""), ("globex", ERASED)):
        await store.command(
            "INSERT INTO requests (request_id, tenant_id, end_user, tags, accepted_time, end_time) "
            f"SELECT '{uuid4()}', '{tenant}', '{user}', map('who', 'ada'), now() - 60, now() - 60"
        )
    eraser = Eraser(store, KeptAnswers(own_bus))
    one = ErasureScope("acme", end_user_hash("acme", "ada"), clock.now_us())
    assert (await eraser.erase_rows(one))["requests"] == 1
    everybody = ErasureScope("acme", b"", clock.now_us())
    assert (await eraser.erase_rows(everybody))["requests"] == 2
    rows = await store.rows("SELECT tenant_id, end_user, tags FROM requests ORDER BY tenant_id")
    assert [tuple(row) for row in rows] == [("acme", ERASED, {})] * 3 + [("globex", ERASED, {"who": "ada"})]
    assert (await eraser.erase_rows(everybody))["requests"] == 0


class Noting(Eraser):
    """Notes whose requests it erases, and calls ``meanwhile`` at the first."""

    def __init__(self, store: Store, answers: KeptAnswers, meanwhile: Callable[[], Awaitable[None]]) -> None:
        super().__init__(store, answers)
        self.erased: list[str] = []
        self._meanwhile = meanwhile

    async def erase(self, scope: ErasureScope) -> dict[str, int]:
        self.erased.append(scope.tenant_id)
        if len(self.erased) == 1:
            await self._meanwhile()
        return await super().erase(scope)


async def test_who_asks_now_does_not_wait_for_all_who_asked_lately(own_bus: Any, store: Store) -> None:
    async with follow_erasures(own_bus) as erasures:

        async def asked(tenant: str, *, done: bool) -> None:
            record = ErasureRecord(erasure_id=f"erasure-{tenant}", tenant_id=tenant)
            record.until_time.FromMicroseconds(clock.now_us())
            if done:
                record.done_time.FromMicroseconds(clock.now_us())
            await erasures.create(record)
            while record.erasure_id not in erasures.records:
                await asyncio.sleep(0.01)

        for tenant in ("one", "two", "three"):
            await asked(tenant, done=True)
        eraser = Noting(store, KeptAnswers(own_bus), partial(asked, "late", done=False))
        task = asyncio.create_task(keep_erased(own_bus, "m", timedelta(seconds=10), erasures, eraser))
        try:
            async with asyncio.timeout(20):
                while len(eraser.erased) < 4:
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert eraser.erased[1] == "late"
        assert {*eraser.erased} == {"one", "two", "three", "late"}


async def test_the_newest_erasures_are_listed_however_many_there_were(own_bus: Any) -> None:
    records = []
    for number in range(1100):
        record = ErasureRecord(erasure_id=f"erasure-{number}", tenant_id="acme", end_user_hash=b"x" * 32)
        record.until_time.FromMicroseconds(number)
        records.append(record)
    async with follow_erasures(own_bus) as erasures:
        await asyncio.gather(*map(erasures.create, records))
        while len(erasures.records) < len(records):
            await asyncio.sleep(0.01)
        listed = await PrivacyServicer(erasures, None).ListErasures(ListErasuresRequest(), None)
    assert [one.erasure_id for one in listed.erasures] == [f"erasure-{number}" for number in range(1099, 99, -1)]
    assert listed.ByteSize() < MOST_BYTES
