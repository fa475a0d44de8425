"""How the constants of ``Efficiency`` were found: one after the other up and down, as long as the rows get closer.

python -m libs.sizing.tests.fitting      prints what it finds for all dense rows

The constants are these, rounded; what ends at its bound here (BF16's products, attention, exchanges, layers, steps) was
taken a step inside, towards what latencies of one sequence say.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from types import MappingProxyType

from inferbus_sizing.performance import DEFAULT, Efficiency

from .published import BATCHES, DENSE, Row

# Name -> least, first, most: what a kernel can reach, what a step can take.
_BOUNDS = {
    "bf16": (0.3, 0.5, 0.75), "fp8": (0.3, 0.5, 0.75), "fp4": (0.3, 0.4, 0.7), "attention": (0.2, 0.45, 0.7),
    "bandwidth": (0.5, 0.75, 0.88), "kv_bandwidth": (0.5, 0.8, 0.9), "link": (0.2, 0.6, 0.85),
    "exchange_seconds": (3e-6, 12e-6, 20e-6), "layer_seconds": (1e-6, 10e-6, 40e-6),
    "step_seconds": (1e-4, 1e-3, 3e-3), "sequence_seconds": (1e-7, 2e-6, 15e-6),
}  # fmt: skip
_PRODUCTS = ("bf16", "fp8", "fp4")
_NEAR = 0.22
_STEEP = 20.0


def fitted(rows: Sequence[Row]) -> Efficiency:
    """Least squares of the logarithm, and steeply more for what is further off than a fifth."""
    values = {name: first for name, (_, first, _) in _BOUNDS.items()}
    best, step = _cost(rows, values), 0.2
    while step > 0.01:
        moved = False
        for name, (least, _, most) in _BOUNDS.items():
            for factor in (1 + step, 1 / (1 + step)):
                tried = values | {name: min(most, max(least, values[name] * factor))}
                cost = _cost(rows, tried)
                if cost < best - 1e-6:
                    best, values, moved = cost, tried, True
        if not moved:
            step /= 2
    return _efficiency(values)


def _efficiency(values: dict[str, float]) -> Efficiency:
    products = MappingProxyType({**DEFAULT.products, **{name: values[name] for name in _PRODUCTS}})
    return replace(DEFAULT, products=products, **{name: values[name] for name in _BOUNDS if name not in _PRODUCTS})


def _cost(rows: Sequence[Row], values: dict[str, float]) -> float:
    efficiency = _efficiency(values)
    off = (abs(log(1 + row.off_with(efficiency))) for row in rows)
    return sum(one * one + (_STEEP * (one - _NEAR) ** 2 if one > _NEAR else 0.0) for one in off)


if __name__ == "__main__":
    print(fitted([*DENSE, *(row for row in BATCHES if "TP1" in row.name)]))
