"""Whether the engine can hold an output to a grammar.

llama.cpp goes on with free text when it cannot compile a grammar, so each is compiled here first, with the same
library, and asked for its first token: some expressions compile and are too large to be followed.
"""

import re

from inferbus_runtime.errors import InferBusError
from llguidance import LLMatcher, LLTokenizer

from inferbus_worker.core.grammar import Grammar, invalid_schema

_MAX_SHOWN = 300
# Grammars are about bytes: what one made of bytes accepts, the model's own tokens can spell.
_BYTES = LLTokenizer("byte")
# The library names the line and column of our text, then what is wrong, then shows our text.
_PLACE = re.compile(r"^at \d+\(\d+\): ")
_EXCERPT = re.compile(r"\n +1 \| .*", re.DOTALL)


def fault_of_grammar(grammar: Grammar) -> InferBusError | None:
    """Why it cannot be enforced (``invalid_schema``), or None. Milliseconds; up to a second for a monstrous one."""
    diagnostic = _fault(grammar.text)
    if not diagnostic:
        return None
    for part in grammar.parts:
        if said := _fault(part.text):
            return invalid_schema(f"{part.what} cannot be enforced: {said}", part.param)
    # Each by itself is well: together they are too much.
    error = invalid_schema("The schemas are too large together; send fewer or smaller ones.", grammar.parts[-1].param)
    error.diagnostic = diagnostic
    return error


def _fault(text: str) -> str:
    if said := LLMatcher.validate_grammar(text, _BYTES):
        return _public(said)
    matcher = LLMatcher(_BYTES, text, log_level=0)
    matcher.compute_bitmask()
    return _public(matcher.get_error()) if matcher.is_error() else ""


def _public(said: str) -> str:
    """What the library says of the caller's own text, on one line."""
    shown = _EXCERPT.sub("", _PLACE.sub("", said)).replace("failed to compile JSON schema: ", "")
    return " ".join(shown.split())[:_MAX_SHOWN] or "it is too complex."
