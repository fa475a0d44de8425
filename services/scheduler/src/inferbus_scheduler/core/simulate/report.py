"""Summaries as aligned text and as a small SVG page: no colours to install, nothing to open but a browser."""

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import log10

from inferbus_scheduler.core.simulate.measures import Summary, Targets
from inferbus_scheduler.core.simulate.replay import Replay

_COLOURS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#8d5a97", "#5f6b6d")
_WIDTH, _HEIGHT, _MARGIN = 640, 300, 52
_BARS = " ▁▂▃▄▅▆▇█"

_ROWS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("requests", lambda run: f"{run.requests:,}"),
    ("done", lambda run: f"{run.done:,}"),
    ("refused", lambda run: f"{run.refused:,}"),
    ("failed", lambda run: f"{run.failed:,}"),
    ("goodput, requests/s", lambda run: f"{run.goodput:,.2f}"),
    ("within targets", lambda run: f"{run.good_share:.1%}"),
    ("output tokens/s", lambda run: f"{run.output_rate:,.0f}"),
    ("TTFT p50", lambda run: duration(run.ttft[0])),
    ("TTFT p95", lambda run: duration(run.ttft[1])),
    ("TTFT p99", lambda run: duration(run.ttft[2])),
    ("ITL p50", lambda run: duration(run.itl[0])),
    ("ITL p95", lambda run: duration(run.itl[1])),
    ("ITL p99", lambda run: duration(run.itl[2])),
    ("fairness (Jain)", lambda run: f"{run.fairness:.3f}"),
    ("TTFT p99, worst modest tenant", lambda run: duration(run.modest_ttft_p99)),
    ("prefix hits, input tokens", lambda run: f"{run.hit_rate:.1%}"),
    ("preemptions", lambda run: f"{run.preemptions:,}"),
    ("migrations", lambda run: f"{run.migrations:,}"),
    ("input read again, tokens", lambda run: f"{run.reread_tokens:,}"),
    ("workers busy", lambda run: f"{run.busy_share:.1%}"),
    ("cost / M output tokens", lambda run: f"{run.cost_per_million:,.3f}"),
    ("cost / M tokens within targets", lambda run: f"{run.cost_per_good_million:,.3f}"),
)


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def table(runs: Sequence[Summary]) -> str:
    """A row a measure, a column a policy; below it the reasons of what was refused or failed."""
    rows = [["", *(run.policy for run in runs)], *([title, *map(cell, runs)] for title, cell in _ROWS)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(runs) + 1)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    lines += [
        f"{run.policy}: " + ", ".join(f"{count:,} {reason}" for reason, count in run.reasons.items())
        for run in runs
        if run.reasons
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def sketch(runs: Sequence[Summary]) -> str:
    """Goodput over the time of arrival, a line of bars a policy, all to one scale."""
    most = max((value for run in runs for _, value in run.goodput_curve), default=0.0)
    if not most:
        return ""
    width = max(len(run.policy) for run in runs)
    lines = [f"goodput by time of arrival, full bar {most:,.1f} requests/s"]
    lines += [
        f"{run.policy.ljust(width)}  " + "".join(_BARS[round(value / most * 8)] for _, value in run.goodput_curve)
        for run in runs
    ]
    return "\n".join(lines) + "\n"


def page(title: str, runs: Sequence[Summary], targets: Targets) -> str:
    """One SVG with two plots: shares of requests by TTFT, and goodput over time."""
    ttft = [(run.policy, [(max(1e-4, value), at / 100) for at, value in enumerate(run.ttft_curve)]) for run in runs]
    goodput = [(run.policy, list(run.goodput_curve)) for run in runs]
    height = 2 * (_HEIGHT + 40) + 40
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + 160} {height}" '
            'font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{_MARGIN}" y="24" font-size="15">{escape(title)}</text>',
            *_plot("requests with a first token within", ttft, 40, log_x=True, mark=targets.ttft),
            *_plot("goodput, requests/s, by time of arrival", goodput, _HEIGHT + 80, log_x=False, mark=None),
            "</svg>",
        ]
    )


def replayed(result: Replay, policy: str) -> str:
    """The recorded choices beside those of another policy."""
    share = result.same / result.choices if result.choices else 1.0
    rows = [
        ("prefix chunks held, mean", result.recorded.prefix_chunks, result.other.prefix_chunks),
        ("load, mean", result.recorded.load, result.other.load),
        ("tokens to read before it, mean", result.recorded.prefill_tokens, result.other.prefill_tokens),
    ]
    if result.costs_differ:
        rows.append(("cost of a slot's hour, mean", result.recorded.slot_cost, result.other.slot_cost))
    lines = [
        f"{result.decisions:,} placements, {result.choices:,} of them among several workers; "
        f"{policy} chooses as recorded in {share:.1%}",
        f"{'of the chosen workers':32}{'recorded':>12}{policy:>12}",
        *(f"{title:32}{one:>12.3f}{other:>12.3f}" for title, one, other in rows),
        *_unknown(result),
    ]
    return "\n".join(lines) + "\n"


def _unknown(result: Replay) -> Iterable[str]:
    """What the records do not tell."""
    if not result.costs:
        yield "The scores do not say what workers cost: all count as equally dear."
    yield "Who could be chosen is as recorded. Of workers with equal scores the recorded one is taken: zones, and whom"
    yield "a request avoids, are not recorded. What a choice changes for those after it, only a run of the trace tells."


def _plot(
    title: str, lines: Sequence[tuple[str, list[tuple[float, float]]]], top: int, *, log_x: bool, mark: float | None
) -> Iterable[str]:
    """A frame, its axes with five values each, a line a series. ``mark``: a vertical line at that x."""
    xs = [log10(x) if log_x else x for _, points in lines for x, _ in points] or [0.0, 1.0]
    ys = [y for _, points in lines for _, y in points] or [1.0]
    if mark is not None:
        xs.append(log10(mark) if log_x else mark)
    left, right, highest = min(xs), max(max(xs), min(xs) + 1e-9), max(*ys, 1e-9)
    inner_width, inner_height = _WIDTH - 2 * _MARGIN, _HEIGHT - 2 * 28

    def place(x: float, y: float) -> tuple[float, float]:
        at = (log10(x) if log_x else x) - left
        return _MARGIN + at / (right - left) * inner_width, top + 28 + (1 - y / highest) * inner_height

    yield f'<text x="{_MARGIN}" y="{top + 16}">{escape(title)}</text>'
    yield (
        f'<rect x="{_MARGIN}" y="{top + 28}" width="{inner_width}" height="{inner_height}" fill="none" stroke="#bbb"/>'
    )
    for step in range(5):
        value = left + (right - left) * step / 4
        x, y = _MARGIN + inner_width * step / 4, top + 28 + inner_height * (1 - step / 4)
        label = duration(10**value) if log_x else f"{value:,.0f} s"
        yield f'<text x="{x:.1f}" y="{top + 28 + inner_height + 16}" text-anchor="middle">{label}</text>'
        yield f'<text x="{_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{highest * step / 4:,.4g}</text>'
    if mark is not None:
        x, _ = place(mark, 0)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + 28}" y2="{top + 28 + inner_height}" stroke="#bbb"/>'
    for number, (name, points) in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        y = top + 40 + 18 * number
        yield f'<text x="{_WIDTH - _MARGIN + 12}" y="{y}" fill="{colour}">{escape(name)}</text>'
