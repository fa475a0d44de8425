"""A replay's side of the store: rows of a chunk of the stream beside the tables, compared, and put in their place.

They are put in as parts (ATTACH PARTITION), so that no materialized view adds them to a rollup a second time; the
rollups are seen to at the end (:mod:`.rollups`). Requests are put in first and what is wrong is taken out then: charges
are never short of one meanwhile, or budgets would open. Tokens are taken out first: between the two a reader misses
those that were wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from inferbus_rating import Rate

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.epochs import UNKNOWN
from inferbus_meter.core.replay import Chunk, Unlike, unlike_frames, unlike_requests
from inferbus_meter.core.rows import RATE_COLUMNS, Rows

_TABLES = ("token_events", "requests")
_PREFIX = "replay_"
# Rows of before the column was there have none, though the log says when; they stay so.
_OLD = f"(stream_epoch = {UNKNOWN} AND isNull(placed_us))"
# What an erasure blanks stays blank, whatever the stream still says; a row that does not name its stream may stay so.
_NOT_COMPARED = frozenset({"end_user", "tags", "stream_epoch", "version"})
_SYNC = " SETTINGS mutations_sync = 1"


@dataclass(frozen=True, slots=True)
class ChargedBy:
    """By what requests were charged at first, by id. ``rates``: as their rows say. ``versions``: of those that were
    corrected, the version before their first correction."""

    rates: dict[bytes, Rate]
    versions: dict[bytes, str]


class ReplayTables:
    """``store``: as a user who may create, delete and attach. Every call raises one of STORE_ERRORS. One at a time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hash: dict[str, str] = {}
        self._staged = 0

    async def create(self) -> None:
        """Also over what a replay that was killed has left."""
        await self.drop()
        for table in _TABLES:
            for name in (_staged(table), _fix(table)):
                await self._store.command(f"CREATE TABLE {name} AS {table}")
            rows = await self._store.rows(
                "SELECT name FROM system.columns WHERE database = currentDatabase() AND table = {table:String} "
                "ORDER BY position",
                {"table": table},
            )
            columns = ", ".join(f"`{name}`" for (name,) in rows if name not in _NOT_COMPARED)
            # As text: a hash of NULL is NULL, and would be left out of the sum.
            self._hash[table] = f"cityHash64(toString(tuple({columns})))"

    async def drop(self) -> None:
        for table in _TABLES:
            for name in (_staged(table), _fix(table)):
                await self._store.command(f"DROP TABLE IF EXISTS {name} SYNC")

    async def stage(self, rows: Rows) -> None:
        """Beside those of the chunk that are there. A token of its own each time: nothing is taken for a retry."""
        self._staged += 1
        await self._store.insert(_staged(rows.table), rows.data, f"replay-{self._staged}")

    async def clear(self) -> None:
        for table in _TABLES:
            await self._store.command(f"TRUNCATE TABLE {_staged(table)} SYNC")

    async def unlike_frames(self, chunk: Chunk) -> Unlike:
        one = f"SELECT stream_seq, count() AS rows, sum({self._hash['token_events']}) AS hash FROM"
        rows = await self._store.rows(
            f"SELECT stream_seq, sum(here), sum(there) FROM ("  # noqa: S608 - names and numbers of ours
            f"SELECT stream_seq, rows AS here, 0 AS there, hash AS a, toUInt64(0) AS b FROM "
            f"({one} token_events WHERE {chunk.condition('token_events')} GROUP BY stream_seq) UNION ALL "
            f"SELECT stream_seq, 0, rows, 0, hash FROM ({one} {_staged('token_events')} GROUP BY stream_seq)"
            ") GROUP BY stream_seq HAVING sum(here) != sum(there) OR sum(a) != sum(b)"
        )
        return unlike_frames(chunk, [(int(seq), int(here), int(there)) for seq, here, there in rows])

    async def unlike_requests(self, chunk: Chunk) -> Unlike:
        value, condition = self._hash["requests"], chunk.condition("requests")
        without_placed = value.replace("`placed_us`", "NULL")
        rows = await self._store.rows(
            "SELECT request_id, sum(here), sum(there) FROM ("  # noqa: S608 - as above
            f"SELECT request_id, 1 AS here, 0 AS there, {value} AS a, toUInt64(0) AS b, {without_placed} AS c, "
            f"toUInt64(0) AS d, {_OLD} AS old FROM requests FINAL WHERE {condition} UNION ALL "
            f"SELECT request_id, 0, 1, 0, {value}, 0, {without_placed}, 0 FROM {_staged('requests')} FINAL"
            ") GROUP BY request_id HAVING sum(here) != sum(there) "
            "OR if(max(old), sum(c) != sum(d), sum(a) != sum(b))"
        )
        found = [(request_id, int(here), int(there)) for request_id, here, there in rows]
        superseded = await self._store.rows(
            "SELECT bill.request_id FROM bills AS bill "  # noqa: S608 - as above
            "INNER JOIN (SELECT request_id, attempt, stream_epoch, stream_seq "
            f"FROM {_staged('requests')} FINAL) AS staged "
            "ON staged.request_id = bill.request_id "
            f"WHERE NOT ({condition}) AND (bill.attempt, bill.stream_epoch, bill.stream_seq) > "
            "(staged.attempt, staged.stream_epoch, staged.stream_seq)"
        )
        return unlike_requests(chunk, found, [request_id for (request_id,) in superseded])

    async def charges(self, unlike: Unlike) -> list[tuple[str, Decimal, Decimal]]:
        """(currency, before, after) of the requests that differ."""
        rows = await self._store.rows(
            "SELECT currency, sum(before), sum(after) FROM ("  # noqa: S608 - as above
            "SELECT currency, cost AS before, toDecimal128(0, 12) AS after FROM requests FINAL "
            f"WHERE {unlike.condition} UNION ALL SELECT currency, toDecimal128(0, 12), cost "
            f"FROM {_staged('requests')} FINAL WHERE {unlike.condition}) GROUP BY currency ORDER BY currency"
        )
        return [(str(currency), before, after) for currency, before, after in rows]

    async def put_tokens(self, unlike: Unlike) -> None:
        """Put the staged rows in the place of those that differ."""
        await self._fill("token_events", unlike.condition)
        await self._store.command(f"ALTER TABLE token_events DELETE WHERE {unlike.condition}{_SYNC}")
        await self._attach("token_events")

    async def put_requests(self, unlike: Unlike) -> None:
        """As :meth:`put_tokens`, and never fewer rows than before: of two rows of a request and attempt, that of the
        later end counts, and of two of one end the one that came last."""
        value, staged = self._hash["requests"], f"{_staged('requests')} FINAL"
        seen = f"SELECT {value} FROM requests FINAL WHERE {unlike.condition}"  # noqa: S608 - as above
        await self._fill("requests", f"{unlike.condition} AND {value} NOT IN ({seen})", final=True)
        await self._attach("requests")
        await self._store.command(
            f"ALTER TABLE requests DELETE WHERE {unlike.condition} AND {value} NOT IN "  # noqa: S608 - as above
            f"(SELECT {value} FROM {staged}){_SYNC}"
        )

    async def merge_doubled(self, chunk: Chunk) -> None:
        """A row of ``requests`` that is there twice counts once, and becomes one when its parts are merged: now."""
        rows = await self._store.rows(
            f"SELECT DISTINCT partition FROM (SELECT any(_partition_id) AS partition FROM requests "  # noqa: S608
            f"WHERE {chunk.condition('requests')} GROUP BY request_id, stream_seq HAVING count() > 1)"
        )
        for (partition,) in rows:
            await self._store.command(f"OPTIMIZE TABLE requests PARTITION ID '{partition}' FINAL")

    async def _fill(self, table: str, condition: str, *, final: bool = False) -> None:
        staged = f"{_staged(table)} FINAL" if final else _staged(table)
        await self._store.command(f"TRUNCATE TABLE {_fix(table)} SYNC")
        await self._store.command(f"INSERT INTO {_fix(table)} SELECT * FROM {staged} WHERE {condition}")  # noqa: S608

    async def _attach(self, table: str) -> None:
        fix = _fix(table)
        partitions = await self._store.rows(
            "SELECT DISTINCT partition_id FROM system.parts "
            "WHERE active AND database = currentDatabase() AND table = {table:String}",
            {"table": fix},
        )
        for (partition,) in partitions:
            await self._store.command(f"ALTER TABLE {table} ATTACH PARTITION ID '{partition}' FROM {fix}")

    async def charged_by(self, chunk: Chunk, request_ids: Sequence[bytes]) -> ChargedBy:
        """What the tables know of it, of requests of the chunk."""
        bills = await self._store.rows(
            "SELECT UUIDStringToNum(toString(request_id)), rate_version, currency, "  # noqa: S608 - as above
            f"{', '.join(RATE_COLUMNS)} FROM bills WHERE {chunk.condition('requests')}"
        )
        corrected = await self._store.rows(
            "SELECT UUIDStringToNum(toString(request_id)), argMin(from_rate_version, number) FROM adjustments "
            "WHERE hex(UUIDStringToNum(toString(request_id))) IN {ids:Array(String)} GROUP BY request_id",
            {"ids": [request_id.hex().upper() for request_id in request_ids]},
        )
        return ChargedBy(
            {
                _id(request_id): Rate(version, currency, **dict(zip(RATE_COLUMNS, amounts, strict=True)))
                for request_id, version, currency, *amounts in bills
            },
            {_id(request_id): str(version) for request_id, version in corrected},
        )


def _staged(table: str) -> str:
    return f"{_PREFIX}staged_{table}"


def _fix(table: str) -> str:
    return f"{_PREFIX}fix_{table}"


LEFTOVERS = (_staged("requests"), _fix("requests"))
"""What a replay that was killed leaves of requests, with their labels, until the next one."""


def _id(value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes(value)
