"""Stop strings: which part of a growing text may be delivered.

Engines leave this to us for three reasons: a stop string never reaches the client even if it comes in pieces, text held
back for one is not lost when the generation ends otherwise, and a resumed generation finds one that began before.

They are looked for in what the client sees as text: not in calls and thoughts, nor in the marks around them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from inferbus_contracts.pieces import Pieces, Span, Spans

from inferbus_worker.engine import Chat, Finish, Generation, ToolMode


@dataclass(frozen=True, slots=True)
class Cut:
    """``text`` may go out now. ``stopped``: a stop string was found behind it and nothing more follows."""

    text: str
    stopped: bool


class StopFilter:
    """Holds back what may become a stop string. What it lets through does not depend on how the text is chunked."""

    __slots__ = ("_held", "_spans", "_stops", "found")

    def __init__(self, stops: tuple[str, ...], reader: Pieces | None = None) -> None:
        """An empty string stops nothing. ``reader``: of an answer that may have calls or thoughts: they are no place
        for a stop string, and none reaches across one. ``found``: which of ``stops`` was found."""
        self._stops = stops if any(stops) else ()
        self._spans = None if reader is None else Spans(reader)
        self._held = ""
        self.found: int | None = None

    def feed(self, text: str) -> Cut:
        """Takes the next text. After a cut that says stopped, do not feed again."""
        if not self._stops:
            return Cut(text, False)
        return self._said(text) if self._spans is None else self._divided(self._spans.feed(text))

    def flush(self) -> str:
        """What is still held back, for a text that ended without a stop string; or it had one (``found``) in what
        might have become a mark."""
        text = ""
        if self._spans is not None and self.found is None:
            text = self._divided(self._spans.end()).text
        held, self._held = self._held, ""
        return text + held

    def end(self, reason: Finish) -> tuple[str, Finish]:
        """Of a generation that ends for ``reason``: the text that it still delivers, and why it ends after all (a stop
        string may have been in what is held back). Then ``found`` is settled."""
        if reason not in (Finish.STOP, Finish.LENGTH):
            return "", reason
        text = self.flush()
        return text, reason if self.found is None else Finish.STOP

    def _divided(self, spans: Iterable[Span]) -> Cut:
        text = ""
        for span in spans:
            if not span.said:
                held, self._held = self._held, ""
                text += held + span.raw
                continue
            cut = self._said(span.raw)
            text += cut.text
            if cut.stopped:
                return Cut(text, True)
        return Cut(text, False)

    def _said(self, text: str) -> Cut:
        seen = self._held + text
        if (first := _first_stop(seen, self._stops)) is not None:
            start, self.found = first
            self._held = ""
            return Cut(seen[:start], True)
        keep = _longest_beginning(seen, self._stops)
        self._held = seen[len(seen) - keep :]
        return Cut(seen[: len(seen) - keep], False)


def reader_of(generation: Generation, *, reasons: bool) -> Pieces | None:
    """What reads the answer for calls and thoughts, as the edge does; None if it has nothing but text. ``reasons``:
    the model may begin with a thought."""
    chat = generation.input
    if not isinstance(chat, Chat):
        return None
    tools = bool(chat.tools) and chat.tool_mode is not ToolMode.NONE
    if not tools and not reasons:
        return None
    return Pieces(tools=tools, reasoning=reasons, must_call=tools and chat.tool_mode is ToolMode.REQUIRED)


def _first_stop(text: str, stops: tuple[str, ...]) -> tuple[int, int] | None:
    """Where the stop string begins that is complete first (the one a reader of single characters would meet), and
    which it is."""
    found = [
        (start + len(stop), start, which)
        for which, stop in enumerate(stops)
        if stop and (start := text.find(stop)) >= 0
    ]
    return min(found)[1:] if found else None


def _longest_beginning(text: str, stops: tuple[str, ...]) -> int:
    """Length of the longest end of ``text`` with which some stop string begins."""
    longest = min(len(text), max(len(stop) for stop in stops) - 1)
    for size in range(longest, 0, -1):
        end = text[-size:]
        if any(stop.startswith(end) for stop in stops):
            return size
    return 0
