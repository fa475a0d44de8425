"""Decides every second how many workers each scaled deployment should have.

One scheduler decides for all deployments, the holder of shard 0: so the GPU budget is one sum, and holds with any
number of schedulers. It needs nothing that the others hold: what waits is what lies on REQUESTS, since a request leaves
it only when it is placed or ended, and how workers fare they tell everyone. What it decides is on DECISIONS; all
schedulers follow that, so each can say what was decided last, and the next one goes on from there.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping

from inferbus.bus.v1.control_pb2 import Heartbeat
from inferbus.bus.v1.decision_pb2 import ScalingDecision, ScalingSignals
from inferbus_bus.connection import Bus
from inferbus_bus.consumers import Position
from inferbus_bus.errors import StreamApiError
from inferbus_bus.ordered import OrderedReader
from inferbus_bus.publish import Publisher
from inferbus_contracts.subjects import name_of_token
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from nats.aio.msg import Msg

from inferbus_scheduler.core.deployments import Deployment
from inferbus_scheduler.core.request import base_of
from inferbus_scheduler.core.scaling import Desired, ScalingSettings, State, Want, cut, desired, share
from inferbus_scheduler.core.signals import Signals, Watched
from inferbus_scheduler.deployments import Deployments
from inferbus_scheduler.headcount import Fleet, Headcount, Workers, count

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 1.0
# Workers are counted from their first heartbeat on: whoever begins to decide waits until he has heard them.
SETTLE_SECONDS = 5.0
# DECISIONS keeps one for three days: one that still holds is said again before it is gone.
_REPEAT_US = 24 * 3600 * 1_000_000
_FORGET_US = 600 * 1_000_000


class Scaler:
    """``decides``: whether this scheduler is the one that decides now. ``interval``: seconds between two looks;
    ``settle``: how long whoever begins to decide first listens."""

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
        self._born = clock.monotonic()
        self._decides_since: float | None = None
        self._counted = Headcount()
        self._watched: dict[str, Watched] = {}
        self._states: dict[str, State] = {}
        self._last: dict[str, ScalingDecision] = {}
        # Models with a deployment at the last look: a decision may be heard before its deployment is.
        self._scaled: set[str] = set()
        self._changed = asyncio.Event()
        self._reader = OrderedReader(bus, stream="DECISIONS", subject="dec.scaling.>", on_message=self._heard)

    async def start(self) -> None:
        """Follow what is decided. Raises like :meth:`Bus.api`."""
        await self._reader.start({"deliver_policy": "last_per_subject"}, 0)

    async def stop(self) -> None:
        await self._reader.stop()

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
        """What a worker tells of its generations."""
        model = self._counted.model_of.get((beat.worker, beat.boot))
        watched = None if model is None else self._watched.get(model)
        if watched is None:
            return
        if beat.ttft_us:
            watched.first_tokens(list(beat.ttft_us), now)
        if beat.engine.HasField("step_seconds"):
            watched.step(beat.engine.step_seconds, beat.engine.running or beat.active, now)

    # --- what others ask ---------------------------------------------------------------------------------------

    def last(self, model: str) -> ScalingDecision | None:
        """The last decision about ``model`` since its deployment was made."""
        decision, record = self._last.get(model), self._deployments.records().get(model)
        if decision is None or record is None:
            return None
        return decision if clock.unix_us(decision.decision_time) >= clock.unix_us(record.create_time) else None

    def replicas(self, deployment: Deployment) -> int | None:
        """How many workers it should have: without a decision as many as it has, within its bounds. None: its workers
        are not known yet."""
        decision = self.last(deployment.model)
        if decision is not None:
            # Its bounds may have been changed since.
            return min(max(decision.replicas, deployment.min_replicas), deployment.max_replicas)
        if clock.monotonic() - self._born < self._settle:
            return None
        workers = self._counted.workers.get(deployment.model)
        taking = 0 if workers is None else workers.taking
        return min(max(taking, deployment.min_replicas), deployment.max_replicas)

    async def changes(self) -> AsyncIterator[list[ScalingDecision]]:
        """All last decisions at once (it may be none), then those that are new, until the caller leaves."""
        seen: dict[str, ScalingDecision] | None = None
        while True:
            changed = self._changed
            now = {model: decision for model in sorted(self._last) if (decision := self.last(model)) is not None}
            fresh = [decision for model, decision in now.items() if not seen or seen.get(model) is not decision]
            if fresh or seen is None:
                yield fresh
            seen = now
            await changed.wait()

    # --- each second -------------------------------------------------------------------------------------------

    async def _look(self, now: float) -> None:
        scaled = {one.model: one for one in self._deployments.scaled()}
        self._counted = count(self._fleet)
        for model in self._watched.keys() - scaled.keys():
            self._watched.pop(model)
            self._states.pop(model, None)
        self._forget(scaled)
        if scaled.keys() != self._scaled:
            self._scaled = set(scaled)
            self._wake()
        deciding = self._decides()
        queued = await self._queued() if deciding and scaled else Counter[str]()
        for model in scaled:
            watched = self._watched.setdefault(model, Watched())
            watched.look(queued=queued[model], running=self._workers(model).running, now=now)
        if not deciding:
            self._decides_since = None
            self._states.clear()
            return
        if self._decides_since is None:
            self._decides_since = now
        if now - self._decides_since >= self._settle and scaled:
            await self._decide(scaled, queued, now)

    async def _decide(self, scaled: dict[str, Deployment], queued: Counter[str], now: float) -> None:
        signals = {model: self._signals(model, queued[model], now) for model in scaled}
        decisions = {
            model: desired(deployment, signals[model], self._state(model), now, self._settings)
            for model, deployment in scaled.items()
        }
        wants = [
            Want(
                model, decisions[model].replicas, one.gpus_per_replica, signals[model].workers + signals[model].leaving
            )
            for model, one in scaled.items()
        ]
        granted = share(wants, self._settings.gpu_budget)
        for model, decision in decisions.items():
            final = cut(decision, granted[model])
            before = self._state(model).replicas
            if final.replicas != before or self._fades(model):
                await self._publish(model, before, final, signals[model])
            self._states[model] = final.state

    async def _publish(self, model: str, before: int, final: Desired, signals: Signals) -> None:
        """Nothing counts as decided that is not stored: what raises here is decided again."""
        if not self._decides():
            return
        last = self.last(model)
        decision = ScalingDecision(
            scheduler=self._name,
            model=model,
            decision_time=clock.timestamp(clock.now_us()),
            replicas_before=before,
            replicas=final.replicas,
            reason=final.reason or (last.reason if last is not None else ""),
            signals=_told(signals),
            replicas_wanted=final.wanted,
        )
        await self._publisher.publish(decision)
        if final.replicas != before:
            extra = {"model": model, "before": before, "replicas": final.replicas, "reason": final.reason}
            log.info("replicas decided", extra=extra)
        self._note(decision)

    def _state(self, model: str) -> State:
        """Of a deployment that nobody has decided about: what is there counts as decided."""
        known = self._states.get(model)
        if known is not None:
            return known
        last = self.last(model)
        return State(self._workers(model).taking if last is None else last.replicas)

    def _fades(self, model: str) -> bool:
        last = self.last(model)
        return last is not None and clock.now_us() - clock.unix_us(last.decision_time) > _REPEAT_US

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
        return self._counted.workers.get(model) or Workers()

    async def _queued(self) -> Counter[str]:
        """What waits, by model; adapters with their model. It lies on REQUESTS, whoever schedules it."""
        info = await self._bus.api("STREAM.INFO.REQUESTS", {"subjects_filter": "req.>"})
        queued: Counter[str] = Counter()
        for subject, waiting in (info["state"].get("subjects") or {}).items():
            queued[base_of(name_of_token(subject.rpartition(".")[2]))] += waiting
        return queued

    def _forget(self, scaled: Mapping[str, Deployment]) -> None:
        """Decisions of deployments that are gone; not at once, since a new one may be heard of before its record."""
        old = clock.now_us() - _FORGET_US
        for model in self._last.keys() - scaled.keys():
            if clock.unix_us(self._last[model].decision_time) < old:
                del self._last[model]

    # --- what was decided --------------------------------------------------------------------------------------

    def _heard(self, msg: Msg, at: Position) -> None:
        self._note(ScalingDecision.FromString(msg.data))

    def _note(self, decision: ScalingDecision) -> None:
        known = self._last.get(decision.model)
        if known is not None and clock.unix_us(known.decision_time) >= clock.unix_us(decision.decision_time):
            return
        self._last[decision.model] = decision
        self._wake()

    def _wake(self) -> None:
        """Whoever follows looks again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


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
