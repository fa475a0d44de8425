"""The timeline of one request: against the laws of the log, against what is charged, and from the real tables."""

import json
from decimal import Decimal
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, PriorityClass, Usage
from inferbus.meter.v1.requests_pb2 import (
    GetTimelineResponse,
    RequestFilter,
    RequestOrder,
    RequestState,
    RequestSummary,
    RequestView,
    TimelineKind,
)
from inferbus_contracts.ids import choice_of, detached, uuid7, uuid_text
from inferbus_meter.clickhouse import Store
from inferbus_meter.core import laws
from inferbus_meter.core.charge_lines import Charged, Correction, charge_of
from inferbus_meter.core.epochs import Epoch
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.request_list import Listing, place_of
from inferbus_meter.core.rows import request_rows, token_rows
from inferbus_meter.core.timeline import Tokens, attempts_of, void_tokens
from inferbus_meter.timeline import requests, timeline
from inferbus_rating import PriceBook, Rate, cost
from inferbus_rating.amounts import EXACT
from inferbus_runtime.errors import InferBusError

TENANT, OPERATOR = RequestView.REQUEST_VIEW_TENANT, RequestView.REQUEST_VIEW_OPERATOR
START_US = 1_790_000_000_000_000
SECOND = 1_000_000


# --- which tokens count ---

runs_of_a_request = st.lists(
    st.builds(laws.Run, attempt=st.integers(1, 4), first=st.integers(0, 8), count=st.integers(0, 5)), max_size=8
)


def rows_of(runs: list[laws.Run]) -> list[tuple[int, int, int, int]]:
    found = [(run.attempt, index) for run in runs for index in range(run.first, run.end)]
    return [(attempt, index, START_US + at, 1) for at, (attempt, index) in enumerate(found)]


@given(runs_of_a_request, st.integers(0, 5), st.integers(0, 12))
def test_what_counts_is_what_the_laws_of_the_log_say(runs: list[laws.Run], last: int, counted: int) -> None:
    """Of an attempt without tokens the rows know only if it is the last one, by the end."""
    tokens = Tokens.of(rows_of(runs), last, counted)
    void = void_tokens(tokens)
    made = [run for run in runs if run.count]
    assert int((~void).sum()) == laws.read([*made, laws.Run(last, counted, 0)]).tokens
    kept = tokens.index[~void]
    assert list(kept) == sorted(set(kept))


@given(runs_of_a_request, st.integers(0, 5))
def test_attempts_hold_every_token_once(runs: list[laws.Run], last: int) -> None:
    tokens = Tokens.of(rows_of(runs), last, 4)
    attempts = attempts_of(tokens, START_US, {1: "worker-0"})
    assert [one.number for one in attempts] == list(range(1, len(attempts) + 1))
    assert len(attempts) >= last
    assert sum(one.tokens for one in attempts) == len(tokens.index)
    for one in attempts:
        own = tokens.attempt == one.number
        wanted = tokens.index[own].tolist()
        index = np.frombuffer(one.index, "<u4").tolist() or list(range(one.first_index, one.first_index + one.tokens))
        assert index == wanted
        assert np.frombuffer(one.offset_us, "<i8").tolist() == (tokens.time_us[own] - START_US).tolist()
        assert sum(one.void) == one.void_tokens == int(void_tokens(tokens)[own].sum())


# --- what it is charged for ---

amounts = st.decimals(0, 1000, places=12)
counts = st.integers(0, 200_000)


@given(
    counts, counts, counts, counts, st.tuples(*[amounts] * 6), st.decimals("0.1", 1, places=12),
    st.booleans(), st.booleans(), st.lists(st.decimals(-5, 5, places=12), max_size=3),
)  # fmt: skip
def test_lines_add_up_to_the_charge_to_the_last_decimal(
    inputs: int, cached: int, outputs: int, reasoning: int, rates: tuple[Decimal, ...], factor: Decimal, first: bool,
    answered: bool, deltas: list[Decimal],
) -> None:  # fmt: skip
    rate = Rate("v1", "USD", *rates, factor)
    usage = Usage(
        input_tokens=inputs, cached_input_tokens=cached, output_tokens=outputs, reasoning_tokens=reasoning
    )  # fmt: skip
    charged = cost(usage, rate, first_choice=first, answered=answered)
    row = Charged(
        inputs, cached, outputs, reasoning, *rates, factor, charged, "USD", "v1", False, first_choice=first,
        answered=answered,
    )  # fmt: skip
    corrections = [Correction(0, delta, "USD", f"v{at}", "") for at, delta in enumerate(deltas, 2)]
    shown = charge_of(row, corrections)
    lines = reduce(EXACT.add, (Decimal(line.amount) for line in shown.lines), Decimal(0))
    assert lines == Decimal(shown.amount) == reduce(EXACT.add, deltas, charged)
    for line in shown.lines:
        if line.name == "rounding":
            assert abs(Decimal(line.amount)) <= Decimal("0.0000000000005")
        elif line.HasField("quantity"):
            part = 1_000_000 if line.name.endswith("_tokens") else 1
            product = line.quantity * Fraction(line.unit_price) * Fraction(line.factor) / part
            assert Fraction(line.amount) == product
    assert shown.present_rate_version == (f"v{len(deltas) + 1}" if deltas else "v1")


# --- from the tables ---


def request_id(at: int, choice: int = 0) -> bytes:
    """Of a request that is accepted ``at`` seconds after START."""
    plain = uuid7(START_US // 1000 + at * 1000, bytes([at % 256]) * 10)
    return plain[:15] + bytes([choice])


async def put(store: Store, *frames: Frame, first: int = 1, epoch: Epoch | None = None) -> None:
    gather = FrameGather()
    for sequence, frame in enumerate(frames, first):
        assert gather.add(sequence, frame.time_us, frame.SerializeToString())
    batch = gather.finish()
    price = PriceRecord(rate_version="v1", currency="USD", input_per_million="1", output_per_million="2")
    book = PriceBook.of([price])
    for rows in (token_rows(batch, epoch), request_rows(batch, book, epoch=epoch)):
        if rows.count:
            await store.insert(rows.table, rows.data, f"{rows.table}-{frames[0].time_us}")


async def insert(store: Store, table: str, *lines: dict[str, Any]) -> None:
    client = await store._connected()
    await client.raw_insert(table, insert_block="\n".join(map(json.dumps, lines)), fmt="JSONEachRow")


def frame(after_us: int) -> Frame:
    return Frame(edge="edge-7", worker="worker-3", time_us=START_US + after_us)


async def killed(store: Store, make: Any, *, close: bool = True) -> bytes:
    """A request whose worker was killed after token 4, of which the second attempt made token 4 anew, 2 s later."""
    request, of = request_id(0), make.context()
    frames = [make.tokens(frame(30_000 + 20_000 * at), request, at, [100 + at], of=of) for at in range(5)]
    frames[0].gap_us[0] = 30_000
    again = make.tokens(frame(2_110_000), request, 4, [104], attempt=2, gap_us=2_020_000, of=of)
    late = make.tokens(frame(2_120_000), request, 5, [105], attempt=1, of=of)
    last = make.tokens(frame(2_130_000), request, 5, [105, 106], attempt=2, of=of)
    if close:
        make.close(last, request, 7, attempt=2, of=of)
    await put(store, *frames, again, late, last)
    return request


def kinds(answer: GetTimelineResponse) -> list[str]:
    return [TimelineKind.Name(event.kind).removeprefix("TIMELINE_KIND_") for event in answer.events]


async def test_a_killed_workers_request_has_both_attempts_and_no_token_twice(store: Store, make: Any) -> None:
    request = await killed(store, make)
    name = uuid_text(request)
    await insert(
        store, "deliveries",
        {"request_id": name, "tenant_id": "acme", "key_id": "k", "edge": "edge-7", "boot": 1, "sequence": 1, "item": 0,
         "tokens": 3, "end": "client_gone", "time": (START_US + 80_000) / SECOND, "stored_time": START_US / SECOND},
        {"request_id": name, "tenant_id": "acme", "key_id": "k", "edge": "edge-8", "boot": 1, "sequence": 1, "item": 0,
         "tokens": 7, "end": "complete", "time": (START_US + 2_140_000) / SECOND, "stored_time": START_US / SECOND},
    )  # fmt: skip
    for number, delta in ((1, "-0.000001"), (2, "0.000002")):
        await insert(store, "adjustments", {
            "request_id": name, "number": number, "tenant_id": "acme", "delta": delta, "currency": "USD",
            "reason": "why", "from_rate_version": "v1", "to_rate_version": f"v{number + 1}",
            "end_time": START_US / SECOND, "created_time": START_US / SECOND + 60 + number,
        })  # fmt: skip
    await insert(store, "ingest_batches", *(
        {"stream": "TOKENS", "first_seq": 1, "last_seq": 20, "attempt": 1, "done": done, "holder": "meter-0",
         "intent_time": START_US / SECOND + 3 + done}
        for done in (False, True)
    ))  # fmt: skip
    answer = await timeline(store, request, "", OPERATOR)
    first, second = answer.attempts
    assert (first.tokens, first.void_tokens, list(first.void), first.worker) == (6, 2, [0, 0, 0, 0, 1, 1], "worker-3")
    assert (second.first_index, second.tokens, second.void_tokens, second.void) == (4, 3, 0, b"")
    assert np.frombuffer(second.offset_us, "<i8").tolist() == [2_110_000, 2_130_000, 2_130_000]
    assert np.frombuffer(second.gap_us, "<u4").tolist() == [2_020_000, 20_000, 0]
    assert kinds(answer) == [
        "ACCEPTED", "PLACED", "STARTED", "FIRST_TOKEN", "DELIVERED", "RESUMED", "LAST_TOKEN", "ENDED", "DELIVERED",
        "BILLED", "ADJUSTED", "ADJUSTED",
    ]  # fmt: skip
    resumed = answer.events[5]
    assert (resumed.attempt, resumed.index, resumed.actor, resumed.gap.ToMicroseconds()) == (
        2,
        4,
        "worker-3",
        2_020_000,
    )
    assert answer.request.output_tokens == 7 == sum(one.tokens - one.void_tokens for one in answer.attempts)
    # 6 x 1 + 4 x 1 + 7 x 2 millionths
    assert [(line.name, line.amount) for line in answer.charge.lines] == [
        ("input_tokens", "0.000006"), ("cached_input_tokens", "0.000004"), ("output_tokens", "0.000014"),
        ("adjustment", "-0.000001"), ("adjustment", "0.000002"),
    ]  # fmt: skip
    assert (answer.charge.amount, answer.charge.rate_version) == ("0.000025", "v1")
    assert answer.charge.present_rate_version == "v3"
    assert answer.request.charge == answer.charge.amount
    assert (answer.storage.holder, answer.storage.first_sequence, answer.storage.tries) == ("meter-0", 1, 1)
    assert answer.storage.done_time.seconds == START_US // SECOND + 4


async def test_a_stream_made_anew_in_the_middle_mixes_nothing(store: Store, make: Any) -> None:
    """The second attempt's frames have lower numbers than the first one's, and its batch has the number of another."""
    request, of = request_id(0), make.context()
    frames = [make.tokens(frame(30_000 + 20_000 * at), request, at, [100 + at], of=of) for at in range(4)]
    await put(store, *frames, first=5, epoch=Epoch(0, 0))
    again = make.tokens(frame(2_100_000), request, 3, [103], attempt=2, gap_us=2_010_000, of=of)
    await put(store, again, make.close(frame(2_110_000), request, 4, attempt=2, of=of), epoch=Epoch(1, START_US))
    await insert(store, "ingest_batches", *(
        {"stream": "TOKENS", "epoch": epoch, "first_seq": 1, "last_seq": 8, "done": True, "holder": f"meter-{epoch}",
         "intent_time": START_US / SECOND + 3 + epoch}
        for epoch in (0, 1)
    ))  # fmt: skip
    answer = await timeline(store, request, "", OPERATOR)
    assert [(one.tokens, one.void_tokens, list(one.void)) for one in answer.attempts] == [
        (4, 1, [0, 0, 0, 1]), (1, 0, []),
    ]  # fmt: skip
    assert kinds(answer) == [
        "ACCEPTED", "PLACED", "STARTED", "FIRST_TOKEN", "RESUMED", "LAST_TOKEN", "ENDED", "BILLED",
    ]  # fmt: skip
    assert answer.storage.holder == "meter-1"


async def test_a_tenant_sees_its_own_and_nothing_of_the_inside(store: Store, make: Any) -> None:
    request = await killed(store, make)
    name = uuid_text(request)
    await insert(store, "adjustments", {
        "request_id": name, "number": 1, "tenant_id": "acme", "delta": "1", "currency": "USD",
        "to_rate_version": "v2", "end_time": START_US / SECOND, "created_time": START_US / SECOND,
        "rerate_id": "inside-run", "reason": "inside-reason",
    })  # fmt: skip
    answer = await timeline(store, request, "acme", TENANT)
    assert answer.request.tenant_id == "acme"
    assert len(answer.attempts) == 2
    for inside in ("worker-3", "edge-7", "inside", "synthetic", "stream"):
        assert inside not in str(answer).replace('model: "synthetic"', "")
    assert not answer.HasField("storage")
    for other, unknown in (("globex", request), ("acme", request_id(9)), ("", request_id(9))):
        with pytest.raises(InferBusError) as refused:
            await timeline(store, unknown, other, TENANT)
        assert refused.value.reason == "request_not_found"
    unspecified = await timeline(store, request, "acme", RequestView.REQUEST_VIEW_UNSPECIFIED)
    assert unspecified == answer


async def test_a_running_request_shows_what_there_is(store: Store, make: Any) -> None:
    request = await killed(store, make, close=False)
    answer = await timeline(store, request, "acme", TENANT)
    assert answer.request.state == RequestState.REQUEST_STATE_RUNNING
    assert (answer.request.output_tokens, answer.request.attempts, answer.request.model) == (7, 2, "synthetic")
    assert kinds(answer) == ["ACCEPTED", "FIRST_TOKEN", "RESUMED"]
    assert not answer.HasField("charge")
    with pytest.raises(InferBusError):
        await timeline(store, request, "globex", TENANT)


async def test_tokens_that_come_while_it_is_asked_are_shown(
    store: Store, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, of = request_id(0), make.context()
    await put(store, make.tokens(frame(30_000), request, 0, [100], gap_us=30_000, of=of))
    asked = store.rows

    async def rows(query: str, *more: Any) -> Any:
        if "gap_us" in query:  # the tokens, after how many there are
            await put(store, make.tokens(frame(50_000), request, 1, [101, 102], of=of), first=2)
        return await asked(query, *more)

    monkeypatch.setattr(store, "rows", rows)
    answer = await timeline(store, request, "acme", TENANT)
    assert (answer.request.output_tokens, answer.tokens_left_out) == (3, 0)


async def test_a_refused_request_says_why_and_a_detached_one_is_found_by_its_calls_id(store: Store, make: Any) -> None:
    request = detached(request_id(5))
    refusal = frame(5 * SECOND + 1_000)
    refusal.worker = "scheduler"
    make.close(refusal, request, 0, attempt=0, finish=FinishReason.FINISH_REASON_ERROR, input_tokens=0)
    refusal.closes[0].usage.Clear()
    refusal.closes[0].error.error_class = ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED
    refusal.closes[0].error.reason = "queue_full"
    await put(store, refusal)
    answer = await timeline(store, request_id(5), "", OPERATOR)
    assert answer.request.request_id == uuid_text(request)
    (event,) = [one for one in answer.events if one.kind == TimelineKind.TIMELINE_KIND_REFUSED]
    assert (event.detail, event.actor) == ("error queue_full", "scheduler")
    assert "PLACED" not in kinds(answer)
    assert (len(answer.attempts), answer.charge.amount) == (0, "0")


# --- found by what they were ---


async def listed(store: Store, count: int, **changes: Any) -> list[RequestSummary]:
    """All pages, two at a time."""
    only = {"filter": RequestFilter(), "order": RequestOrder.REQUEST_ORDER_END_TIME, "ascending": False} | changes
    view = only.pop("view", OPERATOR)
    found: list[RequestSummary] = []
    after = None
    for _ in range(count + 1):
        asked = Listing(START_US, START_US + 1000 * SECOND, size=2, after=after, **only)
        page = await requests(store, asked, view)
        found.extend(page.requests)
        if not page.next_page_token:
            return found
        assert len(page.requests) == 2
        after = place_of(page.next_page_token, asked.order, asked.ascending)
    raise AssertionError("the pages have no end")


async def test_requests_are_listed_in_every_order_page_by_page(store: Store, make: Any) -> None:
    frames = []
    for at in range(7):
        of = make.context("acme" if at < 5 else "globex")
        one = make.close(frame(at * SECOND), request_id(at), (3 * at) % 5, of=of, input_tokens=10 * (at % 3) + 4)
        frames.append(one)
    frames[3].closes[0].finish_reason = FinishReason.FINISH_REASON_CANCELLED
    frames[4].closes[0].finish_reason = FinishReason.FINISH_REASON_ERROR
    frames[4].closes[0].error.error_class = ErrorClass.ERROR_CLASS_INTERNAL
    frames[4].closes[0].error.reason = "engine_failed"
    frames[2].closes[0].labels.end_user = "ada'; --"
    frames[1].contexts[0].revision = "b'; --"
    frames[5].closes[0].priority_class = PriorityClass.PRIORITY_CLASS_BATCH
    await put(store, *frames)
    await insert(store, "adjustments", {
        "request_id": uuid_text(request_id(0)), "number": 1, "tenant_id": "acme", "delta": "1", "currency": "USD",
        "to_rate_version": "v2", "end_time": START_US / SECOND, "created_time": START_US / SECOND,
    })  # fmt: skip

    every = await listed(store, 7)
    ids = [one.request_id for one in every]
    assert ids == [uuid_text(request_id(at)) for at in range(6, -1, -1)]
    assert [one.choice for one in every] == [choice_of(request_id(at)) for at in range(7)]
    orders = {
        RequestOrder.REQUEST_ORDER_TOKENS: lambda one: one.input_tokens + one.output_tokens,
        RequestOrder.REQUEST_ORDER_E2E: lambda one: one.e2e.ToMicroseconds() if one.HasField("e2e") else -1,
        RequestOrder.REQUEST_ORDER_TTFT: lambda one: one.ttft.ToMicroseconds() if one.HasField("ttft") else -1,
        RequestOrder.REQUEST_ORDER_CHARGE: lambda one: Decimal(one.charge),
    }
    for order, value in orders.items():
        for ascending in (False, True):
            found = await listed(store, 7, order=order, ascending=ascending)
            assert sorted(one.request_id for one in found) == sorted(ids)
            assert [value(one) for one in found] == sorted(map(value, found), reverse=not ascending)
    assert [Decimal(one.charge) > 1 for one in every] == [False] * 6 + [True]
    only = [
        (RequestFilter(tenant_id="globex"), [6, 5]),
        (RequestFilter(finish_reasons=[FinishReason.FINISH_REASON_CANCELLED]), [3]),
        (RequestFilter(error_classes=[ErrorClass.ERROR_CLASS_INTERNAL]), [4]),
        (RequestFilter(error_reason="engine_failed", tenant_id="acme"), [4]),
        (RequestFilter(end_user="ada'; --"), [2]),
        (RequestFilter(worker="nobody"), []),
        (RequestFilter(revision="b'; --"), [1]),
        (RequestFilter(priority_classes=[PriorityClass.PRIORITY_CLASS_BATCH]), [5]),
    ]
    for wanted, places in only:
        found = await listed(store, 7, filter=wanted)
        assert [one.request_id for one in found] == [uuid_text(request_id(at)) for at in places]
    own = await listed(store, 7, filter=RequestFilter(tenant_id="acme"), view=TENANT)
    assert {(one.tenant_id, one.worker, one.edge, one.engine) for one in own} == {("acme", "", "", "")}


@pytest.mark.parametrize("token", ["", "x", "bm8=", "WzEsZmFsc2UsIjEiLCJ4Il0=", "WzEsIHRydWUsICIxIiwgIjAiXQ==", "é"])
def test_what_is_no_page_token_is_refused(token: str) -> None:
    with pytest.raises(InferBusError) as refused:
        place_of(token, RequestOrder.REQUEST_ORDER_END_TIME, False)
    assert refused.value.param == "page_token"
