"""The queue against a plain model of it: counts add up, nothing is lost, nothing is placed twice."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from inferbus_scheduler.core.fairness import Shares
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request

MODELS, TENANTS = ("a", "b"), ("t1", "t2", "t3")


def request(
    number: int, model: str = "a", tenant: str = "t1", priority: Priority = Priority.INTERACTIVE, **fields: Any
) -> Request:
    request_id = number.to_bytes(16, "big")
    project = fields.pop("project", "p")
    return Request(request_id, model, tenant, project, priority, float(number), number + 1e6, **fields)


def order(queues: Queues, count: int, model: str = "a") -> list[Request]:
    taken = []
    for _ in range(count):
        first = queues.first(model)
        assert first is not None
        queues.take(first)
        taken.append(first)
    return taken


class QueueMachine(RuleBasedStateMachine):
    """Every request is pushed once, then waits, or is taken (placed), or was removed (ended). What was taken may come
    back for another attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = Queues(Shares(background=3, batch=5))
        self.count = 0
        self.waiting: dict[bytes, Request] = {}
        self.taken: dict[bytes, Request] = {}
        self.removed: dict[bytes, Request] = {}

    @rule(
        model=st.sampled_from(MODELS),
        tenant=st.sampled_from(TENANTS),
        project=st.sampled_from(("p1", "p2")),
        priority=st.sampled_from(Priority),
        tokens=st.integers(0, 1000),
    )
    def push(self, model: str, tenant: str, project: str, priority: Priority, tokens: int) -> None:
        self.count += 1
        new = request(self.count, model, tenant, priority, project=project, input_tokens=tokens)
        self.queues.push(new)
        self.waiting[new.key] = new

    @rule(model=st.sampled_from(MODELS))
    def take_next(self, model: str) -> None:
        first = self.queues.first(model)
        assert (first is None) == (not any(each.model == model for each in self.waiting.values()))
        if first is None:
            return
        assert first.key not in self.taken
        self.queues.take(first)
        assert self.waiting.pop(first.key) == first
        same = [
            each
            for each in self.waiting.values()
            if (each.model, each.priority, each.tenant) == (first.model, first.priority, first.tenant)
        ]
        if first.attempt == 1:
            earlier = [each for each in same if each.project == first.project and each.arrived_at < first.arrived_at]
            assert not earlier, "inside a project the order of arrival is kept"
            assert not any(each.attempt > 1 for each in same), "of a tenant, what was on a worker goes first"
        self.taken[first.key] = first

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def put_back_the_last_taken(self, data: st.DataObject) -> None:
        last = list(self.taken.values())[-1]
        del self.taken[last.key]
        self.queues.put_back(last)
        self.waiting[last.key] = last

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), again=st.booleans(), delivered=st.integers(0, 1000))
    def end(self, data: st.DataObject, again: bool, delivered: int) -> None:
        over = self.taken.pop(data.draw(st.sampled_from(sorted(self.taken))))
        self.queues.charge(over.model, over.tenant, over.project, over.priority, delivered, delivered)
        self.queues.ended(over.key)
        self.queues.ended(over.key)
        self.removed[over.key] = over
        if again:
            self.count += 1
            next_one = replace(over, attempt=over.attempt + 1)
            self.queues.push(next_one)
            self.waiting[next_one.key] = next_one

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queues.remove(gone) == self.waiting[gone]
        self.removed[gone] = self.waiting.pop(gone)

    @rule()
    def prune(self) -> None:
        self.queues.prune()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def a_second_push_is_refused(self, data: st.DataObject) -> None:
        again = self.waiting[data.draw(st.sampled_from(sorted(self.waiting)))]
        with pytest.raises(ValueError, match="waits already"):
            self.queues.push(again)

    @invariant()
    def counts_add_up(self) -> None:
        assert len(self.queues) == len(self.waiting)
        assert self.count == len(self.waiting) + len(self.taken) + len(self.removed)
        expected = Counter((each.model, each.priority) for each in self.waiting.values())
        seen = {(model, priority): count for model, priority, count, _ in self.queues.oldest()}
        assert seen == expected
        for model in MODELS:
            assert self.queues.ahead(model, Priority.BATCH) == sum(n for (m, _), n in expected.items() if m == model)
            assert self.queues.ahead(model, Priority.INTERACTIVE) == expected[model, Priority.INTERACTIVE]

    @invariant()
    def the_oldest_is_the_oldest(self) -> None:
        for model, priority, _, at in self.queues.oldest():
            same = [w.arrived_at for w in self.waiting.values() if (w.model, w.priority) == (model, priority)]
            assert at == min(same)

    @invariant()
    def membership_is_known(self) -> None:
        assert all(each in self.queues for each in self.waiting)
        assert not any(each in self.queues for each in (*self.taken, *self.removed))

    def teardown(self) -> None:
        for model in MODELS:
            while any(each.model == model for each in self.waiting.values()):
                self.take_next(model)
        assert not self.waiting
        assert self.queues.models() == []


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_was_on_a_worker_goes_first_of_its_tenant() -> None:
    queues = Queues(Shares())
    for number in range(3):
        queues.push(request(number))
    queues.push(request(9, attempt=2))
    assert [each.attempt for each in order(queues, 4)] == [2, 1, 1, 1]


def test_projects_of_a_tenant_take_turns() -> None:
    queues = Queues(Shares())
    for number in range(10):
        queues.push(request(number, project="large"))
    queues.push(request(10, project="small"))
    assert [each.project for each in order(queues, 3)] == ["large", "small", "large"]


def test_models_are_pumped_with_their_adapters_in_turn() -> None:
    queues = Queues(Shares())
    for number, model in enumerate(("a", "a:x", "b", "a:y")):
        queues.push(request(number, model=model))
    assert queues.waiting_for("a") == ["a", "a:x", "a:y"]
    assert queues.waiting_for("a") == ["a:x", "a:y", "a"]
    assert queues.waiting_for("c") == []


def test_the_state_of_a_queue_says_what_is_ahead_and_whose_it_is() -> None:
    queues = Queues(Shares(), lambda tenant, _: (3, 1) if tenant == "t3" else (1, 1))
    for number in range(6):
        queues.push(request(number, tenant="t1"))
    queues.push(request(7, tenant="t2", priority=Priority.BATCH))
    state = queues.state(request(8, tenant="t3"), 2.0)
    assert (state.ahead, state.own, state.part, state.rate) == (6, 0, 0.75, 2.0)
    assert queues.state(request(8, tenant="t1")).part == 1.0
    assert queues.state(request(8, tenant="t1", priority=Priority.BATCH)).ahead == 7
    assert queues.state(request(8, model="b")).ahead == 0


def test_tenants_take_turns_and_one_tenants_flood_delays_nobody_else() -> None:
    queues = Queues(Shares())
    for number in range(100):
        queues.push(request(number, tenant="flood"))
    queues.push(request(100, tenant="small"))
    queues.push(request(101, tenant="other"))
    assert [each.tenant for each in order(queues, 5)] == ["flood", "small", "other", "flood", "flood"]


def test_higher_classes_go_first_and_lower_ones_get_their_share() -> None:
    queues = Queues(Shares(background=10, batch=30))
    for number in range(400):
        queues.push(request(number))
        queues.push(request(1000 + number, priority=Priority.BACKGROUND))
        queues.push(request(2000 + number, priority=Priority.BATCH))
    taken = order(queues, 300)
    counts = Counter(each.priority for each in taken)
    assert [each.priority for each in taken[:10]] == [Priority.INTERACTIVE] * 10
    assert taken[10].priority is Priority.BACKGROUND
    assert 20 <= counts[Priority.BACKGROUND] <= 30
    assert 8 <= counts[Priority.BATCH] <= 10


def test_what_is_put_back_is_next_again() -> None:
    queues = Queues(Shares())
    for number in range(3):
        queues.push(request(number, tenant=f"t{number}"))
    [first] = order(queues, 1)
    queues.put_back(first)
    assert order(queues, 3)[0] == first


def test_nothing_is_kept_of_a_model_for_which_nothing_waits() -> None:
    queues = Queues(Shares())
    for number in range(50):
        queues.push(request(number, model=f"model-{number}"))
        queues.remove(request(number).key)
    queues.push(request(98, model="runs"))
    [running] = order(queues, 1, "runs")
    queues.push(request(99, model="waits"))
    queues.prune()
    assert queues.models() == ["waits"]
    assert list(queues._models) == ["runs", "waits"], "what it owes is still known"
    queues.ended(running.key)
    queues.prune()
    assert list(queues._models) == ["waits"]
    assert list(queues._names) == ["waits"]
