"""A bucket of an S3-compatible store, through obstore (Rust's object_store).

What holds at most ``PART_BYTES`` is one PUT, so that nothing is left of it if we die; more is a multipart upload. Each
request is signed over the SHA-256 of its body: what arrives is what was sent.
"""

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import obstore.store
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, unavailable
from obstore.exceptions import BaseError

from inferbus_objects.s3_settings import S3Settings
from inferbus_objects.store import Stored

PART_BYTES = 8 << 20
"""Of an upload, which may have 10,000 and holds some 70 MB of memory (measured at 1 GiB)."""
_PARTS_AT_ONCE = 2
_CHUNK_BYTES = 512 << 10
_RETRY_AFTER = timedelta(seconds=5)
# obstore's limit for a whole request, a download's last byte included: a slow reader may take his time.
_NEVER = timedelta(days=1)
_CODE = re.compile(r"<Code>(\w+)</Code>")
# No object of ours is too large for S3 itself: Swift says so of a bucket's quota.
_FULL = frozenset(("EntityTooLarge", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"))


class S3Store:
    """An ObjectStore (``store.py``)."""

    def __init__(self, settings: S3Settings) -> None:
        """Connects to nothing. Raises OSError if the certificate cannot be read."""
        self._s3 = _opened(settings)

    async def check(self) -> None:
        """Returns if the bucket can be listed. Raises InferBusError UNAVAILABLE, whose diagnostic says why not."""
        with _told("the bucket"):
            async for _ in self._s3.list(chunk_size=1):
                return

    async def put(self, name: str, content: AsyncIterable[bytes]) -> Stored:
        parts = _Parts(content)
        if await parts.several():
            await self._upload(name, parts)
        else:
            with _told(name):
                await self._s3.put_async(name, parts.cut(), use_multipart=False)
        return Stored(parts.size, parts.digest.digest())

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        with _told(name, reading=True):
            if length is not None and length <= 0:
                await self._s3.head_async(name)
                return
            try:
                found = await self._s3.get_async(name, options=_range(offset, length))
            except BaseError as error:
                if "416 Range Not Satisfiable" in str(error):
                    return  # it ends before
                raise
            async for part in found.stream(_CHUNK_BYTES):
                yield part

    async def size(self, name: str) -> int | None:
        try:
            with _told(name, reading=True):
                return (await self._s3.head_async(name))["size"]
        except InferBusError as error:
            if error.error_class == ErrorClass.ERROR_CLASS_NOT_FOUND:
                return None
            raise

    async def delete(self, name: str) -> bool:
        # S3 deletes what is not there without a word.
        if await self.size(name) is None:
            return False
        with _told(name):
            await self._s3.delete_async(name)
        return True

    async def names(self, prefix: str) -> list[str]:
        # obstore lists folders only: of a prefix within a name all beside it come, too.
        folder, _, _ = prefix.rpartition("/")
        found: list[str] = []
        with _told("the list"):
            async for page in self._s3.list(folder or None, chunk_size=1000):
                found += [one["path"] for one in page if one["path"].startswith(prefix)]
        return sorted(found)

    async def _upload(self, name: str, parts: "_Parts") -> None:
        """Multipart. obstore aborts an upload whose source raises, and forgets one that is cancelled: so it runs in a
        task of its own, and is told to break off."""
        handed: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        upload = asyncio.create_task(
            self._s3.put_async(
                name, _taken(handed), use_multipart=True, chunk_size=PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            ),
            name="s3 upload",
        )
        try:
            while await parts.any():
                await _hand(handed, parts.cut(), upload)
            await _hand(handed, b"", upload)
            with _told(name):
                await asyncio.shield(upload)
        except BaseException:
            if not upload.done():
                if handed.full():
                    handed.get_nowait()
                handed.put_nowait(None)
                await asyncio.wait({upload})
            raise
        finally:
            upload.add_done_callback(_seen)


class _Parts:
    """A stream as parts of ``PART_BYTES``, the last one smaller; counted and digested (SHA-256) as they are taken."""

    def __init__(self, content: AsyncIterable[bytes]) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self._content = aiter(content)
        self._held = bytearray()

    async def any(self) -> bool:
        """Whether there is one more part, which :meth:`cut` gives. Raises what the stream raises."""
        await self._hold(PART_BYTES)
        return bool(self._held)

    async def several(self) -> bool:
        """Whether there is more than one. Raises what the stream raises."""
        await self._hold(PART_BYTES + 1)
        return len(self._held) > PART_BYTES

    def cut(self) -> bytes:
        part = bytes(self._held[:PART_BYTES])
        del self._held[:PART_BYTES]
        self.size += len(part)
        self.digest.update(part)
        return part

    async def _hold(self, size: int) -> None:
        while len(self._held) < size:
            try:
                self._held += await anext(self._content)
            except StopAsyncIteration:
                return


class _BrokenOffError(Exception):
    """Makes obstore abort."""


async def _taken(handed: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    """What is handed over until an empty part; None breaks off."""
    while part := await handed.get():
        yield part
        del part  # while the next one is waited for
    if part is None:
        raise _BrokenOffError


async def _hand(handed: asyncio.Queue[bytes | None], part: bytes, upload: asyncio.Task[Any]) -> None:
    """Returns when there is room. Raises InferBusError if the upload has failed: nobody takes parts any more."""
    waiting = asyncio.create_task(handed.put(part), name="s3 part")
    try:
        await asyncio.wait({waiting, upload}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if upload.done():
        with _told("an upload"):
            upload.result()


def _seen(upload: asyncio.Task[Any]) -> None:
    """Nobody is left to be told."""
    if not upload.cancelled():
        upload.exception()


def _opened(settings: S3Settings) -> obstore.store.S3Store:
    config: Any = {
        "region": settings.region,
        "virtual_hosted_style_request": settings.bucket_in_host,
        "disable_bulk_delete": True,  # not every store knows it
    }
    if settings.endpoint is not None:
        config["endpoint"] = settings.endpoint
    if settings.access_key_id is not None and settings.secret_access_key is not None:
        config["access_key_id"] = settings.access_key_id
        config["secret_access_key"] = settings.secret_access_key.get_secret_value()
    client: Any = {
        "timeout": _NEVER,
        "read_timeout": settings.silence,
        "allow_http": (settings.endpoint or "").startswith("http://"),
    }
    if settings.ca is not None:
        client["root_certificate"] = settings.ca.read_bytes()
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}
    retry: Any = {"max_retries": 100, "retry_timeout": settings.retry_for, "backoff": backoff}
    return obstore.store.S3Store(
        settings.bucket, prefix=settings.prefix or None, config=config, client_options=client, retry_config=retry
    )


def _range(offset: int, length: int | None) -> Any:
    if length is not None:
        return {"range": (offset, offset + length)}
    return {"range": {"offset": offset}} if offset else {}


@contextmanager
def _told(what: str, reading: bool = False) -> Iterator[None]:
    """What the store says, as InferBusError. ``reading``: that there is no such object is the caller's matter."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise _error(what, error, reading) from error


def _error(what: str, error: BaseError | OSError, reading: bool) -> InferBusError:
    said = str(error).partition("\n\nDebug source")[0]
    code = _CODE.search(said)
    if reading and isinstance(error, FileNotFoundError) and (code is None or code[1] != "NoSuchBucket"):
        return InferBusError(ErrorClass.ERROR_CLASS_NOT_FOUND, "no_such_object", "It is not there any more.")
    diagnostic = f"{what}: {type(error).__name__}: {said[:1000]}"
    if (code is not None and code[1] in _FULL) or " 507 " in said:
        return InferBusError(
            ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, "store_full", "The service is overloaded; retry later.",
            retry_after=_RETRY_AFTER, diagnostic=diagnostic,
        )  # fmt: skip
    return unavailable(
        "store_unavailable", "Files cannot be reached now; retry.", retry_after=_RETRY_AFTER, diagnostic=diagnostic
    )
