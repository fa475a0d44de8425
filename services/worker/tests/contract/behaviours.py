"""The contract as data: what is shown of every engine, what not every engine has, and the table that follows from both.

An engine's module (``tests/engine_<name>.py``) says what its engine has: CAPABILITIES, as the started engine says them
itself, and CAN. Each test says which behaviour it shows, and what that needs (:func:`shows`). It runs on the engines
that have it; on the others runs a test of the lack (``test_lacks.py``). So a cell is what the suite does, or it fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

BEHAVIOURS = {
    "streaming": "tokens come one after the other, each text valid by itself, and one end",
    "stops": "stop strings, also across the borders of tokens",
    "length": "`max_tokens`, and an end of its own",
    "sampling": "temperature, `top_p`, `top_k`, `min_p`, penalties",
    "seeds": "a seed repeats its draw",
    "batch": "a greedy text is the same alone and in a batch",
    "logprobs": "log-probabilities of every token",
    "bias": "`logit_bias`",
    "forms": "JSON Schema, JSON objects and expressions hold at every token",
    "tools": "calls that must be, and calls that may be, keep to their schemas",
    "prompts": "raw prompts, as text and as token ids",
    "vectors": "embeddings",
    "resume": "goes on from what was delivered, to the same greedy text",
    "resume-forms": "goes on inside a form",
    "cancel": "a cancel ends one generation within a step",
    "context": "an input that is too long is refused, and says so",
    "refusals": "what is wrong, or cannot be done, is refused by its name and hurts nobody",
    "hundred": "a hundred at once, more than it runs at a time",
    "overload": "a server without room: refused, to be tried again later",
    "prefixes": "a prefix read from the cache is counted as cached input",
    "salts": "a cached prefix is read by its own `cache_salt` only",
    "told": "tells which prompts its KV cache holds, and when one is gone",
    "ids": "token ids are said",
    "tokenize": "tokenize and detokenize, as a generation reads and writes",
    "statistics": "says what runs and what waits",
    "blocks": "says how full its KV cache is",
    "unload": "stopped it frees what it held, twice is as good as once, and it starts again",
    "death": "a crash is said; started again, it goes on from what was delivered",
}
"""Rows of the table, in order."""


@dataclass(frozen=True, slots=True)
class Feature:
    """What not every engine has. ``param``: a request for it is refused by this name where it is lacking; empty: nobody
    asks for it by a parameter. ``lack``: what is so without it."""

    name: str
    param: str
    lack: str


def _refused(name: str, param: str) -> Feature:
    return Feature(name, param, f"`{param}` is refused")


FEATURES = {
    one.name: one
    for one in (
        # As in EngineInfo.capabilities.
        _refused("chat", "messages"),
        _refused("completions", "prompt"),
        _refused("tools", "tool_choice"),
        _refused("structured_output", "response_format"),
        _refused("logprobs", "logprobs"),
        _refused("logit_bias", "logit_bias"),
        _refused("embeddings", "input"),
        _refused("reasoning", "reasoning_effort"),
        _refused("inference", "model"),
        # Promises beyond them.
        Feature("expressions", "response_format", "expressions are refused as `response_format`"),
        _refused("seeds", "seed"),
        _refused("top_k", "top_k"),
        _refused("min_p", "min_p"),
        _refused("repetition_penalty", "repetition_penalty"),
        _refused("frequency_penalty", "frequency_penalty"),
        _refused("presence_penalty", "presence_penalty"),
        Feature("model", "", "there is no model: parameters of sampling are taken and do nothing, its words are fixed"),
        Feature("batch", "", "a greedy text may depend on its neighbours"),
        Feature("ids", "", "tokens are counted, their ids are not said; it resumes by text"),
        Feature("tokenize", "messages", "its tokens cannot be told"),
        Feature("prefixes", "", "none are reported"),
        Feature("salts", "", "the server keeps nobody's prefixes apart"),
        Feature("told", "", "it does not tell: requests are placed without that"),
        Feature("overload", "", "nothing is refused: what has no room waits in the worker"),
        Feature("blocks", "", "it does not say"),
    )
}

SAMPLING = ("top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty")

Test = TypeVar("Test", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Shown:
    """``needs``: features without which a test does not run. ``widened``: those without which it shows less."""

    behaviour: str
    needs: frozenset[str]
    widened: frozenset[str]


def shows(behaviour: str, *needs: str, widened: tuple[str, ...] = ()) -> Callable[[Test], Test]:
    """Marks a test. KeyError for a behaviour or feature that does not exist."""
    for name in (*needs, *widened):
        FEATURES[name]
    shown = Shown(behaviour, frozenset(needs), frozenset(widened))
    BEHAVIOURS[behaviour]

    def mark(test: Test) -> Test:
        test.shows = shown  # type: ignore[attr-defined]
        return test

    return mark
