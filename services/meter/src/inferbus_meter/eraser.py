"""Erasures carried out, by whichever meter holds the lease.

    1  answers and idempotency keys on the bus, of the requests concerned
    2  captured text
    3  labels: ``end_user`` and ``tags`` of ``requests``, and of what a replay or a migration that was killed left of it
    4  said to be done

Each step finds by itself what is left of it, so one that was cut off anywhere is simply done again. The labels go last,
since they say which requests are concerned; afterwards ``[erased]`` does. What comes from the log later is erased on
its way in (:mod:`.erasures`), and what only the end of a request tells, its captured text and its stored answer, is
looked for again as long as a request may run. Whoever takes the lease looks at all rows once more: a backup of the
tables may have been put back. Token ids are text to whoever has the tokenizer: they go too, once the log, which the
audit compares them with, does not hold them any more.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from uuid import UUID

from inferbus.bus.v1.registry_pb2 import ErasureRecord
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.lease import hold
from inferbus_contracts.erasure import ERASED, hash_expression
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_meter.clickhouse import STORE_ERRORS, Store
from inferbus_meter.core.erasing import ErasureScope, literal, scope_of
from inferbus_meter.erasures import Erasures
from inferbus_meter.kept_answers import Entry, KeptAnswers
from inferbus_meter.replay_tables import LEFTOVERS

log = logging.getLogger(__name__)
LEASE = "meter-privacy"
REQUESTS, CAPTURES, RESPONSES, KEYS = "requests", "captures", "responses", "idempotency_keys"
_SYNC = " SETTINGS mutations_sync = 1"
# Rows of ``requests`` that may lie elsewhere; the last two are of migration 0021.
_ELSEWHERE = (*LEFTOVERS, "requests_next", "requests_before")
_AGAIN_SECONDS = 1.0
_LOOK_SECONDS = 30.0
# A request may wait an hour and run for a day.
_LATE_US = 26 * 3_600_000_000
# By then whatever was on its way into the tables while the erasure was asked for is in them.
_SETTLE_US = 600_000_000
# What is older by a worker's clock is not on the log any more: 72 h, and a clock may be a day off.
_OFF_THE_LOG = timedelta(days=4)
_IDS_A_QUERY = 2000
Erase = Callable[[ErasureScope], Awaitable[dict[str, int]]]
_TOKENS_SECONDS = 3600.0
ERRORS = (InferBusError, StreamApiError, TimeoutError, *STORE_ERRORS)


class Eraser:
    """``store``: as a user who may change and delete rows."""

    def __init__(self, store: Store, answers: KeptAnswers) -> None:
        self._store = store
        self._answers = answers

    async def count(self, scope: ErasureScope) -> dict[str, int]:
        """What :meth:`erase` would take out now. Raises one of ERRORS."""
        return {
            REQUESTS: await self._requests("requests", scope.named),
            CAPTURES: await self._requests("captures", scope.captured),
            RESPONSES: len(await self._of(scope, await self._answers.responses(scope.tenant_id))),
            KEYS: len(await self._of(scope, await self._answers.idempotency_keys())),
        }

    async def erase(self, scope: ErasureScope) -> dict[str, int]:
        """Steps 1 to 3; what went. Raises one of ERRORS."""
        gone = {
            RESPONSES: await self._purge(scope, await self._answers.responses(scope.tenant_id)),
            KEYS: await self._purge(scope, await self._answers.idempotency_keys()),
        }
        return gone | await self.erase_rows(scope)

    async def erase_rows(self, scope: ErasureScope) -> dict[str, int]:
        """Steps 2 and 3. Raises one of STORE_ERRORS."""
        gone: dict[str, int] = {}
        gone[CAPTURES] = await self._requests("captures", scope.captured)
        if gone[CAPTURES]:
            await self._store.command(f"ALTER TABLE captures DELETE WHERE {scope.captured}{_SYNC}")
        gone[REQUESTS] = await self._unname("requests", scope)
        for table in await self._elsewhere():
            await self._unname(table, scope)
        return gone

    async def _unname(self, table: str, scope: ErasureScope) -> int:
        """Blank the labels in a table with the columns of ``requests``; of how many requests."""
        found = await self._requests(table, scope.named)
        if found:
            await self._store.command(
                f"ALTER TABLE {table} UPDATE end_user = '{ERASED}', tags = CAST(map(), 'Map(String, String)') "
                f"WHERE {scope.named}{_SYNC}"
            )
        return found

    async def _elsewhere(self) -> list[str]:
        rows = await self._store.rows(
            "SELECT name FROM system.tables WHERE database = currentDatabase() AND name IN {names:Array(String)}",
            {"names": list(_ELSEWHERE)},
        )
        return [str(name) for (name,) in rows]

    async def ended_lately(self) -> dict[str, int]:
        """By tenant, how many requests that were erased ended within the last two days. Raises one of STORE_ERRORS."""
        rows = await self._store.rows(
            f"SELECT tenant_id, count() FROM requests WHERE end_user = '{ERASED}' "  # noqa: S608 - a text of ours
            "AND end_time > now() - toIntervalHour(50) GROUP BY tenant_id"
        )
        return {str(tenant_id): int(number) for tenant_id, number in rows}

    async def still_named(self, records: Sequence[ErasureRecord]) -> list[ErasureRecord]:
        """Those of which there is a row that says whose it is. Raises one of STORE_ERRORS."""
        found = [one for one in records if not one.end_user_hash]
        single = [one for one in records if one.end_user_hash]
        expression = f"hex({hash_expression('toString(tenant_id)', 'end_user')})"
        named: set[str] = set()
        for table in ("requests", *await self._elsewhere()):
            for begin in range(0, len(single), _IDS_A_QUERY):
                some = single[begin : begin + _IDS_A_QUERY]
                rows = await self._store.rows(
                    f"SELECT DISTINCT {expression} AS named FROM {table} WHERE tenant_id IN {{tenants:Array(String)}} "  # noqa: S608
                    f"AND end_user NOT IN ('', '{ERASED}') AND named IN {{hashes:Array(String)}}",
                    {
                        "tenants": sorted({one.tenant_id for one in some}),
                        "hashes": [one.end_user_hash.hex().upper() for one in some],
                    },
                )
                named |= {str(row[0]) for row in rows}
        found += [one for one in single if one.end_user_hash.hex().upper() in named]
        return found

    async def blank_token_ids(self, tenant_id: str) -> int:
        """Of erased requests whose frames are not on the log any more; how many. Raises one of STORE_ERRORS."""
        tenant = literal(tenant_id)
        erased = f"SELECT request_id FROM requests WHERE tenant_id = {tenant} AND end_user = '{ERASED}'"  # noqa: S608
        condition = (
            f"tenant_id = {tenant} AND token_id != 0 AND time < now() - toIntervalDay({_OFF_THE_LOG.days}) "
            f"AND request_id IN ({erased})"
        )
        found = await self._requests("token_events", condition)
        if found:
            await self._store.command(f"ALTER TABLE token_events UPDATE token_id = 0 WHERE {condition}{_SYNC}")
        return found

    async def _purge(self, scope: ErasureScope, entries: Sequence[Entry]) -> int:
        return await self._answers.purge(subject for subject, _ in await self._of(scope, entries))

    async def _of(self, scope: ErasureScope, entries: Sequence[Entry]) -> list[Entry]:
        """Those of requests that are concerned. One that still runs is found after its end."""
        found: list[Entry] = []
        for begin in range(0, len(entries), _IDS_A_QUERY):
            some = entries[begin : begin + _IDS_A_QUERY]
            known = await self._concerned(scope, (request_id for _, request_id in some))
            found += [entry for entry in some if entry[1] in known]
        return found

    async def _concerned(self, scope: ErasureScope, request_ids: Iterable[bytes]) -> set[bytes]:
        ids = [str(UUID(bytes=one)) for one in request_ids]
        rows = await self._store.rows(
            f"SELECT DISTINCT request_id FROM requests WHERE {scope.concerned} "  # noqa: S608 - texts of ours, escaped
            "AND request_id IN {ids:Array(UUID)}",
            {"ids": ids},
        )
        return {UUID(str(request_id)).bytes for (request_id,) in rows}

    async def _requests(self, table: str, condition: str) -> int:
        query = f"SELECT uniqExact(request_id) FROM {table} WHERE {condition}"  # noqa: S608 - texts of ours, escaped
        return int((await self._store.rows(query))[0][0])


async def keep_erased(bus: Bus, holder: str, ttl: timedelta, erasures: Erasures, eraser: Eraser) -> None:
    """For ever: carry out what was asked for, here or at another meter."""
    while True:
        try:
            async with hold(bus, LEASE, holder, ttl) as lease:
                await _Round(erasures, eraser, lease.lost).run()
        except ERRORS as error:
            log.warning("erasures are tried again", extra={"error": repr(error)[:500]})
        await asyncio.sleep(_AGAIN_SECONDS)


def _is_due(last: float | None, now: float, seconds: float) -> bool:
    return last is None or now - last >= seconds


class _Round:
    """All erasures are looked at once at the beginning: a backup of the tables may have been put back."""

    def __init__(self, erasures: Erasures, eraser: Eraser, lost: asyncio.Event) -> None:
        self._erasures = erasures
        self._eraser = eraser
        self._lost = lost
        self._looked: float | None = None
        self._tokens_at: float | None = None
        self._ended: dict[str, int] = {}  # requests that were erased and ended lately, by tenant

    async def run(self) -> None:
        """Until the lease is lost. Raises one of ERRORS."""
        while not self._lost.is_set():
            now = clock.monotonic()
            await self._carry_out_new()
            if _is_due(self._looked, now, _LOOK_SECONDS):
                await self._look_again()
                self._looked = now
            if _is_due(self._tokens_at, now, _TOKENS_SECONDS):
                for tenant_id in {record.tenant_id for record in self._erasures.records.values()}:
                    await self._eraser.blank_token_ids(tenant_id)
                self._tokens_at = now
            try:
                async with asyncio.timeout(_AGAIN_SECONDS):
                    await self._erasures.changed.wait()
            except TimeoutError:
                continue

    async def _carry_out_new(self) -> None:
        """Those that were asked for and are not done."""
        self._erasures.changed.clear()
        for record in list(self._erasures.records.values()):
            if not record.HasField("done_time"):
                await self._carry_out(record, self._eraser.erase)

    async def _look_again(self) -> None:
        """For what came after an erasure was done."""
        now_us = clock.now_us()
        ended = await self._eraser.ended_lately()
        changed = {tenant_id for tenant_id, number in ended.items() if number != self._ended.get(tenant_id)}
        self._ended = ended
        older: list[ErasureRecord] = []
        for erasure_id in list(self._erasures.records):
            # Who asks now does not wait for the very many who may have asked lately.
            if self._erasures.changed.is_set():
                await self._carry_out_new()
            record = self._erasures.records[erasure_id]
            age = now_us - record.until_time.ToMicroseconds()
            if age < _SETTLE_US or (age < _LATE_US and record.tenant_id in changed):
                await self._carry_out(record, self._eraser.erase)
            else:
                older.append(record)
        if self._looked is None:
            for record in await self._eraser.still_named(older):
                await self._carry_out(record, self._eraser.erase_rows)

    async def _carry_out(self, record: ErasureRecord, erase: Erase) -> None:
        gone = await erase(scope_of(record))
        done = record.HasField("done_time")
        if done and not any(gone.values()):
            return
        changed = ErasureRecord()
        changed.CopyFrom(record)
        for name, number in gone.items():
            changed.erased[name] += number
        if not done:
            changed.done_time.FromMicroseconds(clock.now_us())
        await self._erasures.update(changed)
        log.info("erased", extra={"erasure": record.erasure_id, **{f"erased_{k}": v for k, v in gone.items()}})
