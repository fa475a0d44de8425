"""When each key was last used: noted in memory at every request, written now and then."""

import asyncio
import logging

from google.protobuf.timestamp_pb2 import Timestamp
from inferbus.bus.v1.registry_pb2 import KeyUseRecord
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

log = logging.getLogger(__name__)

_WRITE_EVERY_US = 60_000_000
_LOOK_EVERY_SECONDS = 5.0


class KeyUses:
    """Writes a key's last use at most once a minute, so that what is shown is right to the minute. What was not yet
    written when the edge dies is lost: at most that minute."""

    def __init__(self, uses: Registry[KeyUseRecord]) -> None:
        self._uses = uses
        # Not yet written, and when something was last written: both end when a key is quiet for a minute.
        self._noted: dict[str, int] = {}
        self._written: dict[str, int] = {}

    def last(self, key_id: str) -> Timestamp | None:
        """When it was last used, to the minute; None: never."""
        known = self._uses.get(key_id)
        return None if known is None else known.last_use_time

    async def forget(self, key_id: str) -> None:
        """The key is no more. Raises InferBusError UNAVAILABLE."""
        self._noted.pop(key_id, None)
        if self._uses.get(key_id) is not None:
            await self._uses.delete(key_id)

    def note(self, key_id: str, now_us: int) -> None:
        """The key is being used. One store into a dict: it is on the way of every request."""
        self._noted[key_id] = now_us

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            await self.write()

    async def write(self, *, all_of_them: bool = False) -> None:
        """Write what is due (or ``all_of_them``, at the end). What cannot be written is tried again next time."""
        now_us = clock.now_us()
        self._written = {key: at for key, at in self._written.items() if now_us - at < _WRITE_EVERY_US}
        due = {key: at for key, at in self._noted.items() if all_of_them or key not in self._written}
        try:
            for key_id, used_us in due.items():
                await self._write_one(key_id, used_us)
                self._written[key_id] = now_us
                if self._noted.get(key_id) == used_us:
                    del self._noted[key_id]
        except InferBusError as error:
            log.warning("the last use of keys is written later", extra={"reason": error.reason})

    async def _write_one(self, key_id: str, used_us: int) -> None:
        known = self._uses.get(key_id)
        # Another edge may have seen it later.
        if known is None or clock.unix_us(known.last_use_time) < used_us:
            await self._uses.put(key_id, KeyUseRecord(last_use_time=clock.timestamp(used_us)))
