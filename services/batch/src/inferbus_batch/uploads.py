"""Files that come in parts, in any order, and become one when they are completed. Each change of a record is a
compare-and-set, so that parts may come through several processes at once."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from datetime import timedelta

from inferbus.batch.v1.files_pb2 import FileHead, UploadState
from inferbus.bus.v1.batch_pb2 import FileRecord, Segment, UploadPart, UploadRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError, invalid, unavailable

from inferbus_batch import content
from inferbus_batch.files import Files, check_head, new_id, refreshed, stored

MAX_PART_BYTES = 64 << 20
MAX_UPLOAD_BYTES = 8 << 30
MAX_PARTS = 2000
"""Of one upload: its record is one message of the bus."""
LIFETIME = timedelta(hours=1)
# So long after its time an upload still says what became of it.
_REMEMBERED_US = 86_400_000_000
_TRIES = 100
_AGAIN_SECONDS = 0.02


class Uploads:
    """``registry``: a running one, of the bucket ``uploads``."""

    def __init__(self, registry: Registry[UploadRecord], files: Files, lifetime: timedelta = LIFETIME) -> None:
        self._registry = registry
        self._files = files
        self._lifetime_us = lifetime // timedelta(microseconds=1)

    async def create(self, head: FileHead, size: int) -> UploadRecord:
        """``size``: what its parts must come to. Raises InferBusError INVALID_ARGUMENT; RESOURCE_EXHAUSTED
        ``file_quota_exceeded``; UNAVAILABLE."""
        check_head(head)
        if not 0 < size <= MAX_UPLOAD_BYTES:
            raise invalid(f"An upload has 1 to {MAX_UPLOAD_BYTES} bytes.", param="bytes")
        self._files.check_quota(head.tenant_id, size + self._open_bytes(head.tenant_id))
        now = clock.now_us()
        record = UploadRecord(
            upload_id=new_id("upload_"), tenant_id=head.tenant_id, project_id=head.project_id, filename=head.filename,
            purpose=head.purpose, size_bytes=size, create_time=clock.timestamp(now),
            expire_time=clock.timestamp(now + self._lifetime_us),
        )  # fmt: skip
        if head.HasField("expire_after"):
            record.file_expire_after.CopyFrom(head.expire_after)
        name = _name(record)
        await stored(self._registry, name, (await self._registry.create(name, record)).sequence)
        return record

    async def put_part(self, tenant_id: str, project_id: str, upload_id: str, parts: AsyncIterable[bytes]) -> str:
        """Its id. Raises InferBusError NOT_FOUND ``upload_not_found``; CONFLICT ``upload_not_active``; INVALID_ARGUMENT
        ``part_too_large``; like :meth:`ObjectStore.put`, and whatever ``parts`` raises."""
        await self._refresh(tenant_id, upload_id)
        record = self._active(tenant_id, project_id, upload_id)
        part = UploadPart(part_id=new_id("part_"))
        left = (clock.unix_us(record.expire_time) - clock.now_us()) / 1e6
        try:
            async with asyncio.timeout(left):
                segments = await content.write(self._files.store, f"{upload_id}/{part.part_id}", _bounded(parts))
        except TimeoutError:
            raise _not_active("expired") from None
        if not segments:
            raise invalid("A part has 1 byte at least.", param="data")
        part.segments.extend(segments)

        def add(present: UploadRecord) -> None:
            if part in present.parts:
                return  # stored before, and we were not told
            if len(present.parts) >= MAX_PARTS:
                raise invalid(f"An upload has {MAX_PARTS} parts at most.", param="data", reason="too_many_parts")
            present.parts.append(part)

        try:
            await self._change(tenant_id, project_id, upload_id, add)
        except InferBusError as error:
            # Of one that is UNAVAILABLE it is not known whether it was stored.
            if error.error_class != ErrorClass.ERROR_CLASS_UNAVAILABLE:
                await content.remove(self._files.store, segments)
            raise
        return part.part_id

    async def complete(
        self, tenant_id: str, project_id: str, upload_id: str, part_ids: list[str], md5: str = ""
    ) -> UploadRecord:
        """The file is made of the parts in this order; others are removed. Done again it changes nothing. Raises
        InferBusError NOT_FOUND, CONFLICT like :meth:`put_part`; INVALID_ARGUMENT ``unknown_part``, ``size_mismatch``,
        ``checksum_mismatch``; UNAVAILABLE."""
        await self._refresh(tenant_id, upload_id)
        record = self.find(tenant_id, project_id, upload_id)
        unused: list[UploadPart] = []
        if not record.file_id:
            chosen = _chosen(self._active(tenant_id, project_id, upload_id), part_ids)
            if md5 and await self._md5(chosen) != md5.lower():
                raise invalid("The content has another MD5.", param="md5", reason="checksum_mismatch")

            def close(present: UploadRecord) -> None:
                unused[:] = [one for one in present.parts if one.part_id not in part_ids]
                del present.parts[:]
                present.parts.extend(chosen)
                present.file_id = f"file-{upload_id.removeprefix('upload_')}"

            # From here on it is completed: the file follows, if need be at the next call, from the same parts.
            record = await self._change(tenant_id, project_id, upload_id, close)
        if record.parts:
            await self._files.add(self._file_of(record))
            record = await self._change(tenant_id, project_id, upload_id, _forget_parts, active=False)
        await content.remove(self._files.store, [segment for part in unused for segment in part.segments])
        return record

    async def cancel(self, tenant_id: str, project_id: str, upload_id: str) -> UploadRecord:
        """Raises InferBusError NOT_FOUND, CONFLICT like :meth:`put_part`; UNAVAILABLE."""
        await self._refresh(tenant_id, upload_id)
        parts: list[UploadPart] = []

        def end(present: UploadRecord) -> None:
            parts[:] = list(present.parts)
            del present.parts[:]
            present.cancel_time.CopyFrom(clock.timestamp(clock.now_us()))

        record = await self._change(tenant_id, project_id, upload_id, end)
        await content.remove(self._files.store, [segment for part in parts for segment in part.segments])
        return record

    def find(self, tenant_id: str, project_id: str, upload_id: str) -> UploadRecord:
        """Raises InferBusError NOT_FOUND ``upload_not_found``."""
        record = self._registry.get(f"{tenant_id}/{upload_id}")
        if record is None or project_id not in ("", record.project_id):
            message = f"There is no upload '{upload_id[:128]}'."
            raise InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "upload_not_found", message, param="upload_id")
        return record

    def file_of(self, record: UploadRecord) -> FileRecord | None:
        """The file that a completed one became, if it still is there."""
        try:
            return self._files.find(record.tenant_id, record.project_id, record.file_id)
        except InferBusError:
            return None

    @property
    def following(self) -> bool:
        """Whether what others do to uploads is heard of here."""
        return self._registry.following

    def segments(self) -> Iterable[Segment]:
        """Of all uploads."""
        for record in self._registry.items().values():
            for part in record.parts:
                yield from part.segments

    async def clear(self) -> None:
        """Removes uploads a day after their time: what they name is then named by files or by nothing. Those that were
        cut off while they were completed become files. Raises InferBusError UNAVAILABLE."""
        for name, record in list(self._registry.items().items()):
            over = clock.now_us() - clock.unix_us(record.expire_time)
            if over < 0:
                continue
            try:
                if record.file_id and record.parts:
                    await self.complete(record.tenant_id, "", record.upload_id, [])
                elif over >= _REMEMBERED_US:
                    await self._registry.delete(name, self._registry.revision(name))
                elif record.parts:
                    parts = list(record.parts)
                    await self._change(record.tenant_id, "", record.upload_id, _forget_parts, active=False)
                    await content.remove(self._files.store, [segment for part in parts for segment in part.segments])
            except InferBusError as error:
                if error.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE:
                    raise

    async def _refresh(self, tenant_id: str, upload_id: str) -> None:
        """Also what other batch services have just put into it counts."""
        await refreshed(self._registry, f"{tenant_id}/{upload_id}")

    def _open_bytes(self, tenant_id: str) -> int:
        present = self._registry.items().values()
        return sum(one.size_bytes for one in present if one.tenant_id == tenant_id and _is_active(one))

    def _active(self, tenant_id: str, project_id: str, upload_id: str) -> UploadRecord:
        record = self.find(tenant_id, project_id, upload_id)
        if not _is_active(record):
            raise _not_active(UploadState.Name(state_of(record)).removeprefix("UPLOAD_STATE_").lower())
        return record

    async def _change(
        self, tenant_id: str, project_id: str, upload_id: str, change: Callable[[UploadRecord], None],
        active: bool = True,
    ) -> UploadRecord:  # fmt: skip
        """``active``: only if it still is."""
        name = f"{tenant_id}/{upload_id}"
        for _ in range(_TRIES):
            revision = self._registry.revision(name)
            present = (self._active if active else self.find)(tenant_id, project_id, upload_id)
            changed = UploadRecord.FromString(present.SerializeToString())
            change(changed)
            try:
                ack = await self._registry.update(name, changed, revision)
            except InferBusError as error:
                if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            await stored(self._registry, name, ack.sequence)
            return changed
        message = "Too much of this upload changes at once; send the part again."
        raise unavailable("upload_busy", message, retry_after=timedelta(seconds=1))

    async def _md5(self, parts: list[UploadPart]) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        segments = [segment for part in parts for segment in part.segments]
        async with aclosing(content.read(self._files.store, segments)) as read:
            async for data in read:
                digest.update(data)
        return digest.hexdigest()

    def _file_of(self, record: UploadRecord) -> FileRecord:
        made = self._files.new_record(head_of(record), record.file_id)
        made.size_bytes = record.size_bytes
        made.segments.extend(segment for part in record.parts for segment in part.segments)
        return made


def state_of(record: UploadRecord) -> UploadState.ValueType:
    if record.file_id:
        return UploadState.UPLOAD_STATE_COMPLETED
    if record.HasField("cancel_time"):
        return UploadState.UPLOAD_STATE_CANCELLED
    if clock.unix_us(record.expire_time) <= clock.now_us():
        return UploadState.UPLOAD_STATE_EXPIRED
    return UploadState.UPLOAD_STATE_ACTIVE


def head_of(record: UploadRecord) -> FileHead:
    head = FileHead(
        tenant_id=record.tenant_id, project_id=record.project_id, filename=record.filename, purpose=record.purpose
    )
    if record.HasField("file_expire_after"):
        head.expire_after.CopyFrom(record.file_expire_after)
    return head


def _chosen(record: UploadRecord, part_ids: list[str]) -> list[UploadPart]:
    known = {one.part_id: one for one in record.parts}
    if len(set(part_ids)) != len(part_ids) or not known.keys() >= set(part_ids):
        message = "'part_ids' names each part of this upload once, and no others."
        raise invalid(message, param="part_ids", reason="unknown_part")
    chosen = [known[one] for one in part_ids]
    size = sum(segment.size_bytes for part in chosen for segment in part.segments)
    if size != record.size_bytes:
        message = f"The parts have {size} bytes; {record.size_bytes} were announced."
        raise invalid(message, param="part_ids", reason="size_mismatch")
    return chosen


async def _bounded(parts: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    size = 0
    async for part in parts:
        size += len(part)
        if size > MAX_PART_BYTES:
            raise invalid(f"A part has {MAX_PART_BYTES} bytes at most.", param="data", reason="part_too_large")
        yield part


def _forget_parts(record: UploadRecord) -> None:
    del record.parts[:]


def _is_active(record: UploadRecord) -> bool:
    return state_of(record) == UploadState.UPLOAD_STATE_ACTIVE


def _not_active(state: str) -> InferBusError:
    message = f"The upload is {state}; create another one."
    return InferBusError(ErrorClass.ERROR_CLASS_CONFLICT, "upload_not_active", message)


def _name(record: UploadRecord) -> str:
    return f"{record.tenant_id}/{record.upload_id}"
