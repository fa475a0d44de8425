"""Captured text: from the log into its own table once, void attempts left out, and back out as what was said."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.meter.v1.captures_pb2 import GetCaptureRequest, ListCapturesRequest
from inferbus_bus.connection import Bus
from inferbus_bus.log import FrameLog
from inferbus_meter.bringing import Privacy
from inferbus_meter.captures import Captures
from inferbus_meter.captures_servicer import CaptureServicer
from inferbus_meter.clickhouse import STORE_ERRORS, Store, open_store
from inferbus_meter.core.captured_text import INPUT, MAX_OUTPUT_TOKENS, OUTPUT
from inferbus_meter.core.captures import Part, capture_rows, put_together
from inferbus_meter.core.erasing import nobody_erased
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.ingest import FlushLimits, Ingest
from inferbus_rating import PriceBook
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

NO_PRICES = PriceBook.of([])
# Blocks of ten rows: a request's text comes in many of them.
SMALL = FlushLimits(10, timedelta(milliseconds=20), timedelta(milliseconds=500))


def captured(make: Any, tenant: str = "acme") -> RequestContext:
    context: RequestContext = make.context(tenant)
    context.captured = True
    return context


def delta(
    make: Any, request: bytes, index: int, text: str, of: RequestContext, *, tokens: int = 1, attempt: int = 1,
    frame: Frame | None = None,
) -> Frame:  # fmt: skip
    frame = Frame() if frame is None else frame
    make.tokens(frame, request, index, list(range(tokens)), attempt=attempt, of=of)
    frame.text_size[-1] = len(text.encode())
    frame.text += text.encode()
    return frame


def opened(frame: Frame, request: bytes, asked: str, *, truncated: bool = False) -> Frame:
    frame.opens.add(request_id=request, captured_input=asked, captured_input_truncated=truncated)
    return frame


async def bring(bus: Bus, store: Store, last: int, privacy: Privacy, limits: FlushLimits = SMALL) -> None:
    ingest = Ingest(FrameLog(bus), store, lambda: NO_PRICES, limits, f"m-{clock.now_us()}", privacy)
    task = asyncio.create_task(ingest.run())
    try:
        assert await ingest.reached(last, 30)
    finally:
        ingest.stop()
        await task


async def test_text_of_captured_requests_only_and_without_void_attempts(
    own_bus: Bus, store: Store, frame_log: Any, make: Any
) -> None:
    kept, plain, other = (make.request_id() for _ in range(3))
    of, uncaptured, theirs = captured(make), make.context(), captured(make, "umbrella")
    first = delta(make, kept, 0, "Die ", of)
    delta(make, plain, 0, "not kept", uncaptured, frame=first)
    delta(make, other, 0, "secret", theirs, frame=first)
    opened(first, kept, '{"messages": []}')
    opened(first, plain, "never")
    first.opens[-1].context_index = 1
    await frame_log.publish(first)
    for index in range(1, 30):
        await frame_log.publish(delta(make, kept, index, f"{index} ", of))
    # The worker died; the next attempt resumes at 20, with text that was held back by the first one.
    await frame_log.publish(delta(make, kept, 20, "", of, tokens=0, attempt=2))
    for index in range(20, 23):
        await frame_log.publish(delta(make, kept, index, f"ü{index} ", of, attempt=2))
    await frame_log.publish(delta(make, kept, 30, "late and void", of))
    last = await frame_log.publish(make.close(Frame(), kept, 23, attempt=2, of=of))
    await bring(own_bus, store, last, Privacy(nobody_erased, store))
    # A meter that lost its claims does it all again: each row is there once.
    await store.command("TRUNCATE TABLE ingest_batches SYNC")
    rows = (await store.rows("SELECT count() FROM captures"))[0][0]
    await bring(own_bus, store, last, Privacy(nobody_erased, store))
    captures = Captures(store)
    found = await captures.get(kept, "acme")
    assert found is not None
    words = ["Die ", *(f"{index} " for index in range(1, 20)), *(f"ü{index} " for index in range(20, 23))]
    assert (found.output, found.input) == ("".join(words), '{"messages": []}')
    assert (found.input_truncated, found.output_truncated) == (False, False)
    assert (found.tenant_id, found.model, found.revision) == ("acme", "synthetic", "r1")
    assert await captures.get(plain, "") is None
    assert await captures.get(kept, "umbrella") is None
    assert rows > 2
    text = "toString(tuple(*)) LIKE '%not kept%' OR toString(tuple(*)) LIKE '%never%'"
    assert (await store.rows(f"SELECT count() FROM captures WHERE {text}"))[0][0] == 0


async def test_a_block_that_is_inserted_again_is_there_once(store: Store, make: Any) -> None:
    request, of = make.request_id(), captured(make)
    for _ in range(2):
        gather = FrameGather(captures=True)
        frame = opened(delta(make, request, 0, "once", of), request, "asked")
        frame.time_us = 1_700_000_000_000_000
        assert gather.add(1, frame.time_us, frame.SerializeToString())
        ((day, rows),) = capture_rows(gather.finish().captured, nobody_erased)
        await store.insert(rows.table, rows.data, f"TOKENS-captures-1-1-{day}")
    assert (day, (await store.rows("SELECT count() FROM captures"))[0][0]) == ("20231114", 2)
    found = await Captures(store).get(request, "")
    assert found is not None
    assert (found.input, found.output) == ("asked", "once")


async def test_without_a_writer_nothing_is_kept(own_bus: Bus, store: Store, frame_log: Any, make: Any) -> None:
    request, of = make.request_id(), captured(make)
    await frame_log.publish(opened(delta(make, request, 0, "text", of), request, "asked"))
    last = await frame_log.publish(make.close(Frame(), request, 1, of=of))
    await bring(own_bus, store, last, Privacy())
    assert (await store.rows("SELECT count() FROM captures"))[0][0] == 0
    assert (await store.rows("SELECT count() FROM requests"))[0][0] == 1


async def test_lists_in_pages_and_by_tenant(store: Store, make: Any) -> None:
    gather = FrameGather(bordered=False, captures=True)
    requests = [make.request_id(clock.now_us() - number * 1_000_000) for number in range(7)]
    for number, request in enumerate(requests):
        of = captured(make, "acme" if number % 2 == 0 else "umbrella")
        frame = delta(make, request, 0, "word", of)
        gather.add(number + 1, clock.now_us(), frame.SerializeToString())
    for day, rows in capture_rows(gather.finish().captured, nobody_erased):
        await store.insert(rows.table, rows.data, day)
    servicer = CaptureServicer(Captures(store))
    names, page = [], ""
    while True:
        asked = ListCapturesRequest(tenant_id="acme", page_size=3, page_token=page)
        answer = await servicer.ListCaptures(asked, None)
        names += [one.request_id.replace("-", "") for one in answer.captures]
        page = answer.next_page_token
        if not page:
            break
    assert names == [request.hex() for request in requests[::2]]
    assert len((await servicer.ListCaptures(ListCapturesRequest(), None)).captures) == 7
    none = ListCapturesRequest()
    none.end_time.FromMicroseconds(clock.now_us() - 3_600_000_000)
    assert not (await servicer.ListCaptures(none, None)).captures
    for wrong in (ListCapturesRequest(page_token="!"), ListCapturesRequest(page_size=1001)):
        with pytest.raises(InferBusError):
            await servicer.ListCaptures(wrong, None)
    for name, tenant in (("no id", ""), (requests[0].hex(), "umbrella")):
        with pytest.raises(InferBusError, match="Nothing is kept"):
            await servicer.GetCapture(GetCaptureRequest(request_id=name, tenant_id=tenant), None)
    with pytest.raises(InferBusError, match="CAPTURE_READER"):
        await CaptureServicer(None).ListCaptures(ListCapturesRequest(), None)


async def test_text_has_a_writer_and_a_reader_of_its_own(clickhouse: Any, admin_store: Store, make: Any) -> None:
    gather = FrameGather(captures=True)
    request = make.request_id()
    frame = opened(delta(make, request, 0, "for one pair of eyes", captured(make)), request, "asked")
    gather.add(1, clock.now_us(), frame.SerializeToString())
    ((_, rows),) = capture_rows(gather.finish().captured, nobody_erased)
    async with open_store(clickhouse.config("capture_writer", "inferbus")) as writer:
        await writer.insert(rows.table, rows.data, "once")
        with pytest.raises(STORE_ERRORS):
            await writer.rows("SELECT count() FROM captures")
        with pytest.raises(STORE_ERRORS):
            await writer.insert("requests", rows.data, "other")
    async with open_store(clickhouse.config("capture_reader", "inferbus")) as reader:
        found = await Captures(reader).get(request, "acme")
        assert found is not None
        assert found.output == "for one pair of eyes"
        assert len((await Captures(reader).page(_everything()))[0]) == 1
        for query in ("SELECT count() FROM requests", "INSERT INTO captures (tenant_id) SELECT 'x'"):
            with pytest.raises(STORE_ERRORS):
                await reader.rows(query)
    for user in ("analyst", "writer"):
        async with open_store(clickhouse.config(user, "inferbus")) as store:
            assert (await store.rows("SELECT count() FROM requests"))[0][0] == 0
            for query in (
                "SELECT text FROM captures",
                "SELECT * FROM `captures`",
                "SELECT c.text FROM inferbus.captures AS c",
                "SELECT * FROM (SELECT * FROM captures)",
                "WITH x AS (SELECT text FROM captures) SELECT * FROM x",
                "SELECT 1 WHERE (SELECT any(text) FROM captures) != ''",
                "SELECT 1 WHERE 1 IN captures",
                "SELECT * FROM requests JOIN captures USING (request_id)",
                "SELECT * FROM view(SELECT * FROM captures)",
                "SELECT * FROM merge('inferbus', 'cap.*')",
                "DESCRIBE TABLE captures",
                "SHOW CREATE TABLE captures",
                "EXPLAIN SELECT * FROM captures",
                "INSERT INTO captures (tenant_id) SELECT 'x'",
            ):
                with pytest.raises(STORE_ERRORS):
                    await store.rows(query)


def _everything() -> Any:
    from inferbus_meter.captures import CaptureQuery

    return CaptureQuery("", "", 0, None, 10, "")


def part(attempt: int, *deltas: tuple[int, int, str]) -> Part:
    sizes = [len(text.encode()) for _, _, text in deltas]
    text = "".join(text for _, _, text in deltas).encode()
    return Part(OUTPUT, attempt, False, [one[0] for one in deltas], [one[1] for one in deltas], sizes, text)


@given(
    words=st.lists(st.text(max_size=5), min_size=1, max_size=20),
    lost=st.lists(st.integers(0, 20), max_size=3),
    cuts=st.sets(st.integers(0, 60)),
)
def test_whatever_died_in_between_the_whole_answer_is_read_once(
    words: list[str], lost: list[int], cuts: set[int]
) -> None:
    """Each attempt says the words from where it resumed to where it died; the next one resumes at or before that."""
    deltas: list[tuple[int, int, int, str]] = []  # attempt, index, tokens, text
    resume = 0
    ends = [min(end, len(words)) for end in lost] + [len(words)]
    for attempt, end in enumerate(ends, 1):
        resume = min(resume, end)
        if attempt > 1:
            deltas.append((attempt, resume, 0, ""))
        deltas += [(attempt, index, 1, words[index]) for index in range(resume, max(resume, end))]
        resume = max(resume, end)
        resume = min(resume, ends[attempt]) if attempt < len(ends) else resume
    parts: list[Part] = []
    begin = 0
    for position in range(1, len(deltas) + 1):
        changed = position == len(deltas) or deltas[position][0] != deltas[begin][0]
        if changed or position in cuts:
            parts.append(part(deltas[begin][0], *((one[1], one[2], one[3]) for one in deltas[begin:position])))
            begin = position
    assert put_together(parts).output == "".join(words)


def test_what_is_too_long_is_cut_and_says_so(make: Any) -> None:
    request, of = make.request_id(), captured(make)
    gather = FrameGather(captures=True)
    frame = delta(make, request, MAX_OUTPUT_TOKENS - 1, "in", of)
    delta(make, request, MAX_OUTPUT_TOKENS, "out", of, frame=frame)
    opened(frame, request, "half a", truncated=True)
    gather.add(1, clock.now_us(), frame.SerializeToString())
    asked, answered = sorted(gather.finish().captured, key=lambda one: one.kind)
    assert (asked.kind, bytes(asked.text), asked.truncated) == (INPUT, b"half a", True)
    assert (answered.kind, bytes(answered.text), answered.truncated) == (OUTPUT, b"in", True)
    assert list(answered.text_size) == [2, 0]
