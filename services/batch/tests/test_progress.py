"""A job's progress under crashes, a forgetful broker and late ends: each line once, and none again after its result."""

import copy

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from inferbus_batch.core.done import Done
from inferbus_batch.core.progress import Missing, Progress, Window

LINES = 6
MINUTE = 60_000
EXPIRES = 20 * MINUTE
MAX_TRIES = 3
Name = tuple[int, int, int]  # line, try, moment of the window: what an id is made of


class Jobs(RuleBasedStateMachine):
    """One runner at a time, which may die at any moment and is followed by another that knows the last checkpoint and
    the log. The broker knows an id for ten minutes; what it accepted ends at last, by its expiry if not before."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.progress = Progress(LINES)
        self.stored = Progress(LINES)
        self.position = 0  # of the log, up to which the checkpoint knows it
        self.read = 0
        self.known: dict[Name, int] = {}  # ids, and until when the broker knows them
        self.running: dict[Name, int] = {}  # accepted, with its expiry
        self.log: list[tuple[Name, str]] = []  # ends: good, bad, retry
        self.results: dict[int, str] = {}  # of this runner and the checkpoint: what is in the output
        self.kept: dict[int, str] = {}
        self.publishing: list[int] = []
        self.accepted: list[Name] = []

    # --- the runner ---

    @precondition(lambda self: not self.publishing)
    @rule(count=st.integers(1, 4))
    def open(self, count: int) -> None:
        window = self.progress.open(count, self.now, self.now + EXPIRES)
        if window is not None:
            self.checkpoint()
            self.publishing = sorted(window.lines)

    @precondition(lambda self: self.publishing)
    @rule()
    def publish(self) -> None:
        self._ask(self.publishing.pop(0))

    def _ask(self, line: int) -> None:
        if line not in list(self.progress.in_windows()):
            return
        name = (line, *self.progress.asked(line))
        window = next(one for one in self.progress.windows if line in one.lines)
        if self.known.get(name, -1) > self.now:
            return  # a duplicate: the broker takes it for stored
        if self.now >= window.expire_ms:
            return
        self.known[name] = self.now + 10 * MINUTE
        assert line not in self._succeeded(), "asked again after its result was on the log"
        assert name not in self.accepted, "the same request twice"
        self.accepted.append(name)
        self.running[name] = window.expire_ms

    @rule()
    def fold(self) -> None:
        """All that is on the log."""
        for (line, attempt, open_ms), how in self.log[self.read :]:
            if not self.progress.awaits(line, attempt, open_ms):
                continue
            if how == "not begun" or (how == "retry" and attempt + 1 < MAX_TRIES):
                self.progress.again(line, counts=how == "retry")
            else:
                self.progress.finish(line)
                assert line not in self.results
                self.results[line] = how
        self.read = len(self.log)

    @rule()
    def checkpoint(self) -> None:
        made = self.progress
        self.stored = Progress(
            LINES, Done(made.done.floor, made.done.above()), made.fresh, dict(made.tries),
            [Window(set(one.lines), one.open_ms, one.expire_ms) for one in made.windows], made.last_open_ms,
        )  # fmt: skip
        self.position, self.kept = self.read, dict(self.results)

    @rule()
    def crash(self) -> None:
        self.progress = copy.deepcopy(self.stored)
        self.publishing, self.read, self.results = [], self.position, dict(self.kept)
        self.fold()
        for line in list(self.progress.in_windows()):
            self._look_for(line)

    @rule()
    def look(self) -> None:
        """What should be on its way, and is nowhere to be seen."""
        self.fold()
        for line in list(self.progress.in_windows()):
            if line not in self.publishing:
                self._look_for(line)

    def _look_for(self, line: int) -> None:
        match self.progress.missing(line, self.now):
            case Missing.ASK:
                self._ask(line)
            case Missing.NEXT_TRY:
                self.progress.again(line, counts=False)

    # --- the world ---

    @rule(minutes=st.integers(1, 12))
    def time(self, minutes: int) -> None:
        for _ in range(minutes):
            self.now += MINUTE
            for name, expiry in list(self.running.items()):
                if expiry <= self.now:
                    del self.running[name]
                    self.log.append((name, "not begun"))

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 5), how=st.sampled_from(["good", "bad", "retry", "not begun"]))
    def end(self, which: int, how: str) -> None:
        name = sorted(self.running)[which % len(self.running)]
        del self.running[name]
        self.log.append((name, how))

    def _succeeded(self) -> set[int]:
        return {name[0] for name, how in self.log if how in ("good", "bad")}

    @invariant()
    def no_line_runs_twice(self) -> None:
        lines = [name[0] for name in self.running]
        assert len(lines) == len(set(lines))

    @invariant()
    def every_line_is_somewhere(self) -> None:
        windows, waiting = list(self.progress.in_windows()), list(self.progress.unasked())
        done = [line for line in range(LINES) if line in self.progress.done]
        assert sorted([*windows, *waiting, *done]) == list(range(LINES))

    def teardown(self) -> None:
        """Left alone, the job comes to its end."""
        self.crash()
        for _ in range(200):
            self.time(1)
            for name in list(self.running):
                del self.running[name]
                self.log.append((name, "good"))
            self.look()
            if not self.publishing:
                self.open(4)
            while self.publishing:
                self.publish()
        assert self.progress.ended
        assert sorted(self.results) == list(range(LINES))


Jobs.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestJobs = Jobs.TestCase
