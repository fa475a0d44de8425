"""What goes wrong with this engine, each said once."""

from collections.abc import Sequence
from datetime import timedelta

from inferbus_runtime.errors import InferBusError, invalid, unavailable


def refusal(setting: str, why: str) -> InferBusError:
    """A worker that cannot start as it is set. ``setting``: the variable's name after INFERBUS_WORKER_."""
    return unavailable(
        "engine_settings",
        "The model's engine does not start with its settings.",
        retry_after=timedelta(minutes=1),
        diagnostic=f"INFERBUS_WORKER_{setting}: {why}",
    )


def not_started(diagnostic: str) -> InferBusError:
    return unavailable(
        "engine_start_failed",
        "The model's engine did not start.",
        retry_after=timedelta(seconds=10),
        diagnostic=diagnostic,
    )


def failed(diagnostic: str) -> InferBusError:
    return unavailable(
        "engine_failed", "The engine failed; retry.", retry_after=timedelta(seconds=1), diagnostic=diagnostic
    )


def check_known(ids: Sequence[int], count: int, param: str) -> None:
    """Raises InferBusError (invalid) if one of ``ids`` is no token of a model that has ``count``."""
    for token in ids:
        if not 0 <= token < count:
            raise invalid(f"The model has no token {token}; its tokens are 0 to {count - 1}.", param=param)
