"""The only place that reads the clocks."""

import time
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

monotonic = time.monotonic


def now_us() -> int:
    """Unix time in microseconds."""
    return time.time_ns() // 1000


def now() -> datetime:
    return datetime.now(UTC)


def timestamp(unix_us: int) -> Timestamp:
    """``unix_us`` (Unix microseconds) as a protobuf Timestamp."""
    return Timestamp(seconds=unix_us // 1_000_000, nanos=unix_us % 1_000_000 * 1000)


def unix_us(stamp: Timestamp) -> int:
    """A protobuf Timestamp as Unix microseconds."""
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000
