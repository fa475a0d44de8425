"""Messages that came straight over the queue: each becomes a job or a line of one, or its sender is told why not."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, replace
from typing import Any

from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.workqueue import Delivery
from inferbus_contracts.subjects import result_prefix, submitter_of
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tasks import cancel_all

from inferbus_batch.core.gathering import Gathering, Group
from inferbus_batch.core.queue_messages import Address, AskedJob, AskedSingle, Refused, read_message, refusal
from inferbus_batch.core.results import EXPIRED
from inferbus_batch.core.seen import Seen, Verdict
from inferbus_batch.core.unserved import unserved
from inferbus_batch.keys import Keys
from inferbus_batch.queue_jobs import Place, QueueJobs, TakenError, Together
from inferbus_batch.telling_results import EACH, Results

log = logging.getLogger(__name__)
_AT_ONCE = 16
# With more of them nobody waits for others.
_MOST_WAITING = 10_000
_STOP_SECONDS = 5.0
_US = 1_000_000
_MINUTE_US = 60 * _US
# A key that was just made may not be known here yet; later it is one that was revoked.
_UNKNOWN_US, _UNKNOWN_SECONDS = 60 * _US, 2.0
# Of what its tenant has too much of now, and of what failed for a reason of ours.
_FULL_SECONDS, _AGAIN_SECONDS = 30.0, 2.0
_MOST_TRIES = 20


@dataclass(slots=True)
class _Held:
    """A message that is to become a job, until it is settled. ``size``: bytes that it came with."""

    delivery: Delivery
    place: Place
    size: int
    key: KeyRecord
    asked: AskedJob | AskedSingle


class Taking:
    """While the lease is held. ``models``: what is served; ``busy``: whether a tenant's batches of single requests have
    enough to do; ``max_lines``: of a batch. ``size``: bytes of what is not settled."""

    def __init__(
        self, seen: Seen, *, submit: QueueJobs, results: Results, keys: Keys,
        models: Callable[[str], ModelRecord | None], busy: Callable[[str], bool], max_lines: int,
    ) -> None:  # fmt: skip
        self._seen = seen
        self._submit = submit
        self._results = results
        self._keys = keys
        self._models = models
        self._busy = busy
        self.size = 0
        self._arrivals: deque[Delivery] = deque()
        self._held: dict[int, _Held] = {}
        self._gathering: Gathering[Together, _Held] = Gathering(max_lines)
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    def arrived(self, delivery: Delivery) -> None:
        self.size += len(delivery.data)
        self._arrivals.append(delivery)

    def consider(self, most: int) -> bool:
        """So many of those that have come. False if there was none."""
        some = [self._arrivals.popleft() for _ in range(min(most, len(self._arrivals)))]
        for delivery in some:
            size = len(delivery.data)
            try:
                self._consider(delivery, size)
            except Exception:
                log.exception("a message was not understood: a fault of ours", extra={"subject": delivery.subject})
                self._settle(delivery, size, _FULL_SECONDS if delivery.deliveries < _MOST_TRIES else 0.0)
        return bool(some)

    def flush(self, now: float) -> None:
        """Single requests that have waited for others long enough, or are enough, become a job."""
        for group in self._gathering.due(now, self._enough_to_do):
            self._spawn(self._submit_lines(group), group.items)

    def _enough_to_do(self, of: Together) -> bool:
        return len(self._held) < _MOST_WAITING and self._busy(of.tenant_id)

    def next_due(self) -> float | None:
        """When :meth:`flush` may have something to do (monotonic seconds)."""
        return self._gathering.next_due()

    async def close(self) -> None:
        """What is being submitted may end within seconds; the rest is given back."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_STOP_SECONDS)
        await cancel_all(list(self._tasks))
        for delivery in (*(held.delivery for held in self._held.values()), *self._arrivals):
            delivery.nak()

    def drop(self) -> None:
        """Another has the lease."""
        for task in self._tasks:
            task.cancel()

    # --- one message ------------------------------------------------------------------------------------------------

    def _consider(self, delivery: Delivery, size: int) -> None:
        held = self._held.get(delivery.sequence)
        if held is not None:  # the connection was lost meanwhile: this is how it is settled now
            self.size -= held.size
            held.delivery, held.size = delivery, size
            return
        try:
            tenant_id, key_id, tag = submitter_of(delivery.subject)
        except ValueError:
            log.warning("a message of nobody was dropped", extra={"subject": delivery.subject})
            self._settle(delivery, size)
            return
        key = self._keys.living(tenant_id, key_id)
        if key is None:
            self._unknown(delivery, size, key_id)
            return
        place = Place(delivery.sequence, delivery.stored_us)
        results = result_prefix(tenant_id, key.project_id, tag)
        message = read_message(delivery.data, results, f"message-{place}")
        error = message.error if isinstance(message, Refused) else self._refusal(message, key, place)
        if error is not None:
            self._refuse(delivery, size, message.to, error)
        elif isinstance(message, AskedJob):
            held = self._held[place.sequence] = _Held(delivery, place, size, key, message)
            self._spawn(self._submit_job(held, message), [held])
        elif isinstance(message, AskedSingle):
            delivery.data = b""  # the line has it, and what it asks is looked at no more
            model, message = message.plan.model if message.plan else "", replace(message, plan=None)
            subject = message.to.subject if message.to.own else results + EACH
            together = Together(
                tenant_id=tenant_id, project_id=key.project_id, key_id=key_id, url=message.url, model=model,
                window_s=message.window_s, subject=subject, minute=place.stored_us // _MINUTE_US,
            )  # fmt: skip
            self._single(_Held(delivery, place, size, key, message), message, together)

    def _unknown(self, delivery: Delivery, size: int, key_id: str) -> None:
        if delivery.stored_us > clock.now_us() - _UNKNOWN_US:
            self._settle(delivery, size, _UNKNOWN_SECONDS)
            return
        log.warning("a message of a key that is not valid was dropped", extra={"key_id": key_id})
        self._settle(delivery, size)

    def _refusal(self, message: AskedJob | AskedSingle, key: KeyRecord, place: Place) -> InferBusError | None:
        if place.stored_us + message.window_s * _US <= clock.now_us():
            return EXPIRED
        plan = message.plan if isinstance(message, AskedSingle) else None
        return None if plan is None else unserved(plan, self._models(plan.model), key)

    def _single(self, held: _Held, asked: AskedSingle, together: Together) -> None:
        key, now = held.key, clock.monotonic()
        match self._seen.add((key.tenant_id, key.key_id), asked.to.name, asked.line, now):
            case Verdict.AGAIN:
                self._settle(held.delivery, held.size)
            case Verdict.OTHER:
                message = "Another request was sent under this id within ten minutes; choose another id."
                error = InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "idempotency_mismatch", message, param="id")
                self._refuse(held.delivery, held.size, asked.to, error)
            case Verdict.NEW:
                self._held[held.place.sequence] = held
                self._gathering.add(together, held, held.size, now)

    # --- what becomes of it -----------------------------------------------------------------------------------------

    async def _submit_job(self, held: _Held, asked: AskedJob) -> None:
        await self._outcome([held], self._submit.submit(held.key, asked, held.place))

    async def _submit_lines(self, group: Group[Together, _Held]) -> None:
        lines = [(held.place, held.asked.line) for held in group.items if isinstance(held.asked, AskedSingle)]
        try:
            await self._outcome(group.items, self._submit.submit_lines(group.key, lines))
        except TakenError as error:
            self._give_back(group.items, _AGAIN_SECONDS)
            for line in error.lines:
                self._seen.add_line((group.key.tenant_id, group.key.key_id), line, clock.monotonic())

    async def _outcome(self, some: list[_Held], submitting: Coroutine[Any, Any, None]) -> None:
        try:
            async with self._at_once:
                await submitting
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED:
                self._give_back(some, _FULL_SECONDS)
                return
            for held in some:
                self._drop_held(held)
                self._refuse(held.delivery, held.size, held.asked.to, error)
            return
        for held in some:
            del self._held[held.place.sequence]
            self._settle(held.delivery, held.size)

    def _give_back(self, some: Iterable[_Held], seconds: float) -> None:
        for held in some:
            self._drop_held(held)
            self._settle(held.delivery, held.size, seconds)

    def _drop_held(self, held: _Held) -> None:
        """When it comes again it is new."""
        del self._held[held.place.sequence]
        if isinstance(held.asked, AskedSingle):
            self._seen.forget((held.key.tenant_id, held.key.key_id), held.asked.to.name)

    def _refuse(self, delivery: Delivery, size: int, to: Address, error: InferBusError) -> None:
        async def tell() -> None:
            name = f"queue-{delivery.sequence}-{delivery.stored_us}"
            try:
                async with self._at_once:
                    await self._results.tell(to.subject, refusal(to.name, error), name)
            except InferBusError as failed:
                log.info("a refusal is told later", extra={"error": str(failed)})
                self._settle(delivery, size, _AGAIN_SECONDS)
            else:
                self._settle(delivery, size)

        self._spawn(tell(), [])

    def _settle(self, delivery: Delivery, size: int, again_after: float = 0.0) -> None:
        self.size -= size
        if again_after:
            delivery.nak(again_after)
        else:
            delivery.ack()

    def _spawn(self, work: Coroutine[Any, Any, None], some: list[_Held]) -> None:
        """``some``: if it fails for a reason of ours they are given back."""

        async def run() -> None:
            try:
                await work
            except Exception:
                log.exception("messages of the queue are taken later")
                self._give_back([held for held in some if held.place.sequence in self._held], _AGAIN_SECONDS)

        task = asyncio.create_task(run(), name="messages of the queue")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
