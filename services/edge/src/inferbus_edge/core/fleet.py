"""What several schedulers see, as one picture. Pure."""

from collections.abc import Sequence

from inferbus.scheduler.v1.scheduler_pb2 import ModelQueue, WatchFleetResponse


def merged(pictures: Sequence[WatchFleetResponse]) -> WatchFleetResponse:
    """Workers as whoever sees the most of them has them, of ``pictures`` (one or more): each scheduler follows all of
    them, and knows what is on the way to those of its own models. Queues of all: each has those of its own models, and
    two may have one of a model that is being handed over."""
    whole = WatchFleetResponse()
    whole.CopyFrom(max(pictures, key=lambda one: len(one.workers)))
    seen = [(one.record.worker, one.on_the_way) for picture in pictures for one in picture.workers]
    for worker in whole.workers:
        worker.on_the_way = max(count for name, count in seen if name == worker.record.worker)
    queues: dict[tuple[str, int], ModelQueue] = {}
    for queue in (queue for one in pictures for queue in one.queues):
        known = queues.setdefault((queue.model, queue.priority_class), ModelQueue())
        oldest = max(known.oldest_age.ToTimedelta(), queue.oldest_age.ToTimedelta())
        queued = known.queued + queue.queued
        known.CopyFrom(queue)
        known.queued = queued
        known.oldest_age.FromTimedelta(oldest)
    del whole.queues[:]
    whole.queues.extend(queues[name] for name in sorted(queues))
    return whole
