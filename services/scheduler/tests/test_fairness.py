"""Who is served, and how much: shares of delivered tokens against weights, whatever the lengths and the estimates."""

import random
from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus_scheduler.core.fairness import FairOrder, Shares
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request

SLOTS = 8


class Server:
    """Slots that generate one token a step each. Tells what it delivered every few steps, as heartbeats do."""

    def __init__(self, queues: Queues, lengths: dict[str, tuple[int, int]], seed: int) -> None:
        self.queues = queues
        self.draw = random.Random(seed)
        self.lengths = lengths
        self.waiting: Counter[str] = Counter()
        self.slots: list[tuple[Request, int]] = []
        self.untold: Counter[tuple[str, str]] = Counter()
        self.delivered: Counter[str] = Counter()
        self.order: list[str] = []
        self.count = 0

    def ask(self, tenant: str, project: str = "p", guess: int = 100) -> None:
        self.count += 1
        request_id = self.count.to_bytes(16, "big")
        self.queues.push(Request(request_id, "m", tenant, project, Priority.INTERACTIVE, 0.0, 1e9, output_tokens=guess))
        self.waiting[tenant] += 1
        self.waiting[f"{tenant}/{project}"] += 1

    def step(self, tell: bool) -> None:
        while len(self.slots) < SLOTS and (first := self.queues.first("m")) is not None:
            self.queues.take(first)
            self.waiting[first.tenant] -= 1
            self.waiting[f"{first.tenant}/{first.project}"] -= 1
            self.order.append(first.tenant)
            self.slots.append((first, self.draw.randint(*self.lengths[first.tenant])))
        running, self.slots = self.slots, []
        for request, left in running:
            self.untold[request.tenant, request.project] += 1
            self.delivered[request.tenant] += 1
            self.delivered[f"{request.tenant}/{request.project}"] += 1
            if left > 1:
                self.slots.append((request, left - 1))
            else:
                self.queues.ended(request.key)
        if tell:
            for (tenant, project), tokens in self.untold.items():
                self.queues.charge("m", tenant, project, Priority.INTERACTIVE, 0, tokens)
            self.untold.clear()


lengths = st.tuples(st.integers(1, 60), st.integers(0, 100)).map(lambda pair: (pair[0], sum(pair)))


@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    weights=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 4), min_size=2),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_shares_of_delivered_tokens_converge_to_the_weights(
    weights: dict[str, int], data: st.DataObject, seed: int
) -> None:
    each = {tenant: data.draw(lengths, label=f"lengths of {tenant}") for tenant in weights}
    guess = {tenant: data.draw(st.integers(1, 200), label=f"guess for {tenant}") for tenant in weights}
    server = Server(Queues(Shares(), lambda tenant, _: (weights[tenant], 1)), each, seed)
    steps = 12_000
    for step in range(steps):
        for tenant in weights:
            while server.waiting[tenant] < SLOTS:
                server.ask(tenant, guess=guess[tenant])
        server.step(tell=step % 10 == 9)
    total = sum(server.delivered[tenant] for tenant in weights)
    assert total == steps * SLOTS, "no slot is ever idle"
    for tenant, weight in weights.items():
        share = server.delivered[tenant] / total
        assert share == pytest.approx(weight / sum(weights.values()), rel=0.05), tenant


def test_projects_share_what_their_tenant_has() -> None:
    queues = Queues(Shares(), lambda tenant, project: (3 if tenant == "big" else 1, 3 if project == "p2" else 1))
    server = Server(queues, {"big": (5, 50), "small": (5, 50)}, 1)
    for step in range(6000):
        for tenant, project in (("big", "p1"), ("big", "p2"), ("small", "p1")):
            while server.waiting[f"{tenant}/{project}"] < SLOTS:
                server.ask(tenant, project)
        server.step(tell=step % 5 == 0)
    had = server.delivered
    assert had["big/p2"] / had["big/p1"] == pytest.approx(3, rel=0.05)
    assert had["big"] / had["small"] == pytest.approx(3, rel=0.05)


def test_a_flood_of_ten_thousand_does_not_delay_anothers_first_one() -> None:
    server = Server(Queues(Shares()), {"flood": (20, 40), "small": (20, 40)}, 1)
    for _ in range(10_000):
        server.ask("flood", guess=4000)
    for step in range(300):
        server.step(tell=step % 10 == 0)
    server.ask("small", guess=4000)
    before = len(server.order)
    while server.waiting["small"]:
        server.step(tell=False)
    assert server.order[before:].index("small") == 0, "it takes the first slot that is free"


def test_idle_time_is_no_credit_and_use_without_rivals_no_debt() -> None:
    server = Server(Queues(Shares()), {"early": (10, 10), "late": (10, 10)}, 1)
    for step in range(2000):
        while server.waiting["early"] < SLOTS:
            server.ask("early")
        server.step(tell=step % 10 == 0)
    alone = server.delivered["early"]
    for step in range(2000):
        for tenant in ("early", "late"):
            while server.waiting[tenant] < SLOTS:
                server.ask(tenant)
        server.step(tell=step % 10 == 0)
    assert server.delivered["late"] / (server.delivered["early"] - alone) == pytest.approx(1, rel=0.05)


@settings(max_examples=50, deadline=None)
@given(
    tenants=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2000)), min_size=2, max_size=8),
    rounds=st.integers(100, 300),
)
def test_nobody_who_waits_is_passed_over_for_ever(tenants: list[tuple[int, int]], rounds: int) -> None:
    """Between two turns of a tenant the others get no more than their weights and one request each allow."""
    order = FairOrder()
    names = [f"t{number}" for number in range(len(tenants))]
    for name, (weight, _) in zip(names, tenants, strict=True):
        order.join(name, weight)
    served: Counter[str] = Counter()
    for _ in range(rounds):
        name = order.first()
        weight, tokens = tenants[names.index(name)]
        order.took_turn(name, tokens)
        order.refund(name, tokens)
        order.deliver(name, weight, tokens)
        served[name] += tokens
        normal = [served[each] / tenants[number][0] for number, each in enumerate(names)]
        largest = max(tokens / weight for weight, tokens in tenants)
        assert max(normal) - min(normal) <= largest + 1e-6


def test_what_is_known_of_the_idle_is_forgotten() -> None:
    order = FairOrder()
    for number in range(1000):
        name = f"t{number}"
        order.join(name, 1)
        order.took_turn(name, 10)
        order.leave(name)
        order.deliver(name, 1, 10)
        order.refund(name, 10)
    order.join("busy", 1)
    order.took_turn("busy", 10)
    order.leave("busy")
    order.prune()
    assert len(order) == 1, "only who is being served is still known"


def test_a_new_tenant_stands_with_those_who_wait_not_before_all_that_ever_was() -> None:
    queue: deque[str] = deque()
    order = FairOrder()
    order.join("old", 1)
    for _ in range(100):
        order.took_turn("old", 100)
        order.deliver("old", 1, 100)
        order.refund("old", 100)
    order.join("new", 1)
    for _ in range(10):
        name = order.first()
        queue.append(name)
        order.took_turn(name, 100)
        order.deliver(name, 1, 100)
        order.refund(name, 100)
    assert abs(queue.count("new") - queue.count("old")) <= 2
