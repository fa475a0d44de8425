"""How the engine is asked for one generation: what it reads, and by which rules the next token is chosen."""

import asyncio
from collections.abc import Sequence
from typing import Any

from inferbus_runtime.errors import invalid

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.sampling import check_ids, context_exceeded, fault_of
from inferbus_worker.core.stops import StopFilter, reader_of
from inferbus_worker.engine import Chat, Finish, Generation, Prompt, Source
from inferbus_worker.engines.follower import Follower
from inferbus_worker.engines.tensorrt_llm_guided import grammar_for, guide, still_free
from inferbus_worker.engines.tensorrt_llm_output import Cursor
from inferbus_worker.engines.tensorrt_llm_run import Run
from inferbus_worker.engines.tensorrt_llm_sampling import bias_of, draws, fault_in, sampling_arguments, seed_of
from inferbus_worker.engines.tensorrt_llm_served import Served
from inferbus_worker.engines.tensorrt_llm_text import Detokenizer

# A tokenizer takes a few microseconds a word: longer texts are read beside the event loop.
_LONG_TEXT = 4096
# Of a token id in a prompt's chunks.
_ID_BYTES = 4


def run_of(generation: Generation, served: Served) -> Run:
    """Raises InferBusError for what this engine cannot do."""
    sampling = generation.sampling
    fault = fault_of(generation, served.capabilities) or fault_in(sampling, served.honoured)
    if fault is not None:
        raise fault
    check_ids([token for token, _ in sampling.logit_bias], served.folder.logits, "logit_bias")
    check_ids(generation.resume_ids, len(served.words.texts), "messages")
    prompt = content_of(generation.input, served)
    grammar = grammar_for(generation, served.plan.guided, tags=served.has_tags)
    stops = StopFilter(sampling.stop, reader_of(generation, reasons="reasoning" in served.capabilities))
    return Run(generation, prompt, grammar, stops, Detokenizer(served.words), Cursor(served.end_ids))


def content_of(source: Source, served: Served, open_turn: bool = True) -> str | tuple[int, ...]:
    """What the model reads, before it is tokens. Raises InferBusError."""
    match source:
        case Chat():
            if served.template is None:
                raise invalid("This model has no chat template; send it a prompt.", param="messages")
            return served.template.render(source, open_turn)
        case Prompt(str() as text):
            return text
        case Prompt(tuple() as ids):
            check_ids(ids, len(served.words.texts), "prompt")
            return ids
    raise invalid("This model makes no vectors; choose an embedding model.", param="input")


async def encoded(served: Served, text: str, *, parse_special: bool = True, add_special: bool) -> Sequence[int]:
    def encode() -> Sequence[int]:
        return served.encoder.encode(text, parse_special=parse_special, add_special=add_special)

    return await asyncio.to_thread(encode) if len(text) > _LONG_TEXT else encode()


async def arguments_of(run: Run, served: Served) -> dict[str, Any] | Finish:
    """Arguments of SamplingParams; or how the generation has ended already, since all of it was delivered before.

    The run has its ids then, and knows what was delivered. Raises InferBusError.
    """
    generation, sampling = run.generation, run.generation.sampling
    run.input_bytes = len(run.prompt.encode()) if isinstance(run.prompt, str) else _ID_BYTES * len(run.prompt)
    if isinstance(run.prompt, str):  # a chat has its special tokens from the template
        run.prompt = tuple(await encoded(served, run.prompt, add_special=not isinstance(generation.input, Chat)))
    run.input_tokens = len(run.prompt)
    given = len(generation.resume_ids)
    room = served.plan.context_length - run.input_tokens - given
    if run.input_tokens > served.plan.longest_input or (room < 1 and not given):
        raise context_exceeded(generation.input, run.input_tokens)
    if not run.prompt:  # a text of which the tokenizer leaves nothing
        raise invalid("Send a prompt that is not empty.", param="prompt")
    if run.grammar is not None:
        run.follower = await asyncio.to_thread(Follower, run.grammar)
    said = Detokenizer(served.words).feed(generation.resume_ids)
    if given and run.filter.feed(said).stopped:
        return Finish.STOP
    left = room if sampling.max_tokens is None else min(room, sampling.max_tokens - given)
    if left < 1:
        return Finish.LENGTH
    if given:
        _go_on(run, served, said)
    again = len(run.repeats)
    arguments = sampling_arguments(sampling, served.honoured, seed_of(sampling, run.key, given - again))
    arguments["max_tokens"] = left + again
    if sampling.logit_bias:
        arguments["embedding_bias"] = bias_of(sampling.logit_bias, served.folder.logits, served.torch())
    if run.grammar is not None:
        form = guide(generation, run.grammar, served.plan.guided)
        arguments["guided_decoding"] = served.package.guided_decoding_params(**form)
        if served.plan.guided != "llguidance":  # what another library lets through need not be ours to the blank
            run.follower = None
    return arguments


def _go_on(run: Run, served: Served, said: str) -> None:
    """After tokens that were delivered before, by this engine until it died or by another.

    Raises InferBusError if they cannot be gone on from.
    """
    ids = run.generation.resume_ids
    if not run.fits(said):
        raise engine_failed("what was delivered of a generation does not keep to its grammar")
    if run.follower is None or still_free(run.generation, said):
        run.text.feed(ids)
        return
    if trouble := run.follower.trouble_ahead():
        # What an earlier engine may have died of must not kill the next one.
        error = run.follower.broken()
        error.diagnostic = trouble
        raise error
    if draws(run.generation.sampling) and "seed" not in served.honoured:
        raise engine_failed("a draw inside a grammar cannot be made again by a sampler that takes no seed")
    run.follower.restart()
    run.repeats = list(ids)
