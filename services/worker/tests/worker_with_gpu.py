"""A worker process that has a GPU which is a file: ``python worker_with_gpu.py FILE``, the rest as ever.

The file holds JSON: ``reading`` (fields of Reading), ``watts``, and ``xids``, all that the driver has reported so far.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from inferbus_runtime import clock
from inferbus_runtime.lifecycle import main
from inferbus_worker import app
from inferbus_worker.config import Config
from inferbus_worker.core.energy import Meter
from inferbus_worker.core.gpu import Gpu, Reading


class FileGpu:
    """Draws its watts all the time, by a counter."""

    gpus = (Gpu("GPU-of-a-file", 0, "a file"),)

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = 0
        self._start = clock.monotonic()

    def meters(self) -> list[Meter]:
        watts = self._said()["watts"]
        return [Meter(watts * (clock.monotonic() - self._start), watts)]

    def read(self) -> list[Reading]:
        return [Reading(**self._said()["reading"])]

    def wait(self, seconds: float) -> list[tuple[Gpu, int]]:
        xids = self._said()["xids"][self._told :]
        self._told += len(xids)
        if not xids:
            time.sleep(seconds)
        return [(self.gpus[0], xid) for xid in xids]

    def close(self) -> None:
        pass

    def _said(self) -> Any:
        return json.loads(self._path.read_text())


if __name__ == "__main__":
    app.open_nvml = lambda _: FileGpu(Path(sys.argv[1]))  # type: ignore[assignment, return-value]
    main(Config, "INFERBUS_WORKER_", app.wire)
