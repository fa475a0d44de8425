"""Child processes, real ones: ready, dead, stopped, and never left behind."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from inferbus_stack.child import ChildError, ChildSpec, bound_log, death, start_child

# Writes its ready file, then sleeps. "deaf": does not listen to SIGTERM; "parent": has a child of its own; "mute": is
# never ready.
SERVICE = """
import json, os, pathlib, signal, subprocess, sys, time
mode, ready = sys.argv[1], pathlib.Path(sys.argv[2])
if mode == "deaf": signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "fails": print("no such model"); sys.exit(3)
grandchild = subprocess.Popen(["sleep", "300"]).pid if mode == "parent" else 0
draft = ready.with_suffix(".draft")
draft.write_text(json.dumps({"pid": os.getpid(), "grandchild": grandchild})); mode == "mute" or draft.replace(ready)
time.sleep(300)
"""


def spec(folder: Path, mode: str, stop_seconds: float = 30.0) -> ChildSpec:
    ready = folder / "ready.json"
    return ChildSpec(
        name=f"a {mode} service",
        command=(sys.executable, "-c", SERVICE, mode, str(ready)),
        environ=dict(os.environ),
        log_file=folder / "service.log",
        ready_file=ready,
        stop_seconds=stop_seconds,
    )


async def gone(pid: int) -> bool:
    for _ in range(3000):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_it_is_ready_when_its_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "ready.json").write_text('{"pid": 1}')  # of an earlier process
    child = await start_child(spec(tmp_path, "plain"))
    await child.become_ready(20)
    assert child.ready["pid"] == child.pid
    await child.stop()
    assert child.exit_code == -15


async def test_a_death_while_starting_shows_its_last_words(tmp_path: Path) -> None:
    child = await start_child(spec(tmp_path, "fails"))
    with pytest.raises(ChildError, match=r"(?s)exited with code 3 while starting.*no such model.*service\.log"):
        await child.become_ready(20)


async def test_one_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    child = await start_child(spec(tmp_path, "mute"))
    with pytest.raises(ChildError, match="not ready within"):
        await child.become_ready(0.1)
    await child.stop()


async def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    child = await start_child(spec(tmp_path, "deaf", stop_seconds=0.1))
    await child.become_ready(20)
    await child.stop()
    assert child.exit_code == -9


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_what_it_started_goes_with_it(tmp_path: Path, how: str) -> None:
    child = await start_child(spec(tmp_path, "parent"))
    await child.become_ready(20)
    if how == "stop":
        await child.stop()
    else:
        child.kill()
        await child.wait()
    assert await gone(child.ready["grandchild"])


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent death signal is Linux's")
async def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_child import spec
from inferbus_stack.child import start_child
async def main():
    child = await start_child(spec(Path({str(tmp_path)!r}), "deaf"))
    await child.become_ready(20)
    print(child.pid, flush=True)
    await asyncio.sleep(300)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        parent.kill()
    assert await gone(pid)


def test_a_log_is_bounded_and_keeps_the_last_part(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with log.open("ab") as held_open:
        held_open.write(b"a" * (17 << 20))
        held_open.flush()
        bound_log(log)
        held_open.write(b"after")
    assert log.read_bytes() == b"after"
    assert (tmp_path / "x.log.1").stat().st_size == 17 << 20


def test_a_death_is_said_in_words() -> None:
    assert death(1) == "exited with code 1"
    assert death(-9) == "was killed by SIGKILL"
