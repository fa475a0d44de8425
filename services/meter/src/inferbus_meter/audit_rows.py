"""What the tables say of a range of the stream, for the audit: rows of tokens, bills, and what edges delivered."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.audit import Bill, Delivery, Stored, Tally
from inferbus_meter.core.epochs import Epoch

_IDS_A_QUERY = 1000
_BILLS = (
    "SELECT UUIDStringToNum(toString(request_id)), count(), any(attempt), any(output_tokens), any(stream_seq) "
    "FROM bills WHERE %s GROUP BY request_id"
)


@dataclass(frozen=True, slots=True)
class Range:
    """Stream sequences that were read: of the range itself from ``first`` on, and of the requests that had begun before
    it from ``low`` on; all of one stream. Calls raise one of STORE_ERRORS; keys are request ids."""

    store: Store
    epoch: Epoch
    low: int
    first: int
    last: int

    async def stored(self, tallies: Collection[bytes]) -> dict[bytes, Stored]:
        """Of requests that ended before the range nothing is asked, unless they are in ``tallies``."""
        rows = await self.store.rows(
            "SELECT UUIDStringToNum(toString(request_id)), count(), max(stream_seq) FROM token_events "  # noqa: S608
            f"WHERE stream_seq BETWEEN {{low:UInt64}} AND {{high:UInt64}} AND {self.epoch.condition('time')} "
            "GROUP BY request_id",
            self._span(),
        )
        valid = await self.store.rows(
            "SELECT UUIDStringToNum(toString(request_id)), count() FROM tokens "
            "WHERE stream_seq BETWEEN {low:UInt64} AND {high:UInt64} GROUP BY request_id",
            self._span(),
        )
        counts = {_id(request_id): int(count) for request_id, count in valid}
        return {
            _id(request_id): Stored(int(count), counts.get(_id(request_id), 0))
            for request_id, count, last in rows
            if last >= self.first or _id(request_id) in tallies
        }

    async def bills(self, tallies: Mapping[bytes, Tally]) -> dict[bytes, Bill]:
        """As :meth:`stored`."""
        of_stream = f"stream_seq BETWEEN {{low:UInt64}} AND {{high:UInt64}} AND {self.epoch.condition('end_time')}"
        rows = await self.store.rows(_BILLS % of_stream, self._span())
        bills = {_id(row[0]): _bill(row) for row in rows if row[-1] >= self.first or _id(row[0]) in tallies}
        # A Close after the range may have replaced the row of one inside it.
        gone = [request_id.hex() for request_id, tally in tallies.items() if tally.ends and request_id not in bills]
        for begin in range(0, len(gone), _IDS_A_QUERY):
            ids = gone[begin : begin + _IDS_A_QUERY]
            rows = await self.store.rows(_BILLS % "hex(UUIDStringToNum(toString(request_id))) IN {ids:Array(String)}",
                                         {"ids": [text.upper() for text in ids]})  # fmt: skip
            bills |= {_id(row[0]): _bill(row) for row in rows}
        return bills

    def _span(self) -> dict[str, int]:
        return {"low": self.low, "high": self.last}


async def deliveries(store: Store, low_us: int, high_us: int, wanted: Collection[bytes]) -> dict[bytes, Delivery]:
    """Of the ``wanted`` requests, those that were stored in [low, high) (Unix microseconds). A row that came twice
    changes nothing here."""
    rows = await store.rows(
        "SELECT UUIDStringToNum(toString(request_id)), max(tokens), argMax(edge, tokens), "
        "countIf(`end` IN ('complete', 'stored')), minIf(tokens, `end` IN ('complete', 'stored')), "
        "maxIf(tokens, `end` IN ('complete', 'stored')) FROM deliveries "
        "WHERE stored_time >= fromUnixTimestamp64Micro({low:Int64}) "
        "AND stored_time < fromUnixTimestamp64Micro({high:Int64}) GROUP BY request_id",
        {"low": low_us, "high": high_us},
    )
    return {
        _id(request_id): Delivery(int(tokens), str(edge), (int(fewest), int(most)) if whole else None)
        for request_id, tokens, edge, whole, fewest, most in rows
        if _id(request_id) in wanted
    }


def _id(value: Any) -> bytes:
    return value if isinstance(value, bytes) else bytes(value)


def _bill(row: Any) -> Bill:
    _, *numbers = row
    return Bill(*map(int, numbers))
