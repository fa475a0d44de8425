"""The meter as a process: killed and restarted under load, the store killed in between, then proved by its audit."""

import asyncio
import signal
from datetime import timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Operation
from inferbus.meter.v1.meter_pb2 import AuditRequest, GetLiveRequest, GetUsageRequest
from inferbus_bus.registry import Registry
from inferbus_meter.clickhouse import STORE_ERRORS, open_store
from inferbus_runtime import clock, rpc
from inferbus_runtime.errors import InferBusError

TABLES_AND_VIEWS = (
    "token_events", "requests", "ingest_batches", "schema_migrations", "tokens", "bills", "charges", "usage_by_hour",
    "usage_by_day", "latency_by_minute", "latency_by_minute_and_tenant",
)  # fmt: skip


@pytest.fixture
async def meter(clickhouse, admin_store, own_nats, tmp_path, make):
    process = make.MeterProcess(tmp_path, own_nats.url, clickhouse.config("writer", "inferbus"))
    await process.start()
    yield process
    await process.stop(signal.SIGKILL)


async def set_price(bus, name: str, version: str, per_output: str, key: str = "") -> None:
    registry: Registry[PriceRecord] = Registry(bus, "prices", PriceRecord)
    await registry.start()
    record = PriceRecord(
        model=name, rate_version=version, currency="USD", input_per_million="1", output_per_million=per_output
    )  # fmt: skip
    await registry.put(key or name, record)
    await registry.stop()


async def test_killed_and_restarted_with_the_store_killed_in_between_every_token_is_billed_once(
    meter, clickhouse, admin_store, own_bus, frame_log
) -> None:
    stop = asyncio.Event()
    requests = 0

    async def load() -> None:
        nonlocal requests
        while not stop.is_set():
            await frame_log.request(20, tenant=f"t{requests % 3}")
            requests += 1

    loading = asyncio.create_task(load())
    for round_ in range(3):
        await asyncio.sleep(0.7)
        await meter.stop(signal.SIGKILL)
        if round_ < 2:
            await clickhouse.kill()
            await asyncio.sleep(0.3)
            await clickhouse.start()
        await meter.start()
    await asyncio.sleep(1.0)
    await clickhouse.kill()  # under the running meter
    await asyncio.sleep(0.3)
    await clickhouse.start()
    await asyncio.sleep(0.5)
    stop.set()
    await loading
    summary, differences = await meter.audit()
    assert differences == []
    assert (summary.requests, summary.open_requests) == (requests, 0)
    assert summary.stream_tokens == summary.stored_tokens == summary.billed_tokens == 20 * requests
    for query, wanted in (
        ("SELECT count() FROM token_events", 20 * requests),
        ("SELECT uniqExact(request_id, attempt, index) FROM token_events", 20 * requests),
        ("SELECT sum(tokens) FROM latency_by_minute", 20 * requests),
        ("SELECT sum(requests) FROM latency_by_minute", requests),
        ("SELECT sum(requests) FROM usage_by_day", requests),
        ("SELECT count() FROM requests", requests),
    ):
        assert (query, int((await admin_store.rows(query))[0][0])) == (query, wanted)
    assert await meter.stop(signal.SIGTERM) == 0, meter.log()[-3000:]


async def test_usage_sums_what_ended_by_tenant_project_and_model(meter, own_bus, frame_log) -> None:
    await set_price(own_bus, "default", "2026-11", "2")
    await meter.knows_price("2026-11")
    for tenant, tokens in (("acme", 5), ("acme", 7), ("zeta", 3)):
        await frame_log.request(tokens, tenant=tenant)
    await meter.audit()
    async with meter.api() as api:
        rows = (await api.GetUsage(GetUsageRequest())).rows
        assert [(r.tenant_id, r.project_id, r.model, r.requests, r.output_tokens) for r in rows] == [
            ("acme", "acme-p", "synthetic", 2, 12),
            ("zeta", "zeta-p", "synthetic", 1, 3),
        ]
        assert (rows[0].cost, rows[0].currency) == ("0.000044", "USD")  # (2 x 10 input x 1 + 12 x 2) / 1e6
        only = await api.GetUsage(GetUsageRequest(tenant_id="zeta"))
        assert [r.tenant_id for r in only.rows] == ["zeta"]
        later = GetUsageRequest()
        later.start_time.FromMicroseconds(clock.now_us() + 10_000_000)
        later.end_time.FromMicroseconds(clock.now_us() + 20_000_000)
        assert not (await api.GetUsage(later)).rows


async def test_calls_without_tokens_are_in_the_usage_and_the_audit_is_clean(
    meter, admin_store, own_bus, frame_log, make
) -> None:
    """Also of one that was made again: what is on the log of the first attempt is no token."""
    await set_price(own_bus, "default", "2026-11", "2")
    await meter.knows_price("2026-11")
    for attempts in (1, 2):
        request = make.request_id()
        for attempt in range(1, attempts + 1):
            for index in range(3):
                frame = Frame()
                frame.outputs.add(request_id=request, index=index, data=b"x" * 1000, attempt=attempt)
                await frame_log.publish(frame)
        end = make.close(Frame(), request, 0, attempt=attempts, input_tokens=0)
        end.closes[0].usage.Clear()
        end.closes[0].operation = Operation.OPERATION_INFERENCE
        await frame_log.publish(end)
    await frame_log.request(5)
    summary, differences = await meter.audit()
    assert differences == []
    assert (summary.requests, summary.open_requests, summary.billed_tokens) == (3, 0, 5)
    async with meter.api() as api:
        [row] = (await api.GetUsage(GetUsageRequest())).rows
    assert (row.requests, row.output_tokens) == (3, 5)
    shown = await admin_store.rows("SELECT operation, count(), sum(cost) > 0 FROM bills GROUP BY operation ORDER BY 1")
    assert [tuple(one) for one in shown] == [("", 1, 1), ("inference", 2, 0)]


async def test_usage_that_is_an_estimate_is_never_in_one_sum_with_what_was_counted(meter, frame_log, make) -> None:
    await frame_log.request(5)
    guess = make.request_id()
    frame = make.close(make.tokens(Frame(), guess, 0, [1, 2, 3]), guess, 3)
    frame.closes[0].usage.estimated = True
    await frame_log.publish(frame)
    await meter.audit()
    async with meter.api() as api:
        rows = (await api.GetUsage(GetUsageRequest())).rows
    assert [(row.estimated, row.requests, row.output_tokens) for row in rows] == [(False, 1, 5), (True, 1, 3)]


async def test_live_counts_and_percentiles_of_the_window(meter, own_bus, frame_log) -> None:
    await frame_log.request(6)
    await meter.audit()
    async with meter.api() as api:
        live = await api.GetLive(GetLiveRequest())
        assert (live.requests, live.errors, live.output_tokens, live.ingest_lag) == (1, 0, 6, 0)
        assert live.itl.p99.ToTimedelta() == timedelta(milliseconds=20)
        assert live.ttft.p50.ToTimedelta() == timedelta(milliseconds=30)
        assert live.e2e.p95.ToTimedelta() == timedelta(milliseconds=130)
        nothing = GetLiveRequest()
        nothing.window.FromMicroseconds(1)
        assert not (await api.GetLive(nothing)).HasField("itl")
        nothing.window.FromSeconds(7200)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await api.GetLive(nothing)
        assert rpc.error_of(refused.value).error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT


async def test_the_audit_names_every_kind_of_difference(meter, admin_store, own_bus, frame_log, make) -> None:
    lost, doubled, unbilled, overcharged = [await frame_log.request(5) for _ in range(4)]
    gap, repeated, wrong, running = [make.request_id() for _ in range(4)]
    await frame_log.publish(
        make.tokens(Frame(), gap, 0, [1]), make.tokens(Frame(), gap, 2, [1]), make.close(Frame(), gap, 2),
        make.tokens(Frame(), repeated, 0, [1]), make.tokens(Frame(), repeated, 0, [1]),
        make.close(Frame(), repeated, 1),
        make.tokens(Frame(), wrong, 0, [1, 2]), make.close(Frame(), wrong, 3),
        make.tokens(Frame(), running, 0, [1]),
    )  # fmt: skip
    await own_bus.nc.jetstream().publish("tok.edge-0.worker-0", b"\xff")
    summary, _ = await meter.audit()
    store = admin_store

    def is_id(request: bytes) -> str:
        return f"request_id = toUUID('{request.hex()}')"

    await store.command(f"DELETE FROM token_events WHERE {is_id(lost)} AND index = 3")
    await store.command(f"INSERT INTO token_events SELECT * FROM token_events WHERE {is_id(doubled)} AND index = 1")
    await store.command(f"DELETE FROM requests WHERE {is_id(unbilled)}")
    await store.command(
        f"ALTER TABLE requests UPDATE cost = cost + toDecimal128('0.01', 12) WHERE {is_id(overcharged)} "
        "SETTINGS mutations_sync = 2"
    )
    foreign = make.request_id()
    await store.command(
        f"INSERT INTO token_events SELECT * REPLACE toUUID('{foreign.hex()}') AS request_id FROM "
        f"(SELECT * FROM token_events WHERE {is_id(doubled)} AND index = 2)"
    )
    summary, differences = await meter.audit()
    assert {(d.request_id, d.reason) for d in differences} == {
        (lost, "missing_row"), (doubled, "duplicate_row"), (unbilled, "missing_row"), (overcharged, "cost"),
        (gap, "missing_index"), (repeated, "duplicate_index"), (wrong, "output_tokens"), (foreign, "unknown_request"),
        (b"", "malformed_frame"),
    }  # fmt: skip
    assert (summary.requests, summary.open_requests, summary.differences) == (8, 1, len(differences))


async def test_the_audit_of_a_range_compares_requests_that_reach_beyond_it_whole(
    meter, own_bus, frame_log, make
) -> None:
    early, long = await frame_log.request(3), make.request_id()
    await frame_log.publish(make.tokens(Frame(), long, 0, [1, 2]))
    await asyncio.sleep(0.05)
    begin = Timestamp()
    begin.FromMicroseconds(clock.now_us())
    await frame_log.publish(make.tokens(Frame(), long, 2, [3]))
    inside = await frame_log.request(4)
    await asyncio.sleep(0.05)
    end = Timestamp()
    end.FromMicroseconds(clock.now_us())
    await frame_log.publish(make.tokens(Frame(), long, 3, [4]), make.close(Frame(), long, 4))
    summary, differences = await meter.audit(start_time=begin, end_time=end)
    assert differences == []
    assert (summary.requests, summary.open_requests) == (2, 1)
    assert (summary.stream_tokens, summary.billed_tokens) == (3 + 4, 4)
    summary, differences = await meter.audit(start_time=begin)
    assert (summary.requests, summary.open_requests, differences) == (2, 0, [])
    assert summary.stream_tokens == summary.stored_tokens == summary.billed_tokens == 8
    assert early != inside


async def test_the_audit_says_what_it_cannot_prove_because_the_stream_has_aged(meter, own_bus, frame_log, make) -> None:
    start = Timestamp()
    start.FromMicroseconds(clock.now_us())
    cut = make.request_id()
    await frame_log.publish(
        make.tokens(Frame(), cut, 0, [1]), make.tokens(Frame(), cut, 1, [1]), make.close(Frame(), cut, 2)
    )
    await frame_log.request(2)
    await meter.audit()
    await own_bus.api("STREAM.PURGE.TOKENS", {"seq": 2})
    summary, differences = await meter.audit()  # from what there is: nobody asked for what is gone
    assert (summary.requests, differences) == (1, [])
    _, differences = await meter.audit(start_time=start)
    assert {(d.request_id, d.reason) for d in differences} == {(b"", "not_proven"), (cut, "not_proven")}


async def test_the_audit_gives_up_waiting_for_an_ingest_that_is_behind(meter, clickhouse, own_bus, frame_log) -> None:
    await frame_log.request(2)
    await meter.audit()
    await clickhouse.kill()
    try:
        await frame_log.request(2)
        request = AuditRequest()
        request.timeout.FromMilliseconds(200)
        async with meter.api() as api:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                _ = [event async for event in api.Audit(request)]
            assert rpc.error_of(refused.value).reason == "ingest_behind"
            with pytest.raises(grpc.aio.AioRpcError) as away:
                await api.GetUsage(GetUsageRequest(), timeout=20)
            error: InferBusError = rpc.error_of(away.value)
            assert (error.reason, error.retry_after) == ("store_unavailable", timedelta(seconds=2))
    finally:
        await clickhouse.start()


async def test_tokens_of_retried_requests_are_stored_whole_and_billed_once(meter, admin_store, frame_log, make) -> None:
    request = make.request_id()
    await frame_log.publish(
        make.tokens(Frame(), request, 0, [1, 2, 3, 4]),
        make.tokens(Frame(worker="worker-1"), request, 3, [9], attempt=2),
        make.tokens(Frame(), request, 4, [5]),  # the first worker's late frame
        make.tokens(Frame(worker="worker-1"), request, 4, [10], attempt=2),
        make.close(Frame(), request, 5),  # its late end
        make.close(Frame(worker="worker-1"), request, 5, attempt=2),
    )
    summary, differences = await meter.audit()
    assert differences == []
    assert (summary.stream_tokens, summary.stored_tokens, summary.billed_tokens) == (5, 5, 5)
    shown = await admin_store.rows("SELECT token_id FROM tokens ORDER BY index")
    assert [token for (token,) in shown] == [1, 2, 3, 9, 10]
    assert [tuple(r) for r in await admin_store.rows("SELECT attempt, worker FROM bills")] == [(2, "worker-1")]


async def test_the_analyst_reads_every_table_and_view_and_writes_none(meter, clickhouse, own_bus, frame_log) -> None:
    await frame_log.request(3)
    await meter.audit()
    async with open_store(clickhouse.config("analyst", "inferbus")) as analyst:
        for name in TABLES_AND_VIEWS:
            assert (await analyst.rows(f"SELECT count() FROM {name}"))[0][0] > 0, name
        for statement in (
            "DELETE FROM requests WHERE 1",
            "INSERT INTO requests (attempt) VALUES (1)",
            "DROP TABLE requests",
        ):
            with pytest.raises(STORE_ERRORS):
                await analyst.command(statement)


async def test_prices_that_are_none_change_nothing(meter, own_bus, frame_log, admin_store) -> None:
    await set_price(own_bus, "synthetic", "v1", "2")
    await meter.knows_price("v1")
    await set_price(own_bus, "synthetic", "v2", "two", key="v2")
    async with asyncio.timeout(30):
        while "a price cannot be read" not in meter.log():
            await asyncio.sleep(0.02)
    await frame_log.request(5)
    await meter.audit()
    assert [tuple(map(str, r)) for r in await admin_store.rows("SELECT rate_version, cost FROM bills")] == [
        ("v1", "0.000020000000")
    ]
