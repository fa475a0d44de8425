"""The queue against a plain model of it: counts add up, nothing is lost, nothing is placed twice."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from inferbus_scheduler.core.fairness import Shares
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request

MODELS, TENANTS = ("a", "b"), ("t1", "t2", "t3")


def request(number: int, model: str = "a", tenant: str = "t1", priority: Priority = Priority.INTERACTIVE) -> Request:
    return Request(number.to_bytes(16, "big"), model, tenant, priority, float(number), number + 1e6)


def order(queues: Queues, count: int, model: str = "a") -> list[Request]:
    taken = []
    for _ in range(count):
        first = queues.first(model)
        assert first is not None
        queues.take(first)
        taken.append(first)
    return taken


class QueueMachine(RuleBasedStateMachine):
    """Every request is pushed once, then waits, or is taken (placed), or was removed (ended)."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = Queues(Shares(background=3, batch=5))
        self.count = 0
        self.waiting: dict[bytes, Request] = {}
        self.taken: dict[bytes, Request] = {}
        self.removed: dict[bytes, Request] = {}

    @rule(model=st.sampled_from(MODELS), tenant=st.sampled_from(TENANTS), priority=st.sampled_from(Priority))
    def push(self, model: str, tenant: str, priority: Priority) -> None:
        self.count += 1
        new = request(self.count, model, tenant, priority)
        self.queues.push(new)
        self.waiting[new.request_id] = new

    @rule(model=st.sampled_from(MODELS))
    def take_next(self, model: str) -> None:
        first = self.queues.first(model)
        assert (first is None) == (not any(each.model == model for each in self.waiting.values()))
        if first is None:
            return
        assert first.request_id not in self.taken
        self.queues.take(first)
        assert self.waiting.pop(first.request_id) == first
        earlier = [
            each
            for each in self.waiting.values()
            if (each.model, each.priority, each.tenant) == (first.model, first.priority, first.tenant)
            and each.arrived_at < first.arrived_at
        ]
        assert not earlier, "inside a tenant the order of arrival is kept"
        self.taken[first.request_id] = first

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def put_back_the_last_taken(self, data: st.DataObject) -> None:
        last = list(self.taken.values())[-1]
        del self.taken[last.request_id]
        self.queues.put_back(last)
        self.waiting[last.request_id] = last

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
        queues.remove(number.to_bytes(16, "big"))
    queues.push(request(99, model="waits"))
    queues.prune()
    assert list(queues._models) == queues.models() == ["waits"]
