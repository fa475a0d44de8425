"""What an engine does not accept, said once for all of them."""

import math
from collections.abc import Collection, Iterable, Iterator

from inferbus_contracts.sampling_bounds import MAX_STOPS
from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.engine import Chat, Embed, Generation, Infer, Prompt, Sampling, Source, ToolMode

MAX_LOGPROBS = 20
_MAX_BIAS = 100.0


def fault_of(generation: Generation, capabilities: Collection[str]) -> InferBusError | None:
    """The first thing wrong with a generation for an engine of these capabilities, or None."""
    for capability, param in _needs(generation):
        if capability not in capabilities:
            return invalid(f"This model does not support '{param}'.", param=param, reason="unsupported_parameter")
    match generation.input:
        case Chat(messages=()):
            return invalid("Send at least one message.", param="messages")
        case Chat() as chat:
            return _tools_fault(chat) or _sampling_fault(generation.sampling)
        case Prompt(content) if not content:
            return invalid("Send a prompt that is not empty.", param="prompt")
        case Embed(inputs):
            if not inputs or not all(one.content for one in inputs):
                return invalid("Send inputs that are not empty.", param="input")
            return None
        case Infer():
            return None
    return _sampling_fault(generation.sampling)


def check_ids(ids: Iterable[int], count: int, param: str) -> None:
    """Raises InferBusError (invalid) if one of ``ids`` is no token of a model that has ``count``."""
    for token in ids:
        if not 0 <= token < count:
            raise invalid(f"The model has no token {token}; its tokens are 0 to {count - 1}.", param=param)


def _needs(generation: Generation) -> Iterator[tuple[str, str]]:
    """(capability, parameter that asks for it)."""
    match generation.input:
        case Chat() as chat:
            yield "chat", "messages"
            if chat.tools and chat.tool_mode is ToolMode.REQUIRED:
                yield "tools", "tool_choice"
            if chat.reasoning_effort not in ("", "none"):
                yield "reasoning", "reasoning_effort"
        case Prompt():
            yield "completions", "prompt"
        case Embed():
            yield "embeddings", "input"
        case Infer():
            yield "inference", "model"
    if generation.constraint is not None:
        yield "structured_output", "response_format"
    if generation.sampling.logprobs is not None:
        yield "logprobs", "logprobs"
    if generation.sampling.logit_bias:
        yield "logit_bias", "logit_bias"


def _tools_fault(chat: Chat) -> InferBusError | None:
    if chat.tool_mode is not ToolMode.REQUIRED:
        return None
    if not chat.tools:
        return invalid("Send the tools that the model must call.", param="tools")
    if chat.tool_name and all(tool.name != chat.tool_name for tool in chat.tools):
        return invalid(f"tool_choice names '{chat.tool_name[:64]}', which is none of the tools.", param="tool_choice")
    return None


def _sampling_fault(sampling: Sampling) -> InferBusError | None:
    bounds = (
        ("temperature", sampling.temperature, 0.0, 2.0),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0),
        ("presence_penalty", sampling.presence_penalty, -2.0, 2.0),
        ("repetition_penalty", sampling.repetition_penalty, 0.01, 10.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        *(("logit_bias", bias, -_MAX_BIAS, _MAX_BIAS) for _, bias in sampling.logit_bias),
    )
    for param, value, low, high in bounds:
        # Written so that NaN, which compares false with everything, is refused too.
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            return invalid(f"{param} must be between {low:g} and {high:g}.", param=param)
    if len(sampling.stop) > MAX_STOPS:
        return invalid(f"Send at most {MAX_STOPS} stop strings.", param="stop")
    if sampling.logprobs is not None and sampling.logprobs > MAX_LOGPROBS:
        return invalid(f"Ask for at most {MAX_LOGPROBS} alternatives of a token.", param="logprobs")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        return invalid("max_tokens must be at least 1.", param="max_tokens")
    return None


def context_exceeded(source: Source, tokens: int) -> InferBusError:
    """The refusal of an input that has so many tokens."""
    what, param = ("The messages have", "messages") if isinstance(source, Chat) else ("The prompt has", "prompt")
    text = f"{what} {tokens} tokens, which is more than the model's context."
    return invalid(text, param=param, reason="context_length_exceeded")
