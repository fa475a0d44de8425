"""What an operator may set: ``INFERBUS_SCHEDULER_`` + the field's name."""

from datetime import timedelta
from typing import Literal

from inferbus_runtime.config import ADDRESS, ServiceConfig
from pydantic import Field

from inferbus_scheduler.core.admission import Limits
from inferbus_scheduler.core.fairness import Shares
from inferbus_scheduler.core.residency import Rules


class Config(ServiceConfig):
    """The scheduler's bounds, each with what happens at it."""

    max_queued: int = Field(default=1000, ge=1)
    """Requests of one model that may wait in a class and those above it; then 429 queue_full for who has his part."""
    max_held: int = Field(default=8192, ge=1)
    """Requests of all models held at once; more stay on REQUESTS, unseen; but each shard may hold 1/32, at least 16."""
    queue_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """How long a request waits for a model that has no live worker; then it ends with 503 no_worker."""
    max_wait: timedelta = Field(default=timedelta(minutes=30), gt=timedelta(0), lt=timedelta(hours=1))
    """The longest wait of any request, whatever its own deadline; then deadline_exceeded. REQUESTS keeps it 1 h."""
    retry_after: timedelta = Field(default=timedelta(seconds=1), ge=timedelta(seconds=1))
    """The least that a refused caller is told to wait; more, up to 5 minutes, where the queue's pace says so."""
    heartbeat_timeout: timedelta = Field(default=timedelta(seconds=3), gt=timedelta(0))
    """A worker that is silent for longer gets nothing until it is heard again."""
    reconnect_grace: timedelta = Field(default=timedelta(seconds=8), ge=timedelta(0))
    """After the broker was away, how long a worker whose lease ran out meanwhile may take to renew it."""
    lease_ttl: timedelta = Field(default=timedelta(seconds=2), ge=timedelta(seconds=1), le=timedelta(minutes=1))
    """After a scheduler was killed, another one has its models this much later. Whole seconds."""
    ack_wait: timedelta = Field(default=timedelta(seconds=10), ge=timedelta(milliseconds=500))
    """A request that the broker gave to a scheduler which never got it comes again this much later."""
    background_share: int = Field(default=10, ge=1)
    """Turns of a model that waiting background requests let pass before they get one."""
    batch_share: int = Field(default=30, ge=1)
    """Turns of a model that waiting batch requests let pass before they get one."""
    policy: Literal["inferbus", "round_robin", "least_requests", "random"] = "inferbus"
    """How a worker is picked of those that may be: by score; the others are there to be compared with."""
    max_prefill_tokens: int = Field(default=8192, ge=0)
    """Input that a worker may still have to read and yet get more; above it, requests wait in fair order. A 32nd of
    it for a tenant that must leave room to others. 0: any."""
    decisions_kept: int = Field(default=4096, ge=1)
    """Recent requests whose decision Explain can tell; the oldest is forgotten first."""
    gpu_budget: int = Field(default=0, ge=0)
    """GPUs that all scaled deployments together may have; 0: no bound."""
    memory_budget: int = Field(default=0, ge=0)
    """Bytes that the workers of all models together may hold; models give theirs to each other. 0: no bound."""
    memory_residence: timedelta = Field(default=timedelta(seconds=20), ge=timedelta(0))
    """A model that has work keeps its memory for so long at least."""
    memory_max_wait: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(0))
    """A model that waits for memory for longer gets it from one that has work; before, from idle ones only."""
    scale_down_window: timedelta = Field(default=timedelta(minutes=2), gt=timedelta(0))
    """How long fewer workers must have been enough before one is let go."""
    meter_address: str | None = Field(default=None, pattern=ADDRESS)
    """gRPC of a meter: what revisions are judged by; unset: no rollout takes a step."""
    keda_address: str | None = Field(default=None, pattern=ADDRESS)
    """host:port of KEDA's external scaler, without a token: behind a network policy, or with TLS; unset: not served."""

    @property
    def limits(self) -> Limits:
        return Limits(
            max_queued=self.max_queued,
            queue_timeout=self.queue_timeout.total_seconds(),
            retry_after=self.retry_after.total_seconds(),
        )

    @property
    def rules(self) -> Rules:
        return Rules(
            budget=self.memory_budget,
            min_residence=self.memory_residence.total_seconds(),
            max_wait=self.memory_max_wait.total_seconds(),
        )

    @property
    def shares(self) -> Shares:
        return Shares(background=self.background_share, batch=self.batch_share)
