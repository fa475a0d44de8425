"""The file that says "I serve, and here": written whole or not at all, gone when the process stops."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ready_file(path: Path, info: Mapping[str, str]) -> Iterator[None]:
    """``path`` holds ``info`` and our pid as JSON while inside. A reader never sees half of it.

    On exit only our own file is removed: a successor may have written its own in the meantime.
    """
    text = json.dumps({"pid": os.getpid(), **info})
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)
    try:
        yield
    finally:
        if path.exists() and path.read_text() == text:
            path.unlink()
