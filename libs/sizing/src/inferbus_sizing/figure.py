"""A number that says where it comes from."""

from dataclasses import dataclass

_TITLES = {
    "parameters": "parameters", "active_parameters": "active for a token", "weights": "weights",
    "kv_per_token": "KV cache of a token", "kv_per_sequence": "KV cache of a sequence",
    "gpus_per_replica": "GPUs of a replica", "weights_per_gpu": "weights on a GPU",
    "reserve_per_gpu": "reserved on a GPU", "memory_per_gpu": "memory of a GPU",
    "sequences_fit": "sequences that fit a replica", "sequences": "sequences on a replica", "replicas": "replicas",
    "gpus": "GPUs", "prefill": "reading a prompt", "decode_step": "a decode step", "itl": "ITL, mean",
    "ttft": "TTFT, mean", "ttft_idle": "TTFT, idle", "tokens_per_second_user": "output of a sequence",
    "tokens_per_second": "output", "tokens_per_second_gpu": "output of a GPU", "requests_per_second": "requests",
    "power_gpus": "power of the GPUs", "power": "power with hosts", "energy_per_million": "energy, million output",
    "cost_per_hour": "cost, hour", "cost_per_month": "cost, month", "cost_per_request": "cost, request",
    "cost_per_million_in": "cost, million input", "cost_per_million_out": "cost, million output",
    "cost_per_million": "cost, million of both", "api_per_request": "API, request", "crossover": "crossover",
    "capacity": "capacity", "api_per_month": "API, month", "own_per_month": "own GPUs, month",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Figure:
    """``value`` None: there is none, and ``formula`` says why. ``unit``: "bytes", "seconds", "dollars", "watts", …"""

    name: str
    value: float | None
    unit: str
    formula: str
    source: str

    @property
    def title(self) -> str:
        """As people call it."""
        return _TITLES[self.name]
