"""One generation inside the engine, and how the child is asked for it."""

import asyncio
from dataclasses import dataclass
from typing import Any

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.sampling import check_ids, context_exceeded, fault_of
from inferbus_worker.core.stops import StopFilter, reader_of
from inferbus_worker.engine import Chat, Finish, Generation, Prompt, Sampling, Source, ToolMode
from inferbus_worker.engines.tensorrt_llm_sampling import draws
from inferbus_worker.engines.tensorrt_llm_text import Detokenizer
from inferbus_worker.engines.transformers_files import Files

# Below it a draw takes the most probable token as good as always, and its logits leave their type's range.
_COLDEST = 1e-3
# A tokenizer takes a few microseconds a word: longer texts are read beside the event loop.
_LONG_TEXT = 4096
_NEUTRAL = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}


@dataclass(slots=True, eq=False)
class Run:
    """A submitted generation. ``prompt``: text (of a chat, as its template wrote it) or ids. ``serial``: its name for
    the child, 0 before that knows of it."""

    generation: Generation
    prompt: str | tuple[int, ...]
    filter: StopFilter
    text: Detokenizer
    input_tokens: int = 0
    serial: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def key(self) -> bytes:
        return self.generation.key


@dataclass(frozen=True, slots=True)
class Rules:
    """What the started engine can do. ``context_length``: input and output together. ``samples``: it may draw."""

    files: Files
    capabilities: tuple[str, ...]
    context_length: int
    samples: bool


def run_of(generation: Generation, rules: Rules) -> Run:
    """Raises InferBusError for what this engine cannot do."""
    fault = fault_of(generation, rules.capabilities) or _fault_in(generation, rules.samples)
    if fault is not None:
        raise fault
    check_ids(generation.resume_ids, rules.files.logits, "messages")
    stops = StopFilter(generation.sampling.stop, reader_of(generation, reasons="reasoning" in rules.capabilities))
    return Run(generation, content_of(generation.input, rules.files), stops, Detokenizer(rules.files.words))


def _fault_in(generation: Generation, samples: bool) -> InferBusError | None:
    """The first parameter that would change something and that the library has for all requests or for none."""
    sampling, source = generation.sampling, generation.input
    names = [name for name, neutral in _NEUTRAL.items() if getattr(sampling, name) not in (None, neutral)]
    if sampling.temperature is not None and draws(sampling):
        names += [] if samples else ["temperature"]
    if samples and draws(sampling):
        names += ["min_p"] if sampling.min_p else []
        names += ["seed"] if sampling.seed is not None else []
    if isinstance(source, Chat) and source.tools and source.tool_mode is not ToolMode.NONE:
        names.append("tools")  # nothing would hold a call to its form
    for name in names:
        return invalid(f"This model does not support '{name}'.", param=name, reason="unsupported_parameter")
    return None


def content_of(source: Source, files: Files, open_turn: bool = True) -> str | tuple[int, ...]:
    """What the model reads, before it is tokens. Raises InferBusError."""
    match source:
        case Chat():
            if files.template is None:
                raise invalid("This model has no chat template; send it a prompt.", param="messages")
            return files.template.render(source, open_turn)
        case Prompt(str() as text):
            return text
        case Prompt(tuple() as ids):
            check_ids(ids, files.logits, "prompt")
            return ids
    raise invalid("This model makes no vectors; choose an embedding model.", param="input")


async def encoded(files: Files, text: str, *, parse_special: bool = True, add_special: bool) -> tuple[int, ...]:
    def encode() -> tuple[int, ...]:
        return tuple(files.encoder.encode(text, parse_special=parse_special, add_special=add_special))

    return await asyncio.to_thread(encode) if len(text) > _LONG_TEXT else encode()


async def ask_of(run: Run, rules: Rules) -> list[Any] | Finish:
    """What the child is told behind the serial; or how the generation has ended already, since all of it was delivered
    before. Counts the run's input. Raises InferBusError."""
    generation, sampling = run.generation, run.generation.sampling
    if isinstance(run.prompt, str):  # a chat has its special tokens from the template
        add = not isinstance(generation.input, Chat)
        run.prompt = await encoded(rules.files, run.prompt, add_special=add)
    run.input_tokens = len(run.prompt)
    given = generation.resume_ids
    room = rules.context_length - run.input_tokens - len(given)
    if room < 1 and (run.input_tokens >= rules.context_length or not given):
        raise context_exceeded(generation.input, run.input_tokens)
    if not run.prompt:  # a text of which the tokenizer leaves nothing
        raise invalid("Send a prompt that is not empty.", param="prompt")
    if given and run.filter.feed(run.text.feed(given)).stopped:
        return Finish.STOP
    left = room if sampling.max_tokens is None else min(room, sampling.max_tokens - len(given))
    if left < 1:
        return Finish.LENGTH
    return [left, [*run.prompt, *given], _drawn(sampling, rules)]


def _drawn(sampling: Sampling, rules: Rules) -> dict[str, Any]:
    """The library takes each by its type: whole numbers or not. OpenAI's defaults, as with the other engines."""
    if not rules.samples:
        return {}
    if not draws(sampling):
        return {"temperature": 1.0, "top_k": rules.files.logits, "top_p": 1.0, "greedy": 1}
    return {
        "temperature": float(1.0 if sampling.temperature is None else max(sampling.temperature, _COLDEST)),
        # More than there are is none at all; to the library it is an index.
        "top_k": min(sampling.top_k or rules.files.logits, rules.files.logits),
        "top_p": float(1.0 if sampling.top_p is None else sampling.top_p),
        "greedy": 0,
    }
