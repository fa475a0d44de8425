"""Customers' jobs: their records, from submission to the end. Who runs them is :mod:`.runner`."""

import asyncio
import hashlib
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

from inferbus.batch.v1.batch_pb2 import SubmitJobRequest
from inferbus.bus.v1.batch_pb2 import JobRecord
from inferbus.bus.v1.batch_pb2 import JobRecordState as State
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_contracts.subjects import BATCH_SHARDS
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable
from inferbus_webhooks.addresses import may_be_public

from inferbus_batch.core.job_states import CANCELLABLE, ENDED, may_move
from inferbus_batch.core.lines import ENDPOINTS
from inferbus_batch.files import Files, refreshed, stored

MAX_PAGE, _PAGE = 100, 20
_MAX_METADATA, _MAX_NAME, _MAX_VALUE = 16, 64, 512
_MAX_URL = 2048
_DAY = timedelta(days=1)
_LONGEST = timedelta(days=14)
_SHORTEST_OUTPUT, _LONGEST_OUTPUT = timedelta(hours=1), timedelta(days=30)
# Longer than webhooks are tried, and anew with each try.
_TELLING = timedelta(days=4)
_TRIES = 20
_RETRY_AFTER = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class JobLimits:
    """``active``: jobs of a tenant that have not ended. ``retention``: of those that have. ``webhooks``: they can be
    signed; ``webhooks_anywhere``: and go to private addresses, too."""

    active: int = 200
    retention: timedelta = timedelta(days=30)
    webhooks: bool = False
    webhooks_anywhere: bool = False


@dataclass(frozen=True, slots=True)
class Queued:
    """Of a job that came straight over the queue. ``result_subject``: where its end is told, or if it is made of single
    requests the result of each; with ``.*`` at its end by their names. ``first``, ``last``: their sequences on JOBS."""

    result_subject: str = ""
    first: int = 0
    last: int = 0


class Jobs:
    """``registry``: a running one, of the bucket ``jobs``."""

    def __init__(self, registry: Registry[JobRecord], files: Files, limits: JobLimits | None = None) -> None:
        self._registry = registry
        self._files = files
        self._limits = limits or JobLimits()
        self._records: defaultdict[str, dict[str, JobRecord]] = defaultdict(dict)
        # How many run that ask a model; empty: several models.
        self._running: Counter[str] = Counter()
        self._callbacks: list[Callable[[JobRecord], None]] = []
        self._watchers: set[asyncio.Event] = set()
        registry.on_change(self._changed)
        for name, record in registry.items().items():
            self._changed(name, record)

    async def submit(self, request: SubmitJobRequest, queued: Queued | None = None) -> JobRecord:
        """A new job, or with a ``request_id`` the one that was made under it. Raises InferBusError INVALID_ARGUMENT;
        NOT_FOUND ``file_not_found``; RESOURCE_EXHAUSTED ``batch_limit_exceeded``; CONFLICT ``idempotency_mismatch``;
        UNAVAILABLE."""
        record = await self._checked(request)
        if queued is not None:
            record.result_subject, record.queue_first = queued.result_subject, queued.first
            record.queue_last = queued.last
        name = _name(record)
        before = self._registry.get(name)
        if before is None:
            active = sum(one.state not in ENDED for one in self._records.get(record.tenant_id, {}).values())
            if active >= self._limits.active:
                message = f"{self._limits.active} batches of yours are running; wait for one of them to end."
                raise InferBusError(ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, "batch_limit_exceeded", message)
            try:
                await stored(self._registry, name, (await self._registry.create(name, record)).sequence)
                return record
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                    raise
            before = await self._appeared(name)
        if _asked(before) != _asked(record):
            message = "Another batch was submitted under the same idempotency key; choose another key."
            raise InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "idempotency_mismatch", message)
        return before

    def find(self, tenant_id: str, project_id: str, job_id: str) -> JobRecord:
        """``project_id``: empty for any of the tenant. Raises InferBusError NOT_FOUND ``batch_not_found``."""
        record = self._records.get(tenant_id, {}).get(job_id)
        if record is None or project_id not in ("", record.project_id):
            raise _not_found(job_id)
        return record

    async def look_up(self, tenant_id: str, project_id: str, job_id: str) -> JobRecord:
        """Like :meth:`find`, also of one that was just submitted to another batch service. Raises UNAVAILABLE, too."""
        if self._records.get(tenant_id, {}).get(job_id) is None:
            await refreshed(self._registry, f"{tenant_id}/{job_id}")
        return self.find(tenant_id, project_id, job_id)

    def submitted(self, tenant_id: str, project_id: str, request_id: str) -> JobRecord | None:
        """The job that was made under this id."""
        asked = SubmitJobRequest(tenant_id=tenant_id, project_id=project_id, request_id=request_id)
        return self._records.get(tenant_id, {}).get(_id_of(asked))

    def page(self, tenant_id: str, project_id: str, size: int, after: str) -> tuple[list[JobRecord], str]:
        """At most ``size`` (0: 20), the newest first, those behind the job ``after`` (empty: from the first), and the
        last one's id if there are more. Raises InferBusError INVALID_ARGUMENT."""
        if not 0 <= size <= MAX_PAGE:
            raise invalid(f"A page has 1 to {MAX_PAGE} batches.", param="limit")
        start = None
        if after:
            try:
                start = _age(self.find(tenant_id, project_id, after))
            except InferBusError:
                raise invalid("There is no such batch to go on after; begin anew.", param="after") from None
        found = [
            one
            for one in self._records.get(tenant_id, {}).values()
            if project_id in ("", one.project_id) and (start is None or _age(one) < start)
        ]
        found.sort(key=_age, reverse=True)
        size = size or _PAGE
        return found[:size], found[size - 1].job_id if len(found) > size else ""

    async def cancel(self, tenant_id: str, project_id: str, job_id: str) -> JobRecord:
        """What is done is kept; one that is being cancelled is left as it is. Raises InferBusError NOT_FOUND
        ``batch_not_found``; CONFLICT ``batch_has_ended``; UNAVAILABLE."""

        def edit(record: JobRecord) -> None:
            if record.state in (State.JOB_RECORD_STATE_CANCELLING, State.JOB_RECORD_STATE_CANCELLED):
                return
            if record.state not in CANCELLABLE:
                message = "The batch has ended, or has no line left that could be cancelled."
                raise InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "batch_has_ended", message)
            now = clock.timestamp(clock.now_us())
            record.cancel_time.CopyFrom(now)
            if record.state == State.JOB_RECORD_STATE_VALIDATING:
                record.state = State.JOB_RECORD_STATE_CANCELLED
                record.end_time.CopyFrom(now)
            else:
                record.state = State.JOB_RECORD_STATE_CANCELLING

        return await self.change(self.find(tenant_id, project_id, job_id), edit)

    async def watch(self, tenant_id: str, project_id: str, job_id: str) -> AsyncGenerator[JobRecord, None]:
        """As it is now, then after each change, until it has ended. Raises InferBusError NOT_FOUND."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        said: JobRecord | None = None
        try:
            while True:
                changed.clear()
                record = self.find(tenant_id, project_id, job_id)
                if record is not said:
                    said = record
                    yield record
                if record.state in ENDED:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    # --- for the runner ---------------------------------------------------------------------------------------------

    def of_shard(self, shard: int) -> list[JobRecord]:
        """Those that have not ended."""
        return [one for one in self._all() if one.shard == shard and one.state not in ENDED]

    def running(self, model: str) -> int:
        """How many jobs run that ask ``model``, here and elsewhere; one that asks several counts for each model."""
        return self._running[model] + self._running[""]

    def queued(self) -> list[JobRecord]:
        """Those made of single requests, the newest first."""
        return sorted((one for one in self._all() if one.queue_last), key=_age, reverse=True)

    def is_busy(self, tenant_id: str) -> bool:
        """Whether batches of the tenant's single requests are waiting for their validation, or are many."""
        mine = [one for one in self._records.get(tenant_id, {}).values() if one.queue_last and one.state not in ENDED]
        waiting = any(one.state == State.JOB_RECORD_STATE_VALIDATING for one in mine)
        return waiting or len(mine) >= max(1, self._limits.active // 4)

    def ended(self) -> list[JobRecord]:
        return [one for one in self._all() if one.state in ENDED]

    @property
    def following(self) -> bool:
        """Whether what others do to jobs is heard of here."""
        return self._registry.following

    def on_change(self, callback: Callable[[JobRecord], None]) -> None:
        """Called with each record that is new or has changed."""
        self._callbacks.append(callback)

    async def change(self, record: JobRecord, edit: Callable[[JobRecord], None]) -> JobRecord:
        """Compare and set on the newest record until ``edit`` of a copy of it is stored, and seen here; what ``edit``
        raises ends it. Raises InferBusError NOT_FOUND; CONFLICT ``job_moved`` if the state cannot follow the one that
        it has; UNAVAILABLE."""
        name = _name(record)
        for _ in range(_TRIES):
            now, revision = self.find(record.tenant_id, "", record.job_id), self._registry.revision(name)
            made = JobRecord()
            made.CopyFrom(now)
            edit(made)
            if made == now:
                return now
            if made.state != now.state and not may_move(now.state, made.state):
                message = "The batch has changed meanwhile; look at it again."
                raise InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "job_moved", message)
            try:
                ack = await self._registry.update(name, made, revision, self._lifetime(made))
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                    raise
                await stored(self._registry, name, revision + 1)  # somebody was faster
                continue
            await stored(self._registry, name, ack.sequence)
            return made
        raise unavailable("bus_unavailable", "The service is busy; ask for it again.", retry_after=_RETRY_AFTER)

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _checked(self, request: SubmitJobRequest) -> JobRecord:
        """What it comes to. Raises InferBusError as :meth:`submit`."""
        for field in ("tenant_id", "key_id"):
            if not getattr(request, field):
                raise invalid(f"Name the {field}.", param=field)
        if request.endpoint not in ENDPOINTS:
            raise invalid(f"'endpoint' is one of {', '.join(sorted(ENDPOINTS))}.", param="endpoint")
        found = await self._files.look_up(request.tenant_id, request.project_id, request.input_file_id)
        if found.purpose != "batch":
            raise invalid("The input of a batch is a file of purpose 'batch'.", param="input_file_id")
        now_us = clock.now_us()
        if request.HasField("expire_time"):
            expire_us = clock.unix_us(request.expire_time)
        else:
            expire_us = now_us + _DAY // timedelta(microseconds=1)
        if not now_us < expire_us <= now_us + (_LONGEST + timedelta(minutes=1)) // timedelta(microseconds=1):
            raise invalid("A batch ends within 14 days.", param="completion_window")
        _check_metadata(request)
        kept = request.output_expire_after.ToTimedelta() if request.HasField("output_expire_after") else _LONGEST_OUTPUT
        if not _SHORTEST_OUTPUT <= kept <= _LONGEST_OUTPUT:
            raise invalid("Its output expires after 3600 to 2592000 seconds.", param="output_expires_after")
        self._check_webhook(request.webhook_url)
        record = JobRecord(
            job_id=_id_of(request), tenant_id=request.tenant_id, project_id=request.project_id, key_id=request.key_id,
            state=State.JOB_RECORD_STATE_VALIDATING, shard=self._shard(), endpoint=request.endpoint,
            input_file_id=request.input_file_id, expire_time=clock.timestamp(expire_us), metadata=request.metadata,
            webhook_url=request.webhook_url, create_time=clock.timestamp(now_us), submit_id=request.request_id,
        )  # fmt: skip
        if request.HasField("output_expire_after"):
            record.output_expire_after.CopyFrom(request.output_expire_after)
        return record

    def _check_webhook(self, url: str) -> None:
        if not url:
            return
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if not known or len(url) > _MAX_URL or not url.isprintable():
            message = f"'webhook_url' is an http or https URL of {_MAX_URL} characters at most."
            raise invalid(message, param="webhook_url")
        if not self._limits.webhooks_anywhere and not may_be_public(url):
            raise invalid("'webhook_url' leads to a private address; take a public one.", param="webhook_url")
        if not self._limits.webhooks:
            raise invalid("Webhooks are not set up here; leave it out, or ask your operator.", param="webhook_url")

    def _lifetime(self, record: JobRecord) -> timedelta | None:
        """What is still to be told of its end is not forgotten before that. None: for ever."""
        if record.state not in ENDED:
            return None
        telling = record.webhook_url and not record.HasField("webhook_end_time")
        return max(self._limits.retention, _TELLING) if telling else self._limits.retention

    def _shard(self) -> int:
        """That which has the least to do."""
        busy = Counter(one.shard for one in self._all() if one.state not in ENDED)
        least = min(busy[shard] for shard in range(BATCH_SHARDS))
        return secrets.choice([shard for shard in range(BATCH_SHARDS) if busy[shard] == least])

    async def _appeared(self, name: str) -> JobRecord:
        """Whoever was faster made it; it may be here by now."""
        if self._registry.get(name) is None:
            await stored(self._registry, name, self._registry.revision(name) + 1)
        record = self._registry.get(name)
        if record is None:
            raise unavailable("bus_unavailable", "The service is busy; ask for it again.", retry_after=_RETRY_AFTER)
        return record

    def _all(self) -> list[JobRecord]:
        return list(self._registry.items().values())

    def _changed(self, name: str, record: JobRecord | None) -> None:
        tenant_id, _, job_id = name.rpartition("/")
        for one, by in ((self._records.get(tenant_id, {}).get(job_id), -1), (record, 1)):
            if one is not None and one.state == State.JOB_RECORD_STATE_ACTIVE:
                self._running[one.model] += by
        if record is None:
            self._records.get(tenant_id, {}).pop(job_id, None)
        else:
            self._records[tenant_id][job_id] = record
            for callback in self._callbacks:
                callback(record)
        for watcher in self._watchers:
            watcher.set()


def _check_metadata(request: SubmitJobRequest) -> None:
    fits = len(request.metadata) <= _MAX_METADATA and all(
        0 < len(name) <= _MAX_NAME and len(value) <= _MAX_VALUE for name, value in request.metadata.items()
    )
    if not fits:
        message = f"'metadata' has {_MAX_METADATA} entries; names have {_MAX_NAME} characters, values {_MAX_VALUE}."
        raise invalid(message, param="metadata")


def _id_of(request: SubmitJobRequest) -> str:
    if not request.request_id:
        return f"batch_{secrets.token_hex(12)}"
    of = "\0".join((request.tenant_id, request.project_id, request.request_id))
    return f"batch_{hashlib.blake2b(of.encode(), digest_size=12).hexdigest()}"


def _asked(record: JobRecord) -> tuple[object, ...]:
    """What two submissions under one id must have in common."""
    return (
        record.project_id, record.endpoint, record.input_file_id, dict(record.metadata), record.webhook_url,
        record.output_expire_after,
    )  # fmt: skip


def _name(record: JobRecord) -> str:
    return f"{record.tenant_id}/{record.job_id}"


def _age(record: JobRecord) -> tuple[int, str]:
    return clock.unix_us(record.create_time), record.job_id


def _not_found(job_id: str) -> InferBusError:
    message = f"There is no batch '{job_id[:128]}'."
    return InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "batch_not_found", message, param="batch_id")
