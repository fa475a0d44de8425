"""What a request costs: price book, rates, charges, volume discounts. Pure: decimals in, decimals out."""

from inferbus_rating.book import PriceBook, Scope
from inferbus_rating.rate import UNRATED, Rate, cost, is_answered, most

__all__ = ["UNRATED", "PriceBook", "Rate", "Scope", "cost", "is_answered", "most"]
