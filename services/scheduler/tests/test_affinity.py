"""The index of prefixes against what workers really hold."""

import sys
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from inferbus_scheduler.core.affinity import MOST, PrefixIndex

WORKERS = ("w1", "w2", "w3")
hashes = st.lists(st.integers(0, 30), max_size=12)


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[str, set[int]] = {}

    @rule(worker=st.sampled_from(WORKERS), hashes=hashes)
    def stored(self, worker: str, hashes: list[int]) -> None:
        self.index.stored(worker, hashes)
        self.held.setdefault(worker, set()).update(hashes)

    @rule(worker=st.sampled_from(WORKERS), hashes=hashes)
    def removed(self, worker: str, hashes: list[int]) -> None:
        self.index.removed(worker, hashes)
        self.held.setdefault(worker, set()).difference_update(hashes)

    @rule(worker=st.sampled_from(WORKERS), hashes=hashes)
    def replace(self, worker: str, hashes: list[int]) -> None:
        self.index.replace(worker, hashes)
        self.held[worker] = set(hashes)

    @rule(worker=st.sampled_from(WORKERS))
    def forget(self, worker: str) -> None:
        self.index.forget(worker)
        self.held.pop(worker, None)

    @rule(chain=st.lists(st.integers(0, 30), unique=True, max_size=8))
    def match(self, chain: list[int]) -> None:
        expected = {}
        for worker, held in self.held.items():
            depths = [number + 1 for number, one in enumerate(chain) if one in held]
            if depths:
                expected[worker] = max(depths)
        assert self.index.match(tuple(chain)) == expected

    @invariant()
    def nothing_is_left_behind(self) -> None:
        assert len(self.index) == sum(map(len, self.held.values()))
        assert set(self.index._holders) == set().union(*self.held.values())


TestIndexMachine = IndexMachine.TestCase
TestIndexMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_what_very_many_hold_names_the_best_of_them() -> None:
    index = PrefixIndex()
    for number in range(1000):
        index.stored(f"w{number}", (1, 2, 3))
    index.stored("w7", (4, 5))
    found = index.match((1, 2, 3, 4, 5), ["w900", "w3", "gone"])
    assert found == {"w7": 5, "w900": 3, "w3": 3}
    assert len(index.match((1, 2, 3))) <= MOST


@given(st.integers(10, 200), st.integers(1, 5))
def test_the_bound_holds_and_long_prefixes_are_still_found(bound: int, workers: int) -> None:
    index = PrefixIndex(bound)
    chains = {
        f"w{worker}": tuple(hash((worker, chunk)) & (2**64 - 1) for chunk in range(200)) for worker in range(workers)
    }
    for worker, chain in chains.items():
        index.stored(worker, chain)
        assert len(index) <= bound
    for worker, chain in chains.items():
        assert index.match(chain).keys() <= {worker}
    index.forget("w0")
    assert index.match(chains["w0"]) == {}


def test_an_entry_costs_what_is_said() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        index = PrefixIndex()
        for worker in range(50):
            index.stored(f"w{worker}", (worker * 2**40 + chunk + 2**60 for chunk in range(1000)))
        single = (tracemalloc.get_traced_memory()[0] - before) / len(index)
    finally:
        tracemalloc.stop()
    assert single < 200, f"{single:.0f} bytes on {sys.platform}"
