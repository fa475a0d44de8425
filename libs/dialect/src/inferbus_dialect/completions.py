"""OpenAI's older completions: what a request may say, and its plan."""

from typing import Annotated, Any

from inferbus.bus.v1.request_pb2 import GenerateRequest, Sampling
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_runtime.errors import invalid
from pydantic import BaseModel, Field

from inferbus_dialect.chat_plan import add_biases, bus_seed, bus_top_k, choices
from inferbus_dialect.labels import END_USER, end_user_of
from inferbus_dialect.openai import (
    MAX_CHOICES,
    Choices,
    Label,
    LogitBias,
    Penalty,
    Probability,
    Repetition,
    Seed,
    Stop,
    StreamOptions,
    Temperature,
    Tokens,
    TopK,
    check_stream_options,
    stop_texts,
)
from inferbus_dialect.plan import Need, Plan
from inferbus_dialect.prompts import Prompt, prompt_inputs, token_estimate
from inferbus_dialect.schema import STRICT, parse, refused, unsupported

_DEFAULT_MAX_TOKENS = 16
_MAX_BEST_OF = 20
_MAX_LOGPROBS = 5
# An echo travels with every choice.
_MAX_ECHO = 64 * 1024


class CompletionRequest(BaseModel):
    model_config = STRICT
    model: Annotated[str, Field(min_length=1)] = Field(description="404 model_not_found if it is not served.")
    prompt: Prompt = Field(description="A text, tokens, or a list of either; no chat template is used.")
    best_of: Annotated[int, Field(ge=1, le=_MAX_BEST_OF)] | None = Field(
        None, description="So many are made, the n with the best mean log-probability given; needs logprobs; no stream."
    )
    echo: bool | None = Field(None, description="The prompt before the output; refused with logprobs or tokens.")
    frequency_penalty: Penalty | None = Field(None, description="Less of what was said often.")
    logit_bias: LogitBias | None = Field(None, description="Needs a model with logit_bias.")
    logprobs: Annotated[int, Field(ge=0, le=_MAX_LOGPROBS)] | None = Field(
        None, description="With so many alternatives; needs a model with logprobs."
    )
    max_tokens: Tokens | None = Field(None, description="Bound of the output; absent: 16.")
    n: Choices | None = Field(None, description="So many choices for each prompt.")
    presence_penalty: Penalty | None = Field(None, description="Less of what was said at all.")
    seed: Seed | None = Field(None, description="The same seed samples the same; choice k of a prompt has seed + k.")
    stop: Stop | None = Field(None, description="Up to 4 texts that end the output; they are no part of it.")
    stream: bool | None = Field(None, description="Server-sent events instead of one body.")
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    suffix: Annotated[Any, refused("")] = Field(None, description="Refused (400 unsupported_parameter).")
    temperature: Temperature | None = Field(None, description="0: always the most probable token.")
    top_p: Probability | None = Field(None, description="Only the most probable tokens that make up this share.")
    user: Label | None = Field(None, description=END_USER)
    # Not OpenAI's, but common among servers of open models.
    top_k: TopK | None = Field(None, description="0 and -1: no bound.")
    min_p: Probability | None = Field(None, description="No tokens below this share of the most probable one.")
    repetition_penalty: Repetition | None = Field(None, description="Less of what stands in the input or the output.")

    @property
    def per_prompt(self) -> int:
        """How many are made for each prompt."""
        return self.best_of or self.n or 1


def parse_completion_request(body: bytes) -> CompletionRequest:
    """The request in ``body``. Raises InferBusError INVALID_ARGUMENT with the parameter at fault, and nothing else."""
    request = parse(CompletionRequest, body)
    check_stream_options(request.stream, request.stream_options)
    n = request.n or 1
    if request.best_of is not None and request.best_of < n:
        raise invalid("'best_of' should be at least 'n'.", param="best_of")
    if request.best_of is not None and request.best_of > n and request.stream:
        raise invalid("'best_of' is not possible with 'stream'.", param="best_of")
    if request.echo and request.logprobs is not None:
        raise unsupported("echo", "'echo' together with 'logprobs' is not supported; leave one of them out.")
    return request


def plan_completion(request: CompletionRequest) -> Plan:
    """One bus request for each choice of each prompt, the first prompt's first."""
    inputs = prompt_inputs(request.prompt)
    per_prompt, n = request.per_prompt, request.n or 1
    if len(inputs) * per_prompt > MAX_CHOICES:
        message = f"There may be at most {MAX_CHOICES} choices: prompts, times 'n' or 'best_of'."
        raise invalid(message, param="prompt")
    best = per_prompt > n
    bound = request.max_tokens or _DEFAULT_MAX_TOKENS
    sampling = _sampling(request, bound, best=best)
    requests: list[GenerateRequest] = []
    for one in inputs:
        first = GenerateRequest(priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE, prompt=one, sampling=sampling)
        requests += choices(first, per_prompt)
    options = request.stream_options
    reply: dict[str, Any] = {
        "api": "completions",
        "n": len(requests),
        "include_usage": bool(options and options.include_usage),
        "continuous_usage": bool(options and options.continuous_usage_stats),
        "per_prompt": per_prompt,
        "kept": n,
        "logprobs": request.logprobs,
    }
    if request.echo:
        reply["echo"] = _echo(request)
    return Plan(
        operation="text_completion",
        model=request.model,
        stream=bool(request.stream),
        requests=tuple(requests),
        reply=reply,
        needs=_needs(request, best=best),
        input_estimate=token_estimate(inputs),
        output_bound=bound * len(requests),
        end_user=end_user_of(request.user),
    )


def _needs(request: CompletionRequest, *, best: bool) -> tuple[Need, ...]:
    needs = [Need("completions", "model")]
    if request.logprobs is not None:
        needs.append(Need("logprobs", "logprobs"))
    if best:
        needs.append(Need("logprobs", "best_of"))
    if request.logit_bias:
        needs.append(Need("logit_bias", "logit_bias"))
    return tuple(needs)


def _echo(request: CompletionRequest) -> list[str]:
    """The prompts. Raises InferBusError INVALID_ARGUMENT if they cannot be echoed."""
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    texts = [one for one in prompts if isinstance(one, str)]
    if len(texts) < len(prompts):
        raise unsupported("echo", "'echo' of a prompt of tokens is not supported; send its text, or leave 'echo' out.")
    if sum(map(len, texts)) > _MAX_ECHO:
        raise unsupported("echo", f"'echo' of more than {_MAX_ECHO} characters is not supported; leave it out.")
    return texts


def _sampling(request: CompletionRequest, bound: int, *, best: bool) -> Sampling:
    sampling = Sampling(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=bus_top_k(request.top_k),
        min_p=request.min_p,
        seed=bus_seed(request.seed),
        stop=stop_texts(request.stop),
        max_tokens=bound,
        frequency_penalty=request.frequency_penalty,
        presence_penalty=request.presence_penalty,
        repetition_penalty=request.repetition_penalty,
        logprobs=(request.logprobs or 0) if best else request.logprobs,
    )
    if request.logit_bias:
        add_biases(sampling, request.logit_bias)
    return sampling
