"""What sums and a hash of each charge tell of what was invoiced: that none is gone, as long as no more came back."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st
from inferbus_meter.core.invoice import NOTHING, Account, Group, Sums
from inferbus_meter.core.invoice_kept import CORRECTED_MONTHS, Part, lost_months, parts_of
from inferbus_meter.core.months import months_before

ONE = Decimal(1)
GROUP = Group("2026-10", "p", "m", "chat", "v1", False, *[ONE] * 7)
charges = st.builds(
    lambda calls, tokens, cost, checksum: Sums(1, calls, *tokens, Decimal(cost), checksum),
    st.integers(0, 1), st.tuples(*[st.integers(0, 9)] * 4), st.integers(0, 9), st.integers(1, (1 << 64) - 1),
)  # fmt: skip
unlike = st.lists(charges, max_size=9, unique_by=lambda one: one.checksum)


def added(some: list[Sums]) -> Sums:
    total = NOTHING
    for one in some:
        total = total.plus(one)
    return total


def account(some: list[Sums]) -> Account:
    return Account({GROUP: added(some)}, {}, {})


@given(unlike, st.data())
def test_none_is_lost_if_all_are_there_and_some_are_if_fewer_came_than_went(
    found: list[Sums], data: st.DataObject
) -> None:
    split = data.draw(st.integers(0, len(found)))
    invoiced, new = found[:split], found[split:]
    part = Part(0, frozenset([GROUP.month]))
    assert lost_months(account(invoiced), account(found), part) == set()
    gone = data.draw(st.integers(min(1, split), split))
    came = new[: data.draw(st.integers(0, gone))]
    # One that went and one that came may have the same hash sum in 1 of 2^64 cases.
    assert lost_months(account(invoiced), account([*invoiced[gone:], *came]), part) == (
        {GROUP.month} if gone else set()
    )
    assert lost_months(account(invoiced), account(came), Part(0, frozenset())) == set()


def test_each_month_is_covered_up_to_the_last_invoice_that_could_have_it() -> None:
    def issued(month: str, position: int) -> dict[str, object]:
        return {"month": month, "basis": {"position": position}}

    parts = parts_of([issued("2026-09", 30), issued("2026-10", 20)])
    assert parts[0] == Part(20, frozenset(["2026-10"]))
    months = {months_before("2026-09", back) for back in range(CORRECTED_MONTHS)}
    assert parts[1] == Part(30, frozenset(months))
