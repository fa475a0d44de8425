"""Decimals as text."""

from decimal import Decimal


def decimal_text(amount: Decimal) -> str:
    """Without trailing zeros or an exponent: ``0.0105``."""
    text = f"{amount:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text
