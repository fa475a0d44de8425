"""Whether the engine can hold an output to a grammar, and whether it did.

llama.cpp goes on with free text when it cannot compile a grammar, and also when it gives one up in the middle of an
output. So each is compiled here first, with a newer build of the same library, and its beginning is walked: some
compile and are too large to be followed. Then the matcher follows what the engine sends, in bytes, so that nothing is
delivered that does not fit (3 to 15 µs a token).
"""

import re
from functools import lru_cache

from inferbus_runtime.errors import InferBusError
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from inferbus_worker.core.grammar import Grammar, invalid_schema

_MAX_SHOWN = 300
_STEPS = 16
_KEPT = 64  # up to 0.6 MB each
# Grammars are about bytes: what one made of bytes accepts, the model's own tokens can spell.
_BYTES = LLTokenizer("byte")
_BYTE_COUNT = 256  # tokens after these are the library's own
try:
    _LIMITS = LLParserLimits(verbose_errors=False)
except TypeError:  # 0.7, which TensorRT-LLM 1.2 pins: its errors are long, and what they add is cut off below
    _LIMITS = LLParserLimits()
# The library names the line and column of our text, then what is wrong, then shows our text or its own state.
_PLACE = re.compile(r"^at \d+\(\d+\): ")
_EXCERPT = re.compile(r"\n +1 \| .*|\n?<(state|non-verbose).*", re.DOTALL)
_TOO_COMPLEX = re.compile("lexer error|parser error|.*too (big|large)|(Lexer|Parser)TooComplex", re.IGNORECASE)


class Follower:
    """The state of one output in its grammar, text by text."""

    __slots__ = ("_begin", "_matcher", "_param")

    def __init__(self, grammar: Grammar) -> None:
        """Raises InferBusError ``invalid_schema`` if it cannot be enforced. The first time milliseconds, 300 for the
        worst; the library lets other threads run meanwhile."""
        self._begin, said = _compiled(grammar.text)
        if said:
            raise _fault(grammar, said)
        self._matcher = self._begin
        self._param = grammar.parts[0].param
        self.restart()

    def restart(self) -> None:
        """The output begins again (10 µs)."""
        self._matcher = self._begin.deep_copy()

    def takes(self, text: str) -> bool:
        """Whether the output may go on with ``text``. After a no, restart."""
        return self._matcher.consume_tokens(list(text.encode()))

    def trouble_ahead(self) -> str:
        """What is said against the next few bytes, if the grammar cannot be followed on from here; else empty."""
        return _walk(self._matcher.deep_copy())

    def complete(self) -> bool:
        """Whether the output may end here."""
        return self._matcher.is_accepting()

    def broken(self) -> InferBusError:
        """The end of an output that did not keep its form: the same request would come to the same."""
        error = invalid_schema(
            "The output could not be held to its schema any longer and ends here: the schema is too complex. Send a "
            "simpler one: fewer optional properties, smaller repeats and bounds.",
            self._param,
        )
        error.diagnostic = f"the engine sent what its grammar does not allow; the matcher says: {self._said()}"
        return error

    def _said(self) -> str:
        # Not in full: it may quote the text.
        return self._matcher.stop_reason() if self._matcher.is_error() else "not an end"


def _fault(grammar: Grammar, diagnostic: str) -> InferBusError:
    for part in grammar.parts:
        if said := _compiled(part.text)[1]:
            return invalid_schema(f"{part.what} cannot be enforced: {_public(said)}", part.param)
    # Each by itself is well: together they are too much.
    error = invalid_schema("The schemas are too large together; send fewer or smaller ones.", grammar.parts[-1].param)
    error.diagnostic = diagnostic
    return error


@lru_cache(maxsize=_KEPT)
def _compiled(text: str) -> tuple[LLMatcher, str]:
    """A matcher at its beginning, to be copied, and what the library says against the grammar. An application sends the
    same few schemas again and again."""
    if said := LLMatcher.validate_grammar(text, _BYTES, limits=_LIMITS):
        return LLMatcher(_BYTES, text, log_level=0, limits=_LIMITS), said
    begin = LLMatcher(_BYTES, text, log_level=0, limits=_LIMITS)
    return begin, begin.get_error() or _walk(begin.deep_copy())


def _walk(matcher: LLMatcher) -> str:
    """What is said against a few bytes that the matcher itself allows: it builds its states as it goes."""
    for step in range(_STEPS):
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [byte for byte in range(_BYTE_COUNT) if mask >> byte & 1]
        if not allowed or matcher.is_stopped() or not matcher.consume_token(allowed[7 * step % len(allowed)]):
            break
    return matcher.get_error()


def _public(said: str) -> str:
    """What the library says of the caller's own text, on one line; not of its own inside."""
    shown = _EXCERPT.sub("", _PLACE.sub("", said)).replace("failed to compile JSON schema: ", "")
    if shown.startswith("NoExtension"):
        return "nothing satisfies it; check that references lead to more than themselves and bounds leave a value."
    if not shown or _TOO_COMPLEX.match(shown):
        return "it is too complex; send one with fewer optional properties, smaller repeats, recursion that can end."
    return " ".join(shown.split())[:_MAX_SHOWN]
