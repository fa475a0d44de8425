"""How far a job is, and what may be asked next so that no line is generated twice.

A line is asked in a **window**: lines that are published from one moment on, which is written down before the first of
them is. A request's id is a function of line, try and the window's moment, so whoever goes on with the job asks with
the same ids:

- as long as the broker knows the ids of the window (:data:`KNOWN_MS`), asking again changes nothing if it was asked;
- later nobody can tell whether it was. Then it is waited for: whatever was accepted ends by its expiry, and its end is
  on the log. What has none by then was never accepted, and is asked at its next try, in another window.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from inferbus_batch.core.done import Done

KNOWN_MS = 9 * 60_000
"""Less than the broker's ten minutes."""
MARGIN_MS = 60_000
"""After its expiry the end of a request is on the log by then."""


@dataclass(slots=True, eq=False)
class Window:
    """``lines``: those of it that have not ended. Times are Unix milliseconds."""

    lines: set[int]
    open_ms: int
    expire_ms: int


class Missing(Enum):
    """What to do about a line that should have been asked, and of which nothing is on the log."""

    ASK = "ask"
    WAIT = "wait"
    NEXT_TRY = "next_try"


@dataclass(slots=True)
class Progress:
    """Of one job of ``lines`` lines, named by their place in the run order. One that goes on from a checkpoint is made
    of what that says. ``fresh``: no line from there on has been in a window. ``last_open_ms``: of all windows so far;
    no two are of one moment, though the clock be set back."""

    lines: int
    done: Done = field(default_factory=Done)
    fresh: int = 0
    tries: dict[int, int] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)
    last_open_ms: int = 0
    _again: deque[int] = field(default_factory=deque)
    _window_of: dict[int, Window] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._window_of = {line: window for window in self.windows for line in window.lines}
        self._again = deque(line for line in self.done.missing(self.fresh) if line not in self._window_of)

    @property
    def ended(self) -> bool:
        """Every line has its result."""
        return len(self.done) == self.lines

    @property
    def waiting(self) -> int:
        """Lines that could be asked in a new window."""
        return len(self._again) + self.lines - self.fresh

    @property
    def open_lines(self) -> int:
        """Lines in windows."""
        return len(self._window_of)

    def open(self, count: int, now_ms: int, expire_ms: int) -> Window | None:
        """A window of at most so many lines, those that are to be tried again first; None if there are none. It must
        be stored before any of them is asked."""
        lines = [self._again.popleft() for _ in range(min(count, len(self._again)))]
        more = min(count - len(lines), self.lines - self.fresh)
        lines += range(self.fresh, self.fresh + more)
        self.fresh += more
        if not lines:
            return None
        self.last_open_ms = max(now_ms, self.last_open_ms + 1)
        window = Window(set(lines), self.last_open_ms, expire_ms)
        self.windows.append(window)
        self._window_of.update(dict.fromkeys(lines, window))
        return window

    def asked(self, line: int) -> tuple[int, int]:
        """(try, moment of its window) of a line in a window: what its request's id is made of. KeyError."""
        return self.tries.get(line, 0), self._window_of[line].open_ms

    def expires(self, line: int) -> int:
        """Of a line in a window. KeyError."""
        return self._window_of[line].expire_ms

    def awaits(self, line: int, attempt: int, open_ms: int) -> bool:
        """Whether the end of what was :meth:`asked` so counts; that of an earlier one, or a second one, does not."""
        return line in self._window_of and self.asked(line) == (attempt, open_ms)

    def finish(self, line: int) -> None:
        """A line in a window has its result, good or bad. KeyError if it is in none."""
        self._leave(line)
        self.tries.pop(line, None)
        self.done.add(line)

    def again(self, line: int, *, counts: bool = True) -> None:
        """The try of a line in a window has ended, and another is worth it. KeyError if it is in none. ``counts``
        false: it had not begun, and is the same try, in another window."""
        self._leave(line)
        if counts:
            self.tries[line] = self.tries.get(line, 0) + 1
        self._again.append(line)

    def missing(self, line: int, now_ms: int) -> Missing:
        """Of a line in a window of which nothing is on the log, all of which has been read. KeyError."""
        window = self._window_of[line]
        if now_ms < window.open_ms + KNOWN_MS:
            return Missing.ASK
        return Missing.WAIT if now_ms < window.expire_ms + MARGIN_MS else Missing.NEXT_TRY

    def in_windows(self) -> Iterator[int]:
        """Those lines, as they are asked."""
        return (line for window in self.windows for line in sorted(window.lines))

    def unasked(self) -> Iterable[int]:
        """Lines without a result that are in no window: when a job ends early, they end with it."""
        return [*self._again, *range(self.fresh, self.lines)]

    def _leave(self, line: int) -> None:
        window = self._window_of.pop(line)
        window.lines.remove(line)
        if not window.lines:
            self.windows.remove(window)
