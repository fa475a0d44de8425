"""Times of tokens, in Unix microseconds."""

from google.protobuf.timestamp_pb2 import Timestamp

_MAX_GAP_US = (1 << 32) - 1


def gap_us(now_us: int, before_us: int) -> int:
    """Microseconds from ``before_us`` to ``now_us`` as a frame carries them.

    Never negative (the two may come from clocks of different machines), at most 71 minutes.
    """
    return min(max(now_us - before_us, 0), _MAX_GAP_US)


def timestamp(at_us: int) -> Timestamp:
    return Timestamp(seconds=at_us // 1_000_000, nanos=at_us % 1_000_000 * 1000)


def unix_us(stamp: Timestamp) -> int:
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000
