"""A folder in which a preparation goes on where it was left, also after a kill.

``state.json`` names each step that was done with the key of what went into it; it is replaced as a whole. A step is
done again when its key is another one, or a file that it made is gone or of another size.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inferbus_prepare.errors import PrepareError

_STATE = "state.json"


class Work:
    """One preparation's folder, held by one process. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._done: dict[str, Any] = {}
        self._lock = -1

    def __enter__(self) -> "Work":
        """Raises PrepareError if another process works in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise PrepareError(f"another process works in {self.folder}") from None
        for left in self.folder.glob(".making-*"):  # of a process that was killed
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        self._done = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads((self.folder / _STATE).read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise PrepareError(f"{self.folder / _STATE} is not what was written: {error}; delete the folder") from None
        return dict(value)

    def step(self, name: str, key: Sequence[Any], run: Callable[[], Any], makes: Sequence[Path] = ()) -> Any:
        """What ``run`` returns, a JSON value; or what it returned before with an equal ``key``. ``makes``: files or
        folders."""
        digest = hashlib.sha256(json.dumps(list(key), default=str).encode()).hexdigest()
        known = self._done.get(name)
        if known is not None and known["key"] == digest and known["sizes"] == [_size(path) for path in makes]:
            return known["result"]
        result = run()
        self._done[name] = {"key": digest, "result": result, "sizes": [_size(path) for path in makes]}
        write_whole(self.folder / _STATE, json.dumps(self._done, indent=1))
        return result


def write_whole(path: Path, text: str) -> None:
    """The file has all of ``text``, or is as it was."""
    making = path.with_name(f".making-{path.name}")
    with making.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(making, path)


def _size(path: Path) -> int:
    """Of a folder: of all files in it. -1: it is not there."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size if path.exists() else -1
