"""(e) Tokens a second through InferBus beside the same engine called directly, in alternating windows of one run.

A window is a closed loop: so many clients, each with its own prompts one after the other, the same number on both
sides, until all have their answers. No prompt is timed twice. Before them each side is asked the same prompts once, and
their texts are compared.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from bench.engine_pairs import MISSING, MODEL, PAIRS, TOKENS, Pair, Side
from bench.load import Answer
from bench.measure import cpu_seconds, percentile, table
from bench.throughput import THINGS
from tests.harness.local import Stack

LEVELS = (1, 4, 16)
_numbers = itertools.count(1000)
_COLUMNS = (
    "engine", "concurrent", "answers a side", "InferBus", "direct", "ratio (of neighbours)",
    "TTFT p50 / p99 ms", "direct", "ITL p50 ms", "direct", "CPU of InferBus in its windows / in the direct ones",
)  # fmt: skip
_SHARED = """\
The model, its server, all of InferBus and the load generator share the cores. InferBus's CPU is that of all its
processes but the engine; in the direct windows they idle beside it.
"""


@dataclass
class Windows:
    """Of one side at one level. ``rates``: tokens a second of each; ``cpu``: of a core, by InferBus's own processes.
    ``short``: answers with fewer tokens than were asked for."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    short: int = 0

    async def add(self, side: Side, stack: Stack, prompts: Sequence[Sequence[str]]) -> None:
        cpu, start = _own_cpu(stack), perf_counter()
        answers = await _asked(side, prompts)
        wall = perf_counter() - start
        self.cpu.append((_own_cpu(stack) - cpu) / wall)
        counts = [side.read(answer)[0] for answer in answers]
        self.rates.append(sum(counts) / wall)
        self.short += sum(count < TOKENS for count in counts)
        self.answers += answers

    def ttft(self) -> str:
        values = [answer.ttft * 1000 for answer in self.answers]
        return f"{percentile(values, 0.5):.0f} / {percentile(values, 0.99):.0f}"

    def itl(self) -> str:
        return f"{percentile([gap * 1000 for answer in self.answers for gap in answer.gaps], 0.5):.1f}"


async def _asked(side: Side, prompts: Sequence[Sequence[str]]) -> list[Answer]:
    async def client(own: Sequence[str]) -> list[Answer]:
        return [await side.ask(prompt) for prompt in own]

    return [answer for some in await asyncio.gather(*map(client, prompts)) for answer in some]


def _own_cpu(stack: Stack) -> float:
    """Seconds so far of all that ``inferbus up`` has started, without the engine that a worker has as its child."""
    services = sum(cpu_seconds(pid, children=not name.startswith("worker")) for name, pid in stack.pids.items())
    return services + cpu_seconds(stack.process.pid, children=False)


def _prompts(clients: int, answers: int) -> list[list[str]]:
    """Never the same ones again, and all of the same length in tokens but for the thing."""
    return [
        [f"Write a story about the number {next(_numbers)} and a {thing}." for _ in range(answers)]
        for thing in itertools.islice(itertools.cycle(THINGS), clients)
    ]


@dataclass(frozen=True)
class Level:
    """What was found at one number of clients. ``equal``: of the texts of the first prompts."""

    clients: int
    platform: Windows
    direct: Windows
    equal: list[bool]

    @classmethod
    async def of(cls, pair: Pair, clients: int, seconds: float, rounds: int) -> "Level":
        sides = (pair.platform, pair.direct)
        same = _prompts(clients, 1)
        start = perf_counter()
        texts = [[side.read(answer)[1] for answer in await _asked(side, same)] for side in sides]
        answers = max(1, round(2 * seconds / (perf_counter() - start)))
        found = (Windows(), Windows())
        for number in range(rounds):
            # A B, B A, and so on: what drifts, drifts for both.
            for place in (0, 1) if number % 2 == 0 else (1, 0):
                await found[place].add(sides[place], pair.stack, _prompts(clients, answers))
        return cls(clients, *found, [ours == theirs for ours, theirs in zip(*texts, strict=True)])

    def row(self) -> list[object]:
        ours, theirs = self.platform, self.direct
        each = [one / other for one, other in zip(ours.rates, theirs.rates, strict=True)]
        return [
            self.clients, len(ours.answers), f"{median(ours.rates):.1f}", f"{median(theirs.rates):.1f}",
            f"{median(ours.rates) / median(theirs.rates):.3f} ({min(each):.2f} to {max(each):.2f})",
            ours.ttft(), theirs.ttft(), ours.itl(), theirs.itl(),
            f"{median(ours.cpu):.0%} / {median(theirs.cpu):.0%} of a core",
        ]  # fmt: skip


async def run(
    only: Sequence[str] = tuple(PAIRS), seconds: float = 3.0, rounds: int = 4, levels: Sequence[int] = LEVELS
) -> str:
    """``seconds``: of a window, about; one answer of each client takes longer at 16. ``rounds``: windows of each side
    and level."""
    rows, notes = list[list[object]](), list[str]()
    for name in only:
        if why := MISSING[name]():
            notes.append(f"- {name}: not measured, {why}")
            continue
        async with PAIRS[name]() as pair:
            found = [await Level.of(pair, level, seconds, rounds) for level in levels]
        rows += [[name, *one.row()] for one in found]
        equal = [same for one in found for same in one.equal]
        short = sum(one.platform.short + one.direct.short for one in found)
        notes.append(f"- {name}: {sum(equal)} of {len(equal)} texts equal on both sides, {short} answers cut short")
    title = f"(e) Tokens a second, {MODEL}, {TOKENS} tokens an answer, medians of {rounds} windows a side"
    return "\n".join([table(title, _COLUMNS, rows), _SHARED, *notes, ""])
