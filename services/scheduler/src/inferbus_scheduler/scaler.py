"""Decides every second how many workers each scaled deployment should have, and of which revisions.

One scheduler decides for all deployments, the holder of shard 0: so the GPU budget and the memory budget are one sum
each, and hold with any number of schedulers. It needs nothing that the others hold: what waits is what lies on
REQUESTS, since a request leaves it only when it is placed or ended, and how workers fare they tell everyone. What it
decides is on DECISIONS; all schedulers follow that, so each can say what was decided last, and the next one goes on
from there.

A model whose requests are divided among revisions (``shares``) has a decision for each of them, and one with reason
``revisions`` for all together. Else its workers may be of any revision, and there is one decision.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus.bus.v1.decision_pb2 import ScalingDecision, ScalingSignals
from inferbus_bus.connection import Bus
from inferbus_bus.errors import StreamApiError
from inferbus_bus.publish import Publisher
from inferbus_contracts.subjects import name_of_token
from inferbus_runtime import clock, metrics
from inferbus_runtime.errors import InferBusError

from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.core.plans import Plan, plans_of
from inferbus_scheduler.core.request import base_of
from inferbus_scheduler.core.residency import BUDGET, LRU, TOO_LARGE, Claim, Residence, Rules, Unit, reside
from inferbus_scheduler.core.scaling import (
    GPU_BUDGET,
    NO_LOAD,
    REVISIONS,
    Desired,
    ScalingSettings,
    State,
    Want,
    cut,
    desired,
    share,
)
from inferbus_scheduler.core.signals import Signals, Watched
from inferbus_scheduler.deployments import Deployments
from inferbus_scheduler.headcount import Fleet, Headcount, Workers, count
from inferbus_scheduler.needs import Needs, Revisions
from inferbus_scheduler.scaling_log import ScalingLog

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 1.0
# Workers are counted from their first heartbeat on: whoever begins to decide waits until he has heard them.
SETTLE_SECONDS = 5.0
# DECISIONS keeps one for three days: one that still holds is said again before it is gone.
_REPEAT_US = 24 * 3600 * 1_000_000
# Reasons that are told also where the number stays as it was.
_TOLD = (BUDGET, TOO_LARGE, REVISIONS)

Shares = Callable[[str], tuple[tuple[str, int], ...]]
"""Which revisions of a model should have workers now, with their thousandths of its requests; empty: whatever one."""


class Scaler:
    """``decides``: whether this scheduler is the one that decides now. ``interval``: seconds between two looks;
    ``settle``: how long whoever begins to decide first listens. ``revisions``: those that are registered."""

    def __init__(
        self,
        *,
        bus: Bus,
        publisher: Publisher,
        fleet: Fleet,
        deployments: Deployments,
        name: str,
        decides: Callable[[], bool],
        settings: ScalingSettings,
        interval: float = INTERVAL_SECONDS,
        settle: float = SETTLE_SECONDS,
        rules: Rules | None = None,
        revisions: Revisions = dict,
        shares: Shares = lambda model: (),
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._fleet = fleet
        self._deployments = deployments
        self._name = name
        self._decides = decides
        self._settings = settings
        self._interval = interval
        self._settle = settle
        self._rules = rules or Rules()
        self._needs = Needs(revisions)
        self._shares = shares
        self._born = clock.monotonic()
        self._decides_since: float | None = None
        self._counted = Headcount()
        self._watched: dict[str, Watched] = {}
        self._states: dict[str, State] = {}
        self._residences: dict[Unit, Residence] = {}
        # Workers of models that nobody scales and that are divided: as many as there were when that began, or more.
        self._fixed: dict[str, int] = {}
        # Models with a deployment at the last look: a decision may be heard before its deployment is.
        self._scaled: set[str] = set()
        self._measured: set[Unit] = set()
        self.log = ScalingLog(bus, deployments.records)
        self.last = self.log.last
        if self._rules.budget:
            metrics.MEMORY_BUDGET.set(self._rules.budget)

    async def start(self) -> None:
        """Follow what is decided. Raises like :meth:`Bus.api`."""
        await self.log.start()

    async def stop(self) -> None:
        await self.log.stop()

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._interval)
            if not self._bus.connected:
                self._decides_since = None  # who was not heard meanwhile is to be heard again first
                continue
            try:
                await self._look(clock.monotonic())
            except (InferBusError, StreamApiError) as error:
                log.warning("nothing was decided about replicas", extra={"error": str(error)})

    def heartbeat(self, beat: Heartbeat, now: float) -> None:
        """What a worker tells of its generations, and of its memory."""
        unit = self._counted.unit_of.get((beat.worker, beat.boot))
        if unit is None:
            return
        self._needs.seen(unit, beat.memory_bytes)
        watched = self._watched.get(unit[0])
        if watched is None:
            return
        if beat.ttft_us:
            watched.first_tokens(list(beat.ttft_us), now)
        if beat.engine.HasField("step_seconds"):
            watched.step(beat.engine.step_seconds, beat.engine.running or beat.active, now)

    # --- what others ask ---------------------------------------------------------------------------------------

    def replicas(self, deployment: Deployment, revision: str = "") -> int | None:
        """How many workers it should have: without a decision as many as it has, within its bounds. Of one revision,
        without a decision: none. None: its workers are not known yet."""
        decision = self.last(deployment.model, revision)
        if decision is not None:
            if revision or not deployment.scaled:
                return decision.replicas
            if decision.reason in (REVISIONS, BUDGET, TOO_LARGE, LRU):
                return decision.replicas
            # Its bounds may have been changed since.
            return min(max(decision.replicas, deployment.min_replicas), deployment.max_replicas)
        if clock.monotonic() - self._born < self._settle:
            return None
        if revision:
            return 0
        return min(max(self._workers(deployment.model).taking, deployment.min_replicas), deployment.max_replicas)

    def too_large(self, model: str) -> bool:
        """Whether there will never be memory for a worker of it, as things stand: none of its revisions fits."""
        whole = self.last(base_of(model))
        decisions = [whole] if whole is not None and whole.reason != REVISIONS else self._named(base_of(model))
        return bool(decisions) and all(one.reason == TOO_LARGE and not one.replicas for one in decisions)

    def changes(self) -> AsyncIterator[list[ScalingDecision]]:
        """All last decisions at once (it may be none), then those that are new, until the caller leaves."""
        return self.log.changes()

    def _named(self, model: str) -> list[ScalingDecision]:
        named = {revision for revision, _ in self._shares(model)}
        return [one for one in self.log.revisions(model) if one.revision in named]

    # --- each second -------------------------------------------------------------------------------------------

    async def _look(self, now: float) -> None:
        scaled = {one.model: one for one in self._deployments.scaled()}
        self._counted = count(self._fleet)
        for model in self._watched.keys() - scaled.keys():
            self._watched.pop(model)
            self._states.pop(model, None)
        models = scaled.keys() | self._counted.workers.keys() | self.log.models()
        shares = {model: found for model in models if (found := self._shares(model))}
        self.log.forget(scaled.keys() | shares.keys())
        if scaled.keys() != self._scaled:
            self._scaled = set(scaled)
            self.log.wake()
        deciding = self._decides()
        queued = await self._queued() if deciding and scaled else Counter[str]()
        for model in scaled:
            watched = self._watched.setdefault(model, Watched())
            watched.look(queued=queued[model], running=self._workers(model).running, now=now)
        if not deciding:
            self._decides_since = None
            self._states.clear()
            self._residences.clear()
            self._fixed.clear()
            return
        if self._decides_since is None:
            self._decides_since = now
        if now - self._decides_since >= self._settle and (scaled or shares):
            await self._decide(scaled, shares, queued, now)

    async def _decide(
        self,
        scaled: dict[str, Deployment],
        shares: Mapping[str, tuple[tuple[str, int], ...]],
        queued: Counter[str],
        now: float,
    ) -> None:
        signals = {model: self._signals(model, queued[model], now) for model in scaled}
        wishes = {
            model: desired(deployment, signals[model], self._state(model), now, self._settings)
            for model, deployment in scaled.items()
        }
        plans = [
            plan
            for model in sorted(scaled.keys() | shares.keys() | self._counted.workers.keys())
            for plan in self._plans(model, scaled.get(model), wishes.get(model), shares.get(model, ()))
        ]
        granted = self._granted([plan for plan in plans if plan.unit[0] in scaled], scaled)
        claims = [self._claim(plan, granted.get(plan.unit, plan.replicas), queued, now) for plan in plans]
        verdicts = reside(claims, {one.unit: self._residence(one) for one in claims}, self._rules, now)
        self._tell(claims)
        finals: dict[Unit, tuple[int, str]] = {}
        for plan, claim in zip(plans, claims, strict=True):
            verdict = verdicts[plan.unit]
            reason = verdict.reason or (GPU_BUDGET if claim.replicas < plan.replicas else plan.reason)
            finals[plan.unit] = verdict.replicas, reason
        for model, wish in wishes.items():
            mine = [finals[plan.unit] for plan in plans if plan.unit[0] == model and not plan.disposable]
            # What is kept for the next look: what there will be, not what was wished for.
            there = sum(replicas for replicas, _ in mine)
            wishes[model] = cut(wish, there, mine[0][1]) if there < wish.replicas else wish
        for plan, claim in zip(plans, claims, strict=True):
            if plan.decided:
                replicas, reason = finals[plan.unit]
                told = signals.get(plan.unit[0])
                await self._publish(plan.unit, replicas, reason, plan.wanted, claim.need, told)
            self._residences[plan.unit] = verdicts[plan.unit].residence
        for model in scaled.keys() | shares.keys():
            await self._publish_whole(model, shares.get(model, ()), finals, signals.get(model))
            if model in wishes:
                self._states[model] = wishes[model].state
        for unit in self._residences.keys() - verdicts.keys():
            del self._residences[unit]

    def _plans(
        self, model: str, deployment: Deployment | None, wish: Desired | None, shares: tuple[tuple[str, int], ...]
    ) -> list[Plan]:
        revisions = {revision: workers for (of, revision), workers in self._counted.revisions.items() if of == model}
        decided = {one.revision for one in self.log.revisions(model) if one.replicas}
        taking = self._workers(model).taking
        if shares and deployment is None:
            before = self.last(model)
            known = max(1, taking) if before is None else before.replicas
            # One that is served by one revision has as many as it is given; while there are two there are more.
            only = self._counted.of((model, shares[0][0])).taking if len(shares) == 1 else 0
            fixed = self._fixed[model] = max(self._fixed.get(model, known), only)
        else:
            fixed = taking
            self._fixed.pop(model, None)
        return plans_of(
            model,
            deployment,
            wish,
            shares,
            taking={revision: workers.taking for revision, workers in revisions.items()},
            leaving={revision: workers.leaving for revision, workers in revisions.items()},
            decided=decided,
            fixed=fixed,
        )

    def _granted(self, plans: list[Plan], scaled: Mapping[str, Deployment]) -> Mapping[Unit, int]:
        """By the GPU budget."""
        wants = []
        for plan in plans:
            workers = self._counted.of(plan.unit)
            gpus = scaled[plan.unit[0]].gpus_per_replica
            wants.append(Want(plan.unit, plan.replicas, gpus, workers.taking + workers.leaving))
        return share(wants, self._settings.gpu_budget)

    def _claim(self, plan: Plan, replicas: int, queued: Counter[str], now: float) -> Claim:
        model, revision = plan.unit
        workers, watched = self._counted.of(plan.unit), self._watched.get(model)
        live = tuple(of for (one, of) in self._counted.revisions if one == model)
        last = self.last(model, revision)
        return Claim(
            unit=plan.unit,
            replicas=replicas,
            need=self._needs.of(plan.unit, live, last.memory_bytes if last is not None else 0),
            taking=workers.taking,
            leaving=workers.leaving,
            floor=min(plan.floor, replicas),
            queued=queued[model],
            running=workers.running,
            idle_seconds=watched.idle(now) if watched is not None else None,
            disposable=plan.disposable,
        )

    def _residence(self, claim: Claim) -> Residence:
        """Of one that nobody has decided about: what is there counts as granted."""
        known = self._residences.get(claim.unit)
        if known is not None:
            return known
        last = self.last(*claim.unit)
        return Residence(claim.taking if last is None else last.replicas)

    def _tell(self, claims: list[Claim]) -> None:
        """What of the budget is taken, for /metrics."""
        if not self._rules.budget:
            return
        held = {one.unit: (one.taking + one.leaving) * one.need for one in claims}
        for unit in self._measured - held.keys():
            metrics.MODEL_MEMORY.remove(*unit)
        for unit, number in held.items():
            metrics.MODEL_MEMORY.labels(*unit).set(number)
        self._measured = set(held)

    async def _publish_whole(
        self, model: str, shares: tuple[tuple[str, int], ...], finals: Mapping[Unit, tuple[int, str]],
        signals: Signals | None,
    ) -> None:  # fmt: skip
        """Of a model that is divided: all of its named revisions together, so that who follows knows that each has a
        decision of its own. Of one that is divided no longer: after that for all, none of its revisions has one."""
        if shares:
            replicas = sum(finals[model, revision][0] for revision, _ in shares)
            await self._publish((model, ""), replicas, REVISIONS, replicas, 0, signals)
            return
        for decision in self.log.revisions(model):
            if decision.replicas:
                await self._publish((model, decision.revision), 0, REVISIONS, 0, 0, signals)

    async def _publish(
        self, unit: Unit, replicas: int, reason: str, wanted: int, need: int, signals: Signals | None
    ) -> None:
        """Say it, if it is new. Nothing counts as decided that is not stored: what raises here is decided again."""
        last = self.last(*unit)
        model, revision = unit
        before = last.replicas if last is not None else 0 if revision else self._state(model).replicas
        if not self._decides() or not _is_news(last, before, replicas, reason):
            return
        kept = last.reason if last is not None and last.reason not in _TOLD else NO_LOAD
        decision = ScalingDecision(
            scheduler=self._name,
            model=model,
            revision=revision,
            decision_time=clock.timestamp(clock.now_us()),
            replicas_before=before,
            replicas=replicas,
            reason=reason or (kept if last is not None else ""),
            signals=_told(signals) if signals is not None else None,
            replicas_wanted=wanted,
            memory_bytes=need,
        )
        await self._publisher.publish(decision)
        if replicas != before:
            extra = {"model": model, "revision": revision, "before": before, "replicas": replicas}
            log.info("replicas decided", extra=extra | {"reason": reason})
        self.log.note(decision)

    def _state(self, model: str) -> State:
        """Of a deployment that nobody has decided about: what is there counts as decided."""
        known = self._states.get(model)
        if known is not None:
            return known
        last = self.last(model)
        return State(self._workers(model).taking if last is None else last.replicas)

    def _signals(self, model: str, queued: int, now: float) -> Signals:
        workers = self._workers(model)
        return self._watched[model].signals(
            workers=workers.taking,
            leaving=workers.leaving,
            slots=workers.slots,
            running=workers.running,
            queued=queued,
            kv_used=workers.kv_blocks_used / workers.kv_blocks if workers.kv_blocks else None,
            now=now,
        )

    def _workers(self, model: str) -> Workers:
        return self._counted.of((model, ""))

    async def _queued(self) -> Counter[str]:
        """What waits, by model; adapters with their model. It lies on REQUESTS, whoever schedules it."""
        info = await self._bus.api("STREAM.INFO.REQUESTS", {"subjects_filter": "req.>"})
        queued: Counter[str] = Counter()
        for subject, waiting in (info["state"].get("subjects") or {}).items():
            queued[base_of(name_of_token(subject.rpartition(".")[2]))] += waiting
        return queued


def _is_news(last: ScalingDecision | None, before: int, replicas: int, reason: str) -> bool:
    if replicas != before:
        return True
    if last is None:
        # Nothing is said of what stays as it is, but why it stays without.
        return reason in _TOLD
    if clock.now_us() - clock.unix_us(last.decision_time) > _REPEAT_US:
        return True
    # Why there is nothing, and who has decisions of their own, is said also where the number stays.
    return _told_always(reason) != _told_always(last.reason)


def _told_always(reason: str) -> str:
    return reason if reason in _TOLD else ""


def _told(signals: Signals) -> ScalingSignals:
    return ScalingSignals(
        workers=signals.workers,
        queued=signals.queued,
        running=signals.running,
        oldest_seconds=signals.oldest_seconds,
        arrivals_per_second=signals.arrivals_per_second,
        placements_per_second=signals.placements_per_second,
        slots_used=signals.slots_used,
        kv_used=signals.kv_used,
        ttft_seconds=signals.ttft_seconds,
        itl_seconds=signals.itl_seconds,
        idle_seconds=signals.idle_seconds,
    )
