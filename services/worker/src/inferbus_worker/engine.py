"""The engine seam: what a worker asks of the software on its GPU.

An engine yields *steps*: the deltas of all generations that moved in one engine step, so that a frame costs one
message however many generations run. Closing a generation is its cancel; there is no second abort path.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

from inferbus_runtime.errors import InferBusError

from inferbus_worker.core.prefix_cache import PrefixCache

UNKNOWN_TOKEN = 2**32 - 1
"""The id of a token whose id the engine does not say."""
UNKNOWN_LOGPROB = -9999.0
"""What OpenAI's API says of a token whose log-probability it does not know."""


class Finish(Enum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; None: the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit)."""
    logprobs: int | None = None
    """Log-probabilities are wanted, with so many alternatives a token; None: none."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made in an earlier turn. ``arguments``: JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """``role``: system, user, assistant or tool. ``tool_call_id``: of a tool's message, the call that it answers."""

    role: str
    content: str
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. ``parameters``: JSON Schema as text; empty: no parameters."""

    name: str
    description: str = ""
    parameters: str = ""


class ToolMode(Enum):
    """REQUIRED: calls and no text, enforced. NONE: text only, though the tools are shown to the model."""

    AUTO = "auto"
    REQUIRED = "required"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for the model's chat template.

    With any model, the output holds each call as three lines: ``<tool_call>``, ``{"name": ..., "arguments": {...}}``
    and ``</tool_call>``.
    ``tool_name``: with REQUIRED, the one to call; empty: any. ``reasoning_effort`` empty: the model's own default.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_mode: ToolMode = ToolMode.AUTO
    tool_name: str = ""
    parallel_tool_calls: bool = True
    reasoning_effort: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads as it is, without a template: text (its special tokens read as such) or token ids."""

    content: str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Embed:
    """Inputs of which each becomes a vector; no token is generated."""

    inputs: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True)
class Infer:
    """A call of a model that writes no text. ``request``: an encoded inference ModelInferRequest; the model's name in
    it is not read."""

    request: bytes


Source = Chat | Prompt | Embed | Infer
"""What a generation is given; what an engine cannot read, it refuses."""


class ConstraintKind(Enum):
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the output must look like, enforced at every token. ``source``: JSON text of a schema, or an expression."""

    kind: ConstraintKind
    source: str = ""


@dataclass(frozen=True, slots=True)
class Generation:
    """One attempt as the engine sees it. ``key`` (16 bytes) names it in every step.

    ``resume_ids`` are output tokens that an earlier attempt has already delivered: the engine goes on after them and
    yields only what is new. ``resume_text``: what they stand for, as it was delivered, for an engine that goes on by
    text. ``sampling.max_tokens`` counts from the first token of the request, those included.
    Generations share cached prefixes only if their ``cache_salt`` is equal. ``prefix``: the chunks that its input
    begins with, salt included, by which an engine says what its cache holds (:class:`TellsPrefixes`).
    """

    key: bytes
    input: Source
    sampling: Sampling = Sampling()
    resume_ids: tuple[int, ...] = ()
    constraint: Constraint | None = None
    cache_salt: bytes = b""
    resume_text: str = ""
    prefix: tuple[int, ...] = ()
    adapter: str = ""
    """Of ``EngineInfo.adapters``; empty: the model as it is."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine serves. ``capacity``: generations that it runs at once.

    ``capabilities``: of chat, completions, embeddings, tools, structured_output, logprobs, logit_bias, reasoning,
    vision and inference.
    ``embedding_dimensions``: length of its vectors, 0 if it makes none. ``resumes_by_text``: it needs
    ``Generation.resume_text``, since its tokens have no ids, or none that it takes back.
    ``patience``: seconds for which it may say nothing though it works, by bounds of its own.
    """

    engine: str
    model: str
    revision: str
    capacity: int
    context_length: int
    capabilities: tuple[str, ...] = ("chat",)
    embedding_dimensions: int = 0
    resumes_by_text: bool = False
    patience: float = 0.0
    inference_metadata: bytes = b""
    """With capability inference: an encoded ModelMetadataResponse, without the model's name."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters that it has loaded: each is a model of its own to those who ask, ``model:adapter``."""


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """How an engine is, as far as it says; None: it does not.

    ``running``, ``waiting``: generations that were submitted here and have not ended. ``engine_running`` and
    ``engine_waiting``: by the engine's own count, which has those of its other clients in it.
    Its KV cache has ``kv_blocks_total`` blocks of ``kv_block_tokens`` tokens each; ``kv_blocks_used`` are held by what
    runs: a prefix that is kept for later can be had, and counts as free. ``step_seconds``: its last step.
    Totals are since its start; ``accepted`` of the ``drafted`` tokens, where it speculates.
    """

    running: int
    waiting: int
    engine_running: int | None = None
    engine_waiting: int | None = None
    kv_blocks_total: int | None = None
    kv_blocks_used: int | None = None
    kv_block_tokens: int | None = None
    kv_blocks_reused_total: int | None = None
    step_seconds: float | None = None
    drafted_tokens_total: int | None = None
    accepted_tokens_total: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a generation. Output tokens are not counted here: they are the tokens of its deltas.

    The end-of-turn token is no delta: nobody receives it. ``error`` is set exactly if ``reason`` is ERROR.
    ``stop_index``: which of the stop strings ended it, if one did. ``estimated``: tokens, of input or output, were not
    counted by the model's own tokenizer.
    """

    key: bytes
    reason: Finish
    input_tokens: int
    cached_input_tokens: int = 0
    error: InferBusError | None = None
    stop_index: int | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Alternative:
    """``text``: what the token stands for, maybe a part of a character. ``logprob``: natural logarithm."""

    token_id: int
    text: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A delivered token with the most probable ones at its place, best first; before temperature and truncation."""

    token_id: int
    text: bytes
    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class Vector:
    """The vector of input ``index`` of generation ``key``: float32, little-endian, of length 1."""

    key: bytes
    index: int
    values: bytes


@dataclass(frozen=True, slots=True)
class Output:
    """Part ``index``, counted from 0, of what inference ``key`` yields: an encoded ModelInferResponse, cut into parts
    of at most half a megabyte."""

    key: bytes
    index: int
    data: bytes


@dataclass(slots=True)
class Step:
    """Columns, one entry a delta, in generation order; a key appears at most once.

    ``token_ids`` holds ``counts[i]`` ids for delta ``i``, one after the other. A delta's text is valid UTF-8 by itself
    (an engine holds back half characters and what may become a stop string); ``counts[i]`` may be 0 with text, or a
    text empty with tokens. ``logprobs``: by the number of the delta, one entry a token of it; only of generations that
    asked. ``embeddings`` and ``outputs``: at most half a megabyte of them in a step.
    """

    time_us: int
    keys: list[bytes] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    embeddings: list[Vector] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tokens:
    """``pieces``: what each id stands for, maybe a part of a character."""

    ids: list[int]
    pieces: list[bytes]


class EngineDiedError(Exception):
    """The engine is gone with all its generations; stop it, start it again, submit what was running."""


class Engine(Protocol):
    """One engine. Calls come from one event loop; none of them blocks it."""

    async def start(self) -> EngineInfo:
        """Ready for :meth:`submit` when it returns. May be called again after :meth:`stop`."""
        ...

    def submit(self, generation: Generation) -> None:
        """Begin; returns at once. All that follows, bad input included, comes as a step ending in one Finished.

        More than ``capacity`` at once is allowed; the rest waits inside.
        """
        ...

    def close(self, key: bytes) -> None:
        """End a generation now: its Finished (CANCELLED) comes within 100 ms. Unknown or ended: nothing happens."""
        ...

    def steps(self) -> AsyncIterator[Step]:
        """Steps of all generations, until :meth:`stop`. Raises EngineDiedError when the engine is gone.

        One that only stands still is found by the worker: it owes tokens, and there is no step. An empty step says that
        it moves, where that takes long, as with a prompt that is being read.

        One consumer. While it does not ask, generation pauses as soon as a bounded buffer is full.
        """
        ...

    def statistics(self) -> EngineStatistics:
        """The newest that is known; asks nobody, and costs no more than a look at its own tables. Whatever the engine
        does or has done, also before its start and after its end."""
        ...

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        """As the model reads it. ``parse_special``: special tokens in a text are read as such. ``add_special``: those
        that the model expects around a text are added. ``open_turn``: a chat ends with the beginning of the
        assistant's turn. Raises InferBusError."""
        ...

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        """The text of ``ids``; not valid UTF-8 where they begin or end in a character. Raises InferBusError."""
        ...

    async def stop(self) -> None:
        """Free everything. Safe twice, and after a failed start."""
        ...


@runtime_checkable
class TellsPrefixes(Protocol):
    """An engine that knows which prompts its KV cache holds: no more than an engine need do.

    ``prefixes`` lives as long as the engine object, and is right at any time: a prompt's chunks are there once the
    engine has read it, those of another salt never are, and what was evicted, or lost with a stopped engine, is gone.
    """

    prefixes: PrefixCache
