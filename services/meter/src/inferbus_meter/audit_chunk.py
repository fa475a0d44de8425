"""One chunk of the stream against the tables, column by column: every row that is there, whether it counts or not.

What the columns must be is worked out from the frames (:mod:`.core.columns`). Of tokens the store is asked for a hash
of each column and request; rows of requests, which are few, are fetched. Memory: the requests of the chunk.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inferbus_rating import PriceBook, Rate

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.audit import Difference, Tally
from inferbus_meter.core.audit_corrections import Adjustment, Charged, correction_faults
from inferbus_meter.core.audit_rates import rate_fault, rate_of_version
from inferbus_meter.core.columns import Columns, TokenSums, hash_sql, token_sums, unlike_tokens, unlike_values
from inferbus_meter.core.epochs import UNKNOWN
from inferbus_meter.core.erasing import nobody_erased
from inferbus_meter.core.frames import ClosedRequest, FrameBatch
from inferbus_meter.core.replay import TIMES, Chunk
from inferbus_meter.core.rows import RATE_COLUMNS, IsErased, accepted_us, put_requests

_ID = "UUIDStringToNum(toString(request_id))"
_IDS_A_QUERY = 1000
_REQUESTS_A_TURN = 500
_CORRECTIONS = (
    f"SELECT {_ID}, number, argMax((tenant_id, project_id, key_id, model, revision), created_time), "  # noqa: S608
    "toUnixTimestamp64Micro(argMax(end_time, created_time)), argMax(delta, created_time), "
    "argMax(currency, created_time), argMax(from_rate_version, created_time), argMax(to_rate_version, created_time) "
    "FROM adjustments WHERE request_id IN (SELECT request_id FROM requests WHERE %s) GROUP BY request_id, number"
)
_IN_FORCE = (
    f"SELECT {_ID}, argMax(stream_seq, (attempt, stream_epoch, stream_seq)) FROM requests WHERE %s GROUP BY request_id"  # noqa: S608
)
# What a request is charged by, and what that comes to.
_OF_CHARGE = frozenset({"cost", "currency", "rate_version", *RATE_COLUMNS})
Row = Mapping[str, Any]
Pair = tuple[ClosedRequest, Sequence[Row]]
"""An end, and the rows that say it: one, if all is well."""


class ChunkCheck:
    """Every call raises one of STORE_ERRORS. ``tallies``: what was read of each request so far, the chunk included; in
    it is noted which columns of its tokens differ."""

    def __init__(self, store: Store, book: PriceBook, is_erased: IsErased, tallies: Mapping[bytes, Tally]) -> None:
        self._store = store
        self._book = book
        self._is_erased = is_erased
        self._tallies = tallies

    async def run(self, chunk: Chunk, batch: FrameBatch) -> list[Difference]:
        await self._tokens(chunk, batch)
        return await self._requests(chunk, batch) if batch.closes else []

    async def _tokens(self, chunk: Chunk, batch: FrameBatch) -> None:
        rows = await self._store.rows(
            f"SELECT {_ID}, count(), {hash_sql()} FROM token_events "  # noqa: S608 - texts of ours
            f"WHERE {chunk.condition('token_events')} GROUP BY request_id"
        )
        stored = {bytes(request_id): TokenSums(count, tuple(sums)) for request_id, count, *sums in rows}
        expected = await asyncio.to_thread(token_sums, batch)
        nothing = TokenSums()
        for request_id in expected.keys() | stored.keys():
            unlike = unlike_tokens(expected.get(request_id, nothing), stored.get(request_id, nothing))
            if unlike and request_id in self._tallies:
                self._tallies[request_id].unlike |= unlike

    # --- requests ---

    async def _requests(self, chunk: Chunk, batch: FrameBatch) -> list[Difference]:
        ends = {(item.close.request_id, item.sequence): item for item in batch.closes}
        condition = f"{chunk.condition('requests')} AND {_within(batch)}"
        there = await self._rows(condition)
        # A row whose time was changed is not among these.
        gone = [request_id for request_id, sequence in ends if (request_id, sequence) not in there]
        found: list[Difference] = []
        for ids in _named(gone):
            there.update(await self._rows(f"{chunk.condition('requests')} AND {ids}"))
            others = await self._rows(f"NOT ({chunk.condition('requests')}) AND {ids}")
            detail = "stream_epoch is that of another stream"
            found += [Difference(key[0], "column", detail=detail) for key in others if key in ends and key not in there]
        for request_id, sequence in there.keys() - ends.keys():
            detail = f"billed by an end at {sequence}, where the stream has none"
            found.append(Difference(request_id, "unknown_request", detail=detail))
        pairs = [(item, there[key]) for key, item in ends.items() if key in there]
        for begin in range(0, len(pairs), _REQUESTS_A_TURN):
            found += await asyncio.to_thread(self._compared, pairs[begin : begin + _REQUESTS_A_TURN])
        return found + await self._corrections(condition, pairs)

    async def _rows(self, condition: str) -> dict[tuple[bytes, int], list[Row]]:
        """By request and sequence."""
        columns = self._expected((), {})
        names = tuple(columns.values())
        selected = (f"toUnixTimestamp64Micro({name})" if name in columns.times else f"`{name}`" for name in names)
        rows = await self._store.rows(
            f"SELECT {_ID}, stream_epoch, {', '.join(selected)} FROM requests WHERE {condition}"  # noqa: S608
        )
        found: dict[tuple[bytes, int], list[Row]] = defaultdict(list)
        for request_id, epoch, *values in rows:
            row = dict(zip(names, values, strict=True))
            if epoch == UNKNOWN and row["placed_us"] is None:
                del row["placed_us"]  # written before there was such a column, though the log says when
            found[bytes(request_id), int(row["stream_seq"])].append(row)
        return dict(found)

    def _expected(self, items: Sequence[ClosedRequest], rates: Mapping[bytes, Rate]) -> Columns:
        columns = Columns()
        put_requests(columns, items, self._book, rates, nobody_erased, None)
        return columns

    def _compared(self, pairs: Sequence[Pair]) -> list[Difference]:
        """In a thread: it takes some 50 µs a request."""
        rates = {item.close.request_id: rate_of_version(item, _rate(rows[0]), self._book) for item, rows in pairs}
        columns = self._expected([item for item, _ in pairs], rates).values()
        # Said by the counts of tokens, which need the whole request.
        del columns["output_tokens"]
        found: list[Difference] = []
        for number, (item, rows) in enumerate(pairs):
            request_id = item.close.request_id
            if len(rows) > 1:
                found.append(Difference(request_id, "duplicate_row", detail=f"{len(rows)} rows in requests"))
            erased = self._is_erased(item.context.tenant_id, item.close.labels.end_user, accepted_us(item))
            expected = {name: values[number] for name, values in columns.items()}
            for row in rows:
                unlike = unlike_values(expected, row, erased=erased)
                if expected["queue_us"] is None and row["queue_us"] == row["started_us"]:
                    unlike.pop("queue_us", None)  # written when it was counted until the last attempt began
                charge = [text for name, text in unlike.items() if name in _OF_CHARGE]
                other = [text for name, text in unlike.items() if name not in _OF_CHARGE]
                found += [Difference(request_id, "cost", detail="; ".join(charge))] if charge else []
                found += [Difference(request_id, "column", detail="; ".join(other))] if other else []
            fault = rate_fault(item, rows[0]["rate_version"], self._book)
            found += [Difference(request_id, "rate", detail=fault)] if fault else []
        return found

    # --- corrections ---

    async def _corrections(self, condition: str, pairs: Sequence[Pair]) -> list[Difference]:
        corrections: dict[bytes, list[Adjustment]] = defaultdict(list)
        for request_id, number, bearer, *rest in await self._store.rows(_CORRECTIONS % condition):
            corrections[bytes(request_id)].append(Adjustment(int(number), tuple(bearer), *rest))
        in_force: dict[bytes, int] = {}
        for ids in _named(list(corrections)):
            in_force |= {bytes(one): int(sequence) for one, sequence in await self._store.rows(_IN_FORCE % ids)}
        found: list[Difference] = []
        for item, rows in pairs:
            request_id = item.close.request_id
            if request_id in corrections and in_force.get(request_id) == item.sequence:
                charged = Charged(rows[0]["cost"], rows[0]["currency"], rows[0]["rate_version"])
                replaced = len(self._tallies[request_id].ends) > 1
                faults = correction_faults(item, charged, corrections[request_id], self._book, replaced=replaced)
                found += [Difference(request_id, "adjustment", detail=fault) for fault in faults]
        return found


def _within(batch: FrameBatch) -> str:
    """By the time of its frames, which is what the store can look up."""
    first, last = int(batch.frame_time_us.min()), int(batch.frame_time_us.max())
    time = TIMES["requests"]
    return f"{time} >= fromUnixTimestamp64Micro({first}) AND {time} <= fromUnixTimestamp64Micro({last})"


def _named(request_ids: Sequence[bytes]) -> Iterable[str]:
    """Conditions that name them, some at a time."""
    for begin in range(0, len(request_ids), _IDS_A_QUERY):
        some = request_ids[begin : begin + _IDS_A_QUERY]
        yield f"hex({_ID}) IN ({', '.join(repr(one.hex().upper()) for one in some)})"


def _rate(row: Row) -> Rate:
    return Rate(row["rate_version"], row["currency"], **{name: row[name] for name in RATE_COLUMNS})
