"""Any course of placements, deaths, fences, moves, preemptions and cancels, as a machine: schedulers and workers as
they act, each of their steps by itself and broken off anywhere, over the real rules of the log (fold, fate) and the
real reader of an edge. No token is lost, doubled or out of order, and each request ends once, after the tokens that its
end knows of."""

import asyncio
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from inferbus.bus.v1.frame_pb2 import Close, Fence, Frame, TokenLogprob
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.error_pb2 import Error
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts.ids import request_id
from inferbus_contracts.recovery import begun, fold
from inferbus_contracts.subjects import message_id, token_subject
from inferbus_edge.measure import Timing
from inferbus_edge.sinks import Nowhere
from inferbus_edge.streaming import Answer, Streams
from inferbus_scheduler.core.migration import Closed, Orphan, Reason, fate, refusal_of, with_resume

NOW_US = 1_795_000_000_000_000
CONTEXT = RequestContext(tenant_id="t", project_id="p", key_id="k", model="m", revision="r")
EDGE = "e"
WORKERS = ("w0", "w1", "w2")
COPIES = 0
PATIENCE = 2
Placement = tuple[str, int]


class Nobody:
    """Listens to the streams."""

    def stray(self, request_id: bytes, now: float) -> None: ...

    def left(self, answer: Answer, reason: str) -> bool:
        return False

    def broken(self, answer: Answer, reason: str) -> None: ...

    def ended(self, answer: Answer) -> None: ...


class Client(Nowhere):
    """What a client is sent. A token says its index, and which attempt made it: another would have made another one."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ends = 0

    def write(
        self, choice: int, count: int, text: bytes, escaped: bytes, logprobs: Sequence[TokenLogprob], now: float
    ) -> str | None:
        tokens = [int(one) for one in text.decode().split()]
        assert len(tokens) == count
        self.tokens += tokens
        return None

    def close(self, choice: int, revision: str, close: Close, now: float, model: str = "") -> None:
        self.ends += 1


@dataclass
class Asked:
    """One request, as its client sees it."""

    length: int
    client: Client
    answer: Answer
    cancelled: bool = False
    # Deaths that a worker of its may have had for no other reason than itself.
    deaths: int = 0


@dataclass
class Generation:
    """``tokens``: those of earlier attempts, as it was told, and its own."""

    work: Work
    sequence: int
    tokens: list[int]
    closed: bool = False

    @property
    def request(self) -> bytes:
        return self.work.request.request_id


@dataclass
class Incarnation:
    """``alive``: its process acts. ``known``: the fleet takes it for one of its own. One without the other is a worker
    that nobody has noticed the death of, or a zombie."""

    worker: str
    boot: int
    alive: bool = True
    known: bool = True
    running: dict[int, Generation] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.log: list[Frame] = []
        self.work: dict[int, tuple[Placement, Work]] = {}
        self.queue: dict[int, GenerateRequest] = {}
        # Message ids, by stream: what has one of them is stored once.
        self.work_ids: dict[str, int] = {}
        self.queue_ids: set[str] = set()
        # Of each attempt that was given back: the tokens before it.
        self.tokens_before: dict[tuple[bytes, int], list[int]] = {}
        self.sequence = 0
        self.boots = 0
        # Of each request, by the laws of the log: the attempt that counts, and how many ends do.
        self.attempts: dict[bytes, int] = {}
        self.ended: dict[bytes, int] = {}
        self.asked: dict[bytes, Asked] = {}
        self.incarnations = [self.started(worker) for worker in WORKERS[:2]]
        self.moves: list[Generator[None, None, None]] = []
        self.moved: set[tuple[str, bytes, int]] = set()
        self.cancels: set[bytes] = set()
        self.streams = Streams(Nobody())
        self.runner = asyncio.Runner()

    def teardown(self) -> None:
        try:
            self.come_to_an_end()
        finally:
            self.runner.close()

    # --- the bus ---

    def next_sequence(self) -> int:
        self.sequence += 1
        return self.sequence

    def said(self, frame: Frame) -> None:
        """Stored, and read by the edge."""
        frame.edge, frame.time_us = EDGE, NOW_US + len(self.log)
        self.log.append(Frame.FromString(frame.SerializeToString()))
        self.count(frame)
        self.streams.on_frame(self.log[-1], len(self.log))

    def count(self, frame: Frame) -> None:
        said = [(fence.request_id, fence.attempt) for fence in frame.fences]
        said += [(frame.request_ids, attempt) for attempt in frame.attempt]  # one request a frame
        for close in frame.closes:
            said.append((close.request_id, close.attempt or 1))
            if (close.attempt or 1) >= self.attempts.get(close.request_id, 1):
                self.ended[close.request_id] = self.ended.get(close.request_id, 0) + 1
        for request, attempt in said:
            self.attempts[request] = max(attempt, self.attempts.get(request, 1))

    def store_work(self, work: Work, name: str) -> int:
        if name not in self.work_ids:
            self.work_ids[name] = self.next_sequence()
            self.work[self.work_ids[name]] = ((work.worker, work.boot), Work.FromString(work.SerializeToString()))
        return self.work_ids[name]

    def store_request(self, request: GenerateRequest, tokens: Sequence[int] = ()) -> None:
        if message_id(request) not in self.queue_ids:
            self.queue_ids.add(message_id(request))
            self.queue[self.next_sequence()] = GenerateRequest.FromString(request.SerializeToString())
            self.tokens_before[request.request_id, request.resume.attempt] = list(tokens)

    def close(
        self, worker: str, request: GenerateRequest, attempt: int, tokens: list[int], reason: str, stead: str
    ) -> None:
        """The end that counts for the client comes after the very tokens that whoever ends it knows of."""
        frame = Frame(worker=worker, stead=stead, contexts=[CONTEXT])
        close = frame.closes.add(
            request_id=request.request_id, attempt=attempt, usage=Usage(input_tokens=1, output_tokens=len(tokens)),
            finish_reason=FinishReason.Value(f"FINISH_REASON_{reason}"),
        )  # fmt: skip
        if reason == "ERROR":
            close.error.CopyFrom(Error(reason="worker_lost"))
        asked = self.asked[request.request_id]
        had_ended = asked.answer.done.done()
        self.said(frame)
        if asked.answer.done.done() and not had_ended:
            assert asked.client.tokens == tokens

    # --- clients ---

    @precondition(lambda self: len(self.asked) < 2)
    @rule(length=st.sampled_from([3, 5, 1, 0]))
    def asks(self, length: int) -> None:
        request = request_id(NOW_US // 1000, bytes([len(self.asked)] * 10), EDGE)

        async def answer() -> Answer:
            return Answer(request, 1, client, Timing("m", NOW_US))

        client = Client()
        self.asked[request] = Asked(length, client, self.runner.run(answer()))
        self.streams.add(self.asked[request].answer)
        self.store_request(GenerateRequest(request_id=request, edge=EDGE, context=CONTEXT))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), heard=st.booleans())
    def cancels_one(self, data: st.DataObject, heard: bool) -> None:
        """Whoever runs it hears it; a scheduler maybe not."""
        request = data.draw(st.sampled_from(sorted(self.asked)))
        self.asked[request].cancelled = True
        if heard:
            self.cancels.add(request)
        for incarnation in self.alive():
            for generation in list(incarnation.running.values()):
                if generation.request == request and not generation.closed:
                    self.ends(incarnation, generation, "CANCELLED")

    # --- the scheduler places ---

    @precondition(lambda self: self.queue and any(one.known for one in self.incarnations))
    @rule(data=st.data(), killed=st.booleans())
    def places(self, data: st.DataObject, killed: bool) -> None:
        """``killed``: after WORK has it, and before REQUESTS forgets it."""
        sequence = data.draw(st.sampled_from(sorted(self.queue)))
        known = [one for one in self.incarnations if one.known]
        self.place(sequence, data.draw(st.sampled_from(known)))
        if not killed:
            del self.queue[sequence]

    def place(self, sequence: int, incarnation: Incarnation) -> None:
        request = self.queue[sequence]
        attempt, end = request.resume.attempt, request.resume.end
        name = message_id(Work(request=request, attempt=attempt))
        if name not in self.work_ids and (end or request.request_id in self.cancels):
            how = "ERROR" if end and refusal_of(request.resume) is not None else "CANCELLED"
            tokens = self.tokens_before[request.request_id, attempt]
            assert len(tokens) == (request.resume.output_tokens if end else len(request.resume.token_ids))
            self.close("s", request, attempt, tokens, how, "")
            self.work_ids[name] = 0  # it is settled
            return
        if end:
            return  # it comes again
        self.store_work(
            Work(request=request, worker=incarnation.worker, boot=incarnation.boot, attempt=attempt or 1), name
        )

    # --- workers ---

    def started(self, worker: str) -> Incarnation:
        self.boots += 1
        return Incarnation(worker, self.boots)

    def alive(self) -> list[Incarnation]:
        return [one for one in self.incarnations if one.alive]

    def waiting(self) -> list[tuple[Incarnation, int]]:
        return [
            (one, sequence)
            for one in self.alive()
            for sequence, (of, _) in self.work.items()
            if of == (one.worker, one.boot) and sequence not in one.seen
        ]

    @precondition(lambda self: self.waiting())
    @rule(data=st.data(), opens=st.booleans())
    def takes(self, data: st.DataObject, opens: bool) -> None:
        incarnation, sequence = data.draw(st.sampled_from(self.waiting()))
        self.take(incarnation, sequence, opens)

    def take(self, incarnation: Incarnation, sequence: int, opens: bool) -> Generation:
        work = self.work[sequence][1]
        tokens = list(work.request.resume.token_ids)
        generation = incarnation.running[sequence] = Generation(work, sequence, tokens)
        incarnation.seen.add(sequence)
        if opens and work.attempt > 1:
            self.makes(incarnation, generation, 0)
        return generation

    def unfinished(self) -> list[tuple[Incarnation, Generation]]:
        return [
            (one, generation) for one in self.alive() for generation in one.running.values() if not generation.closed
        ]

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), count=st.integers(0, 3))
    def steps(self, data: st.DataObject, count: int) -> None:
        incarnation, generation = data.draw(st.sampled_from(self.unfinished()))
        self.step(incarnation, generation, count)

    def step(self, incarnation: Incarnation, generation: Generation, count: int) -> None:
        left = self.asked[generation.request].length - len(generation.tokens)
        if left == 0:
            self.ends(incarnation, generation, "LENGTH")
        else:
            self.makes(incarnation, generation, min(count, left))

    def makes(self, incarnation: Incarnation, generation: Generation, count: int) -> None:
        first, attempt = len(generation.tokens), generation.work.attempt
        tokens = [1000 * attempt + index for index in range(first, first + count)]
        generation.tokens += tokens
        text = "".join(f"{token} " for token in tokens).encode()
        self.said(
            Frame(
                worker=incarnation.worker, contexts=[CONTEXT], request_ids=generation.request, attempt=[attempt],
                first_index=[first], token_count=[count], gap_us=[1], text_size=[len(text)], token_id=tokens, text=text,
            )
        )  # fmt: skip

    def ends(self, incarnation: Incarnation, generation: Generation, reason: str) -> None:
        generation.closed = True
        work = generation.work
        self.close(incarnation.worker, work.request, work.attempt, generation.tokens, reason, "")

    @precondition(lambda self: any(one.closed for each in self.alive() for one in each.running.values()))
    @rule(data=st.data())
    def acknowledges(self, data: st.DataObject) -> None:
        ended = [(each, one) for each in self.alive() for one in each.running.values() if one.closed]
        incarnation, generation = data.draw(st.sampled_from(ended))
        self.settle(incarnation, generation)

    def settle(self, incarnation: Incarnation, generation: Generation) -> None:
        self.work.pop(generation.sequence, None)
        del incarnation.running[generation.sequence]

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), noticed=st.booleans())
    def is_killed(self, data: st.DataObject, noticed: bool) -> None:
        incarnation = data.draw(st.sampled_from(self.alive()))
        incarnation.alive = False
        incarnation.known = incarnation.known and not noticed

    @precondition(lambda self: any(one.known for one in self.incarnations))
    @rule(data=st.data())
    def is_given_up(self, data: st.DataObject) -> None:
        """Its lease has ended: it is dead, stands still, is cut off, or goes on as a zombie."""
        data.draw(st.sampled_from([one for one in self.incarnations if one.known])).known = False

    @precondition(lambda self: len([one for one in self.incarnations if one.known]) < len(WORKERS))
    @rule()
    def starts_again(self) -> None:
        known = {one.worker for one in self.incarnations if one.known}
        name = next(worker for worker in WORKERS if worker not in known)
        self.incarnations.append(self.started(name))

    @precondition(lambda self: self.recalled())
    @rule(data=st.data())
    def is_recalled(self, data: st.DataObject) -> None:
        """It drops what was moved, without a word."""
        self.settle(*data.draw(st.sampled_from(self.recalled())))

    def recalled(self) -> list[tuple[Incarnation, Generation]]:
        return [
            (each, one)
            for each in self.alive()
            for one in each.running.values()
            if (each.worker, one.request, one.work.attempt) in self.moved
        ]

    # --- schedulers move ---

    def movable(self) -> list[Placement]:
        return sorted({of for of, _ in self.work.values()})

    @precondition(lambda self: self.movable())
    @rule(data=st.data(), reason=st.sampled_from(Reason))
    def begins_a_move(self, data: st.DataObject, reason: Reason) -> None:
        """Of whoever is gone; or, of a living worker, of all it has, or of some."""
        of = data.draw(st.sampled_from(self.movable()))
        known = any((one.worker, one.boot) == of and one.known for one in self.incarnations)
        if of[1] == COPIES:
            reason = Reason.RECALLED
        elif not known:
            reason = Reason.WORKER_LOST
        elif reason is Reason.WORKER_LOST:
            reason = Reason.DRAINED
        sequences = sorted(sequence for sequence, (its, _) in self.work.items() if its == of)
        if reason is Reason.PREEMPTED:
            sequences = data.draw(st.lists(st.sampled_from(sequences), min_size=1, unique=True))
        self.moves.append(self.move(of, sequences, reason))

    @precondition(lambda self: self.moves)
    @rule(data=st.data(), steps=st.integers(1, 12))
    def goes_on_moving(self, data: st.DataObject, steps: int) -> None:
        move = data.draw(st.sampled_from(self.moves))
        for _ in range(steps):
            if next(move, "done") == "done":
                self.moves.remove(move)
                return

    @precondition(lambda self: self.moves)
    @rule(data=st.data())
    def a_scheduler_is_killed(self, data: st.DataObject) -> None:
        """Its moves are broken off where they are."""
        self.moves.remove(data.draw(st.sampled_from(self.moves)))

    def move(self, of: Placement, sequences: Sequence[int], reason: Reason) -> Generator[None, None, None]:
        """As :mod:`inferbus_scheduler.moving`; it may stop for ever at each yield, and others act there."""
        worker = of[0]
        read = [(sequence, self.work[sequence][1]) for sequence in sequences if sequence in self.work]
        orphans = [orphan_of(sequence, work) for sequence, work in read]
        works = dict(read)
        copies: dict[int, int] = {}
        yield
        for sequence, work in read:
            if of[1] != COPIES:
                copy = Work.FromString(work.SerializeToString())
                copy.boot = COPIES
                copies[sequence] = self.store_work(copy, f"{message_id(work)}-moved")
                yield
        fences = [Fence(request_id=one.request_id, attempt=one.next_attempt) for one in orphans]
        self.said(Frame(worker="s", stead=worker, fences=fences))
        end = len(self.log)
        yield
        found = {one.request_id: begun(one.resume) for one in orphans}
        for frame in self.log[:end]:
            if token_subject(EDGE, frame.stead or frame.worker) == token_subject(EDGE, worker):
                fold(frame, found)
        yield
        for orphan in orphans:
            on_log = found[orphan.request_id]
            outcome = fate(
                orphan, on_log, reason, cancelled=orphan.request_id in self.cancels, patience=PATIENCE, now_us=NOW_US
            )
            if not isinstance(outcome, Closed):
                request = GenerateRequest.FromString(works[orphan.sequence].request.SerializeToString())
                tokens = list(outcome.resume.token_ids)
                asked = self.asked[orphan.request_id]
                asked.deaths = max(asked.deaths, outcome.resume.fruitless_deaths)
                self.store_request(with_resume(request, outcome.resume, worker), tokens)
            self.moved.add((worker, orphan.request_id, orphan.attempt))
            yield
            self.work.pop(orphan.sequence, None)
            yield
            if orphan.sequence in copies:
                self.work.pop(copies[orphan.sequence], None)
                yield

    # --- what must hold ---

    @invariant()
    def each_client_sees_each_token_once_and_in_order(self) -> None:
        for asked in self.asked.values():
            assert [token % 1000 for token in asked.client.tokens] == list(range(len(asked.client.tokens)))
            assert len(asked.client.tokens) <= asked.length
            assert asked.client.ends <= 1
            assert self.ended.get(asked.answer.first, 0) <= 1
            error = asked.answer.error
            if error is not None:
                assert (error.reason == "worker_lost" and asked.deaths >= PATIENCE) or (
                    error.reason == "cancelled" and asked.cancelled
                ), error

    def does(self, deed: str, incarnation: Incarnation, generation: Generation) -> None:
        """One of DEEDS."""
        if deed == "a token":
            self.makes(incarnation, generation, 1)
        elif deed.startswith("its end"):
            left = self.asked[generation.request].length - len(generation.tokens)
            self.makes(incarnation, generation, left)
            self.ends(incarnation, generation, "LENGTH")
            if deed.endswith("acknowledged"):
                self.settle(incarnation, generation)
        elif deed == "its death":
            incarnation.alive = incarnation.known = False
        elif deed == "a cancel":
            self.asked[generation.request].cancelled = True
            self.cancels.add(generation.request)

    def come_to_an_end(self) -> None:
        """Everybody is gone; the next scheduler and a new worker end all that there is."""
        for one in self.incarnations:
            one.known = one.alive = False
        last = Incarnation("w9", 10_000)
        self.incarnations = [last]
        for _ in range(50):
            for of in self.movable():
                sequences = sorted(sequence for sequence, (its, _) in self.work.items() if its == of)
                for _ in self.move(of, sequences, Reason.RECALLED):
                    pass
            for sequence in list(self.queue):
                self.place(sequence, last)
                del self.queue[sequence]
            for incarnation, sequence in self.waiting():
                generation = self.take(incarnation, sequence, opens=True)
                while not generation.closed:
                    self.step(incarnation, generation, 1)
                self.settle(incarnation, generation)
            if not self.work and not self.queue:
                break
        assert not self.work
        assert not self.queue
        self.each_client_sees_each_token_once_and_in_order()
        for asked in self.asked.values():
            assert asked.answer.on_log, "it has ended"
            if asked.answer.error is None and not asked.cancelled:
                assert len(asked.client.tokens) == asked.length


def orphan_of(sequence: int, work: Work) -> Orphan:
    return Orphan(
        sequence=sequence, request_id=work.request.request_id, attempt=work.attempt or 1, edge=EDGE, model="m",
        resume=work.request.resume, stored_us=0,
    )  # fmt: skip


TestMigration = Machine.TestCase
TestMigration.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


DEEDS = ("nothing", "a token", "its end", "its end, acknowledged", "its death", "a cancel")


@pytest.mark.parametrize("suspect", [False, True])
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("reason", [Reason.DRAINED, Reason.WORKER_LOST])
def test_a_living_worker_does_something_at_each_step_of_a_move_that_is_broken_off_at_each_step(
    deed: str, reason: Reason, suspect: bool
) -> None:
    """All courses with one request: whoever is killed, leaves or wakes in whichever moment. The next move is no death:
    so it may come to another end. ``suspect``: one more death without a token is too many."""
    steps = 9
    for at in range(steps):
        for broken_off in range(at, steps):
            machine = Machine()
            machine.asks(3)
            (sequence,) = machine.queue
            if suspect:
                machine.queue[sequence].resume.attempt = 2
                machine.queue[sequence].resume.fruitless_deaths = PATIENCE - 1
                machine.tokens_before[machine.queue[sequence].request_id, 2] = []
            incarnation = machine.incarnations[0]
            machine.place(sequence, incarnation)
            del machine.queue[sequence]
            (placement,) = machine.work
            generation = machine.take(incarnation, placement, opens=False)
            if not suspect:
                machine.makes(incarnation, generation, 1)
            move = machine.move((incarnation.worker, incarnation.boot), [placement], reason)
            for step in range(broken_off):
                if step == at:
                    machine.does(deed, incarnation, generation)
                next(move, None)
            if at == broken_off:
                machine.does(deed, incarnation, generation)
            machine.teardown()
