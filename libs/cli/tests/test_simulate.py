"""``inferbus simulate`` hands everything to the scheduler's own program."""

import re
import subprocess
import sys
from pathlib import Path

from .conftest import RunningStack, until


def simulate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inferbus_cli", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_help_and_figures_come_from_the_simulator() -> None:
    shown = simulate("--help")
    assert shown.returncode == 0
    assert "--ttft-target" in shown.stdout
    done = simulate("--seconds", "2", "--rate", "5", "--policies", "inferbus,push_random")
    assert done.returncode == 0, done.stderr
    assert "push_random" in done.stdout


def test_wrong_option_ends_as_the_program_ended() -> None:
    refused = simulate("--policies", "astrology")
    assert refused.returncode == 2
    assert "no policy astrology" in refused.stderr


def test_decisions_of_a_stack_are_exported_and_judged_again(stack: RunningStack, tmp_path: Path) -> None:
    stack.run("chat", "hello", "--max-tokens", "2")
    log = tmp_path / "decisions.bin"

    def placements() -> int:
        done = simulate("--export-decisions", str(log), "--home", str(stack.home))
        assert done.returncode == 0, done.stderr
        judged = simulate("--decisions", str(log), "--weight", "prefix=3")
        found = re.match(r"([\d,]+) placements", judged.stdout)
        assert found, judged.stderr
        return int(found[1].replace(",", ""))

    # They are written a moment after they were made.
    until(lambda: placements() >= 1, 60)
