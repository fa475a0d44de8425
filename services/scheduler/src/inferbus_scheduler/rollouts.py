"""Which revisions serve which model: the registry of rollouts as everyone here reads it, and how one is changed."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping

from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.audit_pb2 import AuditEvent
from inferbus.bus.v1.revision_pb2 import RevisionStage, RolloutRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.announcing import tell_made
from inferbus_bus.connection import Bus
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_runtime.errors import InferBusError

from inferbus_scheduler.core.request import base_of
from inferbus_scheduler.core.rollout import last_event, may_become, stages
from inferbus_scheduler.core.traffic import Traffic, shares, traffic_of
from inferbus_scheduler.revisions import Revisions
from inferbus_scheduler.seen import seen

log = logging.getLogger(__name__)
# Whose change it is that a rule makes.
_OPERATOR = "operator"


class Rollouts:
    """The bucket, followed. Reading it costs no round trip and converts nothing. ``on_change``: called with a model
    whose rollout has changed."""

    def __init__(self, bus: Bus, revisions: Revisions, publisher: Publisher) -> None:
        self.on_change: Callable[[str], None] = lambda _: None
        self._registry = Registry(bus, "rollouts", RolloutRecord)
        self._registry.on_change(self._changed)
        self._revisions = revisions
        self._publisher = publisher
        self._traffic: dict[str, Traffic] = {}

    async def start(self) -> None:
        """Returns when the present content is here."""
        await self._registry.start()

    async def stop(self) -> None:
        await self._registry.stop()

    def traffic(self, model: str) -> Traffic | None:
        """None: whatever workers it has serve it."""
        return self._traffic.get(model)

    def shares(self, model: str) -> tuple[tuple[str, int], ...]:
        """See :func:`~inferbus_scheduler.core.traffic.shares`."""
        record = self._registry.get(base_of(model))
        return shares(record) if record is not None else ()

    def get(self, model: str) -> RolloutRecord | None:
        return self._registry.get(model)

    def records(self) -> Mapping[str, RolloutRecord]:
        """By model. To read."""
        return self._registry.items()

    async def store(self, before: RolloutRecord | None, after: RolloutRecord, *, announced: bool) -> None:
        """In the place of ``before``, which must be what stands there; then the stages of the revisions, and what the
        model is known by. What a crash leaves undone of that, :meth:`follow_up` does. ``announced``: whoever asked
        tells AUDIT. Raises InferBusError CONFLICT, UNAVAILABLE."""
        name = after.model
        if self._registry.get(name) != before:  # somebody was faster while this was worked out
            raise InferBusError(
                ErrorClass.ERROR_CLASS_CONFLICT, "changed_meanwhile", "The rollout has just changed; look again."
            )
        revision = self._registry.revision(name)
        ack = await (
            self._registry.create(name, after) if before is None else self._registry.update(name, after, revision)
        )
        await seen(self._registry, name, ack)
        event = last_event(after)
        log.info(
            "rollout",
            extra={
                "model": name, "action": event.action, "revision": event.revision, "reason": event.reason,
                "weight": event.weight_permille, "actor": event.actor_key_id,
            },
        )  # fmt: skip
        await self._move(name, stages(before, after))
        await self.follow_up(after)
        if not announced:
            await tell_made(self._publisher, _audit_of(after))

    async def follow_up(self, record: RolloutRecord) -> None:
        """What follows from the record, and may be done again. Raises InferBusError UNAVAILABLE, CONFLICT."""
        await self._move(record.model, stages(None, record))
        if record.stable_revision:
            await self._revisions.known_by(record.model, record.stable_revision)

    async def _move(self, model: str, wanted: Mapping[str, RevisionStage.ValueType]) -> None:
        for revision, stage in wanted.items():
            record = self._revisions.get(model, revision)
            if record is not None and may_become(record.stage, stage):
                await self._revisions.set_stage(record, stage)

    def _changed(self, model: str, record: RolloutRecord | None) -> None:
        if record is None:
            self._traffic.pop(model, None)
        else:
            self._traffic[model] = traffic_of(record)
        self.on_change(model)


def _audit_of(record: RolloutRecord) -> AuditEvent:
    event = last_event(record)
    details = MessageToDict(event, preserving_proto_field_name=True)
    named = f"{record.model} {event.action} {event.event_time.ToMicroseconds()}"
    made = AuditEvent(
        event_id=f"audit_log-{hashlib.sha256(named.encode()).hexdigest()[:24]}",
        tenant_id=_OPERATOR,
        action=f"rollout.{event.action}",
        target=record.model,
        details=json.dumps(details, separators=(",", ":")),
    )
    made.event_time.CopyFrom(event.event_time)
    return made
