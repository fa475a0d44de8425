"""Answers made again from the log of a real broker, under load, over a slow line that may be cut."""

import asyncio
import itertools
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close, Embedding, Frame, Open, TokenLogprob
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.frames import FramePublisher, FrameReader
from inferbus_bus.log import FrameLog, Stored
from inferbus_contracts.ids import choice_id, detached, request_id, unix_ms_of
from inferbus_edge import looks as looks_module
from inferbus_edge import passes
from inferbus_edge.attendance import Attendance
from inferbus_edge.following import Following
from inferbus_edge.looks import Looks
from inferbus_edge.measure import Timing
from inferbus_edge.passes import Batch, Join, names
from inferbus_edge.sinks import Nowhere
from inferbus_edge.streaming import Answer
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_stack.nats import NatsServer

_numbers = itertools.count(1)


class Heard(Nowhere):
    """What a client was sent."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.error: InferBusError | None = None

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None:
        self.texts.append(text)
        return None

    def fail(self, error: InferBusError, now: float) -> None:
        self.error = error


class CountedLog(FrameLog):
    reads = frames = 0

    async def read(self, *args: Any, **options: Any) -> AsyncGenerator[list[Stored], None]:
        self.reads += 1
        async for batch in super().read(*args, **options):
            self.frames += len(batch)
            yield batch


class Line:
    """A proxy before the broker: each way takes ``delay`` seconds; it can be cut."""

    def __init__(self, server: NatsServer, delay: float) -> None:
        self._target = int(server.url.rpartition(":")[2])
        self._delay = delay
        self._writers: list[asyncio.StreamWriter] = []
        self.url = ""

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                loop.call_later(self._delay, writer.write, data)
        loop.call_later(self._delay, writer.close)


class Generation:
    """One request on a worker: its frames name it and count from 0."""

    def __init__(self, frames: FramePublisher, edge: str, choices: int = 1) -> None:
        self._frames = frames
        self.edge = edge
        self.first = request_id(clock.now_us() // 1000, os.urandom(10), edge)
        self._choices = choices
        self.index = 0

    @property
    def _ids(self) -> list[bytes]:
        return [choice_id(self.first, choice) for choice in range(self._choices)]

    def frame(self) -> Frame:
        return Frame(edge=self.edge, contexts=[RequestContext(tenant_id="acme", project_id="web", model="m")])

    def step(self) -> int:
        frame, ids = self.frame(), self._ids
        frame.request_ids = b"".join(ids)
        frame.first_index.extend([self.index] * len(ids))
        texts = [b"%d " % self.index] * len(ids)
        frame.text_size.extend(len(text) for text in texts)
        frame.text = b"".join(texts)
        if self.index == 0:
            frame.opens.extend(Open(request_id=one, reply=b"{}") for one in ids)
        self.index += 1
        return self._frames.publish(frame)

    def close(self) -> int:
        frame = self.frame()
        frame.closes.extend(
            Close(
                request_id=one, attempt=1, finish_reason=FinishReason.FINISH_REASON_STOP,
                usage=Usage(output_tokens=self.index),
            )
            for one in self._ids
        )  # fmt: skip
        return self._frames.publish(frame)

    async def run(self, tokens: int, pause: float) -> None:
        """From where it is to its end."""
        for _ in range(tokens):
            self.step()
            await asyncio.sleep(pause)
        self.close()

    def opened(self, heard: list[Answer] | None = None) -> Callable[[bytes, RequestContext], Answer | None]:
        def opened(_: bytes, context: RequestContext) -> Answer:
            assert context.tenant_id == "acme"
            answer = Answer(self.first, self._choices, Heard(), Timing("m", unix_ms_of(self.first) * 1000))
            answer.attended, answer.resumed = False, True
            if heard is not None:
                heard.append(answer)
            return answer

        return opened


async def load(frames: FramePublisher, edge: str, a_second: int) -> None:
    """Somebody else's frames for the same edge, for ever."""
    loop = asyncio.get_running_loop()
    began, sent, other = loop.time(), 0, Generation(frames, edge)
    while True:
        while sent < (loop.time() - began) * a_second:
            other.step()
            sent += 1
        await asyncio.sleep(0.001)


class Rig:
    """A ``Following`` of this edge on a line of its own, and publishers on the broker."""

    def __init__(
        self, following: Following, log: CountedLog, reader: FrameReader, line: Line, frames: FramePublisher, edge: str
    ) -> None:
        self.following, self.log, self.reader = following, log, reader
        self.line, self.frames, self.edge = line, frames, edge

    async def settled(self, last: int) -> None:
        """Frame ``last`` and all before it are stored and read."""
        await self.frames.wait_acked(last)
        _, end = await self.log.bounds()
        await until(lambda: self.reader.last_sequence >= end)


@asynccontextmanager
async def rigged(server: NatsServer, delay: float) -> AsyncIterator[Rig]:
    name = f"edge-following-{next(_numbers)}"
    line = Line(server, delay)
    async with await line.start(), connect(BusConfig(line.url, name)) as bus:
        attendance = Attendance(name, lambda _: None, 30.0)
        following = Following(bus, name, attendance)
        following._log = log = CountedLog(bus)
        reader = FrameReader(bus, edge=name, on_frame=following.on_own_frame)
        await reader.start()
        following.start(reader)
        frames = FramePublisher(BusConfig(server.url, f"w-{name}"), worker=f"w-{name}", boot=1)
        await frames.start()
        yield Rig(following, log, reader, line, frames, name)
        await frames.stop()
        await following.stop()
        await reader.stop()
        line.cut()


@pytest_asyncio.fixture
async def slow(nats_server: NatsServer) -> AsyncIterator[Rig]:
    async with rigged(nats_server, 0.001) as one:
        yield one


@pytest_asyncio.fixture
async def near(nats_server: NatsServer) -> AsyncIterator[Rig]:
    async with rigged(nats_server, 0.0) as one:
        yield one


@pytest.fixture(autouse=True)
def sequences(monkeypatch: pytest.MonkeyPatch) -> dict[Batch, list[int]]:
    """What each batch was given; by the law in the order of the log, nothing twice."""
    given: dict[Batch, list[int]] = defaultdict(list)
    on_frame = Batch.on_frame

    def noted(self: Batch, frame: Frame, sequence: int) -> None:
        given[self].append(sequence)
        on_frame(self, frame, sequence)

    monkeypatch.setattr(Batch, "on_frame", noted)
    return given


def whole(answer: Answer | None, tokens: int) -> None:
    assert answer is not None
    assert isinstance(answer.sink, Heard)
    assert answer.sink.error is None
    assert answer.sink.texts == [b"%d " % index for index in range(tokens)]


def lawful(sequences: dict[Batch, list[int]]) -> None:
    assert sequences
    assert all(one == sorted(set(one)) for one in sequences.values())


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("own", [True, False])
async def test_it_catches_up_while_a_thousand_frames_a_second_come(
    slow: Rig, sequences: dict[Batch, list[int]], own: bool
) -> None:
    edge = slow.edge if own else f"{slow.edge}-other"
    loading = asyncio.create_task(load(slow.frames, edge, 1000))
    await asyncio.sleep(0.3)
    for _ in range(5):
        one = Generation(slow.frames, edge)
        for _ in range(3):
            one.step()
        running = asyncio.create_task(one.run(200, 0.002))
        await asyncio.sleep(0.02)
        reads = slow.log.reads
        async with asyncio.timeout(5):
            answer = await slow.following.join(one.first, one.opened(), None, edge)
        assert slow.log.reads - reads <= 3
        assert answer is not None
        assert answer.output_tokens >= 3
        async with asyncio.timeout(10):
            await asyncio.gather(running, answer.done)
        whole(answer, 203)
    loading.cancel()
    lawful(sequences)


async def test_many_at_any_moment_of_their_answers(slow: Rig, sequences: dict[Batch, list[int]]) -> None:
    """Some before their first frame, some after their end; some of one choice, some of more."""
    edge = f"{slow.edge}-other"
    loading = asyncio.create_task(load(slow.frames, edge, 1000))

    async def one(number: int) -> Answer | None:
        generation = Generation(slow.frames, edge)
        running = asyncio.create_task(generation.run(60, 0.004))
        await asyncio.sleep(0.01 * number)
        answer = await slow.following.join(generation.first, generation.opened(), lambda: True, edge)
        await asyncio.gather(running, *([answer.done] if answer is not None else []))
        return answer

    async with asyncio.timeout(30):
        answers = await asyncio.gather(*(one(number) for number in range(40)))
    for answer in answers:
        whole(answer, 60)
    loading.cancel()
    assert slow.log.reads < 40  # one pass serves many
    lawful(sequences)


@pytest.mark.parametrize("own", [True, False])
async def test_a_line_that_is_cut_loses_nothing(slow: Rig, sequences: dict[Batch, list[int]], own: bool) -> None:
    edge = slow.edge if own else f"{slow.edge}-other"
    loading = asyncio.create_task(load(slow.frames, edge, 500))
    generations = [Generation(slow.frames, edge) for _ in range(8)]
    running = [asyncio.create_task(one.run(800, 0.004)) for one in generations]
    await asyncio.sleep(0.5)
    first = generations[0]
    joins = [asyncio.create_task(slow.following.join(first.first, first.opened(), None, edge))]
    await joins[0]  # the other edge's frames are read live from here on
    for number, one in enumerate(generations[1:]):
        joins.append(asyncio.create_task(slow.following.join(one.first, one.opened(), None, edge)))
        await asyncio.sleep(0.003 * number)
        if number % 2:
            slow.line.cut()
            await asyncio.sleep(0.2)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*joins)
        await asyncio.gather(*running, *(answer.done for answer in answers if answer is not None))
    loading.cancel()
    for answer in answers:
        whole(answer, 800)
    lawful(sequences)


async def test_too_much_to_keep_is_read_once_more(
    slow: Rig, sequences: dict[Batch, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_MAX_KEPT_FRAMES", 3)
    edge = f"{slow.edge}-other"
    one = Generation(slow.frames, edge)
    running = asyncio.create_task(one.run(1500, 0.001))
    await asyncio.sleep(0.5)
    async with asyncio.timeout(30):
        answer = await slow.following.join(one.first, one.opened(), None, edge)
        assert answer is not None
        assert slow.log.reads > 1
        await asyncio.gather(running, answer.done)
    whole(answer, 1500)
    lawful(sequences)


async def test_what_is_too_much_while_the_kept_ones_are_delivered_is_read_from_there(
    near: Rig, sequences: dict[Batch, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_TURN_SECONDS", 0.0)  # between any two of them others have their turn
    monkeypatch.setattr(passes, "_MAX_KEPT_FRAMES", 12)
    one = Generation(near.frames, near.edge)
    running = asyncio.create_task(one.run(3000, 0.0))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(30):
        answer = await near.following.join(one.first, one.opened())
        assert answer is not None
        await asyncio.gather(running, answer.done)
    whole(answer, 3000)
    lawful(sequences)


async def test_those_who_ask_for_the_same_at_once_share_a_pass(near: Rig, sequences: dict[Batch, list[int]]) -> None:
    one = Generation(near.frames, near.edge, choices=3)
    for _ in range(5):
        last = one.step()
    await near.frames.wait_acked(last)
    joins = [near.following.join(one.first, one.opened()) for _ in range(8)]
    answers = await asyncio.gather(*joins)
    assert near.log.reads == 1
    assert len({id(answer) for answer in answers}) == 8
    one.step()
    one.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*(answer.done for answer in answers if answer is not None))
    for answer in answers:
        assert answer is not None
        assert isinstance(answer.sink, Heard)
        assert answer.sink.texts == [b"%d " % index for index in range(6) for _ in range(3)]
    lawful(sequences)


async def test_a_pass_ends_with_the_answers_that_it_is_for(near: Rig) -> None:
    one = Generation(near.frames, near.edge)
    await one.run(3, 0.0)
    other = Generation(near.frames, near.edge)
    for _ in range(5000):
        last = other.step()
    await near.settled(last)
    whole(await near.following.join(one.first, one.opened()), 3)
    assert near.log.frames < 2000
    assert not near.following.streams()


async def test_others_answers_are_skipped(near: Rig, sequences: dict[Batch, list[int]]) -> None:
    one, other = Generation(near.frames, near.edge), Generation(near.frames, near.edge)
    for _ in range(10):
        one.step()
        last = other.step()
    await near.frames.wait_acked(last)
    answer = await near.following.join(one.first, one.opened())
    whole(answer, 10)
    other.step()
    one.step()
    assert answer is not None
    await until(lambda: answer.output_tokens == 11)
    assert sum(len(given) for given in sequences.values()) == 11
    near.following.release(answer)


async def test_answers_of_several_passes_go_on_together(near: Rig, sequences: dict[Batch, list[int]]) -> None:
    """One ends and another one comes: their number is the same, and whose they are is not."""
    ending, staying, coming = (Generation(near.frames, near.edge) for _ in range(3))
    answers = []
    for one in (ending, staying):
        await near.settled(one.step())
        answers.append(await near.following.join(one.first, one.opened()))
    assert len(near.following.streams()) == 1
    coming.step()
    await near.settled(ending.close())
    whole(answers[0], 1)
    answers.append(await near.following.join(coming.first, coming.opened()))
    assert len(near.following.streams()) == 1
    for one in (coming, staying):
        one.step()
        await near.settled(one.close())
    for answer in answers[1:]:
        whole(answer, 2)
    lawful(sequences)


# --- looks ------------------------------------------------------------------------------------------------------------


async def test_who_looks_again_and_again_reads_the_log_once(near: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_module, "_KEPT_SECONDS", 0.3)
    looks, one, made = Looks(near.following), Generation(near.frames, near.edge), list[Answer]()
    opened = one.opened(made)
    for before in range(4):
        async with looks.look(one.first, opened) as answer:
            assert (answer is None) == (before == 0)
            assert answer is None or answer.output_tokens == before
        one.step()
        await asyncio.sleep(0.1)
    assert (near.log.reads, len(made)) == (1, 1)
    await asyncio.sleep(0.4)  # forgotten
    await until(lambda: not any(len(streams) for streams in near.following.streams()))

    async def look() -> int:
        async with looks.look(one.first, opened) as answer:
            assert answer is not None
            await answer.done
            return answer.output_tokens

    looking = [asyncio.create_task(look()) for _ in range(5)]
    await asyncio.sleep(0.1)
    one.close()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*looking) == [4] * 5
    assert await look() == 4  # its end is on the log: kept as well
    assert (near.log.reads, len(made)) == (2, 2)
    looks.stop()


async def test_who_waits_gets_it_from_its_beginning(near: Rig) -> None:
    looks, one = Looks(near.following), Generation(near.frames, near.edge)

    async def look() -> Answer | None:
        async with looks.look(one.first, one.opened(), wait=True) as answer:
            assert answer is not None
            await answer.done
            return answer

    looking = asyncio.create_task(look())
    await asyncio.sleep(0.2)
    await one.run(3, 0.0)
    async with asyncio.timeout(5):
        whole(await looking, 3)
    looks.stop()


async def test_what_is_made_here_is_found_without_the_log(near: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_module, "_KEPT_SECONDS", 0.1)
    looks, one = Looks(near.following), Generation(near.frames, near.edge)
    mine = Answer(one.first, 1, Heard(), Timing("m", 0))
    looks.offer(mine)
    for _ in range(2):
        async with looks.look(one.first, one.opened()) as answer:
            assert answer is mine
        await asyncio.sleep(0.2)
    mine.done.set_result(None)  # not on the log: lost, as far as this process knows
    one.close()
    await asyncio.sleep(0.1)
    async with looks.look(one.first, one.opened()) as answer:
        assert answer is None or answer is not mine
    assert near.log.reads == 1
    looks.stop()


async def test_a_look_that_fails_is_not_kept(near: Rig) -> None:
    looks, one = Looks(near.following), Generation(near.frames, near.edge)
    await near.frames.wait_acked(one.step())

    def refuses(reply: bytes, context: RequestContext) -> Answer | None:
        raise ValueError("no form")

    for _ in range(2):
        with pytest.raises(ValueError, match="no form"):
            async with looks.look(one.first, refuses):
                pass
    async with looks.look(one.first, one.opened()) as answer:
        whole(answer, 1)
    looks.stop()


async def test_only_so_many_are_kept(near: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks_module, "_MAX_KEPT", 3)
    looks = Looks(near.following)
    generations = [Generation(near.frames, near.edge) for _ in range(6)]
    last = [one.step() for one in generations][-1]
    await near.frames.wait_acked(last)
    for one in generations:
        async with looks.look(one.first, one.opened()) as answer:
            whole(answer, 1)
    reads = near.log.reads
    assert sum(len(streams) for streams in near.following.streams()) == 3
    for one in generations[3:]:
        async with looks.look(one.first, one.opened()) as answer:
            whole(answer, 1)
    assert near.log.reads == reads
    looks.stop()


# --- which frames concern a batch -------------------------------------------------------------------------------------

_FIRSTS = [request_id(1_700_000_000_000 + number, bytes([number]) * 10, "edge-0") for number in range(6)]
_ids = st.builds(
    lambda first, choice, alone: choice_id(detached(first) if alone else first, choice),
    st.sampled_from(_FIRSTS),
    st.integers(0, 127),
    st.booleans(),
)


@given(
    st.lists(_ids, max_size=5), st.lists(_ids, max_size=2), st.lists(_ids, max_size=2), st.lists(_ids, max_size=2),
    st.sets(st.sampled_from(_FIRSTS)), st.booleans(),
)  # fmt: skip
async def test_no_frame_that_names_a_wanted_request_is_skipped(
    told: list[bytes], opens: list[bytes], closes: list[bytes], vectors: list[bytes], wanted: set[bytes], alone: bool
) -> None:
    frame = Frame(
        edge="edge-0", worker="w", text=b"some text", request_ids=b"".join(told),
        opens=[Open(request_id=one) for one in opens], closes=[Close(request_id=one) for one in closes],
        embeddings=[Embedding(request_id=one, values=bytes(8)) for one in vectors],
    )  # fmt: skip
    batch = Batch(
        [
            Join(detached(one) if alone else one, lambda *_: None, None, asyncio.get_running_loop().create_future())
            for one in wanted
        ],
        Attendance("edge-0", lambda _: None, 30.0),
    )
    concerns = any(one[:15] == other[:15] for one in wanted for other in (*told, *opens, *closes, *vectors))
    assert batch.may_be_in(frame.SerializeToString()) is concerns
    assert batch.may_be_in(names(frame)) is concerns
