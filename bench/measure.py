"""CPU time of processes, percentiles, tables, and where results are kept."""

import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def cpu_seconds(pid: int, *, children: bool = True) -> float:
    """User and system time of a process (and what it has started) so far."""
    process = psutil.Process(pid)
    total = sum(process.cpu_times()[:2])
    for child in process.children(recursive=True) if children else ():
        total += sum(child.cpu_times()[:2])
    return total


def pin(pids: Iterable[int], cores: Sequence[int]) -> None:
    """Keep processes and all their threads on ``cores``."""
    for pid in pids:
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            for thread in process.threads():
                psutil.Process(thread.id).cpu_affinity(list(cores))


def machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = psutil.virtual_memory().total >> 30
    return f"{model}, {psutil.cpu_count()} cores, {memory} GiB, Python {platform.python_version()}"


def commit() -> str:
    here = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return here.stdout.strip() or "unknown"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"### {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def keep(name: str, text: str, notes: Mapping[str, str] | None = None) -> Path:
    """Write one run's figures under results/, with machine and date."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    path = RESULTS / f"{now:%Y-%m-%d}_{name}.md"
    head = f"# {name}\n\n{now:%Y-%m-%d %H:%M} UTC, commit {commit()}, {machine()}\n"
    head += "".join(f"\n- {key}: {value}" for key, value in (notes or {}).items())
    path.write_text(head + "\n\n" + text)
    return path
