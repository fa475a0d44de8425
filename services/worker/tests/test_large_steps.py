"""Steps that would make a large frame: several frames, by the same laws, none of which the broker refuses."""

from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_bus.connection import BusConfig
from inferbus_bus.frames import FramePublisher
from inferbus_runtime.clock import timestamp
from inferbus_stack.nats import NatsServer
from inferbus_worker.core import columns
from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.core.columns import StepFrames
from inferbus_worker.core.running import Running, running_of
from inferbus_worker.engine import Alternative, Finish, Finished, Output, Step, TokenLogprob, Vector

START = 1_700_000_000_000_000
BROKER_BYTES = 8 << 20
# (who, tokens, text, whether with log-probabilities, vectors, whether it ends)
Move = tuple[int, list[int], str, bool, list[bytes], bool]


def new_running(number: int, tenant: int, *, reply: bytes = b"", attempt: int = 1, edge: str = "e") -> Running:
    request = GenerateRequest(request_id=bytes([number]) * 16, edge=edge, accepted_time=timestamp(START), reply=reply)
    request.context.tenant_id = f"tenant-{tenant}"
    return running_of(Work(request=request, placed_time=timestamp(START + 1)), "rev", attempt)


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token, b"\xf0", -0.5, (Alternative(token, b"\xf0", -0.5), Alternative(7, b"x", -2.0)))


def step_of(moves: list[Move]) -> Step:
    """What request 5 has are no vectors but parts of an answer."""
    builder, vectors, outputs = StepBuilder(), [], []
    for number, ids, text, said, values, ends in moves:
        key = bytes([number]) * 16
        if ids or text:
            builder.add(key, ids, text.encode(), [logprob(token) for token in ids] if said else None)
        if number == 5:
            outputs += [Output(key, index, value) for index, value in enumerate(values)]
        else:
            vectors += [Vector(key, index, value) for index, value in enumerate(values)]
        if ends:
            builder.finish(Finished(key, Finish.STOP, 3))
    step = builder.take(START + 9)
    step.embeddings, step.outputs = vectors, outputs
    return step


def frames_of(step: Step, running: dict[bytes, Running]) -> list[Frame]:
    """As they are read; what has ended is taken out of ``running``."""
    frames = StepFrames(step.time_us)
    frames.add_deltas(step, running)
    for finished in step.finished:
        frames.add_close(running.pop(finished.key), finished, "test")
    return [Frame.FromString(frame.SerializeToString()) for frame in frames.frames()]


def keys_of(frame: Frame) -> list[bytes]:
    return [frame.request_ids[at : at + 16] for at in range(0, len(frame.request_ids), 16)]


@st.composite
def histories(draw: Any) -> list[list[Move]]:
    """Steps of up to six requests, of which 4 wants vectors, and 5 an answer that comes within one step."""
    left, steps, answered = set(range(6)), [], False
    for _ in range(draw(st.integers(1, 4))):
        moves: list[Move] = []
        for number in draw(st.permutations(sorted(left))):
            writes = number < 4
            ids = draw(st.lists(st.integers(0, 50_000), max_size=9)) if writes else []
            text = draw(st.text(alphabet="a€𝄞", max_size=60)) if writes else ""
            vectors = [] if writes or (number == 5 and answered) else draw(st.lists(st.binary(max_size=40), max_size=3))
            answered = answered or (number == 5 and bool(vectors))
            ends = draw(st.booleans())
            left -= {number} if ends else set()
            moves.append((number, ids, text, draw(st.booleans()), vectors, ends))
        steps.append(moves)
    return steps


SIX = st.lists(st.integers(0, 300), min_size=6, max_size=6)


@given(histories(), SIX, st.integers(1, 3), st.integers(1, 2), st.integers(1, 900), st.integers(1, 200))
def test_a_divided_step_says_the_same_by_the_laws_of_a_frame(
    take_frame: Any,
    received_type: Any,
    history: list[list[Move]],
    replies: list[int],
    tenants: int,
    attempt: int,
    frame_bytes: int,
    delta_bytes: int,
) -> None:
    def run() -> tuple[list[list[Frame]], dict[bytes, Any]]:
        made = [
            new_running(number, number % tenants, reply=bytes([number]) * length, attempt=attempt)
            for number, length in enumerate(replies)
        ]
        running = {one.key: one for one in made}
        steps = [frames_of(step_of(moves), running) for moves in history]
        received = {one.key: received_type() for one in made}
        for frames in steps:
            for frame in frames:
                take_frame(frame, received)
        return steps, received

    whole, expected = run()
    with mock.patch.multiple(columns, _FRAME_BYTES=frame_bytes, _DELTA_BYTES=delta_bytes):
        divided, received = run()
    assert all(len(frames) <= 1 for frames in whole)
    for key, one in received.items():
        other = expected[key]
        assert (one.ids, one.text, sum(one.gaps)) == (other.ids, other.text, sum(other.gaps))
        assert (one.logprobs, one.vectors, one.replies) == (other.logprobs, other.vectors, other.replies)
        assert one.output == other.output
        assert one.attempts == other.attempts
        assert (one.close is None) == (other.close is None)
    for frames in divided:
        last = {key: number for number, frame in enumerate(frames) for key in keys_of(frame)}
        for number, frame in enumerate(frames):
            # What is larger than it should be holds one thing, with what must go with it.
            parts = len(frame.first_index) or len(frame.embeddings) + len(frame.outputs) + len(frame.closes)
            assert parts == 1 or (parts > 1 and frame.ByteSize() <= frame_bytes + 128)
            assert len(frames) == 1 or all(size <= delta_bytes + 3 for size in frame.text_size)
            assert len({one.tenant_id for one in frame.contexts}) == len(frame.contexts)
            assert all(last.get(close.request_id, number) == number for close in frame.closes)


def test_a_frame_is_counted_as_no_smaller_than_it_is() -> None:
    running = {one.key: one for one in (new_running(n, n % 3, reply=b"r" * 10_000) for n in range(200))}
    step = Step(START, list(running), [1] * 200, [(1 << 32) - 1] * 200, [b"x" * 10_000] * 200)
    step.logprobs = {number: [logprob((1 << 32) - 1)] for number in range(200)}
    sizes = [frame.ByteSize() for frame in frames_of(step, running)]
    assert max(sizes) < 1 << 20
    assert len(sizes) == 4, "nor as much larger"


def test_the_largest_reply_leaves_room_for_what_must_go_with_it(take_frame: Any, received_type: Any) -> None:
    one = new_running(1, 0, reply=b"r" * columns.MAX_REPLY_BYTES)
    received = {one.key: received_type()}
    said = [TokenLogprob(7, b"token", -1.0, (Alternative(7, b"token", -1.0),) * 20)] * 4096
    step = Step(START, [one.key], [4096], [7] * 4096, ["€".encode() * 1_000_000], logprobs={0: said})
    step.finished.append(Finished(one.key, Finish.LENGTH, 5))
    frames = frames_of(step, {one.key: one})
    assert max(frame.ByteSize() for frame in frames) < BROKER_BYTES
    for frame in frames:
        take_frame(frame, received)
    assert (len(received[one.key].ids), len(received[one.key].logprobs)) == (4096, 4096)
    assert received[one.key].text == step.texts[0]
    assert len(received[one.key].close.request_id) == 16


def test_a_reply_that_no_frame_can_hold_is_an_error_and_no_token(take_frame: Any, received_type: Any) -> None:
    made = [new_running(number, 0, reply=b"r" * (columns.MAX_REPLY_BYTES + 1), attempt=2) for number in range(3)]
    running = {one.key: one for one in made}
    received = {one.key: received_type() for one in made}
    for one in made:
        opening = StepFrames(START)
        opening.open_attempt(one)
        assert not opening.frames() or not opening.frames()[0].first_index
    step = Step(START, list(running), [1] * 3, [7] * 3, [b"x"] * 3, logprobs={0: [logprob(7)]})
    step.embeddings.append(Vector(made[0].key, 0, b"v"))
    reasons = [Finish.STOP, Finish.LENGTH, Finish.CANCELLED]
    step.finished += [Finished(one.key, reason, 5) for one, reason in zip(made, reasons, strict=True)]
    for frame in frames_of(step, running):
        assert frame.ByteSize() < 1000
        take_frame(frame, received)
    for one in made:
        assert (received[one.key].ids, received[one.key].vectors) == ([], {})
    ends = [received[one.key].close for one in made]
    assert [end.error.reason for end in ends] == ["request_too_large", "request_too_large", ""]
    assert ends[0].error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    assert ends[2].finish_reason == FinishReason.FINISH_REASON_CANCELLED


async def test_three_large_replies_that_end_in_one_step_are_stored(
    edge: Any, received_type: Any, nats_server: NatsServer
) -> None:
    """In one frame they were a message that the broker cuts its sender off for, again on each new connection."""
    made = [new_running(n, 0, reply=bytes([n]) * 3_000_000, edge=edge.name) for n in range(3)]
    received = [edge.received.setdefault(one.key, received_type()) for one in made]
    step = Step(START, [one.key for one in made], [1] * 3, [7] * 3, [b"x"] * 3)
    step.finished += [Finished(one.key, Finish.STOP, 5) for one in made]
    frames = FramePublisher(BusConfig(nats_server.url, "w-large"), worker="w-large", boot=1)
    await frames.start()
    for frame in frames_of(step, {one.key: one for one in made}):
        last = frames.publish(frame)
    await frames.wait_acked(last)
    await edge.closed(*received)
    assert [(one.ids, one.replies) for one in received] == [([7], [one.request.reply]) for one in made]
    assert len(edge.frames) == 3
    await frames.stop()


async def test_work_with_the_largest_replies(edge: Any, worker: Any) -> None:
    fits, not_ = (edge.request("say something", reply=b"r" * (columns.MAX_REPLY_BYTES + over)) for over in (0, 1))
    received = [await edge.place(worker.name, request) for request in (fits, not_)]
    await edge.closed(*received)
    assert received[0].ids == list(range(10))
    assert len(received[0].replies[0]) == columns.MAX_REPLY_BYTES
    assert (received[1].ids, received[1].replies) == ([], [b""])
    assert received[1].close.error.reason == "request_too_large"
