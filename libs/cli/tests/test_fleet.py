"""``inferbus fleet`` and ``inferbus drain``."""

from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.control_pb2 import EngineStatistics
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.scheduler.v1.scheduler_pb2 import (
    FleetWorker,
    ListSchedulersResponse,
    ModelQueue,
    SchedulerInstance,
    WatchFleetResponse,
)
from inferbus_cli.commands import drain as draining
from inferbus_cli.commands.fleet import View, render
from inferbus_cli.fleet import Fleet, from_cache, kv_used, queued, shards_of
from inferbus_cli.text import age
from rich.console import Console

from .conftest import Launch, RunningStack, until

NOW_US = 1_795_000_000_000_000
ACTIVE, DRAINING = WorkerState.WORKER_STATE_ACTIVE, WorkerState.WORKER_STATE_DRAINING


def worker(name: str, node: str = "", **fields: object) -> FleetWorker:
    record = WorkerRecord(
        worker=name, node=node, model="m", revision="r1", engine="synthetic", capacity=8, state=ACTIVE,
        boot=NOW_US - 3_600_000_000 * 5,
    )  # fmt: skip
    return FleetWorker(record=record, **fields)


def shown(fleet: Fleet, ttft: dict[str, float] | None = None, width: int = 200) -> str:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(render(View(fleet, ttft or {}), "http://edge", NOW_US))
    return captured.get()


def test_workers_are_shown_by_machine_with_all_that_is_known_of_them() -> None:
    engine = EngineStatistics(kv_blocks_total=100, kv_blocks_used=25, kv_blocks_reused_total=50, kv_block_tokens=16)
    full = worker("worker-0", "rack-1", active=7, on_the_way=1, engine=engine)
    leaving = worker("worker-1", "rack-1")
    leaving.record.state = DRAINING
    picture = WatchFleetResponse(workers=[full, leaving, worker("worker-2", "rack-2")])
    holds = ListSchedulersResponse(
        schedulers=[SchedulerInstance(name="scheduler", shards=range(16)), SchedulerInstance(name="scheduler-1")]
    )
    text = shown(Fleet(picture, holds), {"worker-0": 0.25})
    assert "rack-1: 2 workers, 7 of 16 run" in text
    assert "rack-2: 1 worker, 0 of 8 run" in text
    row = next(line for line in text.splitlines() if "worker-0" in line)
    for cell in ("active", "m", "r1", "7 +1/8", "25%", "800", "250.0 ms", "5 h"):
        assert cell in row
    assert "draining" in next(line for line in text.splitlines() if "worker-1" in line)
    assert "nothing is queued" in text
    assert "0-15" in next(line for line in text.splitlines() if "scheduler " in line and "0" in line)
    assert "it stands by" in text


def test_a_fleet_fits_a_narrow_terminal() -> None:
    text = shown(Fleet(WatchFleetResponse(workers=[worker("worker-0")]), ListSchedulersResponse()), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert "worker-0" in text
    assert "machine not named" in text


def test_an_empty_fleet_and_one_that_does_not_answer_say_so() -> None:
    assert "no worker has registered" in shown(Fleet(WatchFleetResponse(), ListSchedulersResponse()))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(render(View(None, {}, ("nobody answers",)), "http://edge", NOW_US))
    assert "nobody answers" in captured.get()


def test_queues_name_the_class_where_it_is_not_the_usual_one() -> None:
    batch, usual = PriorityClass.PRIORITY_CLASS_BATCH, PriorityClass.PRIORITY_CLASS_INTERACTIVE
    picture = WatchFleetResponse(
        queues=[
            ModelQueue(model="a", priority_class=usual, queued=3), ModelQueue(model="a", priority_class=batch, queued=2)
        ]
    )  # fmt: skip
    assert queued(picture) == "queued: a 3 (oldest -), a batch 2 (oldest -)"


def test_an_engine_that_says_nothing_has_no_figures() -> None:
    assert (kv_used(EngineStatistics()), from_cache(EngineStatistics())) == ("-", "-")


@given(st.sets(st.integers(0, 40)))
def test_shards_come_back_from_their_text(shards: set[int]) -> None:
    found = set()
    for part in filter(None, shards_of(sorted(shards, reverse=True)).split(", ")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    assert found == shards


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 s"), (119, "119 s"), (180, "3 min"), (18_000, "5 h"), (9e5, "10 d")]
)
def test_ages(value: float, text: str) -> None:
    assert age(value) == text


def test_what_is_drained_is_a_worker_or_a_machine() -> None:
    fleet = Fleet(WatchFleetResponse(workers=[worker("a", "n"), worker("n", "n")]), ListSchedulersResponse())
    assert draining._target("a", fleet) == {"worker": "a"}
    assert draining._target("n", fleet) == {"worker": "n"}, "a worker comes first"
    only = Fleet(WatchFleetResponse(workers=[worker("a", "n")]), ListSchedulersResponse())
    assert draining._target("n", only) == {"node": "n"}
    with pytest.raises(click.ClickException, match="there is a, n"):
        draining._target("b", only)


def test_fleet_for_scripts(stack: RunningStack) -> None:
    def whole() -> bool:
        """A lease that ran out while the machine stood still is taken again."""
        fleet = stack.json("fleet")
        shards = sorted(shard for one in fleet["schedulers"] for shard in one["shards"])
        return shards == list(range(16)) and {one["record"]["worker"] for one in fleet["workers"]} == {
            "worker-0", "worker-1"
        }  # fmt: skip

    until(whole, 30)
    text = stack.run("fleet", "--once").stdout
    for wanted in ("worker-0", "worker-1", "active", "scheduler", "0-15"):
        assert wanted in text


def test_a_worker_is_drained_while_the_other_one_serves(launch: Launch, tmp_path: Path) -> None:
    stack = launch(tmp_path / "stack", "--workers", "2")
    done = stack.run("drain", "worker-0", "--grace", "0s", "--wait").stdout
    assert "worker-0 drains." in done
    assert "Drained after" in done
    states = {one["record"]["worker"]: one["record"]["state"] for one in stack.json("fleet")["workers"]}
    assert states == {"worker-0": "WORKER_STATE_DRAINING", "worker-1": "WORKER_STATE_ACTIVE"}
    stack.run("chat", "hello", "--max-tokens", "3")
    assert stack.json("drain", "worker-0")["workers"] == ["worker-0"], "draining twice is the same as once"
    refused = stack.run("drain", "nobody", check=False)
    assert refused.exit_code == 2
    assert "there is no worker and no machine called 'nobody'" in refused.stderr
