"""The names of lines on the bus: functions of job, line and try, so that whoever runs a job names them alike."""

import hashlib

from inferbus_contracts.ids import request_id

MAX_LINES = 1 << 28
MAX_TRIES = 1 << 4


def line_request_id(job_id: str, line: int, attempt: int, window_ms: int, edge: str) -> bytes:
    """The id of the first choice of a line's try number ``attempt`` (from 0), in a window that opened at ``window_ms``
    (Unix). ``edge``: in whose place it is asked (:func:`inferbus_contracts.subjects.job_edge`).

    Of one job no two are equal: line and try stand in it as they are. Of two jobs they are if both opened a window in
    the same millisecond, on one shard, and 18 bits of their hashes agree.

    Raises ValueError for a line or try that does not fit.
    """
    if not 0 <= line < MAX_LINES or not 0 <= attempt < MAX_TRIES:
        raise ValueError(f"line {line}, try {attempt}: an id has room for {MAX_LINES} lines and {MAX_TRIES} tries")
    job = hashlib.blake2b(job_id.encode(), digest_size=3).digest()
    # Bytes 3 and 4 are where request_id puts the edge's tag.
    entropy = job + bytes(2) + (line << 4 | attempt).to_bytes(4, "big") + bytes(1)
    return request_id(window_ms, entropy, edge)


def line_of(name: bytes) -> tuple[int, int]:
    """(line, try) of a :func:`line_request_id`, of any choice."""
    value = int.from_bytes(name[11:15], "big")
    return value >> 4, value & (MAX_TRIES - 1)
