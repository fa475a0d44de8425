"""SchedulerService: the fleet as it is, why a request went where it went, and who is to leave."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from inferbus.bus.v1.registry_pb2 import WorkerRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus.scheduler.v1.scheduler_pb2 import (
    DrainWorkersRequest,
    DrainWorkersResponse,
    ExplainRequest,
    ExplainResponse,
    FleetWorker,
    ListSchedulersRequest,
    ListSchedulersResponse,
    ModelQueue,
    SchedulerInstance,
    WatchFleetRequest,
    WatchFleetResponse,
    WorkerVerdict,
)
from inferbus.scheduler.v1.scheduler_pb2_grpc import SchedulerServiceServicer
from inferbus_contracts.ids import REQUEST_ID_BYTES
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_scheduler.core.decisions import Decision, Outcome
from inferbus_scheduler.core.placement import RESERVED, Placement, Policy, Verdict, judge
from inferbus_scheduler.core.queues import Queues
from inferbus_scheduler.core.request import Priority, Request
from inferbus_scheduler.core.turns import terms
from inferbus_scheduler.decision_log import DecisionLog
from inferbus_scheduler.dispatch import Dispatcher
from inferbus_scheduler.draining import Draining
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.routing import Routing
from inferbus_scheduler.waiting import Waiting
from inferbus_scheduler.worker import Worker

_LEAST_INTERVAL_SECONDS = 0.1
# Heartbeats repeat what is known, so a fleet without any change is shown again only this often.
_QUIET_SECONDS = 2.0


class SchedulerServicer(SchedulerServiceServicer):
    """Errors: NOT_FOUND ``request_not_found`` and ``worker_not_found``, UNAVAILABLE ``worker_unreachable``,
    INVALID_ARGUMENT for a bad subject or target. ``schedulers``: which shards each living scheduler holds.
    ``without_worker``: of a time (model, from, to; monotonic), the seconds in which the model had no worker."""

    def __init__(
        self,
        *,
        name: str,
        fleet: Fleet,
        queues: Queues,
        dispatcher: Dispatcher,
        waiting: Waiting,
        decisions: DecisionLog,
        draining: Draining,
        policy: Callable[[str], Policy],
        routing: Routing,
        schedulers: Callable[[], Mapping[str, list[int]]],
        without_worker: Callable[[str, float, float], float],
    ) -> None:
        self._name = name
        self._fleet = fleet
        self._queues = queues
        self._dispatcher = dispatcher
        self._waiting = waiting
        self._decisions = decisions
        self._draining = draining
        self._policy = policy
        self._routing = routing
        self._schedulers = schedulers
        self._without_worker = without_worker

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

    async def DrainWorkers(self, request: DrainWorkersRequest, context: Any) -> DrainWorkersResponse:  # noqa: N802 (gRPC's name)
        records = [worker.record for worker in self._fleet.workers()]
        match request.WhichOneof("target"):
            case "worker" if request.worker:
                wanted = [record for record in records if record.worker == request.worker]
            case "node" if request.node:
                wanted = [record for record in records if record.node == request.node]
            case _:
                raise invalid("Name a worker, or a machine by its node.", param="target")
        if not wanted:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_NOT_FOUND, "worker_not_found", "No worker of the fleet has this name.",
                param=request.WhichOneof("target") or "",
            )  # fmt: skip
        await self._draining.begin(wanted, request.grace.ToTimedelta())
        return DrainWorkersResponse(workers=[record.worker for record in wanted])

    async def ListSchedulers(self, request: ListSchedulersRequest, context: Any) -> ListSchedulersResponse:  # noqa: N802 (gRPC's name)
        return ListSchedulersResponse(
            schedulers=[
                SchedulerInstance(name=name, shards=shards, self=name == self._name)
                for name, shards in sorted(self._schedulers().items())
            ]
        )

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
        request = Request(b"", model, "", "", Priority.INTERACTIVE, now, now + 3600)
        refusal = self._waiting.refusal(request, now)
        if refusal is not None:
            return self._now(request, Outcome.REJECTED, "", refusal.reason, {}, now)
        return self._would_be(request, now)

    def _explain_request(self, request_id: bytes) -> ExplainResponse:
        held = self._dispatcher.waiting(request_id)
        if held is not None:
            answer = self._would_be(held.request, clock.monotonic())
            answer.outcome, answer.worker = Outcome.QUEUED.value, ""
            return answer
        decision = self._decisions.last(request_id)
        if decision is None:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_NOT_FOUND,
                "request_not_found",
                "No recent request has this id here.",
                param="request_id",
            )
        answer = _recorded(decision)
        cold = self._without_worker(decision.request.model, decision.request.waits_since, decision.now)
        if decision.worker and cold > 0:
            answer.cold_start.FromTimedelta(timedelta(seconds=cold))
        return answer

    def _would_be(self, request: Request, now: float) -> ExplainResponse:
        hits = self._fleet.matches(request)
        policy = terms(request, self._queues, self._fleet.view, self._policy(request.model), now)
        if policy is None:
            return self._now(request, Outcome.QUEUED, "", RESERVED, hits, now)
        decision = self._routing.pick(request, self._fleet.view, hits, policy, now)
        if isinstance(decision, Placement):
            return self._now(request, Outcome.PLACED, decision.worker, decision.reason, hits, now, policy)
        return self._now(request, Outcome.QUEUED, "", decision.reason, hits, now, policy)

    def _now(
        self,
        request: Request,
        outcome: Outcome,
        worker: str,
        reason: str,
        hits: Mapping[str, int],
        now: float,
        policy: Policy | None = None,
    ) -> ExplainResponse:
        return ExplainResponse(
            outcome=outcome.value,
            worker=worker,
            reason=reason,
            decision_time=clock.timestamp(clock.now_us()),
            verdicts=_verdicts(
                judge(
                    self._routing.wanting(request),
                    self._fleet.views(),
                    hits,
                    policy or self._policy(request.model),
                    now,
                )
            ),
            attempt=request.attempt,
        )


def _recorded(decision: Decision) -> ExplainResponse:
    return ExplainResponse(
        outcome=decision.outcome.value,
        worker=decision.worker,
        reason=decision.reason,
        decision_time=clock.timestamp(decision.time_us),
        verdicts=_verdicts(decision.verdicts()),
        attempt=decision.request.attempt,
    )


def _verdicts(verdicts: Iterable[Verdict]) -> list[WorkerVerdict]:
    return [
        WorkerVerdict(
            worker=each.worker,
            eligible=each.eligible,
            reason=each.reason,
            score=each.score,
            parts=each.parts,
            prefix_hits=each.prefix_hits,
        )
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
