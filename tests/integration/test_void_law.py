"""One log, six readers: which tokens of a request that was tried again count. The edge that delivers, who gathers
whole answers (a batch), the worker that resumes, the audit that reads the log, the view ``tokens`` and the timeline
must all say what its writers meant."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import Resume
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts import recovery
from inferbus_contracts.ids import request_id
from inferbus_dialect.whole import Wholes
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

from tests.harness.store import PASSWORD, clickhouse

NOW_US = 1_795_000_000_000_000
CONTEXT = RequestContext(tenant_id="acme", project_id="p", key_id="k", model="m", revision="r1")


def new_id() -> bytes:
    return request_id(NOW_US // 1000, uuid.uuid4().bytes, "e")


@dataclass(frozen=True)
class Attempt:
    """What one attempt does. ``fenced``: it is begun by a fence, as a scheduler does it that gives a request to another
    worker; maybe said twice. ``opens``: names its index with a delta without tokens, as a worker does at once; else its
    first token does, or its Close. ``late``: tokens that it makes after the next one has been announced by a fence, or
    has opened, and ``deep``: not before the next but one, or the end, has. ``ends``: it ends then, in its own view."""

    opens: bool
    counts: tuple[int, ...]
    late: int = 0
    deep: int = 0
    fenced: int = 0
    ends: bool = False


attempts = st.builds(
    Attempt,
    opens=st.booleans(),
    counts=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    late=st.integers(0, 3),
    deep=st.integers(0, 3),
    fenced=st.integers(0, 2),
    ends=st.booleans(),
)
histories = st.lists(attempts, min_size=1, max_size=4)


@dataclass(frozen=True)
class Delta:
    attempt: int
    first: int
    count: int


@dataclass(frozen=True)
class Announced:
    """A fence."""

    attempt: int


@dataclass(frozen=True)
class End:
    """Of one that does not know that it has been taken over from."""

    attempt: int
    total: int


Said = Delta | Announced | End


@dataclass
class Written:
    """``said`` in the order of the log. The Close that holds is of ``attempt``, counts ``total``, and stands before the
    last ``after`` of what is said."""

    said: list[Said]
    attempt: int
    total: int
    after: int

    @property
    def deltas(self) -> list[Delta]:
        return [one for one in self.said if isinstance(one, Delta)]


def write(history: list[Attempt]) -> Written:
    """As workers write: each attempt goes on where the log ends when it is announced, or opens; a zombie goes on where
    it was itself."""
    said: list[Said] = []
    total = 0
    zombies: list[list[Said]] = []
    for number, attempt in enumerate(history, 1):
        if number > 1:
            for _ in range(attempt.fenced):
                said.append(Announced(number))
                zombies = said_late(said, zombies)
            if attempt.opens:
                said.append(Delta(number, total, 0))
        for place, count in enumerate(attempt.counts):
            said.append(Delta(number, total, count))
            total += count
            if place == 0:
                zombies = said_late(said, zombies)
        if attempt.opens or attempt.counts:
            zombies = said_late(said, zombies)
        deep = total + attempt.late
        ending: list[Said] = [End(number, deep + attempt.deep)] if attempt.ends else []
        zombies += [[Delta(number, total, attempt.late)], [Delta(number, deep, attempt.deep), *ending]]
    before = len(said)
    said_late(said, [one for one in zombies if one[0].attempt < len(history)])
    return Written(said, len(history), total, len(said) - before)


def said_late(log: list[Said], zombies: list[list[Said]]) -> list[list[Said]]:
    """The first of what each zombie still has goes onto the log; the rest."""
    heard: set[int] = set()
    left = []
    for late in zombies:
        if late[0].attempt in heard:
            left.append(late)
        else:
            heard.add(late[0].attempt)
            log += late
    return left


def frames_of(request: bytes, written: Written) -> list[Frame]:
    frames = [frame_of(request, at, one) for at, one in enumerate(written.said)]
    end = frame_of(request, 1000, End(written.attempt, written.total))
    frames.insert(len(frames) - written.after, end)
    return frames


def frame_of(request: bytes, at: int, said: Said) -> Frame:
    """Fences are a scheduler's, among the frames of the worker that it takes the request from."""
    frame = Frame(edge="e", worker=f"w{said.attempt}", time_us=NOW_US + at)
    match said:
        case Announced(attempt):
            frame.worker, frame.stead = "scheduler", f"w{attempt - 1}"
            frame.fences.add(request_id=request, attempt=attempt)
        case Delta(attempt, first, count):
            frame.MergeFrom(
                Frame(
                    contexts=[CONTEXT], request_ids=request, attempt=[attempt], first_index=[first],
                    token_count=[count], gap_us=[1], text_size=[0], token_id=[7] * count,
                )
            )  # fmt: skip
        case End(attempt, total):
            frame.contexts.append(CONTEXT)
            close = frame.closes.add(
                request_id=request, attempt=attempt, finish_reason=FinishReason.FINISH_REASON_LENGTH,
                usage=Usage(input_tokens=1, output_tokens=total),
            )  # fmt: skip
            close.accepted_time.FromMicroseconds(NOW_US)
            close.end_time.FromMicroseconds(NOW_US + at)
    return frame


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


class Count:
    """A form of nothing but the number of tokens."""

    tokens = 0

    def open(self, choice: int, revision: str, model: str = "") -> None: ...

    def delta(self, choice: int, text: str, tokens: int, logprobs: object) -> None:
        self.tokens += tokens

    def close(self, choice: int, revision: str, close: object, model: str = "") -> None: ...

    def finish(self) -> None: ...


def collected(request: bytes, frames: list[Frame]) -> int:
    wholes = Wholes()
    wholes.add(request, 1, form := Count())
    ended = [whole for frame in frames for whole in wholes.take(frame)]
    assert [whole.error for whole in ended] == [None]
    assert len(wholes) == 0
    return form.tokens


def resumed_at(request: bytes, frames: list[Frame]) -> int:
    found = recovery.Recovered()
    for frame in frames:
        recovery.fold(frame, {request: found})
    assert found.closed
    return len(found.ids)


def resumed_by_others(request: bytes, frames: list[Frame]) -> set[int]:
    """What those find who are given the request at a fence, told how far it was: they know nothing before it."""
    found = set()
    for at, frame in enumerate(frames):
        if not frame.fences:
            continue
        known = recovery.Recovered()
        for one in frames[: at + 1]:
            recovery.fold(one, {request: known})
        resumed = recovery.begun(Resume(attempt=frame.fences[0].attempt, token_ids=known.ids))
        for one in frames[at + 1 :]:
            recovery.fold(one, {request: resumed})
        assert resumed.closed
        found.add(len(resumed.ids))
    return found


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
    rows = [(one.attempt, index, 0, 0) for one in written.deltas for index in range(one.first, one.first + one.count)]
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
            "batch": collected(request, frames[request]),
            "worker": resumed_at(request, frames[request]),
            "audit": counted_by_the_audit(request, frames[request]),
            "timeline": shown_in_the_timeline(one),
            "view": in_view.get(request, 0),
        }
        assert said == dict.fromkeys(said, one.total), one
        assert resumed_by_others(request, frames[request]) <= {one.total}, one


async def test_an_attempt_opens_by_naming_its_index(store: Store) -> None:
    """The second attempt opens at 3 and ends there; one thought dead says 3 and 4 in between."""
    written = Written([Delta(1, 0, 3), Delta(2, 3, 0), Delta(1, 3, 1), Delta(1, 4, 1)], attempt=2, total=3, after=0)
    request = new_id()
    frames = frames_of(request, written)
    assert await counted_by_the_view(store, {request: frames}) == {request: 3}
    assert delivered(request, frames) == collected(request, frames) == 3
    assert resumed_at(request, frames) == 3
    assert counted_by_the_audit(request, frames) == 3
    assert shown_in_the_timeline(written) == 3


async def test_a_fence_voids_before_the_next_attempt_has_said_anything(store: Store) -> None:
    """One thought dead makes two more tokens and ends, all after the fence; the second attempt says 3 otherwise."""
    said: list[Said] = [Delta(1, 0, 3), Announced(2), Delta(1, 3, 2), End(1, 5), Announced(2), Delta(2, 3, 1)]
    written = Written([*said, Delta(1, 5, 1)], attempt=2, total=4, after=1)
    request = new_id()
    frames = frames_of(request, written)
    assert await counted_by_the_view(store, {request: frames}) == {request: 4}
    assert delivered(request, frames) == collected(request, frames) == 4
    assert resumed_at(request, frames) == 4
    assert resumed_by_others(request, frames) == {4}
    assert counted_by_the_audit(request, frames) == 4
    assert shown_in_the_timeline(written) == 4
