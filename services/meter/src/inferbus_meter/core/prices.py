"""The price book's rules: what may be put into it, and what a price is at a time."""

import re
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.meter.v1 import prices_pb2
from inferbus.meter.v1.prices_pb2 import PriceState
from inferbus_rating import PriceBook, Rate
from inferbus_rating.book import DEFAULT_MODEL, Price, price_of
from inferbus_runtime.errors import invalid

from inferbus_meter.core.decimals import decimal_text

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,99}")
_CURRENCY = re.compile(r"[A-Z]{3}")
_AMOUNTS = ("input_per_million", "output_per_million", "embedding_per_million", "per_call", "minimum")
_MAX_NAME = 256
_MAX_TIERS = 32
# Times of requests end with it: the first of January 2106, as Unix microseconds.
_MAX_TIME = timedelta(days=49_673) // timedelta(microseconds=1)


def checked(given: PriceRecord, now_us: int) -> PriceRecord:
    """The record to be stored for what was asked. Raises InferBusError INVALID_ARGUMENT, which names the field."""
    record = PriceRecord()
    record.CopyFrom(given)
    record.model = "" if given.model == DEFAULT_MODEL else given.model
    record.create_time.FromMicroseconds(now_us)
    if not _VERSION.fullmatch(record.rate_version):
        raise invalid(
            "'rate_version' is 1 to 100 letters, digits and . _ : @ + -, and begins with a letter or digit.",
            param="rate_version",
        )
    if not _CURRENCY.fullmatch(record.currency):
        raise invalid("'currency' is a code of three capitals, such as USD.", param="currency")
    for name in ("tenant_id", "project_id", "model", "revision"):
        if len(getattr(record, name)) > _MAX_NAME:
            raise invalid(f"'{name}' has {_MAX_NAME} characters at most.", param=name)
    if not any(getattr(record, name) for name in _AMOUNTS):
        raise invalid(f"Give at least one amount: {', '.join(_AMOUNTS)}; '0' is free.", param=_AMOUNTS[0])
    if len(record.tiers) > _MAX_TIERS:
        raise invalid(f"'tiers' are {_MAX_TIERS} at most.", param="tiers")
    if not record.HasField("effective_time"):
        record.effective_time.FromMicroseconds(now_us)
    if not 0 <= record.effective_time.ToMicroseconds() <= _MAX_TIME:
        raise invalid("'effective_time' lies between 1970 and 2106.", param="effective_time")
    try:
        price_of(record)
    except ValueError as error:
        raise invalid(f"{error}.", param=re.split(r"\W", str(error))[0]) from error
    return record


def shown(price: Price, book: PriceBook, now_us: int) -> prices_pb2.Price:
    return prices_pb2.Price(record=price.record, state=_state(price, book, now_us))


def _state(price: Price, book: PriceBook, now_us: int) -> PriceState.ValueType:
    if price.effective_us > now_us:
        return PriceState.PRICE_STATE_COMING
    # The most specific price for its own scope is one of that scope.
    present = book.price_at(price.scope, now_us)
    return PriceState.PRICE_STATE_IN_FORCE if present == price else PriceState.PRICE_STATE_FOLLOWED


def shown_rate(rate: Rate) -> prices_pb2.Rate:
    return prices_pb2.Rate(
        rate_version=rate.version,
        currency=rate.currency,
        input_per_million=decimal_text(rate.input_per_million),
        cached_input_per_million=decimal_text(rate.cached_input_per_million),
        output_per_million=decimal_text(rate.output_per_million),
        reasoning_per_million=decimal_text(rate.reasoning_per_million),
        per_call=decimal_text(rate.per_call),
        minimum=decimal_text(rate.minimum),
        factor=decimal_text(rate.factor),
    )
