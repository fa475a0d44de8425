"""From our sampling to the engine's SamplingParams."""

from collections.abc import Collection, Sequence
from typing import Any

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.sampling import MAX_LOGPROBS
from inferbus_worker.engine import Sampling

_NEUTRAL = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
_SEEDS = 2**63  # one of its samplers keeps them in signed numbers
# Below it a draw takes the most probable token as good as always, and its logits leave their type's range.
_COLDEST = 1e-3


def draws(sampling: Sampling) -> bool:
    """Whether chance decides; else the most probable token is taken."""
    return not (sampling.temperature == 0 or sampling.top_k == 1 or sampling.top_p == 0)


def fault_in(sampling: Sampling, honoured: Collection[str]) -> InferBusError | None:
    """The first parameter that would change something and that the engine takes without looking at it."""
    for name in _effective(sampling):
        if name not in honoured:
            return invalid(f"This model does not support '{name}'.", param=name, reason="unsupported_parameter")
    return None


def _effective(sampling: Sampling) -> list[str]:
    names = [name for name, neutral in _NEUTRAL.items() if getattr(sampling, name) not in (None, neutral)]
    if draws(sampling):
        names += ["min_p"] if sampling.min_p else []
        names += ["seed"] if sampling.seed is not None else []
    return names


def seed_of(sampling: Sampling, key: bytes, given: int) -> int:
    """Of a generation with ``given`` tokens already: the rest must not be drawn with the numbers of the beginning.

    A request without one gets one of its own: the engine would take the same for all.
    """
    chosen = int.from_bytes(key[-8:], "big") if sampling.seed is None else sampling.seed
    return (chosen + given) % _SEEDS


def sampling_arguments(sampling: Sampling, honoured: Collection[str], seed: int) -> dict[str, Any]:
    """OpenAI's defaults, not the engine's, which is greedy if nothing is said. ``seed`` is used if it has an effect."""
    arguments: dict[str, Any] = {"top_k": 1}  # greedy, whatever else is said, with each of its samplers
    if draws(sampling):
        arguments = {
            "temperature": 1.0 if sampling.temperature is None else max(sampling.temperature, _COLDEST),
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        }
        if sampling.top_k:
            arguments["top_k"] = sampling.top_k
        if sampling.min_p:
            arguments["min_p"] = sampling.min_p
        if "seed" in honoured:
            arguments["seed"] = seed
    for name, neutral in _NEUTRAL.items():
        if (value := getattr(sampling, name)) not in (None, neutral):
            arguments[name] = value
    if sampling.logprobs is not None:  # 0 means none at all to some versions, also of the token itself
        arguments["logprobs"] = min(max(1, sampling.logprobs), MAX_LOGPROBS)
    return arguments


def bias_of(pairs: Sequence[tuple[int, float]], logits: int, torch: Any) -> Any:
    """The tensor that is added to every step's ``logits`` logits."""
    bias = torch.zeros(logits, dtype=torch.float32)
    for token, value in pairs:
        bias[token] += value
    return bias
