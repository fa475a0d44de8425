"""Customers' files: a record in the registry, the content in the store. A record comes after its content and goes
before it, so what is found can be read."""

import asyncio
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from inferbus.batch.v1.files_pb2 import FileHead
from inferbus.bus.v1.batch_pb2 import FileRecord, Segment
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_objects.store import ObjectStore
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_batch import content

PURPOSES = ("batch", "assistants", "fine-tune", "vision", "user_data", "evals")
"""Of what customers send. ``batch_output`` is of what jobs make."""
MAX_PAGE = 10_000
PUT_TIME = timedelta(hours=1)
"""A file has come by then or is refused: what no record names for longer than that is removed."""
_SHORTEST, _LONGEST = timedelta(hours=1), timedelta(days=30)
_MAX_FILENAME = 512
# Longer ones are nothing's, and would not fit into what the broker reads as one line.
_MAX_NAME = 512
_SEEN_SECONDS = 5.0
_POLL_SECONDS = 0.005
_RETRY_AFTER = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class FileLimits:
    """``file_bytes``: of one that comes as a whole. ``tenant_bytes``: of all files and open uploads of a tenant; None:
    no end. ``batch_expire_after``: of a batch's input for which its sender names no time."""

    file_bytes: int = 2 << 30
    tenant_bytes: int | None = None
    batch_expire_after: timedelta = timedelta(days=30)


class Files:
    """``registry``: a running one, of the bucket ``files``."""

    def __init__(self, registry: Registry[FileRecord], store: ObjectStore, limits: FileLimits | None = None) -> None:
        self.store = store
        self.limits = limits or FileLimits()
        self._registry = registry
        self._records: defaultdict[str, dict[str, FileRecord]] = defaultdict(dict)
        # Bytes of what is being put here, by tenant.
        self._coming: defaultdict[str, int] = defaultdict(int)
        registry.on_change(self._changed)
        for name, record in registry.items().items():
            self._changed(name, record)

    async def put(self, head: FileHead, parts: AsyncIterable[bytes]) -> FileRecord:
        """Stores all of it; if it fails there is no file. Raises InferBusError INVALID_ARGUMENT for the head, or
        ``file_too_large``; RESOURCE_EXHAUSTED ``file_quota_exceeded``; like :meth:`ObjectStore.put`, and whatever
        ``parts`` raises."""
        check_head(head)
        record = self.new_record(head, new_id("file-"))
        counted = _Counted(self, head.tenant_id, parts)
        try:
            async with asyncio.timeout(PUT_TIME.total_seconds()):
                record.segments.extend(await content.write(self.store, record.file_id, counted.parts()))
        except TimeoutError:
            raise invalid("The file did not arrive within an hour; send it as an upload in parts.") from None
        finally:
            counted.end()
        record.size_bytes = sum(one.size_bytes for one in record.segments)
        # If this fails it may have been stored all the same: whoever clears up finds the content if it was not.
        await self.add(record)
        return record

    async def add(self, record: FileRecord) -> None:
        """Makes a file of segments that are stored. Returns when it is found here; one that is there already is left
        as it is. Raises InferBusError UNAVAILABLE."""
        name = _name(record.tenant_id, record.file_id)
        try:
            await stored(self._registry, name, (await self._registry.create(name, record)).sequence)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                raise

    def find(self, tenant_id: str, project_id: str, file_id: str) -> FileRecord:
        """``project_id``: empty for any of the tenant. Raises InferBusError NOT_FOUND ``file_not_found``."""
        record = self._records.get(tenant_id, {}).get(file_id)
        if record is None or project_id not in ("", record.project_id) or is_over(record):
            raise _not_found(file_id)
        return record

    async def look_up(self, tenant_id: str, project_id: str, file_id: str) -> FileRecord:
        """Like :meth:`find`, also of one that another batch service has just made. Raises UNAVAILABLE, too."""
        name = _name(tenant_id, file_id)
        if self._registry.get(name) is None:
            await refreshed(self._registry, name)
        return self.find(tenant_id, project_id, file_id)

    def page(
        self, tenant_id: str, project_id: str, purpose: str, size: int, after: str, ascending: bool
    ) -> tuple[list[FileRecord], str]:
        """At most ``size`` (0: MAX_PAGE) by creation, those behind the file ``after`` (empty: from the first), and the
        last one's id if there are more. Raises InferBusError INVALID_ARGUMENT."""
        if not 0 <= size <= MAX_PAGE:
            raise invalid(f"A page has 1 to {MAX_PAGE} files.", param="limit")
        start = None
        if after:
            try:
                start = _age(self.find(tenant_id, project_id, after))
            except InferBusError:
                raise invalid("There is no such file to go on after; begin anew.", param="after") from None
        found = [
            one
            for one in self._records.get(tenant_id, {}).values()
            if project_id in ("", one.project_id) and purpose in ("", one.purpose) and not is_over(one)
            if start is None or (_age(one) > start if ascending else _age(one) < start)
        ]
        found.sort(key=_age, reverse=not ascending)
        size = size or MAX_PAGE
        return found[:size], found[size - 1].file_id if len(found) > size else ""

    async def delete(self, tenant_id: str, project_id: str, file_id: str) -> None:
        """Raises InferBusError NOT_FOUND ``file_not_found``, UNAVAILABLE."""
        await self.remove(await self.look_up(tenant_id, project_id, file_id))

    async def remove(self, record: FileRecord) -> None:
        """The record, then its content; whoever reads it is told. Raises InferBusError UNAVAILABLE."""
        name = _name(record.tenant_id, record.file_id)
        await stored(self._registry, name, (await self._registry.delete(name)).sequence)
        await content.remove(self.store, record.segments)

    async def read(self, record: FileRecord, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from ``offset`` on, at most ``length``, in parts. Raises InferBusError NOT_FOUND ``file_not_found``
        if it is deleted meanwhile, UNAVAILABLE."""
        try:
            async with aclosing(content.read(self.store, record.segments, offset, length)) as parts:
                async for part in parts:
                    yield part
        except InferBusError as error:
            gone = error.reason == "no_such_object" or record.file_id not in self._records.get(record.tenant_id, {})
            if not gone or error.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE:
                raise
            raise _not_found(record.file_id) from error

    @property
    def following(self) -> bool:
        """Whether what others do to files is heard of here."""
        return self._registry.following

    def expired(self) -> list[FileRecord]:
        return [one for one in self._registry.items().values() if is_over(one)]

    def segments(self) -> Iterable[Segment]:
        """Of all files."""
        for record in self._registry.items().values():
            yield from record.segments

    def used(self, tenant_id: str) -> int:
        """Bytes of the tenant's files, and of those that are coming here."""
        return self._coming.get(tenant_id, 0) + sum(one.size_bytes for one in self._records.get(tenant_id, {}).values())

    def new_record(self, head: FileHead, file_id: str) -> FileRecord:
        """Without content; of a checked head."""
        now = clock.now_us()
        record = FileRecord(
            file_id=file_id, tenant_id=head.tenant_id, project_id=head.project_id, filename=head.filename,
            purpose=head.purpose, create_time=clock.timestamp(now),
        )  # fmt: skip
        after = head.expire_after.ToTimedelta() if head.HasField("expire_after") else None
        if after is None and head.purpose == "batch":
            after = self.limits.batch_expire_after
        if after is not None:
            record.expire_time.CopyFrom(clock.timestamp(now + after // timedelta(microseconds=1)))
        return record

    def come(self, tenant_id: str, size: int) -> None:
        """So many bytes more are on their way here; negative: so many are not any more. RESOURCE_EXHAUSTED
        ``file_quota_exceeded``."""
        self._coming[tenant_id] += size
        if not self._coming[tenant_id]:
            del self._coming[tenant_id]
        self.check_quota(tenant_id, 0 if size > 0 else None)

    def check_quota(self, tenant_id: str, more: int | None) -> None:
        """Raises InferBusError RESOURCE_EXHAUSTED if ``more`` bytes would be too many; None: it is not asked."""
        most = self.limits.tenant_bytes
        if most is not None and more is not None and self.used(tenant_id) + more > most:
            message = f"Your files may have {most} bytes in all; delete some of them first."
            raise InferBusError(ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, "file_quota_exceeded", message)

    def _changed(self, name: str, record: FileRecord | None) -> None:
        tenant_id, _, file_id = name.rpartition("/")
        if record is not None:
            self._records[tenant_id][file_id] = record
            return
        held = self._records.get(tenant_id, {})
        held.pop(file_id, None)
        if not held:
            self._records.pop(tenant_id, None)


class _Counted:
    """Content on its way, held to the limits part by part."""

    def __init__(self, files: Files, tenant_id: str, parts: AsyncIterable[bytes]) -> None:
        self._files = files
        self._tenant_id = tenant_id
        self._content = parts
        self._size = 0

    async def parts(self) -> AsyncGenerator[bytes, None]:
        most = self._files.limits.file_bytes
        async for part in self._content:
            if not part:
                continue
            if self._size + len(part) > most:
                raise invalid(
                    f"A file has {most} bytes at most; send a larger one as an upload in parts.",
                    param="file", reason="file_too_large",
                )  # fmt: skip
            self._size += len(part)
            self._files.come(self._tenant_id, len(part))
            yield part

    def end(self) -> None:
        if self._size:
            self._files.come(self._tenant_id, -self._size)


async def stored(registry: Registry[Any], name: str, sequence: int) -> None:
    """Returns when the registry has seen the change ``sequence``. Raises InferBusError UNAVAILABLE after 5 s."""
    try:
        async with asyncio.timeout(_SEEN_SECONDS):
            while registry.revision(name) < sequence:
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        message = "The service is restarting; ask for it again."
        raise unavailable("bus_unavailable", message, retry_after=_RETRY_AFTER, diagnostic=name) from None


async def refreshed(registry: Registry[Any], name: str) -> None:
    """Returns when the registry has what another batch service has told the broker of ``name`` before this call.
    Raises InferBusError UNAVAILABLE."""
    if len(name) <= _MAX_NAME:
        await stored(registry, name, await registry.last_revision(name))


def check_head(head: FileHead) -> None:
    """Raises InferBusError INVALID_ARGUMENT."""
    if not head.tenant_id:
        raise invalid("Name the tenant.", param="tenant_id")
    if head.purpose not in PURPOSES:
        raise invalid(f"'purpose' is one of {', '.join(PURPOSES)}.", param="purpose")
    if not 0 < len(head.filename) <= _MAX_FILENAME or not head.filename.isprintable():
        raise invalid(f"'filename' has 1 to {_MAX_FILENAME} printable characters.", param="filename")
    if head.HasField("expire_after") and not _SHORTEST <= head.expire_after.ToTimedelta() <= _LONGEST:
        raise invalid("A file expires after 3600 to 2592000 seconds.", param="expires_after")


def is_over(record: FileRecord) -> bool:
    return record.HasField("expire_time") and clock.unix_us(record.expire_time) <= clock.now_us()


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def _name(tenant_id: str, file_id: str) -> str:
    return f"{tenant_id}/{file_id}"


def _age(record: FileRecord) -> tuple[int, str]:
    return clock.unix_us(record.create_time), record.file_id


def _not_found(file_id: str) -> InferBusError:
    message = f"There is no file '{file_id[:128]}'."
    return InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "file_not_found", message, param="file_id")
