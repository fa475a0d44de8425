"""JSON lines on stderr, one per record, with the trace they belong to. Never prompt or completion text."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from inferbus_runtime.traces import current_trace_id

# What a LogRecord always has; anything else on it came from extra={...}.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Libraries that narrate at info level what our own lines already say.
QUIET = ("aiohttp.access", "asyncio", "grpc", "opentelemetry", "urllib3")

get_logger = logging.getLogger


class JsonFormatter(logging.Formatter):
    """Fields ts, level, logger, message, service, instance, trace_id (in a span), exception, and those of ``extra``."""

    def __init__(self, service: str, instance: str) -> None:
        super().__init__()
        self._origin = {"service": service, "instance": instance}

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._origin,
        }
        if trace_id := current_trace_id():
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        for name, value in vars(record).items():
            if name not in STANDARD:
                # a caller's field never hides one of ours
                line[f"extra_{name}" if name in line else name] = value
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(service: str, instance: str, level: str, stream: TextIO | None = None) -> None:
    """Send all logging of this process to ``stream`` (stderr) as JSON lines from ``level`` up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service, instance))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)
