"""The price book of the bus: bucket ``prices`` followed, and parsed once a change."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry
from inferbus_rating import PriceBook
from inferbus_rating.book import Price, price_of

log = logging.getLogger(__name__)
# How long a change may take to come back through the watch before it is answered anyhow.
_SEEN_SECONDS = 2.0


class Prices:
    """The present :attr:`book`, and the bucket that it is made of."""

    def __init__(self, registry: Registry[PriceRecord]) -> None:
        self._registry = registry
        self._changed = asyncio.Event()
        self._prices: dict[str, Price] = {}
        self._faults: dict[str, tuple[PriceRecord, str]] = {}
        self._book: PriceBook | None = None

    @property
    def book(self) -> PriceBook:
        """Immutable: whoever holds it is not disturbed by a change. Made anew after one, when it is asked for."""
        if self._book is None:
            self._book = PriceBook(self._prices.values(), tuple(self._faults.values()))
        return self._book

    @property
    def by_name(self) -> Mapping[str, Price]:
        """The prices in the book by their name in the bucket: the version, or of old records the model."""
        return self._prices

    def names_of(self, rate_version: str) -> list[str]:
        """Names in the bucket of the records of that version, well-formed or not."""
        if not rate_version:
            return []
        records = self._registry.items()
        return [name for name, record in records.items() if rate_version in (name, record.rate_version)]

    async def create(self, record: PriceRecord) -> None:
        """Put it into the bucket; in the book when it returns. Raises like :meth:`Registry.create`."""
        stored = await self._registry.create(record.rate_version, record)
        await self._seen(record.rate_version, stored.sequence)

    async def delete(self, name: str) -> None:
        """Take it out of the bucket, and the book. Raises like :meth:`Registry.delete`."""
        deleted = await self._registry.delete(name)
        await self._seen(name, deleted.sequence)

    async def _seen(self, name: str, sequence: int) -> None:
        """Wait until the watch has brought the change, so that who made it finds it made."""
        try:
            async with asyncio.timeout(_SEEN_SECONDS):
                while self._registry.revision(name) < sequence:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.warning("a change of a price has not come back yet", extra={"price": name})

    def set(self, name: str, record: PriceRecord | None) -> None:
        """A record that is no price is in no book: what is charged must not depend on who has seen what it was before.
        What it gives away until it is mended re-rating takes back."""
        self._changed.set()
        self._book = None
        self._prices.pop(name, None)
        self._faults.pop(name, None)
        if record is None:
            return
        try:
            self._prices[name] = price_of(record)
        except ValueError as error:
            self._faults[name] = (record, str(error))
            log.error(
                "a price cannot be read: it is charged by what else is in the book; mend it, then re-rate",
                extra={"price": name, "rate_version": record.rate_version, "error": str(error)},
            )


@asynccontextmanager
async def follow_prices(bus: Bus) -> AsyncIterator[Prices]:
    """Loaded when it is given, then follows every change. Raises like :meth:`Registry.start`."""
    registry = Registry(bus, "prices", PriceRecord)
    prices = Prices(registry)
    registry.on_change(prices.set)
    await registry.start()
    try:
        yield prices
    finally:
        await registry.stop()
