"""Which GPUs a model needs, how fast it will be and what that costs, each figure with its formula and source. Pure."""

from inferbus_sizing.architecture import Architecture
from inferbus_sizing.configuration import architecture_of
from inferbus_sizing.errors import DoesNotFitError, SizingError
from inferbus_sizing.figure import Figure
from inferbus_sizing.hardware import GPUS, Gpu
from inferbus_sizing.models import Model, model_of, models
from inferbus_sizing.plan import Plan, compare, plan
from inferbus_sizing.precision import KV_BYTES, PRECISIONS
from inferbus_sizing.wanted import Wanted

__all__ = [
    "GPUS", "KV_BYTES", "PRECISIONS", "Architecture", "DoesNotFitError", "Figure", "Gpu", "Model", "Plan",
    "SizingError", "Wanted", "architecture_of", "compare", "model_of", "models", "plan",
]  # fmt: skip
