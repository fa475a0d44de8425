"""What is asked for, checked."""

from dataclasses import dataclass

from inferbus_sizing.architecture import Architecture
from inferbus_sizing.errors import SizingError
from inferbus_sizing.hardware import Gpu, gpu_of
from inferbus_sizing.precision import Precision, kv_bytes_of, precision_of

MOST_CONTEXT = 1 << 24
MOST_CONCURRENCY = 1_000_000
MOST_REQUESTS = 1e15
MOST_DOLLARS = 1e6
MOST_SECONDS = 3600.0
MOST_GPUS = 64


@dataclass(frozen=True, slots=True)
class Wanted:
    """A service to size. Tokens, seconds, US dollars; raises :class:`SizingError` with the part that is wrong.

    ``context``: the longest sequence, which each place in the KV cache is kept for; ``input_tokens`` and
    ``output_tokens``: of a usual request. ``ttft_seconds``, ``itl_seconds``: means that may not be exceeded, 0: any.
    ``gpus_per_replica`` 0: as many as it takes.
    """

    model: Architecture
    gpu: str = "h100"
    precision: str = ""
    kv_precision: str = ""
    context: int = 8192
    concurrency: int = 32
    input_tokens: int = 1000
    output_tokens: int = 500
    ttft_seconds: float = 0.0
    itl_seconds: float = 0.0
    gpus_per_replica: int = 0
    dollars_per_hour: float | None = None
    dollars_per_kwh: float = 0.0
    api_price_in: float | None = None
    api_price_out: float | None = None
    requests_per_month: float = 0.0

    def __post_init__(self) -> None:
        _within("context", self.context, 1, min(MOST_CONTEXT, self.model.context_limit))
        _within("concurrency", self.concurrency, 1, MOST_CONCURRENCY)
        _within("input_tokens", self.input_tokens, 1, self.context)
        _within("output_tokens", self.output_tokens, 1, self.context)
        if self.input_tokens + self.output_tokens > self.context:
            raise SizingError("context", "Input and output together are longer than the context")
        _within("ttft_seconds", self.ttft_seconds, 0, MOST_SECONDS)
        _within("itl_seconds", self.itl_seconds, 0, MOST_SECONDS)
        _within("gpus_per_replica", self.gpus_per_replica, 0, MOST_GPUS)
        _within("dollars_per_kwh", self.dollars_per_kwh, 0, MOST_DOLLARS)
        _within("requests_per_month", self.requests_per_month, 0, MOST_REQUESTS)
        for name in ("dollars_per_hour", "api_price_in", "api_price_out"):
            value = getattr(self, name)
            if value is not None:
                _within(name, value, 0, MOST_DOLLARS)
        _ = self.hardware, self.numbers, self.kv_bytes

    @property
    def hardware(self) -> Gpu:
        return gpu_of(self.gpu)

    @property
    def numbers(self) -> Precision:
        return precision_of(self.precision or self.model.native)

    @property
    def kv_name(self) -> str:
        """The KV cache's precision: as asked for, else what usually goes with the weights', where the GPU has it."""
        usual = self.numbers.kv
        return self.kv_precision or ("bf16" if usual == "fp8" and "fp8" not in self.hardware.flops else usual)

    @property
    def kv_bytes(self) -> float:
        return kv_bytes_of(self.kv_name)

    @property
    def hourly(self) -> float:
        """Dollars of one GPU and hour."""
        return self.hardware.dollars_per_hour if self.dollars_per_hour is None else self.dollars_per_hour


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # false for NaN, too
        raise SizingError(name, f"{name} must be from {least:,} to {most:,}")
