"""One log, five readers: which tokens of a request that was tried again count. The edge that delivers, the worker that
resumes, the audit that reads the log, the view ``tokens`` and the timeline must all say what its writers meant."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts.ids import request_id
from inferbus_edge.measure import Timing
from inferbus_edge.sinks import NOWHERE
from inferbus_edge.streaming import Answer, Streams
from inferbus_meter.clickhouse import Store, StoreConfig, open_store
from inferbus_meter.core.audit import Tally, fold
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.rows import request_rows, token_rows
from inferbus_meter.core.timeline import Tokens, void_tokens
from inferbus_rating import PriceBook
from inferbus_stack.clickhouse.catalog import DATABASE
from inferbus_worker.core import recovery

from tests.harness.store import PASSWORD, clickhouse

NOW_US = 1_795_000_000_000_000
CONTEXT = RequestContext(tenant_id="acme", project_id="p", key_id="k", model="m", revision="r1")


def new_id() -> bytes:
    return request_id(NOW_US // 1000, uuid.uuid4().bytes, "e")


@dataclass(frozen=True)
class Attempt:
    """What one attempt does. ``opens``: names its index with a delta without tokens, as a worker does at once; else its
    first token does, or its Close. ``late``: tokens that it makes after the next one has opened, and ``deep``: not
    before the next but one, or the end, has."""

    opens: bool
    counts: tuple[int, ...]
    late: int = 0
    deep: int = 0


attempts = st.builds(
    Attempt,
    opens=st.booleans(),
    counts=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    late=st.integers(0, 3),
    deep=st.integers(0, 3),
)
histories = st.lists(attempts, min_size=1, max_size=4)


@dataclass
class Written:
    """``deltas``: (attempt, first index, tokens) in the order of the log. The Close is of ``attempt``, counts
    ``total``, and stands before the last ``after`` deltas."""

    deltas: list[tuple[int, int, int]]
    attempt: int
    total: int
    after: int


def write(history: list[Attempt]) -> Written:
    """As workers write: each attempt goes on where the log ends when it opens; a zombie goes on where it was itself."""
    deltas: list[tuple[int, int, int]] = []
    total, zombies = 0, []
    for number, attempt in enumerate(history, 1):
        if number > 1 and attempt.opens:
            deltas.append((number, total, 0))
        for place, count in enumerate(attempt.counts):
            deltas.append((number, total, count))
            total += count
            if place == 0:
                zombies = said_late(deltas, zombies)
        if attempt.opens or attempt.counts:
            zombies = said_late(deltas, zombies)
        zombies += [(number, total, attempt.late), (number, total + attempt.late, attempt.deep)]
    before = len(deltas)
    said_late(deltas, [one for one in zombies if one[0] < len(history)])
    return Written(deltas, len(history), total, len(deltas) - before)


def said_late(deltas: list[tuple[int, int, int]], zombies: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The first of what each zombie still has goes onto the log; the rest."""
    said: set[int] = set()
    left = []
    for number, first, count in zombies:
        if number in said:
            left.append((number, first, count))
        else:
            said.add(number)
            deltas.append((number, first, count))
    return left


def frames_of(request: bytes, written: Written) -> list[Frame]:
    frames = []
    for at, (attempt, first, count) in enumerate(written.deltas):
        frame = Frame(
            edge="e", worker=f"w{attempt}", time_us=NOW_US + at, contexts=[CONTEXT], request_ids=request,
            attempt=[attempt], first_index=[first], token_count=[count], gap_us=[1], text_size=[0],
            token_id=[7] * count,
        )  # fmt: skip
        frames.append(frame)
    end = Frame(edge="e", worker=f"w{written.attempt}", time_us=NOW_US + 1000, contexts=[CONTEXT])
    close = end.closes.add(
        request_id=request, attempt=written.attempt, finish_reason=FinishReason.FINISH_REASON_LENGTH,
        usage=Usage(input_tokens=1, output_tokens=written.total),
    )  # fmt: skip
    close.accepted_time.FromMicroseconds(NOW_US)
    close.end_time.FromMicroseconds(NOW_US + 1000)
    frames.insert(len(frames) - written.after, end)
    return frames


# --- the readers ---


class Nobody:
    """Listens to the edge's streams."""

    def stray(self, request_id: bytes, now: float) -> None: ...

    def left(self, answer: Answer, reason: str) -> bool:
        return False

    def broken(self, answer: Answer, reason: str) -> None: ...

    def ended(self, answer: Answer) -> None: ...


def delivered(request: bytes, frames: list[Frame]) -> int:
    answer = Answer(request, 1, NOWHERE, Timing("m", NOW_US))
    streams = Streams(Nobody())
    streams.add(answer)
    for frame in frames:
        streams.on_frame(frame, 0)
    assert answer.on_log, "its end was taken"
    assert answer.error is None
    return answer.output_tokens


def resumed_at(request: bytes, frames: list[Frame]) -> int:
    found = recovery.Recovered()
    for frame in frames:
        recovery.fold(frame, {request: found})
    assert found.closed
    return len(found.ids)


def gathered(frames: list[Frame]) -> FrameGather:
    gather = FrameGather(bordered=False)
    for sequence, frame in enumerate(frames, 1):
        assert gather.add(sequence, frame.time_us, frame.SerializeToString())
    return gather


def counted_by_the_audit(request: bytes, frames: list[Frame]) -> int:
    """Batch by batch, and whole."""
    whole: dict[bytes, Tally] = {}
    fold(whole, gathered(frames).finish())
    parts: dict[bytes, Tally] = {}
    for frame in frames:
        fold(parts, gathered([frame]).finish())
    reading = whole[request].reading()
    assert reading == parts[request].reading()
    assert (reading.missing, reading.repeated) == (0, 0)
    return reading.tokens


def shown_in_the_timeline(written: Written) -> int:
    rows = [(attempt, index, 0, 0) for attempt, first, count in written.deltas for index in range(first, first + count)]
    return int((~void_tokens(Tokens.of(rows, written.attempt, written.total))).sum())


@pytest_asyncio.fixture(scope="module")
async def store(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Store]:
    async with (
        clickhouse(tmp_path_factory.mktemp("void-law")) as server,
        open_store(StoreConfig(server.url, "admin", PASSWORD, DATABASE, 60.0)) as opened,
    ):
        yield opened


async def counted_by_the_view(store: Store, logs: dict[bytes, list[Frame]]) -> dict[bytes, int]:
    batch = gathered([frame for frames in logs.values() for frame in frames]).finish()
    for rows in (token_rows(batch), request_rows(batch, PriceBook.of([]))):
        if rows.count:
            await store.insert(rows.table, rows.data, uuid.uuid4().hex)
    shown = await store.rows(
        "SELECT request_id, count() FROM tokens WHERE request_id IN {ids:Array(UUID)} GROUP BY request_id",
        {"ids": [uuid.UUID(bytes=request) for request in logs]},
    )
    return {one.bytes: int(count) for one, count in shown}


# --- all of them ---


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(written=st.lists(histories.map(write), min_size=20, max_size=40))
async def test_every_reader_counts_what_the_workers_meant(store: Store, written: list[Written]) -> None:
    logs = {new_id(): one for one in written}
    frames = {request: frames_of(request, one) for request, one in logs.items()}
    in_view = await counted_by_the_view(store, frames)
    for request, one in logs.items():
        said = {
            "edge": delivered(request, frames[request]),
            "worker": resumed_at(request, frames[request]),
            "audit": counted_by_the_audit(request, frames[request]),
            "timeline": shown_in_the_timeline(one),
            "view": in_view.get(request, 0),
        }
        assert said == dict.fromkeys(said, one.total), one


async def test_an_attempt_opens_by_naming_its_index(store: Store) -> None:
    """The second attempt opens at 3 and ends there; one thought dead says 3 and 4 in between."""
    written = Written([(1, 0, 3), (2, 3, 0), (1, 3, 1), (1, 4, 1)], attempt=2, total=3, after=0)
    request = new_id()
    frames = frames_of(request, written)
    assert await counted_by_the_view(store, {request: frames}) == {request: 3}
    assert delivered(request, frames) == 3
    assert resumed_at(request, frames) == 3
    assert counted_by_the_audit(request, frames) == 3
    assert shown_in_the_timeline(written) == 3
