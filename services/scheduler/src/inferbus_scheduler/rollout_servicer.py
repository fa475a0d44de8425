"""RolloutService: operators begin rollouts, move them by hand, pin tenants and shadow."""

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.duration_pb2 import Duration
from inferbus.bus.v1.revision_pb2 import RevisionPin, RolloutPolicy, RolloutRecord, RolloutState, Shadow
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.scheduler.v1 import rollout_pb2 as api
from inferbus.scheduler.v1 import rollout_pb2_grpc
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_scheduler.core import rollout
from inferbus_scheduler.core.judging import Figure
from inferbus_scheduler.core.revisions import RETIRED, why_not_served
from inferbus_scheduler.core.traffic import WHOLE
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.revisions import Revisions, no_such_revision
from inferbus_scheduler.rollouts import Rollouts

ROLLOUT_SERVICE = api.DESCRIPTOR.services_by_name["RolloutService"].full_name
MAX_PINS = 1000
_LONGEST_SECONDS = 30 * 24 * 3600.0


class RolloutServicer(rollout_pb2_grpc.RolloutServiceServicer):
    """Any scheduler takes changes. Errors: INVALID_ARGUMENT, NOT_FOUND ``rollout_not_found`` and
    ``revision_not_found``, CONFLICT ``rollout_under_way``, ``no_rollout``, ``revision_not_valid`` and
    ``no_stable_revision``, UNAVAILABLE. ``figures``: of a model's step, as they were seen last."""

    def __init__(
        self, rollouts: Rollouts, revisions: Revisions, fleet: Fleet, figures: Callable[[str], Iterable[Figure]]
    ) -> None:
        self._rollouts = rollouts
        self._revisions = revisions
        self._fleet = fleet
        self._figures = figures

    async def StartRollout(self, request: api.StartRolloutRequest, context: Any) -> api.StartRolloutResponse:  # noqa: N802 (gRPC's name)
        _check_policy(request.policy)
        if any(not 0 < step <= WHOLE for step in request.step_permille):
            raise invalid(f"Steps are thousandths of the requests, 1 to {WHOLE}.", param="step_permille")
        self._check_servable(request.model, request.revision)
        before = self._rollouts.get(request.model)
        base = self._base(request.model, before)
        if base.candidate_revision:
            raise _conflict("rollout_under_way", f"`{base.candidate_revision}` is being rolled out: end that first.")
        if base.stable_revision == request.revision:
            raise _conflict("already_stable", f"`{request.revision}` serves this model already.")
        now_us = clock.now_us()
        if base.stable_revision:
            base.policy.CopyFrom(request.policy)
            made = rollout.started(
                base, request.revision, request.strategy, request.step_permille, now_us, request.actor_key_id
            )
        else:  # there is nothing to compare it with, and nobody to be kept from harm
            made = rollout.first(base, request.revision, now_us, request.actor_key_id)
        await self._rollouts.store(before, made, announced=True)
        return api.StartRolloutResponse(rollout=made)

    async def GetRollout(self, request: api.GetRolloutRequest, context: Any) -> api.GetRolloutResponse:  # noqa: N802 (gRPC's name)
        return self._shown(self._record(request.model))

    async def ListRollouts(self, request: api.ListRolloutsRequest, context: Any) -> api.ListRolloutsResponse:  # noqa: N802 (gRPC's name)
        records = self._rollouts.records()
        return api.ListRolloutsResponse(rollouts=[self._shown(records[model]) for model in sorted(records)])

    async def MoveRollout(self, request: api.MoveRolloutRequest, context: Any) -> api.MoveRolloutResponse:  # noqa: N802 (gRPC's name)
        before = self._record(request.model)
        made = self._moved(before, request.move, request.actor_key_id)
        await self._rollouts.store(before, made, announced=True)
        return api.MoveRolloutResponse(rollout=made)

    async def SetPins(self, request: api.SetPinsRequest, context: Any) -> api.SetPinsResponse:  # noqa: N802 (gRPC's name)
        tenants = [pin.tenant_id for pin in request.pins]
        if len(tenants) > MAX_PINS or len(set(tenants)) < len(tenants) or not all(tenants):
            raise invalid(f"'pins' names at most {MAX_PINS} tenants, each once.", param="pins")
        for pin in request.pins:
            self._check_servable(request.model, pin.revision)
        before = self._rollouts.get(request.model)
        base = self._settled(request.model, before)
        del base.pins[:]
        base.pins.extend(RevisionPin(tenant_id=pin.tenant_id, revision=pin.revision) for pin in request.pins)
        message = ", ".join(f"{pin.tenant_id} to {pin.revision}" for pin in base.pins) or "Nobody is pinned."
        made = rollout.noted(base, "pinned", "operator", message[:2000], clock.now_us(), request.actor_key_id)
        await self._rollouts.store(before, made, announced=True)
        return api.SetPinsResponse(rollout=made)

    async def SetShadow(self, request: api.SetShadowRequest, context: Any) -> api.SetShadowResponse:  # noqa: N802 (gRPC's name)
        shadow = request.shadow
        if shadow.revision:
            self._check_servable(request.model, shadow.revision)
            if not 0 < shadow.permille <= WHOLE:
                raise invalid(f"'permille' is 1 to {WHOLE} thousandths of the requests.", param="permille")
        before = self._rollouts.get(request.model)
        base = self._settled(request.model, before)
        base.ClearField("shadow")
        if shadow.revision:
            base.shadow.CopyFrom(Shadow(revision=shadow.revision, permille=shadow.permille))
        message = (
            f"{shadow.permille / 10:g} % of the requests run on {shadow.revision}, too."
            if shadow.revision
            else "Nothing is shadowed."
        )
        made = rollout.noted(
            base, "shadowed", "operator", message, clock.now_us(), request.actor_key_id, revision=shadow.revision
        )
        await self._rollouts.store(before, made, announced=True)
        return api.SetShadowResponse(rollout=made)

    def _moved(self, record: RolloutRecord, move: api.RolloutMove.ValueType, actor: str) -> RolloutRecord:
        now_us = clock.now_us()
        match move:
            case api.ROLLOUT_MOVE_RETURN:
                if record.candidate_revision or not record.previous_revision:
                    raise _conflict("no_rollout", "There is nothing to return to: no revision was replaced.")
                self._check_servable(record.model, record.previous_revision, registered=False)
                return rollout.returned(record, now_us, actor)
            case api.ROLLOUT_MOVE_LET_GO:
                made = RolloutRecord()
                made.CopyFrom(record)
                made.keep_previous = False
                message = f"{record.previous_revision or 'Nothing'} is not kept any more."
                return rollout.noted(made, "let_go", "operator", message, now_us, actor)
        made_by = {
            api.ROLLOUT_MOVE_PROMOTE: (rollout.PROMOTED, rollout.promoted),
            api.ROLLOUT_MOVE_ROLL_BACK: (rollout.ROLLED_BACK, rollout.rolled_back),
            api.ROLLOUT_MOVE_PAUSE: (rollout.PAUSED, rollout.paused),
            api.ROLLOUT_MOVE_RESUME: (rollout.RUNNING, rollout.resumed),
        }
        if move not in made_by:
            raise invalid("'move' is promote, roll_back, pause, resume, return or let_go.", param="move")
        state, make = made_by[move]
        warming_resumed = state == rollout.RUNNING and record.state != rollout.PAUSED
        if not record.candidate_revision or not rollout.may_move(record, state) or warming_resumed:
            shown = RolloutState.Name(record.state).removeprefix("ROLLOUT_STATE_").lower()
            raise _conflict("no_rollout", f"The rollout is {shown}, which does not allow that.")
        return make(record, now_us, actor)

    def _base(self, model: str, known: RolloutRecord | None) -> RolloutRecord:
        """The record to begin from: a copy of what there is, or one with what serves the model now as stable, if there
        is such a thing."""
        made = RolloutRecord(model=model)
        if known is not None:
            made.CopyFrom(known)
        alive = self._fleet.revisions(model)
        if not made.stable_revision and alive:
            made.stable_revision = max(sorted(alive), key=lambda name: alive[name])
        return made

    def _settled(self, model: str, known: RolloutRecord | None) -> RolloutRecord:
        made = self._base(model, known)
        if not made.stable_revision:
            raise _conflict("no_stable_revision", "Nothing serves this model yet: roll a revision out first.")
        return made

    def _check_servable(self, model: str, revision: str, *, registered: bool = True) -> None:
        record = self._revisions.get(model, revision)
        if record is None:
            # What a worker serves without having been made here can be gone back to.
            if registered and revision not in self._fleet.revisions(model):
                raise no_such_revision(model, revision)
            return
        why = why_not_served(record)
        if why:
            reason = "revision_retired" if record.stage == RETIRED else "revision_not_valid"
            raise _conflict(reason, f"`{revision}` cannot serve: {why}")

    def _record(self, model: str) -> RolloutRecord:
        record = self._rollouts.get(model)
        if record is None:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_NOT_FOUND,
                "rollout_not_found",
                f"No revision of `{model[:256]}` was rolled out: whatever workers it has serve it.",
                param="model",
            )
        return record

    def _shown(self, record: RolloutRecord) -> api.GetRolloutResponse:
        figures = map(rollout.wire_figure, self._figures(record.model)) if record.candidate_revision else ()
        return api.GetRolloutResponse(rollout=record, figures=figures, workers=self._fleet.revisions(record.model))


def _check_policy(policy: RolloutPolicy) -> None:
    for name in ("step_time", "patience"):
        if policy.HasField(name):
            given: Duration = getattr(policy, name)
            if not 0 < given.seconds + given.nanos / 1e9 <= _LONGEST_SECONDS:
                raise invalid(f"'{name}' must be above 0 and at most 30 days.", param=name)
    bounds = {"max_slowdown": 100.0, "max_error_increase": 1.0, "min_agreement": 1.0}
    for name, most in bounds.items():
        if policy.HasField(name) and not 0.0 <= getattr(policy, name) <= most:  # type: ignore[arg-type]
            raise invalid(f"'{name}' is 0 to {most:g}.", param=name)
    if policy.HasField("significance") and not 1e-9 <= policy.significance <= 0.5:
        raise invalid("'significance' is 1e-9 to 0.5.", param="significance")


def _conflict(reason: str, message: str) -> InferBusError:
    return InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, reason, message, param="revision")
