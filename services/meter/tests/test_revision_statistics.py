"""What revisions did, from the tables of the real engine."""

from typing import Any

import pytest
from inferbus.meter.v1.revisions_pb2 import GetRevisionStatisticsRequest, RevisionStatistics
from inferbus_meter.clickhouse import Store
from inferbus_meter.revision_statistics import RevisionStatisticsServicer
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

_INSERT = """
INSERT INTO requests (request_id, tenant_id, model, revision, attempt, operation, accepted_time, end_time,
    output_tokens, ttft_us, tpot_us, finish_reason, failed_revisions, stream_seq)
SELECT generateUUIDv4(), 't', '{model}', '{revision}', 1, '{operation}', fromUnixTimestamp64Micro({end} - 1000000),
    fromUnixTimestamp64Micro({end}), {tokens}, {ttft} + number, {ttft} / 10, '{finish}', '{failed}', number
FROM numbers({count})
"""


async def put(store: Store, count: int, **fields: Any) -> None:
    given = {
        "model": "m", "revision": "r1", "operation": "chat", "end": clock.now_us(), "tokens": 10, "ttft": 100_000,
        "finish": "stop", "failed": "", "count": count, **fields,
    }  # fmt: skip
    await store.command(_INSERT.format_map(given))


async def asked(store: Store, *revisions: str, since_us: int = 60_000_000) -> list[RevisionStatistics]:
    request = GetRevisionStatisticsRequest(model="m", revisions=revisions)
    request.start_time.CopyFrom(clock.timestamp(clock.now_us() - since_us))
    request.end_time.CopyFrom(clock.timestamp(clock.now_us() + 1_000_000))
    answer = await RevisionStatisticsServicer(store).GetRevisionStatistics(request, None)  # type: ignore[arg-type]
    return list(answer.revisions)


async def test_each_revision_is_told_what_ended_there_and_what_it_failed(store: Store) -> None:
    await put(store, 50)
    await put(store, 5, finish="length")
    await put(store, 2, finish="error", tokens=0)
    await put(store, 3, finish="cancelled")
    await put(store, 4, failed="r2")  # r2 failed them, r1 has done them
    await put(store, 7, revision="r2", tokens=1, ttft=300_000)
    await put(store, 6, model="other")
    await put(store, 8, operation="embeddings", tokens=0)
    await put(store, 9, end=clock.now_us() - 120_000_000)
    one, two, nobody = await asked(store, "r1", "r2", "nobody")
    assert (one.requests, one.failed, one.answered, one.at_limit, one.empty) == (69, 2, 55, 5, 0)
    assert len(one.ttft_us) == len(one.tpot_us) == 55
    assert min(one.ttft_us) == 100_000
    assert (two.requests, two.failed, two.answered, two.empty) == (11, 4, 7, 7)
    assert min(two.ttft_us) == 300_000
    assert nobody == RevisionStatistics(revision="nobody")


async def test_of_many_requests_some_are_drawn_and_the_same_each_time(store: Store) -> None:
    await put(store, 5000)
    (first,), (second,) = await asked(store, "r1"), await asked(store, "r1")
    assert first.requests == 5000
    assert len(first.ttft_us) == 2000
    assert first == second
    # Evenly: the mean of those drawn is that of all, 100,000 + 2,500, within five of its own deviations.
    mean = sum(first.ttft_us) / 2000
    assert abs(mean - 102_499.5) < 5 * 1443 / 2000**0.5


@pytest.mark.parametrize(
    "request_",
    [
        GetRevisionStatisticsRequest(revisions=["r"]),
        GetRevisionStatisticsRequest(model="m"),
        GetRevisionStatisticsRequest(model="m", revisions=["r"]),
        GetRevisionStatisticsRequest(model="m", revisions=["r"], start_time={"seconds": 1}),
    ],
)
async def test_what_cannot_be_answered_is_refused(request_: GetRevisionStatisticsRequest) -> None:
    with pytest.raises(InferBusError):
        await RevisionStatisticsServicer(None).GetRevisionStatistics(request_, None)  # type: ignore[arg-type]
