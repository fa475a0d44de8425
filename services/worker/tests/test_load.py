"""What heartbeats tell, and when a worker may speak at all."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.control_pb2 import Cancel, Heartbeat
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_bus.connection import Bus
from inferbus_runtime import clock
from inferbus_runtime.clock import timestamp
from inferbus_worker.core.energy import input_weight
from inferbus_worker.core.load import LoadCount
from inferbus_worker.core.running import Running, running_of
from inferbus_worker.core.said import Said
from inferbus_worker.core.steps import without
from inferbus_worker.engine import Finish, Finished, Output, Step, TokenLogprob, Vector
from inferbus_worker.fence import Fence

ACCEPTED = 1_700_000_000_000_000
BATCH, INTERACTIVE = PriorityClass.PRIORITY_CLASS_BATCH, PriorityClass.PRIORITY_CLASS_INTERACTIVE


def new_running(number: int, resumed: int = 0) -> Running:
    """Of one of three tenants and two classes; ``resumed``: tokens of an earlier attempt."""
    request = GenerateRequest(request_id=bytes([number]) * 16, edge="e", accepted_time=timestamp(ACCEPTED))
    request.context.tenant_id, request.context.project_id = f"tenant-{number % 3}", "p"
    request.priority_class = BATCH if number % 2 else INTERACTIVE
    request.prompt.tokens.ids.extend([1] * (10 + number))
    if resumed:
        request.resume.attempt = 2
        request.resume.token_ids.extend([7] * resumed)
    return running_of(Work(request=request, attempt=2 if resumed else 1), "rev")


def payer(running: Running) -> tuple[str, str, int]:
    return running.context.tenant_id, running.context.project_id, running.request.priority_class


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 7), st.sampled_from([0, 0, 3])),
        st.tuples(st.just("token"), st.integers(0, 7), st.integers(1, 3)),
        st.tuples(st.just("end"), st.integers(0, 7), st.integers(0, 40)),
        st.tuples(st.just("drop"), st.integers(0, 7), st.just(0)),
        st.tuples(st.sampled_from(["look", "glance", "tell"]), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(ACTIONS)
def test_heartbeats_tell_each_token_once_and_input_as_it_is_counted_at_last(actions: Any) -> None:
    count, running = LoadCount(), dict[int, Running]()
    beats: list[Heartbeat] = []
    owed_output, owed_input, ended, first = Counter[Any](), Counter[Any](), Counter[bytes](), Counter[bytes]()
    for what, number, much in actions:
        one = running.get(number)
        if what == "begin" and one is None:
            running[number] = new_running(number, much)
            count.begun(running[number])
        elif what == "token" and one is not None:
            first[one.key] += not one.ids
            one.first_us = one.first_us or ACCEPTED + 5
            one.ids += [1] * much
            owed_output[payer(one)] += much
        elif what in ("end", "drop") and one is not None:
            del running[number]
            count.ended(one, much if what == "end" else None)
            ended[one.key] += 1
            if what == "end" and not one.resumed:
                owed_input[payer(one)] += much
            elif one.ids and not one.resumed:
                owed_input[payer(one)] += input_weight(one.request)
        elif what == "look":
            count.look(running.values())
            assert count.prefill_tokens == sum(
                input_weight(one.request, len(one.ids)) for one in running.values() if len(one.ids) == one.told_tokens
                and one.told_tokens == (3 if one.resumed else 0)
            )  # fmt: skip
        elif what == "glance":
            count.look_at_reading()
        elif what == "tell":
            beats.append(Heartbeat())
            count.tell(beats[-1])
    for one in running.values():
        count.ended(one, 0)
        ended[one.key] += 1
    beats.append(Heartbeat())
    count.tell(beats[-1])
    told_output, told_input, told_ended = Counter[Any](), Counter[Any](), Counter[bytes]()
    for beat in beats:
        for served in beat.served:
            who = (served.tenant_id, served.project_id, served.priority_class)
            told_output[who] += served.output_tokens
            told_input[who] += served.input_tokens
        told_ended.update(beat.ended_ids[at : at + 16] for at in range(0, len(beat.ended_ids), 16))
    assert +told_output == +owed_output
    assert told_ended.keys() == ended.keys()
    assert told_ended <= ended, "not of an attempt whose next one runs here already"
    assert all(told_input[who] >= tokens for who, tokens in owed_input.items()), "never too little"
    assert count.prefill_tokens == 0
    assert sum(len(beat.ttft_us) for beat in beats) == first.total()
    assert {us for beat in beats for us in beat.ttft_us} <= {5}


def test_what_was_estimated_too_high_is_told_less_of_later() -> None:
    count, one, other = LoadCount(), new_running(0), new_running(6)
    count.begun(one)
    one.ids, one.first_us = [1], ACCEPTED
    count.look([one])
    beat = Heartbeat()
    count.tell(beat)
    assert (beat.served[0].input_tokens, beat.served[0].output_tokens) == (10, 1)
    count.ended(one, 4)
    count.begun(other)
    count.ended(other, 20)
    beat = Heartbeat()
    count.tell(beat)
    assert [served.input_tokens for served in beat.served] == [14], "20, less 6 that were told too much"


def test_that_a_suspect_has_made_a_token_is_to_be_told() -> None:
    """One whose last attempt was fruitless, and no other."""
    count, suspect, other = LoadCount(), new_running(0, 3), new_running(1, 3)
    suspect.request.resume.fruitless_deaths = 1
    count.begun(suspect)
    count.begun(other)
    other.ids += [1]
    count.look_at_reading()
    assert not count.cleared
    suspect.ids += [1]
    count.look_at_reading()
    assert count.cleared


def test_what_was_said_of_a_request_is_remembered_for_a_while() -> None:
    said = Said()
    said.say(b"a", 0.0, 3)
    said.say(b"a", 1.0, 2)
    assert (said.get(b"a", 20.0), said.get(b"b", 20.0)) == (3, 0)
    assert said.get(b"a", 40.0) == 0
    for number in range(70_000):
        said.say(number.to_bytes(16, "big"), 41.0)
    assert len(said._said) == 65536
    assert said.get((69_999).to_bytes(16, "big"), 41.0) == 1


def test_a_step_without_some_of_its_generations() -> None:
    a, b, c = (letter * 16 for letter in (b"a", b"b", b"c"))
    said = [TokenLogprob(1, b"x", -1.0)]
    step = Step(
        5, [a, b, c], [2, 1, 1], [1, 2, 3, 4], [b"x", b"y", b"z"], [Finished(b, Finish.STOP, 1)],
        {1: said, 2: said}, [Vector(b, 0, b""), Vector(c, 0, b"")], [Output(a, 0, b"")],
    )  # fmt: skip
    rest = without(step, {b})
    assert (rest.keys, rest.counts, rest.token_ids, rest.texts) == ([a, c], [2, 1], [1, 2, 4], [b"x", b"z"])
    assert (rest.finished, rest.logprobs) == ([], {1: said})
    assert ([one.key for one in rest.embeddings], [one.key for one in rest.outputs]) == ([c], [a])
    assert without(step, ()) == step


async def test_a_fence_shuts_by_the_clock_and_does_later_what_waited() -> None:
    fence, done = Fence(), list[int]()
    fence.when_open(lambda: done.append(1))
    fence.hold(clock.monotonic() - 1)  # as of one who slept: no timer had a chance
    fence.when_open(lambda: done.append(2))
    waiting = asyncio.ensure_future(fence.wait())
    await asyncio.sleep(0)
    assert (done, fence.open, waiting.done()) == ([1], False, False)
    fence.hold(clock.monotonic() + 60)
    assert (done, fence.open) == ([1, 2], True)
    await waiting


async def test_heartbeats_of_a_working_worker(bus: Bus, edge: Any, new_worker: Callable[..., Any]) -> None:
    worker = new_worker(NODE="rack-7", ZONE="east", COST_PER_HOUR="2.5", HEARTBEAT_INTERVAL="100ms")
    beats: list[Heartbeat] = []
    await bus.subscribe(Heartbeat, lambda beat: beats.append(beat) if beat.worker == worker.name else None)
    await worker.start()
    record = await edge.record(worker.name)
    assert (record.node, record.zone, record.cost_per_hour) == ("rack-7", "east", 2.5)
    short, long = edge.request("say something", 12), edge.request("say something", 20_000)
    long.priority_class = BATCH
    received, running = await edge.place(worker.name, short), await edge.place(worker.name, long)
    await edge.closed(received)
    async with asyncio.timeout(30):
        while not any(list(beat.running.request_ids) and beat.running.output_tokens[0] > 12 for beat in beats):
            await asyncio.sleep(0.02)
    bus.send(Cancel(request_id=long.request_id))
    await edge.closed(running)
    async with asyncio.timeout(30):
        while not any(long.request_id in beat.ended_ids for beat in beats):
            await asyncio.sleep(0.02)
    assert beats[0].HasField("running")
    assert {beat.boot for beat in beats} == {record.boot}
    named = next(beat.running for beat in beats if beat.running.request_ids)
    assert len(named.request_ids) == 16 * len(named.attempts) == 16 * len(named.output_tokens)
    assert any(beat.HasField("running") and not beat.running.request_ids for beat in beats[:1])
    assert sum(not beat.HasField("running") for beat in beats) > 0
    served = Counter[Any]()
    for beat in beats:
        for one in beat.served:
            served[one.tenant_id, one.priority_class] += one.output_tokens
            served["input"] += one.input_tokens
    assert served["acme", PriorityClass.PRIORITY_CLASS_UNSPECIFIED] == 12
    assert served["acme", BATCH] == len(running.ids) > 12
    assert served["input"] >= 4
    ended = b"".join(beat.ended_ids for beat in beats)
    assert sorted([short.request_id, long.request_id]) == sorted([ended[:16], ended[16:]])
    assert sorted(us for beat in beats for us in beat.ttft_us) == sorted((received.gaps[0], running.gaps[0]))


async def test_a_first_token_is_told_at_once(bus: Bus, edge: Any, new_worker: Callable[..., Any]) -> None:
    """Whoever has much to read is given nothing more to read until then."""
    worker = new_worker(HEARTBEAT_INTERVAL="60s", SYNTHETIC__PREFILL="20ms")
    beats: list[Heartbeat] = []
    await bus.subscribe(Heartbeat, lambda beat: beats.append(beat) if beat.worker == worker.name else None)
    await worker.start()
    received = await edge.place(worker.name, edge.request("word " * 20, 2000))
    await edge.until(lambda: received.ids)
    async with asyncio.timeout(30):
        while not any(beat.ttft_us for beat in beats):
            await asyncio.sleep(0.02)
    assert received.close is None
    assert beats[-1].prefill_tokens == 0


@pytest.mark.parametrize("by_text", [True, False])
def test_what_is_known_of_a_resumed_one(by_text: bool) -> None:
    request = GenerateRequest(request_id=b"r" * 16, accepted_time=timestamp(ACCEPTED))
    request.resume.attempt = 3
    request.resume.token_ids.extend([4, 5])
    request.resume.text = "süß".encode()
    for name, after in (("first_started_time", 1), ("first_token_time", 2), ("last_token_time", 9)):
        getattr(request.resume, name).CopyFrom(timestamp(ACCEPTED + after))
    running = running_of(Work(request=request, attempt=3), "rev", by_text=by_text)
    assert (running.attempt, running.ids, running.resumed) == (3, [4, 5], True)
    assert (running.first_started_us, running.first_us, running.last_us) == (ACCEPTED + 1, ACCEPTED + 2, ACCEPTED + 9)
    assert running.texts == (["süß".encode()] if by_text else None)
    fresh = running_of(Work(request=GenerateRequest(request_id=b"r" * 16, accepted_time=timestamp(ACCEPTED))), "rev")
    assert (fresh.attempt, fresh.ids, fresh.last_us, fresh.first_us) == (1, [], ACCEPTED, 0)
