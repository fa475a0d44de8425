"""What a request's end tells the metrics."""

from functools import lru_cache

from inferbus.common.v1.usage_pb2 import Usage
from inferbus_runtime import metrics
from prometheus_client import Histogram


class Timing:
    """When things happened to one request, Unix microseconds; 0: not yet."""

    __slots__ = ("accepted_us", "first_us", "last_us", "model")

    def __init__(self, model: str, accepted_us: int) -> None:
        self.model = model
        self.accepted_us = accepted_us
        self.first_us = 0
        self.last_us = 0


# Models are names from the registry and error types a closed set, so the caches are bounded by nature.
@lru_cache(maxsize=4096)
def _by_error(histogram: Histogram, model: str, error_type: str) -> Histogram:
    return histogram.labels(model, error_type)


@lru_cache(maxsize=4096)
def _tokens(model: str, token_type: str) -> Histogram:
    return metrics.TOKEN_USAGE.labels(model, token_type)


def record(timing: Timing, error_type: str, usage: Usage | None, end_us: int) -> None:
    """One request has ended; ``error_type`` is empty after a good end."""
    model = timing.model
    duration = (end_us - timing.accepted_us) / 1e6
    _by_error(metrics.REQUEST_DURATION, model, error_type).observe(duration)
    if timing.first_us:
        ttft = (timing.first_us - timing.accepted_us) / 1e6
        _by_error(metrics.TIME_TO_FIRST_TOKEN, model, error_type).observe(ttft)
    if usage is None:
        return
    _tokens(model, "input").observe(usage.input_tokens)
    _tokens(model, "output").observe(usage.output_tokens)
    if usage.output_tokens > 1 and timing.first_us:
        tpot = (timing.last_us - timing.first_us) / 1e6 / (usage.output_tokens - 1)
        _by_error(metrics.TIME_PER_OUTPUT_TOKEN, model, error_type).observe(tpot)
