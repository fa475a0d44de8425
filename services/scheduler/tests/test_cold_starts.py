"""Which of a time a model had no worker, as its scheduler knows it."""

from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus_runtime import clock
from inferbus_scheduler.cold_starts import ColdStarts


def test_a_request_waited_for_a_model_only_while_that_had_no_worker() -> None:
    workers: list[WorkerRecord] = []
    now = clock.monotonic()
    seen = ColdStarts(lambda: workers, now - 10)
    assert seen.waited("m", now - 5, now) == 0, "it is not known yet"
    workers.append(WorkerRecord(model="m", worker="w", boot=clock.now_us()))
    seen.serving("m", True, now)
    assert seen.waited("m", now - 5, now + 1) == 5
    assert seen.waited("m:adapter", now - 20, now + 1) == 10, "what was before the scheduler, it does not know"
    seen.serving("m", False, now + 30)
    assert seen.waited("m", now + 29, now + 31) == 1
    seen.serving("m", True, now + 32)
    assert seen.waited("m", now + 31.5, now + 40) == 0.5
    assert seen.waited("m", now - 1, now + 40) == 3
    assert seen.waited("other", now - 1, now + 40) == 0


def test_a_worker_that_is_older_than_the_scheduler_was_no_cold_start() -> None:
    now = clock.monotonic()
    old = WorkerRecord(model="m", worker="w", boot=clock.now_us() - 60_000_000)
    seen = ColdStarts(lambda: [old], now - 10)
    seen.serving("m", True, now)
    assert seen.waited("m", now - 5, now) == 0
