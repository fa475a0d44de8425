"""Frames as rows, through the real engine and back."""

import itertools
from decimal import Decimal

import clickhouse_connect
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Operation
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.core.frames import CLOCK_TOLERANCE_US, FrameBatch, FrameGather
from inferbus_meter.core.rows import request_rows, token_rows
from inferbus_rating import PriceBook

NO_PRICES = PriceBook.of([])
NOW_US = 1_795_000_000_123_456  # 2026-11-18 11:06:40 UTC
_tenants = itertools.count()


def gathered(*frames: Frame, first: int = 1) -> FrameBatch:
    gather = FrameGather()
    for sequence, frame in enumerate(frames, start=first):
        assert gather.add(sequence, frame.time_us or NOW_US, frame.SerializeToString())
    return gather.finish()


@pytest.fixture(scope="session")
async def session_store(clickhouse, make):
    async with make.fresh_database(clickhouse) as store:
        yield store


@pytest.fixture(scope="session")
def client(clickhouse, session_store, make):
    config = session_store._config
    opened = clickhouse_connect.get_client(
        host="127.0.0.1", port=clickhouse.port, username="admin", password=make.PASSWORD, database=config.database
    )
    yield opened
    opened.close()


deltas = st.tuples(
    st.integers(0, 2),  # request
    st.integers(1, 3),  # attempt
    st.integers(0, 8),  # first index
    st.lists(st.integers(0, 2**32 - 1), max_size=4),  # token ids
)


def tokens_by_the_laws(frames: list[list[tuple[int, int, int, list[int]]]]) -> set[tuple[int, int, int, int]]:
    """(request, attempt, index, token id) of every token that counts, kept one by one."""
    valid: dict[int, list[tuple[int, int, int]]] = {}
    for frame in frames:
        for request, attempt, first, ids in frame:
            kept = valid.setdefault(request, [])
            in_force = max((token[0] for token in kept), default=0)
            for index, token_id in enumerate(ids, start=first):
                if attempt < in_force:
                    continue
                if attempt > in_force:
                    kept[:] = [token for token in kept if token[1] < index]
                    in_force = attempt
                kept.append((attempt, index, token_id))
    return {(request, *token) for request, kept in valid.items() for token in kept}


def one_delta_a_request(frame: list[tuple[int, int, int, list[int]]]) -> list[tuple[int, int, int, list[int]]]:
    """As an engine step is: a request moves once."""
    return list({delta[0]: delta for delta in frame}.values())


def without_repeats(
    frames: list[list[tuple[int, int, int, list[int]]]],
) -> list[list[tuple[int, int, int, list[int]]]]:
    seen: set[tuple[int, int, int]] = set()

    def is_new(delta: tuple[int, int, int, list[int]]) -> bool:
        request, attempt, first, ids = delta
        names = {(request, attempt, index) for index in range(first, first + len(ids))}
        repeated = bool(names & seen)
        seen.update(names)
        return not repeated

    return [[delta for delta in frame if is_new(delta)] for frame in frames]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(deltas, max_size=3).map(one_delta_a_request), min_size=1, max_size=6))
def test_the_view_tokens_shows_what_a_naive_reader_keeps(client, make, frames) -> None:
    # An attempt that repeats an index breaks the laws: the view shows both, and the audit names them.
    frames = without_repeats(frames)
    tenant = f"t{next(_tenants)}"
    ids = [make.request_id() for _ in range(3)]
    built = []
    for number, frame in enumerate(frames):
        message = Frame(edge="e", worker="w", time_us=NOW_US + number)
        for request, attempt, first, token_ids in frame:
            make.tokens(message, ids[request], first, token_ids, attempt=attempt, of=make.context(tenant))
        built.append(message)
    rows = token_rows(gathered(*built))
    assert rows.count == sum(len(d[3]) for frame in frames for d in frame)
    if rows.count:
        client.raw_insert("token_events", insert_block=rows.data, fmt="Native")
    shown = client.query(
        "SELECT UUIDStringToNum(toString(request_id)), attempt, index, token_id "
        "FROM tokens WHERE tenant_id = {t:String}",
        parameters={"t": tenant},
    ).result_rows
    assert len(shown) == len(set(shown))
    assert {(ids.index(bytes(r)), *rest) for r, *rest in shown} == tokens_by_the_laws(frames)


def test_every_column_of_a_token_arrives(client, make) -> None:
    request, of = make.request_id(NOW_US), make.context("täst", "a/b")
    frame = make.tokens(Frame(edge="e1", worker="w1", time_us=NOW_US), request, 3, [7, 2**32 - 1], gap_us=99, of=of)
    client.raw_insert("token_events", insert_block=token_rows(gathered(frame, first=41)).data, fmt="Native")
    rows = client.query("SELECT * FROM token_events WHERE tenant_id = 'täst' ORDER BY index").named_results()
    first, second = [dict(row) for row in rows]
    assert first["request_id"].bytes == request
    assert first["time"].isoformat() == "2026-11-18T11:06:40.123456"  # trap: seconds taken for microseconds
    wanted = {
        "tenant_id": "täst", "project_id": "täst-p", "key_id": "täst-k", "model": "a/b", "revision": "r1",
        "worker": "w1", "edge": "e1", "attempt": 1, "index": 3, "token_id": 7, "gap_us": 99, "stream_seq": 41,
        "stream_epoch": 0,
    }  # fmt: skip
    assert {name: first[name] for name in wanted} == wanted
    assert (second["index"], second["token_id"], second["gap_us"]) == (4, 2**32 - 1, 0)


def test_a_request_that_goes_on_in_a_stream_made_anew_keeps_its_tokens(client, make) -> None:
    """There its sequences are lower than before."""
    request, of = make.request_id(NOW_US), make.context("anew")
    before = make.tokens(Frame(time_us=NOW_US), request, 0, [1, 2, 3, 4, 5], of=of)
    after = make.tokens(Frame(time_us=NOW_US), request, 3, [6, 7, 8], attempt=2, of=of)
    for frame, first, epoch in ((before, 900, Epoch(0, 0)), (after, 1, Epoch(1, NOW_US))):
        rows = token_rows(gathered(frame, first=first), epoch)
        client.raw_insert("token_events", insert_block=rows.data, fmt="Native")
    shown = client.query("SELECT index, token_id FROM tokens WHERE tenant_id = 'anew' ORDER BY index")
    assert shown.result_rows == [(0, 1), (1, 2), (2, 3), (3, 6), (4, 7), (5, 8)]


def test_empty_columns_mean_their_defaults(client, make) -> None:
    ids = [make.request_id(NOW_US) for _ in range(3)]
    frame = Frame(edge="e", worker="w", time_us=NOW_US, contexts=[make.context("defaults")])
    frame.request_ids = b"".join(ids)
    frame.first_index.extend([0, 1, 2])
    frame.gap_us.extend([5, 6, 7])
    frame.token_id.extend([1, 2, 3])
    # A frame of another tenant before it: index 0 of a frame is not index 0 of the batch.
    before = make.tokens(Frame(time_us=NOW_US), make.request_id(), 0, [9], of=make.context("another"))
    client.raw_insert("token_events", insert_block=token_rows(gathered(before, frame)).data, fmt="Native")
    rows = client.query(
        "SELECT attempt, index, token_id, gap_us FROM token_events WHERE tenant_id = 'defaults' ORDER BY 2"
    )
    assert rows.result_rows == [(1, 0, 1, 5), (1, 1, 2, 6), (1, 2, 3, 7)]


def test_a_close_becomes_a_row_with_its_times_and_its_cost(client, make) -> None:
    request, of = make.request_id(NOW_US), make.context("payer")
    frame = make.close(Frame(edge="e", worker="w", time_us=NOW_US + 900_000), request, 5, of=of, input_tokens=10)
    failed = make.request_id(NOW_US)
    make.close(frame, failed, 0, attempt=0, of=of, finish=4, input_tokens=0)
    frame.closes[1].error.error_class = ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
    frame.closes[1].error.reason = "queue_full"
    frame.closes[1].usage.Clear()
    frame.closes[0].cold_start_us = 700
    price = PriceRecord(
        model="synthetic", rate_version="2026-11", currency="USD", input_per_million="1",
        cached_input_per_million="0.5", output_per_million="2.25",
    )  # fmt: skip
    rows = request_rows(gathered(frame, first=7), PriceBook.of([price]))
    assert (rows.table, rows.count) == ("requests", 2)
    client.raw_insert("requests", insert_block=rows.data, fmt="Native")
    shown = client.query("SELECT * FROM bills WHERE tenant_id = 'payer' ORDER BY attempt").named_results()
    nothing, done = [dict(row) for row in shown]
    assert done["request_id"].bytes == request
    assert done["cost"] == Decimal("0.000019250000")  # (6 x 1 + 4 x 0.5 + 5 x 2.25) / 1e6
    wanted = {
        "ttft_us": 30_000, "e2e_us": 110_000, "tpot_us": 20_000, "queue_us": 2_000, "started_us": 2_000,
        "placed_us": 1_000, "cold_start_us": 700,
        "finish_reason": "stop", "error_class": "", "priority_class": "interactive", "engine": "synthetic",
        "currency": "USD", "rate_version": "2026-11", "input_tokens": 10, "cached_input_tokens": 4, "output_tokens": 5,
        "stream_seq": 7,
    }  # fmt: skip
    assert {name: done[name] for name in wanted} == wanted
    assert done["accepted_time"].timestamp() == pytest.approx(NOW_US // 1000 / 1000)
    assert (nothing["ttft_us"], nothing["tpot_us"], nothing["cost"]) == (None, None, Decimal(0))
    assert nothing["cold_start_us"] is None
    assert (nothing["error_class"], nothing["error_reason"]) == ("resource_exhausted", "queue_full")


@pytest.mark.parametrize(
    ("attempt", "first", "queued"),
    [(1, 300, 5_000), (1, None, 5_000), (2, 300, 300), (3, 0, 0), (2, None, None)],
)
def test_a_request_is_queued_until_an_engine_had_it_first(
    client, make, attempt: int, first: int | None, queued: int | None
) -> None:
    """What an attempt that died had run is no waiting; where it is not known when it began, there is no figure."""
    tenant = f"queued-{next(_tenants)}"
    frame = make.close(Frame(time_us=NOW_US), make.request_id(NOW_US), 5, attempt=attempt, of=make.context(tenant))
    close = frame.closes[0]
    accepted_us = close.accepted_time.ToMicroseconds()
    close.started_time.FromMicroseconds(accepted_us + 5_000)
    if first is not None:
        close.first_started_time.FromMicroseconds(accepted_us + first)
    client.raw_insert("requests", insert_block=request_rows(gathered(frame), NO_PRICES).data, fmt="Native")
    shown = client.query(f"SELECT queue_us, started_us FROM bills WHERE tenant_id = '{tenant}'").result_rows
    assert shown == [(queued, 5_000)]


@pytest.mark.parametrize(
    ("said", "kept"),
    [(0.0, 0.0), (12.25, 12.25), (None, None), (-1.0, None), (float("nan"), None), (float("inf"), None)],
)
def test_energy_that_was_not_measured_is_null_and_never_zero(client, make, said, kept) -> None:
    tenant = f"watts-{next(_tenants)}"
    frame = make.close(Frame(time_us=NOW_US), make.request_id(NOW_US), 5, of=make.context(tenant))
    if said is not None:
        frame.closes[0].energy_joules = said
    frame.closes[0].usage.estimated = said is None
    client.raw_insert("requests", insert_block=request_rows(gathered(frame), NO_PRICES).data, fmt="Native")
    shown = client.query("SELECT energy_j, estimated FROM bills WHERE tenant_id = {t:String}", parameters={"t": tenant})
    assert shown.result_rows == [(kept, said is None)]


def test_calls_without_tokens_are_counted_by_the_call(client, make) -> None:
    asked = [Operation.OPERATION_INFERENCE, Operation.OPERATION_INFERENCE, Operation.OPERATION_CHAT, 99]
    for operation in asked:
        tokens = 5 if operation == Operation.OPERATION_CHAT else 0
        frame = make.close(
            Frame(time_us=NOW_US), make.request_id(NOW_US), tokens, of=make.context("caller"), input_tokens=tokens
        )
        frame.closes[0].operation = operation
        client.raw_insert("requests", insert_block=request_rows(gathered(frame), NO_PRICES).data, fmt="Native")
    shown = client.query(
        "SELECT operation, count(), sum(output_tokens) FROM bills WHERE tenant_id = 'caller' GROUP BY 1"
    )
    assert set(shown.result_rows) == {("inference", 2, 0), ("chat", 1, 5), ("", 1, 0)}
    for view in ("usage_by_hour", "usage_by_day"):
        assert client.query(f"SELECT requests, calls FROM {view} WHERE tenant_id = 'caller'").result_rows == [(4, 2)]


def test_what_was_estimated_is_in_no_sum_of_what_was_counted(client, make) -> None:
    for tokens, estimated in ((5, False), (7, False), (900, True)):
        frame = make.close(Frame(time_us=NOW_US), make.request_id(NOW_US), tokens, of=make.context("guessed"))
        frame.closes[0].usage.estimated = estimated
        client.raw_insert("requests", insert_block=request_rows(gathered(frame), NO_PRICES).data, fmt="Native")
    for view in ("usage_by_hour", "usage_by_day"):
        shown = client.query(f"SELECT estimated, requests, output_tokens FROM {view} WHERE tenant_id = 'guessed'")
        assert sorted(shown.result_rows) == [(False, 2, 12), (True, 1, 900)]


def test_what_the_tenant_says_of_a_request_is_in_its_row(client, make) -> None:
    labels: list[tuple[str, dict[str, str]]] = [
        ("", {}), ("ada", {"team": "a", "env": "prod"}), ("é" * 64, {"team": ""}), ("x", {}),
    ]  # fmt: skip
    frame = Frame(time_us=NOW_US)
    for end_user, tags in labels:
        make.close(frame, make.request_id(NOW_US), 5, of=make.context("labelled"))
        frame.closes[-1].labels.end_user = end_user
        frame.closes[-1].labels.tags.update(tags)
    client.raw_insert("requests", insert_block=request_rows(gathered(frame), NO_PRICES).data, fmt="Native")
    for view in ("bills", "charges"):
        shown = client.query(f"SELECT end_user, tags FROM {view} WHERE tenant_id = 'labelled'").result_rows
        assert sorted(shown, key=repr) == sorted(labels, key=repr)
        assert [list(tags) for _, tags in shown if len(tags) > 1] == [["env", "team"]]


def test_of_two_closes_the_higher_attempt_is_billed(client, make) -> None:
    request, of = make.request_id(NOW_US), make.context("twice")
    for attempt, tokens in ((1, 5), (0, 0)):  # the scheduler's late Close comes after the worker's
        frame = make.close(Frame(time_us=NOW_US), request, tokens, attempt=attempt, of=of)
        client.raw_insert("requests", insert_block=request_rows(gathered(frame), NO_PRICES).data, fmt="Native")
    assert client.query("SELECT attempt, output_tokens FROM bills WHERE tenant_id = 'twice'").result_rows == [(1, 5)]
    assert client.query("SELECT requests FROM usage_by_day WHERE tenant_id = 'twice'").result_rows == [(1,)]


def test_more_distinct_strings_than_a_byte_or_two_can_number(client, make) -> None:
    for count in (256, 257, 65_537):
        frame, model = Frame(time_us=NOW_US), f"many-{count}"
        frame.contexts.extend(make.context(f"{count}-{number}", model) for number in range(count))
        frame.request_ids = make.request_id() * count
        frame.context_index.extend(range(count))
        for column in (frame.first_index, frame.gap_us, frame.token_id):
            column.extend(range(count))
        client.raw_insert("token_events", insert_block=token_rows(gathered(frame)).data, fmt="Native")
        right = client.query(
            "SELECT countIf(tenant_id = concat(toString({n:UInt32}), '-', toString(index))) FROM token_events "
            "WHERE model = {m:String}", parameters={"n": count, "m": model},
        ).result_rows  # fmt: skip
        assert right == [(count,)]


def test_malformed_frames_are_left_out_and_named(make) -> None:
    good = make.tokens(Frame(time_us=NOW_US), make.request_id(), 0, [1, 2])
    broken = [Frame.FromString(good.SerializeToString()) for _ in range(7)]
    broken[0].request_ids = broken[0].request_ids[:-1]
    broken[1].gap_us.append(1)
    broken[2].token_id.append(1)
    broken[3].context_index[0] = 1
    broken[4].attempt[0] = 1 << 16
    broken[5].first_index[0] = 2**32 - 1
    broken[6].closes.add(request_id=b"short")
    gather = FrameGather()
    data = [frame.SerializeToString() for frame in (good, *broken, good)]
    data.insert(4, b"\xff\xff not protobuf")
    for sequence, item in enumerate(data, start=1):
        assert gather.add(sequence, NOW_US, item)
    batch = gather.finish()
    assert [fault.sequence for fault in batch.malformed] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert len({fault.detail for fault in batch.malformed}) == 7
    assert (batch.first_sequence, batch.last_sequence, len(batch.token_id)) == (1, 10, 4)


def test_a_batch_ends_where_the_month_ends(make) -> None:
    midnight = 1_796_083_200_000_000  # 2026-12-01 00:00 UTC
    gather = FrameGather()
    for sequence, (time_us, taken) in enumerate(
        [(midnight - 1, True), (midnight, False), (midnight - 2, True)], start=1
    ):
        frame = make.tokens(Frame(time_us=time_us), make.request_id(), 0, [1])
        assert gather.add(sequence, time_us, frame.SerializeToString()) is taken
    december = FrameGather()
    assert december.add(
        2, midnight, make.tokens(Frame(time_us=midnight), make.request_id(), 0, [1]).SerializeToString()
    )


def test_a_worker_whose_clock_is_far_off_is_not_believed(make) -> None:
    for time_us in (0, NOW_US * 3, NOW_US - CLOCK_TOLERANCE_US - 1):
        gather = FrameGather()
        gather.add(1, NOW_US, make.tokens(Frame(time_us=time_us), make.request_id(), 0, [1]).SerializeToString())
        assert gather.finish().frame_time_us.tolist() == [NOW_US]
