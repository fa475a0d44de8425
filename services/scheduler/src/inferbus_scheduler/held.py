"""A request in the scheduler's hands, from its delivery to its acknowledgement."""

from enum import Enum

from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_bus.workqueue import Delivery
from inferbus_runtime.traces import Span

from inferbus_scheduler.core.request import Request


class State(Enum):
    """Where it is. There is no final one: what has come to an end is held no more."""

    QUEUED = "queued"
    # Published to WORK and not answered yet: it may be stored, so nobody but its worker may end it.
    PLACING = "placing"
    # Published to REQUESTS for a fallback of its model, and not answered yet.
    DEGRADING = "degrading"
    # Its Close is published and not stored yet.
    ENDING = "ending"


MOVES = {
    State.QUEUED: frozenset((State.PLACING, State.DEGRADING, State.ENDING)),
    State.PLACING: frozenset((State.QUEUED,)),
    State.DEGRADING: frozenset[State](),
    State.ENDING: frozenset[State](),
}


class Held:
    """``work`` holds the request as it was delivered, parsed in place: placing it copies nothing. ``name``: see
    :func:`name_of`. ``shard``: that of its model."""

    __slots__ = (
        "_deliveries",
        "cancelled",
        "going",
        "name",
        "request",
        "sends",
        "shard",
        "span",
        "state",
        "work",
        "workers",
    )

    def __init__(self, name: bytes, shard: int, request: Request, work: Work, delivery: Delivery) -> None:
        self.name = name
        self.shard = shard
        self.request = request
        self.work = work
        # What is published of it: that, or the request as it is asked of a fallback.
        self.going: Work | GenerateRequest = work
        self._deliveries = [delivery]
        self.state = State.QUEUED
        # Heard while it was being placed.
        self.cancelled = False
        # How often it was published to WORK, and to how many different workers.
        self.sends = 0
        self.workers = 0
        self.span: Span | None = None

    @property
    def traceparent(self) -> dict[str, str]:
        """The headers under which it came."""
        value = self._deliveries[0].headers.get("traceparent")
        return {"traceparent": value} if value else {}

    def move(self, state: State) -> None:
        """ValueError if there is no such move."""
        if state not in MOVES[self.state]:
            raise ValueError(f"a request cannot go from {self.state.value} to {state.value}")
        self.state = state

    def delivered_again(self, delivery: Delivery) -> None:
        self._deliveries.append(delivery)

    def ack(self) -> None:
        """Done, under every delivery of it: after an outage of the broker only the newest counts, and the others
        do nothing."""
        for delivery in self._deliveries:
            delivery.ack()

    def give_back(self) -> None:
        """For whoever has the shard now."""
        self._deliveries[-1].nak()


def name_of(message: GenerateRequest) -> bytes:
    """What tells it from all else on REQUESTS: another attempt, and the same one for a fallback, are messages of their
    own."""
    own = message.request_id + (message.resume.attempt or 1).to_bytes(4, "big")
    return own + message.context.model.encode() if message.asked_model else own
