"""Which other model answers a request for which its own would take too long: a deployment's fallbacks."""

from collections.abc import Iterable
from dataclasses import dataclass

from inferbus.bus.v1.request_pb2 import GenerateRequest, ToolMode

from inferbus_scheduler.core.deployments import Deployment

# Of another tokenizer's count nothing is known before: seldom has a text more tokens than a half of its bytes.
_BYTES_A_TOKEN = 2
# How the answer is written depends on it (what is reasoning in it): both models must be the same in this.
_REASONING = "reasoning"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model must be able to do for a request. ``tokens``: at the most, with the output that is asked for."""

    capabilities: frozenset[str]
    tokens: int


@dataclass(frozen=True, slots=True)
class Option:
    """A model that may answer in another's place. ``context_length`` 0: not known. ``wait``: seconds until a request
    that came now would be placed; infinite where it would not, or nobody knows."""

    model: str
    capabilities: frozenset[str]
    context_length: int
    wait: float


def needs_of(request: GenerateRequest) -> Needs | None:
    """None: no other model can take it. That is so of what was begun already, of vectors and of an inference call,
    which are a model's own, and of token ids, which are its tokenizer's."""
    sampling = request.sampling
    if request.resume.attempt or sampling.logit_bias:
        return None
    match request.WhichOneof("input"):
        case "chat":
            needed, size = {"chat"}, request.chat.ByteSize()
            if request.chat.tools and request.chat.tool_mode != ToolMode.TOOL_MODE_NONE:
                needed.add("tools")
            if request.chat.reasoning_effort:
                needed.add(_REASONING)
        case "prompt" if request.prompt.WhichOneof("prompt") == "text":
            needed, size = {"completions"}, request.prompt.ByteSize()
        case _:
            return None
    if request.HasField("constraint"):
        needed.add("structured_output")
    if sampling.HasField("logprobs"):
        needed.add("logprobs")
    return Needs(frozenset(needed), size // _BYTES_A_TOKEN + sampling.max_tokens)


def able(needs: Needs, own: frozenset[str], option: Option) -> bool:
    """Whether ``option`` can do what the model with the capabilities ``own`` was asked for."""
    if option.context_length and option.context_length < needs.tokens:
        return False
    if (_REASONING in own) != (_REASONING in option.capabilities):
        return False
    return needs.capabilities <= option.capabilities


def fallback_of(needs: Needs, own: frozenset[str], own_wait: float, options: Iterable[Option]) -> str | None:
    """The first of the ``options`` that can do it and would begin sooner than in ``own_wait`` seconds; None: none."""
    return next((each.model for each in options if each.wait < own_wait and able(needs, own, each)), None)


def left_of(deployment: Deployment, model: str) -> tuple[str, ...]:
    """The fallbacks that are still to be asked for a request that waits for ``model`` and began at ``deployment``'s:
    those behind it in the list, so that nothing goes in a circle."""
    fallbacks = deployment.fallbacks
    return fallbacks[fallbacks.index(model) + 1 :] if model in fallbacks else fallbacks


def expected_wait(
    *, waited: float, ahead: float | None, target: float | None, served: bool, scaled: bool
) -> float | None:
    """The seconds that a request has still to wait, if that is more than it should; None: it is not.

    ``ahead``: what the queue before it takes at the rate of late; None: not known. ``target``: None: it only matters
    whether somebody serves the model (``served``). What is ``scaled`` has a worker soon: there the target counts.
    """
    if not served and not scaled:
        return float("inf")
    if target is None or waited + (ahead or 0.0) <= target:
        return None
    return ahead if served and ahead is not None else float("inf")
