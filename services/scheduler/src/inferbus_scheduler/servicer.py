"""SchedulerService: the fleet as it is, and why a request went where it went. It only reads."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.scheduler.v1.scheduler_pb2 import (
    ExplainRequest,
    ExplainResponse,
    FleetWorker,
    ModelQueue,
    WatchFleetRequest,
    WatchFleetResponse,
    WorkerVerdict,
)
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceServicer
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_scheduler.core.admission import Limits, admit
from inferbus_scheduler.core.decisions import Decision, Outcome
from inferbus_scheduler.core.placement import Placement, Verdict, judge, place
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.dispatch import Dispatcher
from inferbus_scheduler.fleet import Fleet, Worker

_LEAST_INTERVAL_SECONDS = 0.1
# Heartbeats repeat what is known, so a fleet without any change is shown again only this often.
_QUIET_SECONDS = 2.0


class SchedulerServicer(SchedulerServiceServicer):
    """Errors: NOT_FOUND ``request_not_found``, INVALID_ARGUMENT for a bad subject."""

    def __init__(self, *, fleet: Fleet, queues: Queues, dispatcher: Dispatcher, limits: Limits) -> None:
        self._fleet = fleet
        self._queues = queues
        self._dispatcher = dispatcher
        self._limits = limits

    async def WatchFleet(self, request: WatchFleetRequest, context: Any) -> AsyncIterator[WatchFleetResponse]:  # noqa: N802 (gRPC's name)
        """A picture at once, then one after each change, until the caller leaves."""
        interval = max(_LEAST_INTERVAL_SECONDS, request.min_interval.ToTimedelta().total_seconds())
        while True:
            shown, shown_at = self._version, clock.monotonic()
            yield self._picture()
            await asyncio.sleep(interval)
            while self._version == shown and clock.monotonic() - shown_at < _QUIET_SECONDS:
                await asyncio.sleep(_LEAST_INTERVAL_SECONDS)

    async def Explain(self, request: ExplainRequest, context: Any) -> ExplainResponse:  # noqa: N802 (gRPC's name)
        subject = request.WhichOneof("subject")
        if subject == "model" and request.model:
            return self._explain_model(request.model)
        if subject == "request_id" and len(request.request_id) == REQUEST_ID_BYTES:
            return self._explain_request(request.request_id)
        raise invalid("Name a model, or a request by its 16 bytes.", param="subject")

    @property
    def _version(self) -> tuple[int, int]:
        return self._fleet.version, len(self._queues)

    def _picture(self) -> WatchFleetResponse:
        now = clock.monotonic()
        return WatchFleetResponse(
            event_time=clock.timestamp(clock.now_us()),
            workers=[_fleet_worker(worker, now) for worker in self._fleet.workers()],
            queues=[
                _model_queue(model, priority, count, now - oldest)
                for model, priority, count, oldest in self._queues.oldest()
            ],
        )

    def _explain_model(self, model: str) -> ExplainResponse:
        """What would become of an interactive request that came now."""
        now = clock.monotonic()
        request = Request(b"", model, "", Priority.INTERACTIVE, now, now + 1)
        ahead = self._queues.ahead(model, Priority.INTERACTIVE)
        known = self._dispatcher.knows_model(model)
        refusal = admit(request, known_model=known, ahead=ahead, limits=self._limits, now=now)
        if refusal is not None:
            return self._now(Outcome.REJECTED, "", refusal.reason, model, now)
        return self._would_be(request, now)

    def _explain_request(self, request_id: bytes) -> ExplainResponse:
        held = self._dispatcher.waiting(request_id)
        if held is not None:
            answer = self._would_be(held.request, clock.monotonic())
            answer.outcome, answer.worker = Outcome.QUEUED.value, ""
            return answer
        decision = self._dispatcher.decision(request_id)
        if decision is None:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_NOT_FOUND,
                "request_not_found",
                "No recent request has this id here.",
                param="request_id",
            )
        return _recorded(decision)

    def _would_be(self, request: Request, now: float) -> ExplainResponse:
        decision = place(request, self._fleet.view, now)
        if isinstance(decision, Placement):
            return self._now(Outcome.PLACED, decision.worker, decision.reason, request.model, now)
        return self._now(Outcome.QUEUED, "", decision.reason, request.model, now)

    def _now(self, outcome: Outcome, worker: str, reason: str, model: str, now: float) -> ExplainResponse:
        return ExplainResponse(
            outcome=outcome.value,
            worker=worker,
            reason=reason,
            decision_time=clock.timestamp(clock.now_us()),
            verdicts=_verdicts(judge(self._fleet.views(), model, now)),
        )


def _recorded(decision: Decision) -> ExplainResponse:
    return ExplainResponse(
        outcome=decision.outcome.value,
        worker=decision.worker,
        reason=decision.reason,
        decision_time=clock.timestamp(decision.time_us),
        verdicts=_verdicts(decision.verdicts()),
    )


def _verdicts(verdicts: Iterable[Verdict]) -> list[WorkerVerdict]:
    return [
        WorkerVerdict(worker=each.worker, eligible=each.eligible, reason=each.reason, score=each.score)
        for each in verdicts
    ]


def _fleet_worker(worker: Worker, now: float) -> FleetWorker:
    record = WorkerRecord()
    record.CopyFrom(worker.record)
    shown = FleetWorker(
        record=record,
        active=worker.active,
        on_the_way=worker.on_the_way,
        output_tokens_total=worker.output_tokens_total,
        gpus=worker.gpus,
        engine=worker.engine,
    )
    # Absent until its first heartbeat.
    if worker.heard_at is not None:
        shown.heartbeat_age.FromMicroseconds(max(0, round((now - worker.heard_at) * 1e6)))
    return shown


def _model_queue(model: str, priority: Priority, queued: int, oldest_age: float) -> ModelQueue:
    queue = ModelQueue(model=model, priority_class=PriorityClass.ValueType(priority.value), queued=queued)
    queue.oldest_age.FromMicroseconds(max(0, round(oldest_age * 1e6)))
    return queue
