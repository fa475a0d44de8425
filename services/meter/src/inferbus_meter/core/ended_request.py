"""A request as its row of ``bills`` says it: its summary, its end, what it is charged for. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any
from uuid import UUID

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason, Operation, PriorityClass
from inferbus.meter.v1.requests_pb2 import RequestState, RequestSummary, TimelineStorage
from inferbus_contracts.ids import choice_of
from inferbus_rating import is_answered

from inferbus_meter.core.charge_lines import Charged, Correction, charge_of
from inferbus_meter.core.decimals import decimal_text
from inferbus_meter.core.timeline import Billed, Ending, micros, moment

COLUMNS = """
request_id, tenant_id, project_id, key_id, model, revision, operation, priority_class, finish_reason, error_class,
error_reason, end_user, tags, toUnixTimestamp64Micro(accepted_time), toUnixTimestamp64Micro(end_time), input_tokens,
cached_input_tokens, output_tokens, reasoning_tokens, estimated, placed_us, queue_us, ttft_us, e2e_us, tpot_us, cost,
currency, rate_version, input_per_million, cached_input_per_million, output_per_million, reasoning_per_million,
per_call, minimum, factor, attempt, worker, edge, engine, energy_j, stream_seq, stream_epoch,
started_us, cold_start_us
"""


@dataclass(frozen=True, slots=True)
class EndedRequest:
    """A row of ``bills`` by COLUMNS, in their order."""

    request_id: UUID
    tenant_id: str
    project_id: str
    key_id: str
    model: str
    revision: str
    operation: str
    priority_class: str
    finish_reason: str
    error_class: str
    error_reason: str
    end_user: str
    tags: dict[str, str]
    accepted_us: int
    end_us: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated: bool
    placed_us: int | None
    queue_us: int | None
    ttft_us: int | None
    e2e_us: int | None
    tpot_us: int | None
    cost: Decimal
    currency: str
    rate_version: str
    input_per_million: Decimal
    cached_input_per_million: Decimal
    output_per_million: Decimal
    reasoning_per_million: Decimal
    per_call: Decimal
    minimum: Decimal
    factor: Decimal
    attempt: int
    worker: str
    edge: str
    engine: str
    energy_j: float | None
    stream_seq: int
    stream_epoch: int
    started_us: int | None
    cold_start_us: int | None


def summary_of(bill: EndedRequest, corrections: Sequence[Correction], *, operator: bool) -> RequestSummary:
    charge = charge_of(charged_of(bill), corrections)
    summary = RequestSummary(
        request_id=str(bill.request_id), state=RequestState.REQUEST_STATE_ENDED, tenant_id=bill.tenant_id,
        project_id=bill.project_id, key_id=bill.key_id, model=bill.model, revision=bill.revision,
        operation=Operation.Value(f"OPERATION_{bill.operation.upper() or 'UNSPECIFIED'}"),
        priority_class=PriorityClass.Value(f"PRIORITY_CLASS_{bill.priority_class.upper() or 'UNSPECIFIED'}"),
        finish_reason=_finish(bill),
        error_class=ErrorClass.Value(f"ERROR_CLASS_{bill.error_class.upper() or 'UNSPECIFIED'}"),
        error_reason=bill.error_reason, end_user=bill.end_user, tags=bill.tags, accepted_time=moment(bill.accepted_us),
        end_time=moment(bill.end_us), input_tokens=bill.input_tokens, cached_input_tokens=bill.cached_input_tokens,
        output_tokens=bill.output_tokens, reasoning_tokens=bill.reasoning_tokens, estimated=bill.estimated,
        charge=charge.amount, currency=charge.currency, attempts=bill.attempt, choice=choice_of(bill.request_id.bytes),
    )  # fmt: skip
    for name, value in (
        ("queue", bill.queue_us), ("ttft", bill.ttft_us), ("e2e", bill.e2e_us), ("tpot", bill.tpot_us),
        ("cold_start", bill.cold_start_us),
    ):  # fmt: skip
        if value is not None:
            getattr(summary, name).CopyFrom(micros(value))
    if operator:
        summary.worker, summary.edge, summary.engine = bill.worker, bill.edge, bill.engine
        if bill.energy_j is not None:
            summary.energy_joules = bill.energy_j
    return summary


def running_of(context: Sequence[Any], accepted_us: int, tokens: int, *, operator: bool) -> RequestSummary:
    """What the tokens say of a request that has not ended yet, or whose end is not stored yet. ``context``: attempt,
    worker, edge, tenant, project, key, model, revision, request id."""
    attempt, worker, edge, tenant, project, key, model, revision, request_id, *_ = context
    return RequestSummary(
        request_id=str(request_id), state=RequestState.REQUEST_STATE_RUNNING, tenant_id=tenant, project_id=project,
        key_id=key, model=model, revision=revision, attempts=attempt, worker=worker if operator else "",
        edge=edge if operator else "", accepted_time=moment(accepted_us), output_tokens=tokens,
        choice=choice_of(request_id.bytes),
    )  # fmt: skip


def _finish(bill: EndedRequest) -> FinishReason.ValueType:
    return FinishReason.Value(f"FINISH_REASON_{bill.finish_reason.upper() or 'UNSPECIFIED'}")


def charged_of(bill: EndedRequest) -> Charged:
    own = {one.name: getattr(bill, one.name) for one in fields(Charged) if hasattr(bill, one.name)}
    return Charged(**own, first_choice=choice_of(bill.request_id.bytes) == 0, answered=is_answered(_finish(bill)))


def for_tenant(one: Correction) -> Correction:
    return Correction(one.time_us, one.delta, one.currency, one.to_rate_version, "")


def billed(bill: EndedRequest, corrections: Sequence[Correction], storage: TimelineStorage | None) -> list[Billed]:
    made = []
    if storage is not None and storage.HasField("done_time"):
        time_us = storage.done_time.ToMicroseconds()
        made.append(Billed(time_us, bill.rate_version, decimal_text(bill.cost), bill.currency))
    made += [
        Billed(one.time_us, one.to_rate_version, decimal_text(one.delta), one.currency, adjusts=True)
        for one in corrections
    ]
    return made


def ending_of(bill: EndedRequest, *, operator: bool) -> Ending:
    def at(duration: int | None) -> int | None:
        return None if duration is None else bill.accepted_us + duration

    return Ending(
        bill.attempt, at(bill.placed_us), at(bill.started_us), bill.end_us, bill.finish_reason, bill.error_reason,
        bill.worker if operator else "",
    )  # fmt: skip
