"""What an operator may set: ``INFERBUS_SCHEDULER_`` + the field's name."""

from datetime import timedelta

from inferbus_runtime.config import ServiceConfig
from pydantic import Field

from inferbus_scheduler.core.admission import Limits
from inferbus_scheduler.core.fairness import Shares


class Config(ServiceConfig):
    """The scheduler's bounds, each with what happens at it."""

    max_queued: int = Field(default=1000, ge=1)
    """Requests of one model that may wait in a class and those above it; one more is refused with 429 queue_full."""
    max_held: int = Field(default=8192, ge=1)
    """Requests held at once over all models; more stay on the REQUESTS stream, unseen, until there is room."""
    queue_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """How long a request waits for a model that has no live worker; then it ends with 503 no_worker."""
    max_wait: timedelta = Field(default=timedelta(minutes=30), gt=timedelta(0), lt=timedelta(hours=1))
    """The longest wait of any request, whatever its own deadline; then deadline_exceeded. REQUESTS keeps it 1 h."""
    retry_after: timedelta = Field(default=timedelta(seconds=1), ge=timedelta(seconds=1))
    """What a refused caller is told to wait before it comes back."""
    heartbeat_timeout: timedelta = Field(default=timedelta(seconds=3), gt=timedelta(0))
    """A worker that is silent for longer gets nothing until it is heard again."""
    reconnect_grace: timedelta = Field(default=timedelta(seconds=8), ge=timedelta(0))
    """After the broker was away, how long a worker whose lease ran out meanwhile may take to renew it."""
    ack_wait: timedelta = Field(default=timedelta(seconds=10), ge=timedelta(milliseconds=500))
    """After a scheduler was killed, what it held goes to the next one this much later."""
    background_share: int = Field(default=10, ge=1)
    """Turns of a model that waiting background requests let pass before they get one."""
    batch_share: int = Field(default=30, ge=1)
    """Turns of a model that waiting batch requests let pass before they get one."""
    decisions_kept: int = Field(default=4096, ge=1)
    """Recent requests whose decision Explain can tell; the oldest is forgotten first."""

    @property
    def limits(self) -> Limits:
        return Limits(
            max_queued=self.max_queued,
            queue_timeout=self.queue_timeout.total_seconds(),
            retry_after=self.retry_after.total_seconds(),
        )

    @property
    def shares(self) -> Shares:
        return Shares(background=self.background_share, batch=self.batch_share)
