"""A file, measured with the real engine in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inferbus_prepare.errors import EngineError
from inferbus_prepare.measured import Measured
from inferbus_prepare.workload import Workload

_LAST_WORDS = 2000


def measure(model: Path, workload: Workload, progress: Callable[[float], None] = lambda part: None) -> Measured:
    """Blocks for as long as it takes; ``progress`` gets parts in [0, 1].

    Raises EngineError with the engine's last words if it refuses the file, dies, or answers with something else.
    """
    command = [
        *(sys.executable, "-m", "inferbus_prepare.measure", "--model", str(model)),
        *("--workload", json.dumps(workload.as_dict())),
    ]
    return measured_of(answer_of(command, model.name, progress), model.name)


def answer_of(command: list[str], name: str, progress: Callable[[float], None]) -> dict[str, Any]:
    """The last object that a child told, ``--parent`` of which is this process; it holds "measured".

    Raises EngineError with its last words if there is none.
    """
    result = None
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            assert child.stdout is not None  # noqa: S101  (a pipe)
            for line in child.stdout:
                message = _message(line)
                if "part" in message:
                    progress(message["part"])
                elif message:
                    result = message
            code = child.wait()
        finally:
            child.kill()
            child.wait()
        errors.seek(0, os.SEEK_END)
        errors.seek(max(0, errors.tell() - _LAST_WORDS))
        words = " | ".join(errors.read().decode(errors="replace").split("\n")).strip(" |")
    if result is None or "measured" not in result:
        said = result.get("error", "") if result else f"it ended with code {code}"
        raise EngineError(f"the engine could not run {name}: {said}; {words}".rstrip("; "))
    return result


def measured_of(answer: dict[str, Any], name: str) -> Measured:
    """Raises EngineError if it is not whole."""
    try:
        return Measured.from_dict(answer["measured"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"the engine's answers for {name} are not whole: {error!r}") from None


def _message(line: str) -> dict[str, Any]:
    """Empty for what the engine itself prints."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
