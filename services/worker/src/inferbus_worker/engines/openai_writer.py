"""From what an upstream says to what is delivered: one text in the log's form, and tokens that go out with their text.

Tokens wait for the text that they stand for as long as the stop filter holds that back. So what was delivered is always
a number of tokens and their text, which is what a successor of this process goes on from.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferbus_worker.core.stops import StopFilter
from inferbus_worker.engine import TokenLogprob
from inferbus_worker.engines.openai_calls import CallWriter
from inferbus_worker.engines.openai_events import Chunk

_CALL = "<tool_call>"
_THINK, _THINK_END = "<think>", "</think>"


@dataclass(slots=True)
class Out:
    """What may go out now. ``logprobs``: one a token, or none at all. ``stopped``: a stop string was found."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    stopped: bool = False


class LogText:
    """The text of an answer as the log has it: a thought first, in its marks, then text, then calls.

    A thought that nobody asked for is left out. ``whole``: all so far.
    """

    __slots__ = ("_calls", "_half", "_shows_thoughts", "_thinking", "whole")

    def __init__(self, before: str, *, shows_thoughts: bool) -> None:
        """``before``: what an earlier process wrote."""
        self.whole = before
        self._shows_thoughts = shows_thoughts
        self._calls = CallWriter()
        self._thinking = False
        self._half = ""

    @property
    def plain(self) -> bool:
        """Nothing but text, so that an upstream can go on with it."""
        return _CALL not in self.whole and not self.whole.lstrip().startswith(_THINK)

    def feed(self, chunk: Chunk) -> str:
        """Raises CallError."""
        text = ""
        if chunk.reasoning and self._shows_thoughts:
            text += chunk.reasoning if self._thinking else _THINK + chunk.reasoning
            self._thinking = True
        if chunk.text:
            text += self._thought_over() + chunk.text
        for call in chunk.calls:
            text += self._thought_over() + self._calls.feed(call)
        return self._added(text)

    def end(self) -> str:
        """The end of what is open. Raises CallError."""
        text = self._thought_over() + self._calls.end()
        half, self._half = self._half, ""
        return self._added(text + ("\ufffd" if half else ""))

    def begin_again(self) -> None:
        """The answer comes again from its first character."""
        self.whole = ""
        self._calls, self._thinking, self._half = CallWriter(), False, ""

    def break_off(self) -> None:
        """What comes next is said by another answer, which goes on with the text."""
        self._half = ""

    def _thought_over(self) -> str:
        over, self._thinking = self._thinking, False
        return _THINK_END if over else ""

    def _added(self, text: str) -> str:
        """Valid Unicode: half a surrogate pair waits for the other one."""
        text = self._half + text
        self._half = ""
        if not text.isascii():
            if "\ud800" <= text[-1] <= "\udbff":
                text, self._half = text[:-1], text[-1]
            try:
                text.encode()
            except UnicodeEncodeError:
                text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        self.whole += text
        return text


class Ledger:
    """Tokens that came, and the characters that they wait for. Text goes out event by event, whole: a text that ended
    inside a token would be gone on with differently."""

    __slots__ = ("_early", "_early_logprobs", "_filter", "_known", "_released", "_waiting")

    def __init__(self, stops: StopFilter) -> None:
        self._filter = stops
        self._known = 0  # characters that come out of the filter and were delivered by an earlier process
        self._released = ""  # out of the filter, and not yet a whole event
        self._waiting: deque[tuple[int, Sequence[int], Sequence[TokenLogprob]]] = deque()
        self._early: list[int] = []  # without text: they go with the next one
        self._early_logprobs: list[TokenLogprob] = []

    @property
    def found(self) -> int | None:
        """Which of the stop strings was found."""
        return self._filter.found

    def delivered(self, text: str) -> bool:
        """What an earlier process delivered: a stop string may have begun in it. True if one was in it."""
        cut = self._filter.feed(text)
        self._known = len(text) - len(cut.text)
        if self._known:
            self._waiting.append((self._known, (), ()))
        return cut.stopped

    def feed(self, text: str, ids: Sequence[int], logprobs: Sequence[TokenLogprob] = ()) -> Out:
        if not text:
            self._early += ids
            self._early_logprobs += logprobs
            return Out()
        if self._early:
            ids, self._early = [*self._early, *ids], []
            logprobs, self._early_logprobs = [*self._early_logprobs, *logprobs], []
        cut = self._filter.feed(text)
        if not self._waiting and not cut.stopped and len(cut.text) == len(text):
            return Out(list(ids), text, list(logprobs))
        self._waiting.append((len(text), ids, logprobs))
        self._released += cut.text
        return self._all(stopped=True) if cut.stopped else self._due()

    def flush(self) -> Out:
        """The end: all that is held back."""
        self._released += self._filter.flush()
        return self._all()

    def _all(self, stopped: bool = False) -> Out:
        """All that is out of the filter, and every token."""
        out = Out(text=self._new(self._released), stopped=stopped)
        for _, ids, logprobs in self._waiting:
            out.ids += ids
            out.logprobs += logprobs
        out.ids += self._early
        out.logprobs += self._early_logprobs
        self._released = ""
        self._waiting.clear()
        self._early, self._early_logprobs = [], []
        return out

    def _due(self) -> Out:
        """Events of which no character is held back any more."""
        out, at = Out(), 0
        while self._waiting and at + self._waiting[0][0] <= len(self._released):
            size, ids, logprobs = self._waiting.popleft()
            at += size
            out.ids += ids
            out.logprobs += logprobs
        out.text = self._new(self._released[:at])
        self._released = self._released[at:]
        return out

    def _new(self, text: str) -> str:
        """What of it was not delivered before."""
        known = min(self._known, len(text))
        self._known -= known
        return text[known:]
