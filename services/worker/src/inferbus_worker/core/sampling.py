"""What no engine accepts, said once for all of them."""

import math

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.engine import Generation, Sampling

MAX_STOPS = 16


def fault_of(generation: Generation) -> InferBusError | None:
    """The first thing wrong with a generation, or None."""
    if not generation.messages:
        return invalid("Send at least one message.", param="messages")
    return _sampling_fault(generation.sampling)


def _sampling_fault(sampling: Sampling) -> InferBusError | None:
    bounds = (
        ("temperature", sampling.temperature, 0.0, 2.0),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0),
        ("presence_penalty", sampling.presence_penalty, -2.0, 2.0),
        ("repetition_penalty", sampling.repetition_penalty, 0.01, 10.0),
    )
    for param, value, low, high in bounds:
        # Written so that NaN, which compares false with everything, is refused too.
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            return invalid(f"{param} must be between {low:g} and {high:g}.", param=param)
    if len(sampling.stop) > MAX_STOPS:
        return invalid(f"Send at most {MAX_STOPS} stop strings.", param="stop")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        return invalid("max_tokens must be at least 1.", param="max_tokens")
    return None
