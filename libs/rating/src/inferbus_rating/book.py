"""The price book: which price is in force for a request. Immutable; yesterday's price is found as well as today's."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.common.v1.usage_pb2 import Operation, PriorityClass
from inferbus_contracts.shadow import SHADOW_TENANT

from inferbus_rating.amounts import amount
from inferbus_rating.rate import UNRATED, Rate
from inferbus_rating.tiers import Tier, tiers_of

DEFAULT_MODEL = "default"
"""The model of a record for all models, as it was written before versions were keys."""
# Tenant, project, model, revision: plain tuples, since nine of them are looked up for each request.
_Key = tuple[str, str, str, str]
_ONE = Decimal(1)
_ALWAYS = -1


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose request it is, and for what."""

    tenant_id: str
    project_id: str
    model: str
    revision: str


@dataclass(frozen=True, slots=True)
class Price:
    """A well-formed record, its amounts as decimals."""

    record: PriceRecord
    effective_us: int
    """In force for requests accepted from then on, Unix microseconds; -1: has always been."""
    scope: Scope
    """An empty field: all of them."""
    tiers: tuple[Tier, ...]
    plain: Rate
    """Of text, in a class other than batch."""
    embedding: Rate
    batch_factor: Decimal

    def rate(self, operation: Operation.ValueType, priority: PriorityClass.ValueType) -> Rate:
        rate = self.embedding if operation == Operation.OPERATION_EMBEDDINGS else self.plain
        if priority == PriorityClass.PRIORITY_CLASS_BATCH and self.batch_factor != _ONE:
            return replace(rate, factor=self.batch_factor)
        return rate


def price_of(record: PriceRecord) -> Price:
    """Raises ValueError, which says what is wrong, for a record that is no price."""
    if not record.rate_version:
        raise ValueError("rate_version is missing")
    if not record.currency:
        raise ValueError("currency is missing: what is charged in none is on no invoice")
    if record.project_id and not record.tenant_id:
        raise ValueError("project_id needs the tenant_id that it belongs to")
    model = "" if record.model == DEFAULT_MODEL else record.model
    if record.revision and not model:
        raise ValueError("revision needs the model that it belongs to")
    given = {name: _amount_of(record, name) for name in _AMOUNTS}
    per_input, per_output = given["input_per_million"], given["output_per_million"]
    plain = Rate(
        version=record.rate_version,
        currency=record.currency,
        input_per_million=per_input,
        cached_input_per_million=given["cached_input_per_million"] if record.cached_input_per_million else per_input,
        output_per_million=per_output,
        reasoning_per_million=given["reasoning_per_million"] if record.reasoning_per_million else per_output,
        per_call=given["per_call"],
        minimum=given["minimum"],
        factor=_ONE,
    )
    vectors = given["embedding_per_million"]
    return Price(
        record=record,
        effective_us=_effective_us(record),
        scope=Scope(record.tenant_id, record.project_id, model, record.revision),
        tiers=tiers_of(record.tiers),
        plain=plain,
        embedding=replace(plain, input_per_million=vectors, cached_input_per_million=vectors)
        if record.embedding_per_million
        else plain,
        batch_factor=given["batch_factor"] if record.batch_factor else _ONE,
    )


class PriceBook:
    """Prices by whom and what they are for."""

    def __init__(self, prices: Iterable[Price], faults: tuple[tuple[PriceRecord, str], ...] = ()) -> None:
        by_scope: dict[_Key, list[Price]] = {}
        by_version: dict[str, list[Price]] = {}
        for price in sorted(prices, key=_order):
            by_scope.setdefault(_key(price.scope), []).append(price)
            by_version.setdefault(price.record.rate_version, []).append(price)
        self._by_scope: Mapping[_Key, list[Price]] = by_scope
        self._by_version: Mapping[str, list[Price]] = by_version
        self.tiers: Mapping[str, tuple[Tier, ...]] = {
            version: price.tiers for version, prices in by_version.items() for price in prices if price.tiers
        }
        """By rate version, of those that have any."""
        self.faults = faults
        """Records that were left out, and why."""

    @staticmethod
    def of(records: Iterable[PriceRecord]) -> "PriceBook":
        prices: list[Price] = []
        faults: list[tuple[PriceRecord, str]] = []
        for record in records:
            try:
                prices.append(price_of(record))
            except ValueError as error:
                faults.append((record, str(error)))
        return PriceBook(prices, tuple(faults))

    def price_at(self, scope: Scope, accepted_us: int) -> Price | None:
        """The most specific price in force at ``accepted_us`` (Unix microseconds), None without any."""
        return next(self.prices_at(scope, accepted_us), None)

    def prices_at(self, scope: Scope, accepted_us: int) -> Iterator[Price]:
        """Those in force at ``accepted_us`` (Unix microseconds) that are for ``scope``, the most specific first.

        The project's goes before the tenant's before everybody's; within each, the revision's before the model's
        before that for all models; of those left, the one that came into force last. What a shadow does is charged to
        nobody.
        """
        if scope.tenant_id == SHADOW_TENANT:
            return
        for wanted in _wanted(scope):
            prices = self._by_scope.get(wanted)
            if prices:
                at = bisect_right(prices, accepted_us, key=lambda price: price.effective_us)
                if at:
                    yield prices[at - 1]

    def rate_at(
        self, scope: Scope, operation: Operation.ValueType, priority: PriorityClass.ValueType, accepted_us: int
    ) -> Rate:
        """The rate of :meth:`price_at` for such a request; UNRATED without a price."""
        price = self.price_at(scope, accepted_us)
        return UNRATED if price is None else price.rate(operation, priority)

    def named(self, rate_version: str) -> tuple[Price, ...]:
        """The prices of that version: one, unless records of before versions were keys share a name."""
        return tuple(self._by_version.get(rate_version, ()))


_AMOUNTS = (
    "input_per_million",
    "cached_input_per_million",
    "output_per_million",
    "reasoning_per_million",
    "embedding_per_million",
    "per_call",
    "batch_factor",
    "minimum",
)


def _amount_of(record: PriceRecord, name: str) -> Decimal:
    try:
        return amount(getattr(record, name))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _effective_us(record: PriceRecord) -> int:
    if not record.HasField("effective_time"):
        return _ALWAYS
    stamp = record.effective_time
    return max(0, stamp.seconds * 1_000_000 + stamp.nanos // 1000)


def _order(price: Price) -> tuple[int, int, str]:
    """Of prices for the same: the last one that is in force counts. A name decides only between records of before,
    which say nothing of their making: which it is must not hang on the order in which they are read."""
    return price.effective_us, price.record.create_time.ToMicroseconds(), price.record.rate_version


def _key(scope: Scope) -> _Key:
    return scope.tenant_id, scope.project_id, scope.model, scope.revision


def _wanted(scope: Scope) -> Iterator[_Key]:
    """What a price for it can be under, the most specific first, each once."""
    if scope.project_id:
        yield from _of_models(scope, scope.tenant_id, scope.project_id)
    if scope.tenant_id:
        yield from _of_models(scope, scope.tenant_id, "")
    yield from _of_models(scope, "", "")


def _of_models(scope: Scope, tenant_id: str, project_id: str) -> Iterator[_Key]:
    if scope.revision:
        yield tenant_id, project_id, scope.model, scope.revision
    if scope.model:
        yield tenant_id, project_id, scope.model, ""
    yield tenant_id, project_id, "", ""
