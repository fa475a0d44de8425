"""The ledger's law in virtual time: whatever edges ask, give back, forget and die of, and the meter settles, what is
spent is never more than the budget."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from inferbus.bus.v1.registry_pb2 import BudgetGrant, BudgetLedgerRecord, BudgetPeriod, BudgetRecord, CreditRecord
from inferbus_rating import ledger as ledgers

AMOUNT = Decimal(100)
EDGES = ("a", "b", "c")
amounts = st.integers(1, 400).map(lambda n: Decimal(n) / 10)


class Edge:
    """One process: what it knows of its grant, what of that runs, and what it has spent."""

    def __init__(self, name: str, boot: int) -> None:
        self.name, self.boot = name, boot
        self.granted = Decimal(0)
        self.spent = Decimal(0)
        self.running: list[Decimal] = []

    @property
    def used(self) -> Decimal:
        return self.spent + sum(self.running, Decimal(0))


class Budget(RuleBasedStateMachine):
    """Edges reserve bounds and spend up to them; ``charges`` are the truth: (edge, boot) to what its requests cost."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0
        self.ledger = BudgetLedgerRecord()
        self.edges = {name: Edge(name, 0) for name in EDGES}
        self.dead: list[Edge] = []
        self.charges: dict[tuple[str, int], Decimal] = {}

    def tick(self) -> int:
        self.time += 1
        return self.time

    @rule(name=st.sampled_from(EDGES), need=amounts, more=amounts, heard=st.booleans())
    def asks(self, name: str, need: Decimal, more: Decimal, heard: bool) -> None:
        """``heard``: the edge learns of its grant now, or not before it asks again."""
        edge = self.edges[name]
        mine = BudgetGrant(edge=name, boot=edge.boot)
        mine.start_time.FromMicroseconds(edge.boot)
        made = ledgers.granting(
            self.ledger, mine, AMOUNT, spent=edge.used, least=edge.used + need, wanted=edge.used + need + more
        )
        if made is not None:
            self.ledger = made
            if heard:
                grant = ledgers.grant_of(made, name, edge.boot)
                assert grant is not None
                edge.granted = Decimal(grant.granted)
                assert edge.granted >= edge.used + need

    @rule(name=st.sampled_from(EDGES), bound=amounts)
    def accepts(self, name: str, bound: Decimal) -> None:
        edge = self.edges[name]
        if edge.granted - edge.used >= bound:
            edge.running.append(bound)

    @rule(name=st.sampled_from(EDGES), part=st.integers(0, 10))
    def a_request_ends(self, name: str, part: int) -> None:
        edge = self.edges[name]
        if edge.running:
            self._charge(edge, edge.running.pop(0) * part / 10)

    def _charge(self, edge: Edge, cost: Decimal) -> None:
        edge.spent += cost
        key = (edge.name, edge.boot)
        self.charges[key] = self.charges.get(key, Decimal(0)) + cost

    @rule(name=st.sampled_from(EDGES), ends=st.booleans())
    def gives_back(self, name: str, ends: bool) -> None:
        edge = self.edges[name]
        edge.granted = edge.used  # before it is said
        ends = ends and not edge.running
        made = ledgers.returning(self.ledger, name, edge.boot, keeps=edge.used, ended=ends)
        self.ledger = made or self.ledger

    @rule(name=st.sampled_from(EDGES))
    def dies(self, name: str) -> None:
        """Killed: what it runs goes on, and another process begins under its name."""
        self.dead.append(self.edges[name])
        self.edges[name] = Edge(name, self.tick())

    @precondition(lambda self: self.dead)
    @rule(part=st.integers(0, 10))
    def a_dead_one_s_requests_end(self, part: int) -> None:
        for edge in self.dead:
            while edge.running:
                self._charge(edge, edge.running.pop() * part / 10)

    @rule()
    def the_meter_settles(self) -> None:
        done = {(one.name, one.boot) for one in self.dead if not one.running}
        over = [one.ended or (one.edge, one.boot) in done for one in self.ledger.grants]
        charged = ledgers.Charged(
            sum(self.charges.values(), Decimal(0)),
            [self.charges.get((one.edge, one.boot), Decimal(0)) for one in self.ledger.grants],
        )
        ended = [(one.edge, one.boot) for one in self.ledger.grants if one.ended]
        self.ledger = ledgers.settling(self.ledger, charged, over) or self.ledger
        for name, boot in ended:  # an edge that sees its grant gone begins a new one
            if self.edges[name].boot == boot:
                assert not self.edges[name].running
                self.edges[name] = Edge(name, self.tick())

    @invariant()
    def never_more_is_granted_or_spent_than_the_budget(self) -> None:
        assert ledgers.left(self.ledger, AMOUNT) >= 0
        assert sum(self.charges.values(), Decimal(0)) <= AMOUNT
        everyone = [*self.edges.values(), *self.dead]
        running = sum((sum(one.running, Decimal(0)) for one in everyone), Decimal(0))
        assert sum(self.charges.values(), Decimal(0)) + running <= AMOUNT


TestBudget = Budget.TestCase

# --- periods, names, credits ------------------------------------------------------------------------------------------

DAY, MONTH, PREPAID = (
    BudgetPeriod.BUDGET_PERIOD_DAY,
    BudgetPeriod.BUDGET_PERIOD_MONTH,
    BudgetPeriod.BUDGET_PERIOD_PREPAID,
)
moments = st.integers(0, 4_000_000_000_000_000)


@given(kind=st.sampled_from([DAY, MONTH, PREPAID]), at=moments)
def test_a_moment_is_in_its_period_and_the_next_one_follows(kind: BudgetPeriod.ValueType, at: int) -> None:
    period = ledgers.period_at(kind, at)
    assert period.start_us <= at
    if period.end_us is not None:
        assert at < period.end_us
        assert ledgers.period_at(kind, period.end_us).start_us == period.end_us
        assert ledgers.period_at(kind, period.start_us) == period


@given(
    owner=st.sampled_from([("acme", "", ""), ("acme", "web", ""), ("acme", "", "key_1"), ("a.b-c_d", "p.1", "")]),
    kind=st.sampled_from([DAY, MONTH, PREPAID]),
    at=moments,
)
def test_a_ledger_is_found_again_by_its_name(
    owner: tuple[str, str, str], kind: BudgetPeriod.ValueType, at: int
) -> None:
    tenant, project, key = owner
    budget = BudgetRecord(tenant_id=tenant, project_id=project, key_id=key, period=kind, currency="EUR")
    period = ledgers.period_at(kind, at)
    found = ledgers.ledger_of(ledgers.ledger_name(budget, period))
    assert found == ledgers.Ledger(tenant, project, key, kind, period, "EUR")


def credit(name: str, amount: str, expires_us: int | None = None) -> CreditRecord:
    made = CreditRecord(credit_id=name, amount=amount)
    if expires_us is not None:
        made.expire_time.FromMicroseconds(expires_us)
    return made


def test_what_expires_first_is_spent_first_and_the_rest_of_it_is_lost() -> None:
    credits = [credit("ever", "10"), credit("soon", "5", 100), credit("later", "5", 200)]
    budget = BudgetRecord(period=PREPAID)
    spent = BudgetLedgerRecord(settled="3", grants=[BudgetGrant(edge="a", granted="1")])
    assert ledgers.limit_of(budget, credits, ledgers.lapse(spent, credits, 99)) == 20
    first = ledgers.lapse(spent, credits, 100)
    assert [(one.credit_id, one.amount) for one in first.lapsed] == [("soon", "1")]
    assert ledgers.limit_of(budget, credits, first) == 19
    second = ledgers.lapse(first, credits, 200)
    assert ledgers.limit_of(budget, credits, second) == 14
    assert ledgers.left(second, Decimal(14)) == 10
    assert ledgers.lapse(second, credits, 10**9) == second


@given(
    amounts=st.lists(st.tuples(st.integers(1, 50), st.none() | st.integers(1, 5)), max_size=6),
    spent=st.integers(0, 300),
    now=st.integers(0, 6),
)
def test_expiry_never_takes_what_was_spent_nor_what_has_not_expired(
    amounts: list[tuple[int, int | None]], spent: int, now: int
) -> None:
    credits = [credit(str(at), str(amount), expires) for at, (amount, expires) in enumerate(amounts)]
    total = sum(amount for amount, _ in amounts)
    spent = min(spent, total)
    ledger = ledgers.lapse(BudgetLedgerRecord(settled=str(spent)), credits, now)
    limit = ledgers.limit_of(BudgetRecord(period=PREPAID), credits, ledger)
    living = sum(amount for amount, expires in amounts if expires is None or expires > now)
    assert max(spent, living) <= limit <= max(spent, living) + min(spent, living)
    assert ledgers.lapse(ledger, credits, now) == ledger


def test_a_budget_that_is_lowered_grants_nothing_more_and_takes_nothing_back() -> None:
    mine = BudgetGrant(edge="a", boot=1)
    none = BudgetLedgerRecord()
    given_ = ledgers.granting(none, mine, Decimal(10), spent=Decimal(0), least=Decimal(1), wanted=AMOUNT)
    assert given_ is not None
    assert ledgers.total_granted(given_) == 10
    assert ledgers.left(given_, Decimal(4)) == -6
    wanted, least = Decimal(12), Decimal(11)
    assert ledgers.granting(given_, mine, Decimal(4), spent=Decimal(3), least=least, wanted=wanted) is None


@pytest.mark.parametrize(("amount", "text"), [("1.500", "1.5"), ("100", "100"), ("0.000000000001", "0.000000000001")])
def test_amounts_are_written_plainly(amount: str, text: str) -> None:
    assert ledgers.text(Decimal(amount)) == text
