"""Captured text, found again. As the one user who may read it, and reads nothing else."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from inferbus.meter.v1.captures_pb2 import Capture
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_meter.clickhouse import Store
from inferbus_meter.core.captures import Part, put_together

_WHO = "tenant_id, project_id, key_id, model, revision"
_LIST = (
    "SELECT request_id, accepted_time, any(tenant_id), any(project_id), any(key_id), any(model), any(revision), "
    "sum(length(text)) FROM captures WHERE ({tenant:String} = '' OR tenant_id = {tenant:String}) "
    "AND ({project:String} = '' OR project_id = {project:String}) "
    "AND accepted_time >= fromUnixTimestamp64Micro({low:Int64}) "
    "AND accepted_time < fromUnixTimestamp64Micro({high:Int64}) "
    "AND (accepted_time, request_id) < (fromUnixTimestamp64Milli({before:Int64}), {last:UUID}) "
    "GROUP BY accepted_time, request_id ORDER BY accepted_time DESC, request_id DESC LIMIT {limit:UInt32}"
)
_PARTS = (
    f"SELECT accepted_time, {_WHO}, kind, attempt, truncated, first_index, token_count, text_size, base64Encode(text) "  # noqa: S608
    "FROM captures WHERE request_id = {request:UUID} AND ({tenant:String} = '' OR tenant_id = {tenant:String}) "
    "AND accepted_time = fromUnixTimestamp64Milli({accepted:Int64}) ORDER BY stream_seq, attempt, kind"
)
# 2106: what DateTime64(3) compares with and no request has.
_END_US = ((1 << 32) - 1) * 1_000_000
_LAST_ID = UUID(int=(1 << 128) - 1)


@dataclass(frozen=True, slots=True)
class CaptureQuery:
    """Times are Unix microseconds of the acceptance, [low, high). ``page``: next_page_token of the page before."""

    tenant_id: str
    project_id: str
    low_us: int
    high_us: int | None
    limit: int
    page: str


class Captures:
    """Every call raises one of STORE_ERRORS."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def page(self, query: CaptureQuery) -> tuple[list[Capture], str]:
        """(captures without text, newest first; the next page's token). Raises InferBusError INVALID_ARGUMENT."""
        before, last = _position(query.page)
        rows = await self._store.rows(
            _LIST,
            {
                "tenant": query.tenant_id,
                "project": query.project_id,
                "low": query.low_us,
                "high": _END_US if query.high_us is None else query.high_us,
                "before": before,
                "last": str(last),
                "limit": query.limit + 1,
            },
        )
        shown = [_capture(row[0], row[2:7], int(row[7])) for row in rows[: query.limit]]
        if len(rows) <= query.limit:
            return shown, ""
        end = UUID(shown[-1].request_id)
        return shown, base64.urlsafe_b64encode(end.bytes).decode().rstrip("=")

    async def get(self, request_id: bytes, tenant_id: str) -> Capture | None:
        """With text; None if nothing is kept of such a request of that tenant (empty: of any)."""
        name = UUID(bytes=request_id)
        accepted = int.from_bytes(request_id[:6])
        rows = await self._store.rows(_PARTS, {"request": str(name), "tenant": tenant_id, "accepted": accepted})
        if not rows:
            return None
        parts = [
            Part(str(row[6]), int(row[7]), bool(row[8]), row[9], row[10], row[11], base64.b64decode(row[12]))
            for row in rows
        ]
        said = put_together(parts)
        shown = _capture(name, rows[0][1:6], sum(len(part.text) for part in parts))
        shown.input, shown.input_truncated = said.input, said.input_truncated
        shown.output, shown.output_truncated = said.output, said.output_truncated
        return shown


def _capture(request_id: Any, who: Sequence[Any], size: int) -> Capture:
    name = UUID(str(request_id))
    tenant, project, key, model, revision = map(str, who)
    return Capture(
        request_id=str(name),
        tenant_id=tenant,
        project_id=project,
        key_id=key,
        model=model,
        revision=revision,
        accepted_time=clock.timestamp(int.from_bytes(name.bytes[:6]) * 1000),
        bytes=size,
    )


def _position(page: str) -> tuple[int, UUID]:
    """(accepted, Unix milliseconds; request) that the page ends before."""
    if not page:
        return _END_US // 1000, _LAST_ID
    try:
        last = UUID(bytes=base64.urlsafe_b64decode(page + "=="))
    except (binascii.Error, ValueError) as error:
        raise invalid("'page_token' is not one of ours.", param="page_token") from error
    return int.from_bytes(last.bytes[:6]), last
