"""What the engine answers to one generation, result by result: told apart, read, and held to what was asked."""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.grammar import invalid_schema
from inferbus_worker.core.sampling import context_exceeded
from inferbus_worker.engine import EngineDiedError, Finish, TokenLogprob
from inferbus_worker.engines.tensorrt_llm_output import FINISHES, cached_of, logprobs_of
from inferbus_worker.engines.tensorrt_llm_run import Run
from inferbus_worker.engines.tensorrt_llm_served import Served

_TOO_LONG = re.compile("max_num_tokens|max_seq_len|max_input_len|default_max_tokens")
_NO_FORM = re.compile("guided decoding|grammar|matcher", re.IGNORECASE)


class RefusedError(Exception):
    """The engine does not make this generation, and says why; it is well itself."""


@dataclass(frozen=True, slots=True)
class Delta:
    """``finish``: how the generation ended with it. ``logprobs``: one a token, if they were asked for."""

    ids: list[int]
    text: str
    logprobs: list[TokenLogprob] | None
    finish: Finish | None


async def results_of(run: Run, served: Served, arguments: dict[str, Any]) -> AsyncGenerator[Any, None]:
    """The engine's own results; one object that grows. Raises RefusedError, and EngineDiedError for all else: what
    fails without being about the request is the engine."""
    given = () if run.repeats else run.generation.resume_ids
    try:
        run.result = served.ask([*run.prompt, *given], arguments, run.generation.cache_salt)
    except (ValueError, TypeError, served.package.request_error) as error:
        raise RefusedError(str(error)) from error
    except Exception as error:
        raise EngineDiedError(f"it takes no generation: {error!r}") from error
    results = aiter(run.result)
    while True:
        try:
            result = await anext(results)
        except StopAsyncIteration:
            return
        except served.package.request_error as error:
            raise RefusedError(str(error)) from error
        except Exception as error:
            raise EngineDiedError(f"a generation ended with {error!r}") from error
        yield result


def read(run: Run, served: Served, result: Any) -> Delta:
    """What ``result`` says more than last time. Raises InferBusError if it is not what was asked for."""
    completion = result.outputs[0]
    news = run.cursor.read(completion)
    cached = cached_of(result, completion, served.block_tokens)
    run.cached_tokens = min(max(run.cached_tokens, cached), run.input_tokens)
    repeated = run.repeated(news.ids)
    if repeated is None or (run.repeats and (news.ended or news.finish)):
        raise engine_failed("a generation made again under its grammar came out differently")
    before, ids = run.text.feed(news.ids[:repeated]), news.ids[repeated:]
    text = run.text.feed(ids)
    if not run.fits(before + text) or (news.ended and run.follower is not None and not run.follower.complete()):
        assert run.follower is not None  # noqa: S101  (else all fits)
        raise run.follower.broken()
    if not news.ended and news.finish is not None and news.finish not in FINISHES:
        raise engine_failed(f"it ended a generation with '{news.finish}'")
    finish = Finish.STOP if news.ended else FINISHES.get(news.finish or "")
    if finish is not None:
        text += run.text.flush()
    wanted = run.generation.sampling.logprobs
    logprobs = None if wanted is None else logprobs_of(ids, news.logprobs[repeated:], wanted, served.words)
    return Delta(ids, text, logprobs, finish)


def refused(run: Run, said: str) -> InferBusError | Finish:
    """The end of a generation that the engine refuses, in words for its sender."""
    if _TOO_LONG.search(said):
        if run.generation.resume_ids:  # it fitted when it began: what has grown too long is its output
            return Finish.LENGTH
        error = context_exceeded(run.generation.input, run.input_tokens)
    elif run.grammar is not None and _NO_FORM.search(said):
        message = "The output cannot be held to its schema: it is too complex. Send a simpler one."
        error = invalid_schema(message, run.grammar.parts[0].param)
    elif run.result is None:
        error = invalid("The engine cannot run this request.")
    else:
        error = engine_failed(said)
    error.diagnostic = said
    return error
