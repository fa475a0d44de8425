"""What the columns of rows must be, in a form that the store's can be compared with.

The rows are those that would be inserted (:mod:`.rows`): tokens as one hash for each column and request, since there
are too many to fetch; requests as their values. The store works out the same hashes, by :func:`hash_sql`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from inferbus_contracts.erasure import ERASED
from numpy.typing import NDArray

from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.frames import FrameBatch
from inferbus_meter.core.rows import TIME, put_tokens

Value = str | int | float | Decimal | Mapping[str, str] | None
# ClickHouse's intHash64: MurmurHash3's last step, over the value and a salt.
_SALT = np.uint64(0x4CF2D2BAAE6DA887)
_FIRST, _SECOND, _SHIFT = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53), np.uint64(33)
_ATTEMPT_BITS = np.uint64(32)
# The name of a row in its request; each is compared by itself, and all others together with them.
_NAMES = ("attempt", "index")
# By the condition that selects the rows; what a row is grouped by.
_SELECTED = frozenset({"request_id", "stream_epoch"})
# Labels of who was erased; until that is done they are still there.
_ERASED: Mapping[str, Value] = {"end_user": ERASED, "tags": {}}


class Columns:
    """Rows written into it can be read again, column by column: a :class:`.native.Block`."""

    def __init__(self) -> None:
        self.numbers: dict[str, NDArray[np.generic]] = {}
        self.times: set[str] = set()
        self.coded: dict[str, tuple[NDArray[np.integer], Sequence[str]]] = {}
        self._listed: dict[str, Sequence[Value]] = {}

    def fixed(self, name: str, type_name: str, values: NDArray[np.generic]) -> None:
        self.numbers[name] = values
        if type_name == TIME:
            self.times.add(name)

    def nullable(self, name: str, type_name: str, values: Sequence[float | None], dtype: type[np.generic]) -> None:
        self._listed[name] = [None if value is None else dtype(value).item() for value in values]

    def low_cardinality(self, name: str, codes: NDArray[np.integer], keys: Sequence[str]) -> None:
        self.coded[name] = codes, keys

    def strings(self, name: str, values: Sequence[str]) -> None:
        self._listed[name] = values

    texts = strings

    def maps(self, name: str, values: Sequence[Mapping[str, str]]) -> None:
        self._listed[name] = [dict(value) for value in values]

    def decimals(self, name: str, values: Sequence[Decimal], scale: int) -> None:
        self._listed[name] = values

    def values(self) -> dict[str, Sequence[Value]]:
        """Of all columns that say something of a row, by name; times in Unix microseconds."""
        numbers = {name: values.tolist() for name, values in self.numbers.items() if name not in _SELECTED}
        return {**self._listed, **numbers}


@dataclass(slots=True)
class TokenSums:
    """Of the tokens of one request in one chunk of the stream. ``sums``: by column, in the order of TOKEN_COLUMNS."""

    rows: int = 0
    sums: tuple[int, ...] = ()


TOKEN_COLUMNS = {
    "tenant_id": "String", "project_id": "String", "key_id": "String", "model": "String", "revision": "String",
    "worker": "String", "edge": "String", "attempt": "Number", "index": "Number", "token_id": "Number", "time": "Time",
    "gap_us": "Number", "stream_seq": "Number",
}  # fmt: skip
"""Those of ``token_events`` that follow from the log, by how they are hashed."""
_AS_NUMBER = {"String": "halfMD5(`{}`)", "Number": "toUInt64(`{}`)", "Time": "toUInt64(toUnixTimestamp64Micro(`{}`))"}


def hash_sql() -> str:
    """The sums of :func:`token_sums`, in SQL."""
    name = "intHash64(bitOr(bitShiftLeft(toUInt64(attempt), 32), toUInt64(`index`)))"
    terms = []
    for column, kind in TOKEN_COLUMNS.items():
        value = _AS_NUMBER[kind].format(column)
        terms.append(f"sum(intHash64({value if column in _NAMES else f'bitXor({value}, {name})'}))")
    return ", ".join(terms)


def token_sums(batch: FrameBatch) -> dict[bytes, TokenSums]:
    """By request, of all tokens of ``batch``."""
    if not len(batch.token_id):
        return {}
    columns = Columns()
    put_tokens(columns, batch, None)
    # As the store keeps a UUID: two halves, the high one first.
    halves = columns.numbers["request_id"].reshape(-1, 2)
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    halves = halves[order]
    new = np.ones(len(order), bool)
    new[1:] = (halves[1:] != halves[:-1]).any(axis=1)
    starts = np.flatnonzero(new)
    attempt, index = (columns.numbers[name].astype(np.uint64) for name in _NAMES)
    named = _int_hash((attempt << _ATTEMPT_BITS) | index)
    sums = []
    for column in TOKEN_COLUMNS:
        value = _as_numbers(columns, column)
        hashed = _int_hash(value if column in _NAMES else value ^ named)
        sums.append(np.add.reduceat(hashed[order], starts).tolist())
    counts = np.diff(np.append(starts, len(order))).tolist()
    ids = halves[starts].astype(">u8").tobytes()
    return {
        ids[16 * number : 16 * number + 16]: TokenSums(count, tuple(column[number] for column in sums))
        for number, count in enumerate(counts)
    }


def _as_numbers(columns: Columns, name: str) -> NDArray[np.uint64]:
    if name in columns.numbers:
        return columns.numbers[name].astype(np.uint64)
    codes, keys = columns.coded[name]
    hashed = [int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest()[:8], "big") for key in keys]
    distinct: NDArray[np.uint64] = np.array(hashed, np.uint64)
    return distinct.take(codes)


def _int_hash(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = values ^ _SALT
    mixed = (mixed ^ (mixed >> _SHIFT)) * _FIRST
    mixed = (mixed ^ (mixed >> _SHIFT)) * _SECOND
    mixed ^= mixed >> _SHIFT
    return mixed


def unlike_tokens(expected: TokenSums, stored: TokenSums) -> frozenset[str]:
    """The columns that are not the same. A row too many or too few: ``index``."""
    if expected.rows != stored.rows:
        return frozenset({"index"})
    pairs = zip(TOKEN_COLUMNS, expected.sums, stored.sums, strict=True)
    found = frozenset(name for name, one, two in pairs if one != two)
    # All other columns are hashed together with the names.
    return found & set(_NAMES) or found


def unlike_values(expected: Mapping[str, Value], stored: Mapping[str, Value], *, erased: bool) -> dict[str, str]:
    """Of a row of ``requests``: each column that is not the same, in words. ``erased``: its labels may have gone."""
    found = {}
    for name, value in expected.items():
        there = stored.get(name, value)  # what the row is too old to have is not compared
        if there != value and not (erased and name in _ERASED and there == _ERASED[name]):
            # Labels are of persons: who reads the audit need not see them.
            is_label = name in _ERASED
            found[name] = f"{name} is another" if is_label else f"{name} is {_text(there)} instead of {_text(value)}"
    return found


def _text(value: Value) -> str:
    if isinstance(value, Decimal):
        return decimal_text(value)
    return f"'{value}'" if isinstance(value, str) else str(value)
