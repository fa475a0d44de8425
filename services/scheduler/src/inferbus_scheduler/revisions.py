"""What can be served: the registry of revisions as everyone here reads it, and RevisionService, which fills it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage, RolloutRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.scheduler.v1 import revision_pb2 as api
from inferbus.scheduler.v1 import revision_pb2_grpc
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_scheduler.core.revisions import BY_HAND, DRAFT, RETIRED, fault_of, same
from inferbus_scheduler.core.traffic import use_of
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.seen import seen

log = logging.getLogger(__name__)
REVISION_SERVICE = api.DESCRIPTOR.services_by_name["RevisionService"].full_name


class Revisions:
    """The bucket, followed, and the names under which models are known: two registries that were started."""

    def __init__(self, registry: Registry[RevisionRecord], models: Registry[ModelRecord]) -> None:
        self._registry = registry
        self._models = models

    def get(self, model: str, revision: str) -> RevisionRecord | None:
        return self._registry.get(_name(model, revision))

    def records(self) -> Mapping[str, RevisionRecord]:
        """By "<model>/<revision>". To read."""
        return self._registry.items()

    async def create(self, record: RevisionRecord) -> RevisionRecord:
        """As a draft. The same again changes nothing. Raises InferBusError CONFLICT, UNAVAILABLE."""
        known = self.get(record.model, record.revision)
        if known is None:
            made = RevisionRecord()
            made.CopyFrom(record)
            made.stage = DRAFT
            now = clock.timestamp(clock.now_us())
            made.create_time.CopyFrom(now)
            made.update_time.CopyFrom(now)
            name = _name(record.model, record.revision)
            await seen(self._registry, name, await self._registry.create(name, made))
            return made
        if same(known, record):
            return known
        raise InferBusError(
            ErrorClass.ERROR_CLASS_CONFLICT,
            "revision_exists",
            f"There is a revision `{record.revision}` of this model, and it is another one: a revision never changes.",
            param="revision",
        )

    async def set_stage(self, record: RevisionRecord, stage: RevisionStage.ValueType) -> RevisionRecord:
        """Nothing happens where it stands there already. Raises InferBusError CONFLICT, UNAVAILABLE."""
        if record.stage == stage:
            return record
        name, made = _name(record.model, record.revision), RevisionRecord()
        made.CopyFrom(record)
        made.stage = stage
        made.update_time.CopyFrom(clock.timestamp(clock.now_us()))
        await seen(self._registry, name, await self._registry.update(name, made, self._registry.revision(name)))
        return made

    async def delete(self, record: RevisionRecord) -> None:
        """Raises InferBusError CONFLICT, UNAVAILABLE."""
        name = _name(record.model, record.revision)
        await seen(self._registry, name, await self._registry.delete(name, self._registry.revision(name)))

    async def known_by(self, model: str, revision: str) -> None:
        """From now on the model is known by this revision (prices, versions), as far as it is known at all. Raises
        InferBusError UNAVAILABLE."""
        known = self._models.get(model)
        if known is None or known.revision == revision:
            return
        made = ModelRecord()
        made.CopyFrom(known)
        made.revision = revision
        await self._models.put(model, made)


class RevisionServicer(revision_pb2_grpc.RevisionServiceServicer):
    """Any scheduler takes changes. Errors: INVALID_ARGUMENT, NOT_FOUND ``revision_not_found``, CONFLICT
    ``revision_exists``, ``revision_in_use`` and ``wrong_stage``, UNAVAILABLE. ``rollout``: of a model, or None."""

    def __init__(self, revisions: Revisions, fleet: Fleet, rollout: Callable[[str], RolloutRecord | None]) -> None:
        self._revisions = revisions
        self._fleet = fleet
        self._rollout = rollout

    async def CreateRevision(self, request: api.CreateRevisionRequest, context: Any) -> api.CreateRevisionResponse:  # noqa: N802 (gRPC's name)
        fault = fault_of(request.revision)
        if fault is not None:
            raise invalid(fault.message, param=fault.param)
        made = await self._revisions.create(request.revision)
        log.info("revision made", extra={"model": made.model, "revision": made.revision, "actor": request.actor_key_id})
        return api.CreateRevisionResponse(revision=made)

    async def GetRevision(self, request: api.GetRevisionRequest, context: Any) -> api.GetRevisionResponse:  # noqa: N802 (gRPC's name)
        return self._shown(self._record(request.model, request.revision))

    async def ListRevisions(self, request: api.ListRevisionsRequest, context: Any) -> api.ListRevisionsResponse:  # noqa: N802 (gRPC's name)
        records = [one for one in self._revisions.records().values() if request.model in ("", one.model)]
        records.sort(key=lambda one: (one.model, -clock.unix_us(one.create_time), one.revision))
        return api.ListRevisionsResponse(revisions=map(self._shown, records))

    async def SetRevisionStage(  # noqa: N802 (gRPC's name)
        self, request: api.SetRevisionStageRequest, context: Any
    ) -> api.SetRevisionStageResponse:
        record = self._record(request.model, request.revision)
        if request.stage != record.stage and request.stage not in BY_HAND.get(record.stage, frozenset()):
            raise wrong_stage(record, "be moved there by hand")
        if request.stage == RETIRED:
            self._check_unused(record)
        return api.SetRevisionStageResponse(revision=await self._revisions.set_stage(record, request.stage))

    async def DeleteRevision(self, request: api.DeleteRevisionRequest, context: Any) -> api.DeleteRevisionResponse:  # noqa: N802 (gRPC's name)
        record = self._record(request.model, request.revision)
        if record.stage not in (DRAFT, RETIRED):
            raise wrong_stage(record, "be deleted")
        self._check_unused(record)
        await self._revisions.delete(record)
        log.info(
            "revision deleted",
            extra={"model": record.model, "revision": record.revision, "actor": request.actor_key_id},
        )
        return api.DeleteRevisionResponse()

    def _record(self, model: str, revision: str) -> RevisionRecord:
        record = self._revisions.get(model, revision)
        if record is None:
            raise no_such_revision(model, revision)
        return record

    def _check_unused(self, record: RevisionRecord) -> None:
        rollout = self._rollout(record.model)
        use = "" if rollout is None else use_of(rollout, record.revision)
        if use:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_CONFLICT, "revision_in_use", f"`{record.revision}` {use}.", param="revision"
            )

    def _shown(self, record: RevisionRecord) -> api.GetRevisionResponse:
        workers = self._fleet.revisions(record.model).get(record.revision, 0)
        return api.GetRevisionResponse(revision=record, workers=workers)


def no_such_revision(model: str, revision: str) -> InferBusError:
    return InferBusError(
        ErrorClass.ERROR_CLASS_NOT_FOUND,
        "revision_not_found",
        f"There is no revision `{revision[:128]}` of `{model[:256]}`.",
        param="revision",
    )


def wrong_stage(record: RevisionRecord, what: str) -> InferBusError:
    stage = RevisionStage.Name(record.stage).removeprefix("REVISION_STAGE_").lower()
    return InferBusError(
        ErrorClass.ERROR_CLASS_CONFLICT,
        "wrong_stage",
        f"`{record.revision}` is {stage}, and cannot {what}.",
        param="stage",
    )


def _name(model: str, revision: str) -> str:
    return f"{model}/{revision}"
