"""Takes rollouts from step to step: looks every second, judges by what ClickHouse has, and stores each move with the
figures that decided it. One scheduler does it for all models; what it needs is stored, so the next one goes on."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import grpc
from inferbus.bus.v1.revision_pb2 import RolloutRecord
from inferbus.meter.v1.revisions_pb2 import GetRevisionStatisticsRequest, RevisionStatistics
from inferbus.meter.v1.revisions_pb2_grpc import RevisionStatisticsServiceStub
from inferbus_bus.errors import StreamApiError
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tasks import cancel_all

from inferbus_scheduler.core.judging import Figure, Sample, Verdict, agreement, judge
from inferbus_scheduler.core.rollout import PAUSED, RUNNING, WARMING, Facts, Terms, decide, terms_of
from inferbus_scheduler.core.traffic import WHOLE
from inferbus_scheduler.fleet import Fleet
from inferbus_scheduler.probes import PROMPTS, ProbeError, Prober, chats
from inferbus_scheduler.revisions import Revisions
from inferbus_scheduler.rollouts import Rollouts

log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
# What a meter is asked costs it a read of the table.
_ASK_SECONDS = 2.0
_TIMEOUT_SECONDS = 10.0
_PROBE_AGAIN_SECONDS = 2.0
# The meter is asked about a day at most.
_LONGEST_US = 23 * 3600 * 1_000_000


@dataclass(slots=True)
class _Watched:
    """What is known of one rollout under way. Times are monotonic seconds. ``began_us``: names it."""

    candidate: str
    began_us: int
    agreement: Figure | None = None
    probing: asyncio.Task[None] | None = None
    probe_at: float = 0.0
    figures: tuple[Figure, ...] | None = None
    # Since when the step is that the figures are of, Unix microseconds.
    step_us: int = 0
    ask_at: float = 0.0
    absent_since: float | None = None


@dataclass(slots=True)
class RolloutControl:
    """``decides``: whether this scheduler is the one that does it now. ``meter``: None: nothing is judged, and no step
    is taken."""

    rollouts: Rollouts
    revisions: Revisions
    fleet: Fleet
    prober: Prober
    meter: grpc.aio.Channel | None
    decides: Callable[[], bool]
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _followed_up: bool = False

    async def run(self) -> None:
        """For ever."""
        try:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                if not self.decides():
                    self._followed_up = False
                    continue
                try:
                    await self._look()
                except (InferBusError, StreamApiError) as error:
                    log.warning("a rollout stays as it is for now", extra={"error": str(error)})
        finally:
            await cancel_all([one.probing for one in self._watched.values() if one.probing is not None])

    def figures(self, model: str) -> Iterable[Figure]:
        """Of the step that is under way, as they were seen last; empty where another scheduler looks at them."""
        watched = self._watched.get(model)
        if watched is None:
            return ()
        return (*((watched.agreement,) if watched.agreement is not None else ()), *(watched.figures or ()))

    async def _look(self) -> None:
        records = list(self.rollouts.records().values())
        if not self._followed_up:
            for record in records:
                await self.rollouts.follow_up(record)
            self._followed_up = True
        under_way = {record.model: record for record in records if record.candidate_revision}
        for model in self._watched.keys() - under_way.keys():
            await self._forget(model)
        for record in under_way.values():
            await self._step(record, clock.monotonic())

    async def _step(self, record: RolloutRecord, now: float) -> None:
        watched = await self._watch(record)
        terms = terms_of(record, derived=self._derived(record))
        workers = self.fleet.revisions(record.model)
        if workers.get(record.candidate_revision):
            watched.absent_since = None
        elif watched.absent_since is None:
            watched.absent_since = now
        if record.state == WARMING:
            self._probe(record, watched, terms, now)
        elif record.state in (RUNNING, PAUSED):
            await self._measure(record, watched, terms, now)
        facts = Facts(
            workers=dict(workers),
            absent_seconds=now - watched.absent_since if watched.absent_since is not None else 0.0,
            agreement=watched.agreement,
            figures=watched.figures,
        )
        made = decide(record, terms, facts, clock.now_us())
        if made is not None and self.decides():
            await self.rollouts.store(record, made, announced=False)

    async def _watch(self, record: RolloutRecord) -> _Watched:
        began_us = _began_us(record)
        watched = self._watched.get(record.model)
        if watched is not None and (watched.candidate, watched.began_us) != (record.candidate_revision, began_us):
            await self._forget(record.model)
            watched = None
        if watched is None:
            watched = self._watched[record.model] = _Watched(record.candidate_revision, began_us)
        return watched

    async def _forget(self, model: str) -> None:
        watched = self._watched.pop(model)
        if watched.probing is not None:
            await cancel_all([watched.probing])

    def _derived(self, record: RolloutRecord) -> bool:
        """Whether both are the same weights, in whatever form."""
        return self._root(record.model, record.candidate_revision) == self._root(record.model, record.stable_revision)

    def _root(self, model: str, revision: str) -> str:
        seen: set[str] = set()
        while revision not in seen:
            seen.add(revision)
            known = self.revisions.get(model, revision)
            if known is None or not known.derived_from:
                break
            revision = known.derived_from
        return revision

    # --- while it is warmed --------------------------------------------------------------------------------------

    def _probe(self, record: RolloutRecord, watched: _Watched, terms: Terms, now: float) -> None:
        """In the background, until it has gone well once."""
        if watched.agreement is not None or now < watched.probe_at:
            return
        if watched.probing is not None and not watched.probing.done():
            return
        if self.fleet.revisions(record.model).get(record.candidate_revision):
            watched.probe_at = now + _PROBE_AGAIN_SECONDS
            watched.probing = asyncio.create_task(self._probed(record, watched, terms), name=f"probe {record.model}")

    async def _probed(self, record: RolloutRecord, watched: _Watched, terms: Terms) -> None:
        try:
            candidate = await self._answers(record.model, record.candidate_revision)
            stable = await self._answers(record.model, record.stable_revision)
        except ProbeError as error:
            log.warning("probes do not arrive", extra={"model": record.model, "error": str(error)})
            return
        watched.agreement = _agreement(candidate, stable, terms.min_agreement)

    async def _answers(self, model: str, revision: str) -> tuple[tuple[int, ...] | None, ...]:
        """Of one of its workers; empty: it has none."""
        for view in self.fleet.alive(model):
            if view.revision == revision:
                record = next((one.record for one in self.fleet.workers() if one.record.worker == view.name), None)
                if record is not None:
                    return await self.prober.answers(record)
        return ()

    # --- while it serves -----------------------------------------------------------------------------------------

    async def _measure(self, record: RolloutRecord, watched: _Watched, terms: Terms, now: float) -> None:
        step_us = clock.unix_us(record.step_time)
        if step_us != watched.step_us:
            watched.step_us, watched.figures, watched.ask_at = step_us, None, 0.0
        if self.meter is None or now < watched.ask_at:
            return
        watched.ask_at = now + _ASK_SECONDS
        # While it has all requests the stable one has none to be compared with but those of before.
        alone = record.weight_permille >= WHOLE
        candidate = await self._statistics(record.model, record.candidate_revision, step_us)
        stable = await self._statistics(record.model, record.stable_revision, watched.began_us if alone else step_us)
        if candidate is not None and stable is not None:
            watched.figures = judge(sample_of(candidate), sample_of(stable), terms.bounds)

    async def _statistics(self, model: str, revision: str, since_us: int) -> RevisionStatistics | None:
        """None: the meter does not say."""
        assert self.meter is not None  # noqa: S101 (the caller looked)
        request = GetRevisionStatisticsRequest(
            model=model,
            revisions=[revision],
            start_time=clock.timestamp(max(since_us, clock.now_us() - _LONGEST_US)),
        )
        try:
            answer = await RevisionStatisticsServiceStub(self.meter).GetRevisionStatistics(
                request, timeout=_TIMEOUT_SECONDS
            )
        except grpc.aio.AioRpcError as error:
            log.warning("a rollout is not judged for now", extra={"model": model, "error": error.details()})
            return None
        found: RevisionStatistics = answer.revisions[0]
        return found


def _began_us(record: RolloutRecord) -> int:
    """When the rollout under way was started; of a long one, whose start is not told any more: the first that is."""
    for event in reversed(record.events):
        if event.action == "started":
            return clock.unix_us(event.event_time)
    return clock.unix_us(record.events[0].event_time if record.events else record.step_time)


def _agreement(
    candidate: Sequence[tuple[int, ...] | None], stable: Sequence[tuple[int, ...] | None], least: float
) -> Figure:
    """Of the prompts that the stable one answers. OPEN where there are none: nothing says what should be written."""
    pairs = [(one or (), other) for one, other in zip(candidate, stable, strict=False) if other]
    if not pairs or not chats(stable):
        return Figure("agreement", None, None, 0, 0, None, least or None, Verdict.OPEN)
    found = agreement([one for one, _ in pairs], [other for _, other in pairs])
    bad = found is not None and found < least
    limit = least if least else None
    return Figure("agreement", found, 1.0, len(pairs), len(PROMPTS), None, limit, Verdict.BAD if bad else Verdict.GOOD)


def sample_of(told: RevisionStatistics) -> Sample:
    return Sample(
        requests=told.requests,
        failed=told.failed,
        answered=told.answered,
        at_limit=told.at_limit,
        empty=told.empty,
        ttft=tuple(value / 1e6 for value in told.ttft_us),
        itl=tuple(value / 1e6 for value in told.tpot_us),
    )
