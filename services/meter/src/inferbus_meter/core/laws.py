"""The laws of the log for one request: which of its tokens count.

    A token is named by (request, index); indices start at 0 and have no gap. An attempt opens by naming an index: with
    its first delta that is not void, whether that has tokens or not, or with its Close. From there on in stream order,
    anything of a lower attempt is void, and so are tokens of lower attempts from that index on. Within one attempt a
    repeated index is void.

A reader keeps runs, not tokens: consecutive tokens of one attempt are one run, so a whole request is one or two.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens ``first`` to ``first + count - 1`` of ``attempt``, next to each other in stream order. ``count`` 0: it
    only names the index at which the attempt opens."""

    attempt: int
    first: int
    count: int

    @property
    def end(self) -> int:
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class Reading:
    """What counts of a request. ``missing`` and ``repeated`` are indices that break the laws; 0 if all is well."""

    attempt: int
    tokens: int
    missing: int
    repeated: int


def append_run(runs: list[Run], run: Run) -> None:
    """Add ``run`` at the end, as part of the last one if it goes on there. Without a token it is kept if it opens."""
    if runs and runs[-1].attempt == run.attempt and runs[-1].end == run.first:
        run = Run(run.attempt, runs[-1].first, runs[-1].count + run.count)
        runs.pop()
    elif run.count == 0 and run.attempt <= max((one.attempt for one in runs), default=1):
        return
    runs.append(run)


def read(runs: Iterable[Run]) -> Reading:
    """Apply the laws to a request's runs in stream order."""
    attempt, repeated = 0, 0
    valid: list[tuple[int, int]] = []
    for run in runs:
        if run.attempt < attempt:
            continue
        if run.attempt > attempt:
            attempt = run.attempt
            valid = [(first, min(end, run.first)) for first, end in valid if first < run.first]
        following = valid[-1][1] if valid else 0
        repeated += max(0, min(following, run.end) - run.first)
        if run.count and run.end > following:
            valid.append((max(run.first, following), run.end))
    tokens = sum(end - first for first, end in valid)
    return Reading(attempt, tokens, (valid[-1][1] if valid else 0) - tokens, repeated)


def begins_here(runs: list[Run]) -> bool:
    """Whether the first run is the request's very beginning, rather than a part of a longer story: an attempt that
    opens at 0 found no token of another."""
    return bool(runs) and runs[0].first == 0
