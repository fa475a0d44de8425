"""What a model's revisions did: counts, and times of some requests drawn evenly, for whoever compares them."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from inferbus.meter.v1 import revisions_pb2_grpc
from inferbus.meter.v1.revisions_pb2 import (
    GetRevisionStatisticsRequest,
    GetRevisionStatisticsResponse,
    RevisionStatistics,
)
from inferbus_runtime import clock
from inferbus_runtime.errors import invalid

from inferbus_meter.clickhouse import STORE_ERRORS, Store, refusal

SERVICE_NAME = "inferbus.meter.v1.RevisionStatisticsService"
_MOST_REVISIONS = 16
_DAY_US = 24 * 3600 * 1_000_000
_LIMITS: Mapping[str, Any] = {"max_execution_time": 10}
# A row of a request that was tried again counts twice: for the revision that failed it, and for the one that ended it.
# Only what makes tokens has times and a shape; a hash of the id draws evenly, and the same ones each time.
_QUERY = """
SELECT named AS revision,
    countIf(ended_here AND finish_reason NOT IN ('cancelled', '')) + countIf(failed_here) AS requests,
    countIf(ended_here AND finish_reason = 'error') + countIf(failed_here) AS failed,
    countIf(shaped) AS answered,
    countIf(shaped AND finish_reason = 'length') AS at_limit,
    countIf(shaped AND output_tokens <= 1) AS empty,
    groupArraySortedIf(2000)((cityHash64(request_id), assumeNotNull(ttft_us)), shaped AND ttft_us IS NOT NULL) AS ttfts,
    groupArraySortedIf(2000)((cityHash64(request_id), assumeNotNull(tpot_us)), shaped AND tpot_us IS NOT NULL) AS tpots
FROM
(
    SELECT request_id, finish_reason, output_tokens, ttft_us, tpot_us, named,
        named = revision AS ended_here,
        has(splitByChar(',', toString(failed_revisions)), named) AND named != revision AS failed_here,
        ended_here AND finish_reason IN ('stop', 'length') AND operation IN ('chat', 'text_completion')
            AND failed_revisions = '' AS shaped
    FROM requests FINAL
    ARRAY JOIN {revisions:Array(String)} AS named
    WHERE model = {model:String}
        AND end_time >= fromUnixTimestamp64Micro({start:Int64}) AND end_time < fromUnixTimestamp64Micro({end:Int64})
        AND accepted_time >= fromUnixTimestamp64Micro({accepted:Int64})
)
GROUP BY named
"""
# Nothing is generated for longer: what ended in the span was accepted since.
_LONGEST_US = 2 * _DAY_US


class RevisionStatisticsServicer(revisions_pb2_grpc.RevisionStatisticsServiceServicer):
    """``store``: as a user who may read, and needs no more."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def GetRevisionStatistics(  # noqa: N802 (gRPC's name)
        self,
        request: GetRevisionStatisticsRequest,
        context: "grpc.aio.ServicerContext[GetRevisionStatisticsRequest, GetRevisionStatisticsResponse]",
    ) -> GetRevisionStatisticsResponse:
        if not request.model:
            raise invalid("Name a model.", param="model")
        if not 0 < len(request.revisions) <= _MOST_REVISIONS:
            raise invalid(f"Name 1 to {_MOST_REVISIONS} revisions.", param="revisions")
        if not request.HasField("start_time"):
            raise invalid("start_time must be set.", param="start_time", reason="missing_required_parameter")
        start = clock.unix_us(request.start_time)
        end = clock.unix_us(request.end_time) if request.HasField("end_time") else clock.now_us()
        if not 0 <= end - start <= _DAY_US:
            raise invalid("Ask for a day at most.", param="end_time")
        asked = {
            "model": request.model, "revisions": list(dict.fromkeys(request.revisions)), "start": start, "end": end,
            "accepted": max(0, start - _LONGEST_US),
        }  # fmt: skip
        try:
            rows = await self._store.rows(_QUERY, asked, _LIMITS)
        except STORE_ERRORS as error:
            raise refusal(error) from error
        found = {row[0]: _statistics(row) for row in rows}
        return GetRevisionStatisticsResponse(
            revisions=[found.get(name) or RevisionStatistics(revision=name) for name in request.revisions]
        )


def _statistics(row: Sequence[Any]) -> RevisionStatistics:
    revision, requests, failed, answered, at_limit, empty, ttfts, tpots = row
    return RevisionStatistics(
        revision=revision, requests=requests, failed=failed, answered=answered, at_limit=at_limit, empty=empty,
        ttft_us=[value for _, value in ttfts], tpot_us=[value for _, value in tpots],
    )  # fmt: skip
