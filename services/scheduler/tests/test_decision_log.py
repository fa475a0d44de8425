"""What was decided, as DECISIONS tells it."""

from inferbus.bus.v1.decision_pb2 import DecisionOutcome, PlacementDecisions
from inferbus_bus.log import FrameLog
from inferbus_scheduler.core.decisions import Decision, Outcome
from inferbus_scheduler.core.placement import Placement, Policy, judge, place
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.view import ClusterView, WorkerView
from inferbus_scheduler.decision_log import SEEN_WORKERS, columns, seen_by

POLICY = Policy()


def worker(name: str, active: int = 0) -> WorkerView:
    return WorkerView(
        name=name, boot=1, model="m", capacity=8, active=active, on_the_way=0, draining=False, alive_until=100.0,
        kv_blocks=100, kv_blocks_used=25, kv_block_tokens=16, prefill_tokens=7,
    )  # fmt: skip


def request(number: int, tenant: str = "t") -> Request:
    return Request(
        request_id=bytes([number]) * 16, model="m", tenant=tenant, project="p", priority=Priority.BATCH,
        arrived_at=10.0, expires_at=90.0, attempt=2, input_tokens=30, output_tokens=40, prefix=(1, 2, 3),
        queued_at=11.0,
    )  # fmt: skip


def test_the_chosen_worker_is_seen_first_and_few_others() -> None:
    view = ClusterView.of([worker(f"w{number}", number % 7) for number in range(20)], POLICY.weights)
    seen = seen_by(request(1), view, "w6")
    assert seen[0].name == "w6"
    assert len(seen) == len({each.name for each in seen}) == SEEN_WORKERS
    assert len(seen_by(request(1), view)) == SEEN_WORKERS
    assert seen_by(request(1), ClusterView.of([], POLICY.weights)) == ()


def test_columns_say_what_was_known_and_the_scores_are_those_of_the_decision() -> None:
    view = ClusterView.of([worker("a", 3), worker("b", 1), worker("full", 8)], POLICY.weights)
    asked, hits, now = request(1), {"a": 3}, 12.5
    chosen = place(asked, view, hits, POLICY, now)
    assert isinstance(chosen, Placement)
    seen = seen_by(asked, view, chosen.worker)
    placed = Decision(Outcome.PLACED, asked, chosen.worker, chosen.reason, 5_000, now, seen, (("a", 3),), POLICY)
    refused = Decision(Outcome.REJECTED, request(2, "u"), "", "queue_full", 6_000, now)
    told = columns([placed, refused])
    names = list(told.names)
    assert told.request_ids == bytes([1]) * 16 + bytes([2]) * 16
    assert list(told.outcomes) == [
        DecisionOutcome.DECISION_OUTCOME_PLACED, DecisionOutcome.DECISION_OUTCOME_REJECTED,
    ]  # fmt: skip
    assert [names[at] for at in told.reasons] == [chosen.reason, "queue_full"]
    assert [names[at] for at in told.tenants] == ["t", "u"]
    assert (list(told.attempts), list(told.time_us), list(told.queue_us)) == ([2, 2], [5_000, 6_000], [1_500_000] * 2)
    assert (list(told.input_tokens), list(told.output_tokens), list(told.classes)) == ([30, 30], [40, 40], [3, 3])
    assert list(told.prefix_chunks) == [3, 3]
    assert list(told.candidates) == [3, 0]
    workers = [names[at] for at in told.workers]
    assert workers[0] == chosen.worker
    verdicts = {each.worker: each for each in judge(asked, seen, hits, POLICY, now)}
    assert [round(each, 5) for each in told.scores] == [round(verdicts[name].score, 5) for name in workers]
    assert [dict(zip(workers, told.actives, strict=True))[name] for name in ("a", "b", "full")] == [3, 1, 8]
    assert (set(told.capacities), set(told.kv_permille), set(told.prefill_tokens)) == ({8}, {250}, {7})
    assert dict(zip(workers, told.prefix_hits, strict=True)) == {"a": 3, "b": 0, "full": 0}


async def test_decisions_are_on_the_stream(new_stage, wait_until) -> None:
    stage = await new_stage()
    model = stage.model()
    worker, edge = await stage.worker(model, capacity=2), await stage.edge()
    placed = {await edge.submit(model) for _ in range(2)}
    await wait_until(lambda: set(worker.running) == placed)
    refused = await edge.submit(model, expires_in=-1)
    await wait_until(lambda: refused in edge.closes)
    found: dict[bytes, int] = {}
    async for batch in FrameLog(stage.bus, "DECISIONS").read(1, subject="dec.placement.*"):
        for _, _, data in batch:
            told = PlacementDecisions.FromString(data)
            assert told.model == model
            assert told.scheduler == stage.scheduler.name
            for at, outcome in enumerate(told.outcomes):
                found[told.request_ids[16 * at : 16 * at + 16]] = outcome
        if len(found) == 3:
            break
    assert {name for name, what in found.items() if what == DecisionOutcome.DECISION_OUTCOME_PLACED} == placed
    assert found[refused] == DecisionOutcome.DECISION_OUTCOME_REJECTED
