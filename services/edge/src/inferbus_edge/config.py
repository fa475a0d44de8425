"""All that an edge can be told."""

from datetime import timedelta

from inferbus_runtime.config import ADDRESS, ServiceConfig
from pydantic import Field


class Config(ServiceConfig):
    http_host: str = Field(default="127.0.0.1", min_length=1)
    """Address that clients reach; 0.0.0.0 for all of the machine's."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port of the public API; 0 takes a free one, which the ready file names."""
    scheduler_address: str | None = Field(default=None, pattern=ADDRESS)
    """host:port of the scheduler's gRPC API, for the fleet view; unset: that view answers 503."""
    meter_address: str | None = Field(default=None, pattern=ADDRESS)
    """host:port of the meter's gRPC API, for usage and audit; unset: these answer 503."""
    request_timeout: timedelta = Field(default=timedelta(minutes=10), gt=timedelta(0))
    """A request that has not ended by then is cancelled: 504, or an error event in a running stream."""
    keepalive_interval: timedelta = Field(default=timedelta(seconds=15), ge=timedelta(milliseconds=50))
    """A stream silent for so long gets a comment line, so that no proxy cuts it."""
    body_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """A request body that has not arrived by then is refused with 408."""
    max_body_bytes: int = Field(default=4 << 20, ge=1024, le=7 << 20)
    """A larger request body is refused with 413; the broker's largest message is the upper bound."""
    max_active_requests: int = Field(default=4096, ge=1)
    """Requests answered at once; more are refused with 503 and Retry-After."""
    max_unsent_bytes: int = Field(default=1 << 20, ge=4096)
    """A stream whose client leaves more than this unread is ended and its generation cancelled."""
