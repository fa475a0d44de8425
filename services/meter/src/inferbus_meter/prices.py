"""The price book as rates: the registry ``prices``, parsed once a change."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType

from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus_bus.connection import Bus
from inferbus_bus.registry import Registry

from inferbus_meter.core.rating import Rate, rate_of

log = logging.getLogger(__name__)


class PriceBook:
    """Present rates by model name, and under ``default`` the one for all others."""

    def __init__(self) -> None:
        self._rates: dict[str, Rate] = {}

    @property
    def rates(self) -> Mapping[str, Rate]:
        return MappingProxyType(self._rates)

    def set(self, name: str, record: PriceRecord | None) -> None:
        """A record that is no price leaves the former rate in force: a typing error must not give tokens away."""
        if record is None:
            self._rates.pop(name, None)
            return
        try:
            self._rates[name] = rate_of(record)
        except ValueError as error:
            log.error(
                "a price is refused; the former one stays in force",
                extra={"model": name, "rate_version": record.rate_version, "error": str(error)},
            )


@asynccontextmanager
async def price_book(bus: Bus) -> AsyncIterator[PriceBook]:
    """Loaded when it is given, then follows every change. Raises like :meth:`Registry.start`."""
    book = PriceBook()
    registry = Registry(bus, "prices", PriceRecord)
    registry.on_change(book.set)
    await registry.start()
    try:
        yield book
    finally:
        await registry.stop()
