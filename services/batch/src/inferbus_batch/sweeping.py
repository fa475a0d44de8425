"""What is over goes: expired files and uploads, and content that nothing names."""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from datetime import timedelta

from inferbus.bus.v1.batch_pb2 import Segment
from inferbus_bus.errors import StreamApiError
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_batch.files import PUT_TIME, Files
from inferbus_batch.uploads import Uploads

log = logging.getLogger(__name__)
EVERY = timedelta(minutes=5)
UNNAMED = PUT_TIME + timedelta(minutes=15)
"""Content may wait so long for its record: longer than a file may take to come."""
# As content is named; a bucket may hold other people's things.
_OURS = re.compile(r"(file-[0-9a-f]{24}|upload_[0-9a-f]{24}/part_[0-9a-f]{24}|job-batch_[0-9a-f]{24})/.+")


class Sweeper:
    """``named``: segments that count though no file and no upload names them, those of jobs' checkpoints;
    ``following``: whether that is known as it is now. What nothing names goes when this process has seen it so for
    ``unnamed``: the store does not say how old an object is."""

    def __init__(
        self,
        files: Files,
        uploads: Uploads,
        named: Callable[[], Iterable[Segment]],
        following: Callable[[], bool],
        unnamed: timedelta = UNNAMED,
    ) -> None:
        self._files = files
        self._uploads = uploads
        self._named = named
        self._following = following
        self._unnamed = unnamed.total_seconds()
        # When each was first seen, by :func:`clock.monotonic`.
        self._since: dict[str, float] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self.sweep()
            except (InferBusError, StreamApiError, TimeoutError) as error:
                log.warning("clearing up was put off", extra={"error": str(error)})
            await asyncio.sleep(EVERY.total_seconds())

    async def sweep(self) -> None:
        """Once. Raises InferBusError or StreamApiError while the bus or the store is away; then the rest is done the
        next time."""
        for record in self._files.expired():
            await self._files.remove(record)
        await self._uploads.clear()
        await self._remove_unnamed()

    async def _remove_unnamed(self) -> None:
        store = self._files.store
        # Before who names what: content that comes meanwhile is looked at the next time.
        names = [name for name in await store.names("") if _OURS.fullmatch(name)]
        if not (self._files.following and self._uploads.following and self._following()):
            self._since.clear()  # others may have named it meanwhile
            return
        kept = {
            one.object for part in (self._files.segments(), self._uploads.segments(), self._named()) for one in part
        }
        now = clock.monotonic()
        self._since = {name: self._since.get(name, now) for name in names if name not in kept}
        for name in [one for one, since in self._since.items() if now - since >= self._unnamed]:
            del self._since[name]
            if await store.delete(name):
                log.info("content that nothing names was removed", extra={"object": name})
