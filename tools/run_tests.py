"""All tests, two groups at a time: half of what the tests do is wait for real processes.

    .venv/bin/python tools/run_tests.py [--jobs 2]

A group is one run of pytest with its own servers. Those that keep a model busy stand beside those that wait, and the
longest come first; kills of workers with a model of ours do not stand beside an upstream with one. Each group's output
is printed when it ends. Exit code 1 if one failed. A new test file is in the group of its folder.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from glob import glob

_WORKER = "services/worker/tests"
GROUPS = (
    "tests/conformance",
    "libs services/batch services/meter",
    f"{_WORKER}/contract",
    "services/scheduler",
    f"{_WORKER}/test_openai*.py {_WORKER}/test_triton*.py",
    "tests/faults",
    "tests/e2e tests/integration tests/contract",
    "services/edge",
    "tests/console",
    f"{_WORKER} --ignore={_WORKER}/contract --ignore-glob=*/test_openai*.py --ignore-glob=*/test_triton*.py",
)


def run(group: str) -> tuple[bool, str]:
    """(passed, a headline and all that pytest said)."""
    started = time.monotonic()
    paths = [path for word in group.split() for path in ([word] if word.startswith("--") else sorted(glob(word)))]
    command = [sys.executable, "-m", "pytest", "--durations=12", "--durations-min=4", *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)  # what its servers used is in it, once they have been waited for
        process.returncode = os.waitstatus_to_exitcode(status)
    passed = process.returncode == 0
    headline = (
        f"=== {group}: {'passed' if passed else 'FAILED'} in {time.monotonic() - started:.0f} s, "
        f"{used.ru_utime + used.ru_stime:.0f} s of CPU"
    )
    return passed, f"{headline}\n{said}"


def forgotten() -> list[str]:
    """Test files in no group."""
    words = [word for group in GROUPS for word in group.split() if not word.startswith("--")]
    named = tuple(path for word in words for path in glob(word))
    files = [path for top in ("libs", "services", "tests") for path in glob(f"{top}/**/test_*.py", recursive=True)]
    return [path for path in files if not path.startswith(named)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="groups at a time; each takes about a core (default: 2)")
    jobs = parser.parse_args().jobs
    if files := forgotten():
        parser.error(f"no group has {', '.join(files)}: add their folder to GROUPS")
    started, failed = time.monotonic(), []
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run, group): group for group in GROUPS}
        for done in as_completed(running):
            passed, output = done.result()
            print(output, flush=True)
            if not passed:
                failed.append(running[done])
    print(f"=== {len(GROUPS) - len(failed)} of {len(GROUPS)} groups passed in {time.monotonic() - started:.0f} s")
    for group in failed:
        print(f"=== FAILED: {group}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
