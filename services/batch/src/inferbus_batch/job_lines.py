"""The lines of one running job: asked in windows, folded from the log, kept by checkpoints. See docs/batches.md."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field

from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import choice_id
from inferbus_dialect.errors import QUOTA
from inferbus_dialect.whole import Whole, Wholes
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_batch.asking import Asked, Asking
from inferbus_batch.core.leading import Leading
from inferbus_batch.core.progress import Missing, Progress
from inferbus_batch.core.results import CANCELLED, EXPIRED, answered, failed
from inferbus_batch.core.retrying import pause, worked, worth_another
from inferbus_batch.folding import ShardLog
from inferbus_batch.keeping import Keeping
from inferbus_batch.parts import Parts
from inferbus_batch.telling_results import results_of

log = logging.getLogger(__name__)
_AT_ONCE = 128
_FLUSH_SECONDS, _FLUSH_BYTES = 3.0, 1 << 20
_LOOK_SECONDS = 0.5
# Ends that come together are looked at together.
_GATHER_SECONDS = 0.02
_CANCEL_SECONDS = 2.0
# Lines that end without having run are written in so many steps.
_UNASKED_AT_ONCE = 5000
_TRANSIENT = (ErrorClass.ERROR_CLASS_UNAVAILABLE, ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED)


@dataclass(slots=True)
class _Results:
    """Ended, and in no checkpoint yet."""

    lines: list[int] = field(default_factory=list)
    good: list[bytes] = field(default_factory=list)
    bad: list[bytes] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    size: int = 0
    since: float = 0.0


class JobLines:
    """``open``, then ``run`` to the end of the job; ``close`` in any case.

    They raise LostError if another runner has the job; InferBusError UNAVAILABLE, after which it is to be opened again
    from what is stored.
    """

    def __init__(self, parts: Parts, record: JobRecord, asking: Asking, keeping: Keeping, log_: ShardLog) -> None:
        self._parts = parts
        self._record = record
        self._asking = asking
        self._keeping = keeping
        self._log = log_
        self._progress: Progress = keeping.progress()
        self._models = list(keeping.checkpoint.models)
        self._wholes = Wholes()
        # By the id of its first choice, and by line: what is in a window and has not ended.
        self._asked: dict[bytes, Asked] = {}
        self._of_line: dict[int, Asked] = {}
        # Where on the log each of them begins that is not in a checkpoint: in the log's order.
        self._since: dict[int, int] = {}
        self._position = keeping.checkpoint.tokens_sequence - 1
        self._to_ask: deque[Asked] = deque()
        self._leading = Leading()
        self._results = _Results()
        self._wake = asyncio.Event()
        self._failures = 0
        self._quiet_until = 0.0
        self._cancelled_at = 0.0
        self._looked_at = 0.0
        # Lines of windows that were opened here: nobody else can have asked them.
        self._own: set[int] = set()
        self._winding_down: InferBusError | None = None
        self._teller = results_of(record, parts.publisher)

    # --- the life of it ---------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """From here on nobody else can make anything of this job count; and all of it that is on the log is known."""
        await self._keeping.store(self._progress, self._position + 1)
        if self._teller is not None:
            await self._teller.tell_rest(self._keeping.checkpoint, self._parts.files.store)
        for line in list(self._progress.in_windows()):
            self._add(self._asking.prepared(line, *self._progress.asked(line)))
        self._position = max(self._position, await self._log.join(self, self._position + 1))
        for asked in list(self._asked.values()):
            if not self._wholes.begun(asked.first):
                self._look_for(asked)

    def close(self) -> None:
        self._log.leave(self)
        # What it may cost is settled from the charges by whoever goes on, or by the meter.

    async def run(self) -> None:
        """Until every line has its result in a checkpoint, those of a job that ends early, too."""
        while not self._progress.ended:
            record = self._parts.jobs.find(self._record.tenant_id, "", self._record.job_id)
            key = self._parts.keys.of(record)
            ending = self._ending(record)
            if ending is None and key is None:
                # Who is billed is no more: what is done is kept.
                await self._parts.jobs.cancel(record.tenant_id, "", record.job_id)
                continue
            if ending is not None:
                self._keeping.checkpoint.expired |= ending is EXPIRED
                await self._wind_down(ending)
            elif key is not None:
                await self._open_window()
            if key is not None:
                await self._ask(key)
            await self._look(ending)
            await self._flush(force=ending is not None or self._all_ended())
            if self._progress.ended:
                return
            self._wake.clear()
            try:
                async with asyncio.timeout(_LOOK_SECONDS if not self._to_ask else 0.05):
                    await self._wake.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(_GATHER_SECONDS)

    def wake(self) -> None:
        """Something about the job has changed."""
        self._wake.set()

    def _ending(self, record: JobRecord) -> InferBusError | None:
        """What a line without a result ends with from now on; None: it is to be run."""
        if record.state == State.JOB_RECORD_STATE_CANCELLING:
            return CANCELLED
        return EXPIRED if clock.unix_us(record.expire_time) <= clock.now_us() else None

    def _all_ended(self) -> bool:
        return not self._progress.waiting and self._progress.open_lines == len(self._results.lines)

    # --- asking -----------------------------------------------------------------------------------------------------

    async def _open_window(self) -> None:
        if clock.monotonic() < self._quiet_until or self._to_ask:
            return
        most = self._parts.pace.most(self._models)
        room = most - (self._progress.open_lines - len(self._results.lines))
        # Not one window a line: each is a write to the broker.
        if room <= 0 or (room < most // 8 and self._progress.waiting > room):
            return
        now_ms = clock.now_us() // 1000
        expire_ms = min(
            now_ms + int(self._parts.line_timeout.total_seconds() * 1000),
            clock.unix_us(self._record.expire_time) // 1000,
        )
        window = self._progress.open(room, now_ms, expire_ms)
        if window is None:
            return
        self._own.update(window.lines)
        prepared = [self._asking.prepared(line, *self._progress.asked(line)) for line in sorted(window.lines)]
        for asked in prepared:
            self._add(asked)
        await self._flush(force=False)
        await self._keeping.store(self._progress, self._tokens_sequence())
        self._to_ask.extend(asked for asked in prepared if asked.first in self._asked)

    def _add(self, asked: Asked) -> None:
        if asked.plan is None:
            assert asked.error is not None  # noqa: S101
            self._ended(asked, Usage(), asked.error)
            return
        self._asked[asked.first] = asked
        self._of_line[asked.line] = asked
        self._wholes.add(asked.first, len(asked.plan.requests), self._asking.form(asked))

    async def _ask(self, key: KeyRecord) -> None:
        """All that is to be asked, many at once; what could not be for now stays."""
        again: list[Asked] = []
        while self._to_ask and (now := clock.monotonic()) >= self._quiet_until:
            some = [self._to_ask.popleft() for _ in range(min(_AT_ONCE, len(self._to_ask)))]
            todo = [asked for asked in some if asked.first in self._asked]
            some = []
            for asked in todo:
                leads = self._leading.may_go(asked.first, asked.beginning, now)
                (some if leads else again).append(asked)
            outcomes = await asyncio.gather(*(self._ask_one(asked, key) for asked in some), return_exceptions=True)
            for asked, outcome in zip(some, outcomes, strict=True):
                if isinstance(outcome, InferBusError):
                    if self._refused(asked, outcome):
                        again.append(asked)
                elif isinstance(outcome, BaseException):
                    raise outcome
        self._to_ask.extend(again)

    async def _ask_one(self, asked: Asked, key: KeyRecord) -> None:
        _, window_ms = self._progress.asked(asked.line)
        await self._asking.ask(asked, key, window_ms, self._progress.expires(asked.line))

    def _refused(self, asked: Asked, error: InferBusError) -> bool:
        """Whether it is to be asked once more."""
        if asked.first not in self._asked:
            return False  # it was stored all the same, and has ended already
        if error.reason == QUOTA and self._running():
            self._quiet_until = clock.monotonic() + 1.0  # what these give back may be enough
            return True
        if error.reason == QUOTA or error.error_class not in _TRANSIENT:
            self._end(asked, error)
            return False
        log.warning("a line was not asked", extra={"job_id": self._record.job_id, "error": str(error)})
        self._quiet_until = clock.monotonic() + 1.0
        # While the broker knows the id; later it is waited for.
        return self._progress.missing(asked.line, clock.now_us() // 1000) is Missing.ASK

    def _running(self) -> int:
        return sum(asked.stored for asked in self._asked.values())

    # --- folding ----------------------------------------------------------------------------------------------------

    def take(self, sequence: int, frame: Frame) -> None:
        """One frame of the shard, in stream order."""
        self._position = sequence
        for parts in (frame.fences, frame.opens, frame.closes):
            for part in parts:
                asked = self._asked.get(choice_id(part.request_id, 0))
                if asked is not None:
                    self._since.setdefault(asked.line, sequence)
        for opened in frame.opens:
            self._leading.has_read(choice_id(opened.request_id, 0))
        for whole in self._wholes.take(frame):
            asked = self._asked[whole.first]
            if whole.ended:
                self._fold(asked, whole)
            else:
                self._cancel(asked, "line_failed")

    def _fold(self, asked: Asked, whole: Whole) -> None:
        error = whole.error
        if error is None:
            self._failures = 0
        elif worth_another(error, asked.attempt, whole.usage) and self._winding_down is None:
            self._forget(asked)
            self._since.pop(asked.line, None)
            self._keeping.count(whole.usage)
            self._progress.again(asked.line, counts=worked(whole.usage))
            self._failures += 1
            self._quiet_until = clock.monotonic() + pause(self._failures)
            return
        if self._winding_down is not None and error is not None and _of_ending(error):
            error = self._winding_down
        self._forget(asked)
        if error is None:
            self._ended(asked, whole.usage, None, whole.form.body())
        else:
            self._ended(asked, whole.usage, error)

    def _end(self, asked: Asked, error: InferBusError) -> None:
        """It was certainly not accepted."""
        self._asking.withdraw(asked)
        self._wholes.drop(asked.first)
        self._forget(asked)
        self._ended(asked, Usage(), error)

    def _forget(self, asked: Asked) -> None:
        self._asked.pop(asked.first, None)
        self._of_line.pop(asked.line, None)
        self._leading.has_read(asked.first)

    def _ended(self, asked: Asked, usage: Usage, error: InferBusError | None, body: bytes = b"") -> None:
        results, name = self._results, asked.first.hex()
        if error is None:
            results.good.append(line := answered(asked.custom_id, name, body))
        else:
            results.bad.append(line := failed(asked.custom_id, name, error))
        if not results.lines:
            results.since = clock.monotonic()
        results.lines.append(asked.line)
        results.size += len(line)
        results.usage.input_tokens += usage.input_tokens
        results.usage.cached_input_tokens += usage.cached_input_tokens
        results.usage.output_tokens += usage.output_tokens
        results.usage.reasoning_tokens += usage.reasoning_tokens
        self._wake.set()

    # --- keeping ----------------------------------------------------------------------------------------------------

    async def _flush(self, *, force: bool) -> None:
        """What has ended is stored, once it is worth it."""
        results = self._results
        if not results.lines:
            return
        old_enough = clock.monotonic() >= results.since + _FLUSH_SECONDS
        if not (force or old_enough or results.size >= _FLUSH_BYTES):
            return
        self._results = _Results()
        old = await self._keeping.add(results.good, results.bad)
        self._keeping.count(results.usage)
        for line in results.lines:
            self._progress.finish(line)
            self._since.pop(line, None)
            self._own.discard(line)
        await self._keeping.store(self._progress, self._tokens_sequence())
        await self._keeping.drop(old)
        if self._teller is not None:
            await self._teller.tell((*results.good, *results.bad), self._keeping.checkpoint)
        await self._tell()

    def _tokens_sequence(self) -> int:
        """Nothing of the job before it is needed that is not in a segment."""
        return min(next(iter(self._since.values()), self._position + 1), self._position + 1)

    async def _tell(self) -> None:
        """The record says how far the job is."""
        one = self._keeping.checkpoint

        def edit(record: JobRecord) -> None:
            record.completed_lines, record.failed_lines = one.completed_lines, one.failed_lines
            record.input_tokens, record.cached_input_tokens = one.input_tokens, one.cached_input_tokens
            record.output_tokens, record.reasoning_tokens = one.output_tokens, one.reasoning_tokens

        await self._parts.jobs.change(self._record, edit)

    # --- what is missing, and ending early --------------------------------------------------------------------------

    async def _look(self, ending: InferBusError | None) -> None:
        """Lines that should have ended, and of which nothing is on the log."""
        now = clock.monotonic()
        if now < self._looked_at + 5.0:
            return
        self._looked_at = now
        now_ms = clock.now_us() // 1000
        late = [
            asked
            for asked in list(self._asked.values())
            if self._progress.missing(asked.line, now_ms) is Missing.NEXT_TRY and not self._wholes.begun(asked.first)
        ]
        if not late or await self._log.has_more(max(self._position, self._log.position)):
            return
        for asked in late:
            if asked.first in self._asked:
                self._never_came(asked, ending)

    def _look_for(self, asked: Asked) -> None:
        """After a crash: nothing of it is on the log."""
        match self._progress.missing(asked.line, clock.now_us() // 1000):
            case Missing.ASK:
                self._to_ask.append(asked)
            case Missing.NEXT_TRY:
                self._never_came(asked, None)

    def _never_came(self, asked: Asked, ending: InferBusError | None) -> None:
        if ending is not None:
            self._end(asked, ending)
            return
        self._asking.withdraw(asked)
        self._wholes.drop(asked.first)
        self._forget(asked)
        self._since.pop(asked.line, None)
        self._progress.again(asked.line, counts=False)

    async def _wind_down(self, ending: InferBusError) -> None:
        """Lines that have not been asked end so; the others are told to, or end by their expiry."""
        self._winding_down = ending
        for asked in [one for one in self._to_ask if not one.tried and one.line in self._own]:
            self._end(asked, ending)
        self._to_ask = deque(one for one in self._to_ask if one.first in self._asked)
        now_ms = clock.now_us() // 1000
        while self._progress.waiting:
            window = self._progress.open(_UNASKED_AT_ONCE, now_ms, now_ms)
            assert window is not None  # noqa: S101
            for line in sorted(window.lines):
                attempt, moment = self._progress.asked(line)
                self._ended(self._asking.prepared(line, attempt, moment), Usage(), ending)
            await self._flush(force=True)
        now = clock.monotonic()
        if ending is CANCELLED and now >= self._cancelled_at + _CANCEL_SECONDS:
            self._cancelled_at = now
            for asked in self._asked.values():
                self._cancel(asked, "client_cancelled")

    def _cancel(self, asked: Asked, reason: str) -> None:
        assert asked.plan is not None  # noqa: S101
        for choice in range(len(asked.plan.requests)):
            self._parts.cancel(Cancel(request_id=choice_id(asked.first, choice), reason=reason))


def _of_ending(error: InferBusError) -> bool:
    return error.error_class in (ErrorClass.ERROR_CLASS_CANCELLED, ErrorClass.ERROR_CLASS_DEADLINE_EXCEEDED)
