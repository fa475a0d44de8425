"""By what a request is charged, judged by the price book."""

from inferbus_rating import PriceBook, Rate
from inferbus_rating import Scope as RequestScope
from inferbus_rating.book import Price

from inferbus_meter.core.frames import ClosedRequest
from inferbus_meter.core.rows import accepted_us

# A price that was made so long before a request ended was known to every meter by then.
_KNOWN_US = 60_000_000


def rate_of_version(item: ClosedRequest, charged: Rate, book: PriceBook) -> Rate:
    """What the version that is named in the row of ``item`` says in the book; the row's own rate if it has none."""
    close = item.close
    named = [price for price in book.named(charged.version) if _is_for(price.scope, _scope(item))]
    rates = [price.rate(close.operation, close.priority_class) for price in named]
    return charged if charged in rates or not rates else rates[0]


def rate_fault(item: ClosedRequest, version: str, book: PriceBook) -> str:
    """Why ``version`` is not what the request can have been charged by; empty if it can.

    A price that was made after the request had ended, with an earlier date, is for re-rating to apply.
    """
    if version and not book.named(version):
        return f"rate_version {version!r} is not in the price book"
    scope, accepted = _scope(item), accepted_us(item)
    for price in book.prices_at(scope, accepted):
        if price.record.rate_version == version:
            return ""
        if price.record.create_time.ToMicroseconds() <= item.time_us - _KNOWN_US:
            by = f"by {version!r}" if version else "by nothing"
            return f"rate_version: charged {by}, while {price.record.rate_version!r} was in force"
    if not version or any(_is_applicable(price, scope, accepted) for price in book.named(version)):
        return ""
    return f"rate_version {version!r} was not in force for it"


def _scope(item: ClosedRequest) -> RequestScope:
    of = item.context
    return RequestScope(of.tenant_id, of.project_id, of.model, of.revision)


def _is_applicable(price: Price, scope: RequestScope, accepted: int) -> bool:
    return price.effective_us <= accepted and _is_for(price.scope, scope)


def _is_for(wide: RequestScope, one: RequestScope) -> bool:
    """Whether ``wide``, in which an empty field means all, has ``one`` in it."""
    return (
        wide.tenant_id in ("", one.tenant_id)
        and wide.project_id in ("", one.project_id)
        and wide.model in ("", one.model)
        and wide.revision in ("", one.revision)
    )
