"""What was decided about workers, as everyone hears it on DECISIONS: the last of each model, and of each revision."""

import asyncio
from collections.abc import AsyncIterator, Callable, Container, Mapping

from inferbus.bus.v1.decision_pb2 import ScalingDecision
from inferbus.bus.v1.registry_pb2 import DeploymentRecord
from inferbus_bus.connection import Bus
from inferbus_bus.consumers import Position
from inferbus_bus.ordered import OrderedReader
from inferbus_runtime import clock
from nats.aio.msg import Msg

from inferbus_scheduler.core.residency import Unit
from inferbus_scheduler.core.scaling import REVISIONS

_FORGET_US = 600 * 1_000_000


class ScalingLog:
    """``records``: deployments by model. ``on_decision`` is told each new one, at once."""

    def __init__(self, bus: Bus, records: Callable[[], Mapping[str, DeploymentRecord]]) -> None:
        self._records = records
        self._last: dict[Unit, ScalingDecision] = {}
        self._changed = asyncio.Event()
        self._reader = OrderedReader(bus, stream="DECISIONS", subject="dec.scaling.>", on_message=self._heard)
        self.on_decision: Callable[[ScalingDecision], None] = lambda decision: None

    async def start(self) -> None:
        """Raises like :meth:`Bus.api`."""
        await self._reader.start({"deliver_policy": "last_per_subject"}, 0)

    async def stop(self) -> None:
        await self._reader.stop()

    def last(self, model: str, revision: str = "") -> ScalingDecision | None:
        """The last decision that holds: one about all workers of a model only since its deployment was made."""
        decision, record = self._last.get((model, revision)), self._records().get(model)
        if decision is None or revision or decision.reason == REVISIONS:
            return decision
        if record is None:
            return None
        return decision if clock.unix_us(decision.decision_time) >= clock.unix_us(record.create_time) else None

    def revisions(self, model: str) -> list[ScalingDecision]:
        """The last decision about each revision, by its name."""
        return [one for (of, revision), one in sorted(self._last.items()) if of == model and revision]

    def models(self) -> set[str]:
        """Those about which something was decided lately."""
        return {model for model, _ in self._last}

    async def changes(self) -> AsyncIterator[list[ScalingDecision]]:
        """All last decisions at once (it may be none), then those that are new, until the caller leaves. Of one model
        they come in the order in which they were made."""
        seen: dict[Unit, ScalingDecision] | None = None
        while True:
            changed = self._changed
            now = {unit: decision for unit in sorted(self._last) if (decision := self.last(*unit)) is not None}
            fresh = [decision for unit, decision in now.items() if not seen or seen.get(unit) is not decision]
            if fresh or seen is None:
                yield sorted(fresh, key=lambda one: clock.unix_us(one.decision_time))
            seen = now
            await changed.wait()

    def note(self, decision: ScalingDecision) -> None:
        """It is stored."""
        unit = decision.model, decision.revision
        known = self._last.get(unit)
        if known is not None and clock.unix_us(known.decision_time) >= clock.unix_us(decision.decision_time):
            return
        self._last[unit] = decision
        self.on_decision(decision)
        self.wake()

    def wake(self) -> None:
        """Whoever follows looks again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def forget(self, alive: Container[str]) -> None:
        """Decisions about models that nobody scales any more; not at once, since a new one may be heard of before its
        record."""
        old = clock.now_us() - _FORGET_US
        for unit, decision in list(self._last.items()):
            gone = unit[0] not in alive and (not decision.replicas or not (unit[1] or decision.reason == REVISIONS))
            if gone and clock.unix_us(decision.decision_time) < old:
                del self._last[unit]

    def _heard(self, msg: Msg, at: Position) -> None:
        self.note(ScalingDecision.FromString(msg.data))
