"""The log: one JSON object a line, on stderr."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


def log(level: str, event: str, **fields: object) -> None:
    """Writes one line at once. Callers keep statements, data and passwords out of `fields`."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")  # noqa: TID251 - this file is the process's log clock
    sys.stderr.write(json.dumps({"time": now, "level": level, "event": event, **fields}, default=str) + "\n")
    sys.stderr.flush()
