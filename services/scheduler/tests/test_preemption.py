"""Who is paused: enough, no more than that, of one worker, and never so often that it does not come to an end."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from inferbus_scheduler.core.placement import Placement, Policy, filter_out, place
from inferbus_scheduler.core.preemption import Bounds, Victims, victims
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.running import RunningView
from inferbus_scheduler.core.view import ClusterView, WorkerView

NOW = 1000.0
OURS = Policy()
KV = {"kv_block_tokens": 16, "kv_blocks": 100}


def request(priority: Priority = Priority.INTERACTIVE, **fields: object) -> Request:
    return Request(b"r" * 16, "a", "t", "p", priority, NOW, NOW + 60, **fields)  # type: ignore[arg-type]


def running(number: int, priority: Priority = Priority.BATCH, **fields: object) -> RunningView:
    view = RunningView(
        number.to_bytes(16, "big"), 1, "t", "p", priority, "a", "w", 1, number + 1, 100, 50, 60, NOW - 10, False
    )
    return replace(view, **fields)  # type: ignore[arg-type]


def full(name: str = "w", slots: int = 4, **fields: object) -> WorkerView:
    return replace(WorkerView(name, 1, "a", slots, slots, 0, False, NOW + 1), **fields)  # type: ignore[arg-type]


def chosen(decision: Victims | None) -> list[int]:
    return sorted(int.from_bytes(each.request_id, "big") for each in decision.running) if decision else []


@st.composite
def loaded(draw: st.DrawFn) -> tuple[list[WorkerView], dict[str, list[RunningView]]]:
    """Workers whose slots and blocks are those of what runs there."""
    fleet, table, number = [], {}, 0
    for name in draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=4)):
        runs = []
        for _ in range(draw(st.integers(0, 6))):
            number += 1
            made = draw(st.integers(0, 100))
            one = running(
                number,
                draw(st.sampled_from(Priority)),
                worker=name,
                attempt=draw(st.integers(1, 4)),
                input_tokens=draw(st.integers(0, 300)),
                output_tokens=made,
                expected_tokens=made + draw(st.integers(0, 100)),
                placed_at=NOW - draw(st.sampled_from((0.0, 0.5, 10.0))),
            )
            runs.append(one)
        blocks = draw(st.sampled_from((0, 60, 200)))
        worker = full(name, max(1, draw(st.integers(len(runs), len(runs) + 1))), kv_blocks=blocks, kv_block_tokens=16)
        used = sum(-(-one.promised_tokens // 16) for one in runs)
        fleet.append(replace(worker, active=len(runs), kv_blocks_used=min(used, blocks)))
        table[name] = runs
    return fleet, table


@given(loaded(), st.sampled_from(Priority), st.integers(0, 500), st.booleans())
def test_pausing_is_enough_no_more_than_that_and_nobody_else(
    fleet: tuple[list[WorkerView], dict[str, list[RunningView]]], priority: Priority, tokens: int, background: bool
) -> None:
    workers, table = fleet
    asked = request(priority, input_tokens=tokens)
    bounds = Bounds(background=background)
    decision = victims(asked, workers, table, OURS, NOW, bounds)
    assert decision == victims(asked, workers[::-1], table, OURS, NOW, bounds)
    if decision is None:
        return
    assert priority is Priority.INTERACTIVE
    fits = place(asked, ClusterView.of(workers, OURS.weights), {}, OURS, NOW)
    assert not isinstance(fits, Placement), "nobody is paused where it fits"
    worker = next(each for each in workers if each.name == decision.worker)
    for one in decision.running:
        assert one in table[worker.name]
        assert one.priority is Priority.BATCH or (background and one.priority is Priority.BACKGROUND)
        assert one.made_tokens >= bounds.least_tokens * one.attempt
        assert NOW - one.placed_at >= bounds.least_seconds
    assert 0 < len(decision.running) <= bounds.most

    def without(paused: list[RunningView]) -> str | None:
        freed = sum(worker.kv_tokens_for(one.promised_tokens) for one in paused)
        left = replace(worker, active=worker.active - len(paused), kv_tokens_promised=-freed)
        return filter_out(asked, left, OURS, NOW)

    assert without(list(decision.running)) is None
    for one in decision.running:
        rest = [each for each in decision.running if each is not one]
        assert without(rest) is not None, "each of them is needed"


def test_the_one_that_loses_the_fewest_tokens_is_paused() -> None:
    table = {
        "w": [running(1, input_tokens=500), running(2, input_tokens=50), running(3, Priority.BACKGROUND)],
        "v": [running(4, worker="v", input_tokens=20, output_tokens=900)],
    }
    decision = victims(request(), [full("w"), full("v")], table, OURS, NOW)
    assert chosen(decision) == [2]
    assert decision is not None
    assert (decision.worker, decision.boot, decision.lost_tokens) == ("w", 1, 100)


def test_blocks_are_freed_as_well_as_slots() -> None:
    worker = full("w", slots=10, active=6, kv_blocks_used=98, **KV)
    table = {"w": [running(number, input_tokens=100, output_tokens=60, expected_tokens=60) for number in range(6)]}
    asked = request(input_tokens=300)
    assert chosen(victims(asked, [worker], table, OURS, NOW)) == [0, 1], "19 blocks needed, 2 are free, 10 for each"


def test_only_interactive_requests_pause_and_background_only_if_allowed() -> None:
    table = {"w": [running(1, Priority.BACKGROUND)]}
    assert victims(request(), [full()], table, OURS, NOW) is None
    assert chosen(victims(request(), [full()], table, OURS, NOW, Bounds(background=True))) == [1]
    table = {"w": [running(1)]}
    assert victims(request(Priority.BACKGROUND), [full()], table, OURS, NOW) is None


def test_what_no_pausing_helps_against_pauses_nobody() -> None:
    table = {"w": [running(1)]}
    for worker in (
        full(draining=True),
        full(alive_until=NOW - 1),
        full(model="b"),
        full(prefill_tokens=90_000, slots=9),
    ):
        assert victims(request(input_tokens=100), [worker], table, OURS, NOW) is None
    assert victims(request(), [full(), full("v", active=1)], table, OURS, NOW) is None, "it fits elsewhere"


@given(st.integers(1, 5000), st.integers(1, 300))
def test_a_generation_that_is_paused_whenever_it_may_be_comes_to_an_end(length: int, speed: int) -> None:
    """Each attempt has to get further before the next pause, so there are few, whatever comes in."""
    bounds = Bounds()
    done, attempts, steps = 0, 1, 0
    while done < length:
        one = running(1, attempt=attempts, output_tokens=done, resumed_tokens=done, expected_tokens=length)
        made = 0
        while done + made < length:
            made += speed
            steps += 1
            if victims(request(), [full()], {"w": [replace(one, output_tokens=done + made)]}, OURS, NOW, bounds):
                break
        done += made
        attempts += 1
    assert (attempts - 2) * (attempts - 1) / 2 * bounds.least_tokens <= length
    assert steps <= length // speed + attempts
