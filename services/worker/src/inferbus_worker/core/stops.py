"""Stop strings: which part of a growing text may be delivered.

Engines leave this to us for three reasons: a stop string never reaches the client even if it comes in pieces, text held
back for one is not lost when the generation ends otherwise, and a resumed generation finds one that began before.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cut:
    """``text`` may go out now. ``stopped``: a stop string was found behind it and nothing more follows."""

    text: str
    stopped: bool


class StopFilter:
    """Holds back what may become a stop string. What it lets through does not depend on how the text is chunked."""

    __slots__ = ("_held", "_stops", "found")

    def __init__(self, stops: tuple[str, ...]) -> None:
        """An empty string stops nothing. ``found``: which of ``stops`` was found."""
        self._stops = stops if any(stops) else ()
        self._held = ""
        self.found: int | None = None

    def feed(self, text: str) -> Cut:
        """Takes the next text. After a cut that says stopped, do not feed again."""
        if not self._stops:
            return Cut(text, False)
        seen = self._held + text
        if (first := _first_stop(seen, self._stops)) is not None:
            start, self.found = first
            self._held = ""
            return Cut(seen[:start], True)
        keep = _longest_beginning(seen, self._stops)
        self._held = seen[len(seen) - keep :]
        return Cut(seen[: len(seen) - keep], False)

    def flush(self) -> str:
        """What is still held back, for a text that ended without a stop string."""
        held, self._held = self._held, ""
        return held


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
