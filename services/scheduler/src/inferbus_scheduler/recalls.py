"""To workers that may be alive: which of their requests are theirs no more.

Nothing depends on it but work that is done for nobody: what they still publish of these is void.
"""

from collections.abc import Iterable

from inferbus.bus.v1.control_pb2 import Heartbeat, Recall
from inferbus_bus.connection import Bus
from inferbus_contracts.ids import REQUEST_ID_BYTES

from inferbus_scheduler.core.remembered import Remembered

# Longer than a heartbeat may be lost, and than most generations last.
_MOVED, _MOVED_SECONDS = 100_000, 600.0


class Recalls:
    """Remembers what was moved, and says it again as long as a worker's heartbeats name it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        # (worker, request) -> the highest attempt that is over. Attempts are over for every incarnation.
        self._moved: Remembered[tuple[str, bytes], int] = Remembered(_MOVED, _MOVED_SECONDS)

    def moved(self, worker: str, boot: int, moved: Iterable[tuple[bytes, int]], now: float) -> None:
        """These attempts, and all below, are the worker's no more. ``boot`` 0: of whichever incarnation has them."""
        over = list(moved)
        for request_id, attempt in over:
            self._moved.put((worker, request_id), attempt, now)
        if over and boot:
            self._say(worker, boot, over)

    def heard(self, beat: Heartbeat, now: float) -> None:
        """Of every heartbeat."""
        if not beat.HasField("running") or not len(self._moved):
            return
        ids, attempts = beat.running.request_ids, beat.running.attempts
        over = []
        for number, attempt in enumerate(attempts):
            request_id = ids[number * REQUEST_ID_BYTES : (number + 1) * REQUEST_ID_BYTES]
            last = self._moved.get((beat.worker, request_id), now)
            if last is not None and attempt <= last:
                over.append((request_id, last))
        if over:
            self._say(beat.worker, beat.boot, over)

    def _say(self, worker: str, boot: int, over: list[tuple[bytes, int]]) -> None:
        self._bus.send(
            Recall(
                worker=worker,
                boot=boot,
                request_ids=b"".join(request_id for request_id, _ in over),
                attempts=[attempt for _, attempt in over],
            )
        )
