"""Which inputs go through the model together: decided here, without I/O."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

# Tokens of one batch, padding included: 70 ms on one core. Larger ones are hardly faster (2 %), and what comes in
# meanwhile waits longer for a thread.
BATCH_TOKENS = 256
# Below this a matrix product no longer uses the core well, and splitting work over threads does not pay.
_LEAST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Input:
    """One text of a generation, as token ids. ``index``: which of its inputs."""

    key: bytes
    index: int
    ids: Sequence[int]


def queue_of(key: bytes, inputs: Sequence[Sequence[int]]) -> deque[Input]:
    """A generation's inputs as they will be taken: shortest first, so that neighbours need little padding."""
    numbered = (Input(key, index, ids) for index, ids in enumerate(inputs))
    return deque(sorted(numbered, key=lambda one: len(one.ids)))


def batch_bound(queues: Iterable[Iterable[Input]], threads: int) -> int:
    """Tokens of the next batch: little work is split, so that every thread gets a part of it."""
    waiting = 0
    for one in chain.from_iterable(queues):
        waiting += len(one.ids)
        if waiting >= threads * BATCH_TOKENS:
            return BATCH_TOKENS
    return max(_LEAST_TOKENS, -(-waiting // threads))


def next_batch(queues: deque[deque[Input]], bound: int) -> list[Input]:
    """Takes the next batch out of ``queues``, of which none is empty; those that become so leave.

    The first queue opens the batch, whatever its input's length, and goes to the end; then each queue in turn gives an
    input, as long as all of them padded to the longest stay within ``bound`` and none is padded to more than twice its
    length.
    """
    batch = [queues[0].popleft()]
    shortest = longest = len(batch[0].ids)
    queues.rotate(-1)
    giving = [queue for queue in queues if queue]
    while giving:
        still = []
        for queue in giving:
            length = len(queue[0].ids)
            low, high = min(shortest, length), max(longest, length)
            if (len(batch) + 1) * high > bound or high > 2 * low:
                continue  # its next ones are no shorter
            batch.append(queue.popleft())
            shortest, longest = low, high
            if queue:
                still.append(queue)
        giving = still
    for _ in range(len(queues)):
        queue = queues.popleft()
        if queue:
            queues.append(queue)
    return batch
