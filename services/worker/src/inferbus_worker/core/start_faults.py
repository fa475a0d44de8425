"""Why an engine did not start: for the operator, in ``diagnostic``."""

from datetime import timedelta

from inferbus_runtime.errors import InferBusError, unavailable


def start_failed(diagnostic: str) -> InferBusError:
    return unavailable(
        "engine_start_failed",
        "The model's engine did not start.",
        retry_after=timedelta(seconds=10),
        diagnostic=diagnostic,
    )


def refusal(setting: str, why: str) -> InferBusError:
    """A worker that cannot start as it is set. ``setting``: the variable's name after INFERBUS_WORKER_."""
    return unavailable(
        "engine_settings",
        "The model's engine does not start with its settings.",
        retry_after=timedelta(minutes=1),
        diagnostic=f"INFERBUS_WORKER_{setting}: {why}",
    )
