"""All that an edge can be told."""

from datetime import timedelta
from pathlib import Path

from inferbus_bus.user_jwt import Issuer
from inferbus_runtime.config import ADDRESS, ServiceConfig, together
from inferbus_runtime.tls import TlsFiles
from pydantic import Field, SecretStr, ValidationInfo, field_validator

from inferbus_edge.core.lifetimes import LEAST_ORPHAN_SECONDS
from inferbus_edge.cors import cors_of

_ONE = ADDRESS[1:-1]


class Config(ServiceConfig):
    http_host: str = Field(default="127.0.0.1", min_length=1)
    """Address that clients reach; 0.0.0.0 for all of the machine's."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port of the public API; 0 takes a free one, which the ready file names."""
    http_tls_cert: Path | None = None
    """PEM certificate, with its chain, that clients see: the public API is HTTPS and nothing else. Unset: HTTP."""
    http_tls_key: Path | None = None
    """PEM private key of it, not encrypted. Read at the start: a renewed one counts from the restart on."""
    inference_grpc_address: str | None = Field(default=None, pattern=ADDRESS)
    """host:port of the Open Inference Protocol's gRPC, for clients with keys, under HTTP_TLS's certificate if that is
    set; port 0 takes a free one. Unset: that protocol is served over HTTP only."""
    scheduler_address: str | None = Field(default=None, pattern=rf"^{_ONE}(,{_ONE})*$")
    """host:port of the schedulers' gRPC APIs, comma-separated: those that are away are passed over. For the fleet, for
    draining and deployments; unset: these answer 503."""
    meter_address: str | None = Field(default=None, pattern=ADDRESS)
    """host:port of the meter's gRPC API, for usage and audit; unset: these answer 503."""
    batch_address: str | None = Field(default=None, pattern=rf"^{_ONE}(,{_ONE})*$")
    """host:port of the batch services' gRPC APIs, comma-separated: those that are away are passed over. For files,
    uploads and batches; unset: these answer 503."""
    bus_issuer_seed: SecretStr | None = None
    """nkey seed of the account in whose name the broker is told who a client with an API key is: straight onto the
    queue. The same at all edges, and its public half in the broker's configuration. Unset: HTTP and gRPC only."""
    queue_session: timedelta = Field(default=timedelta(hours=1), ge=timedelta(seconds=10), le=timedelta(days=7))
    """A client on the queue is cut off after so long, and its key judged again when it comes back."""
    request_timeout: timedelta = Field(default=timedelta(minutes=10), gt=timedelta(0))
    """A request that has not ended by then is cancelled: 504, or an error event in a running stream."""
    background_timeout: timedelta = Field(default=timedelta(hours=1), gt=timedelta(0))
    """The same for a response that runs without a client."""
    max_hold: timedelta = Field(default=timedelta(minutes=10), ge=timedelta(0))
    """The longest that a request or a tenant may ask its generation to go on for a client that has vanished."""
    idempotent_hold: timedelta = Field(default=timedelta(minutes=1), ge=timedelta(0))
    """How long it goes on for a request with an Idempotency-Key, which says that its client will come again."""
    orphan_hold: timedelta = Field(default=timedelta(seconds=30), ge=timedelta(seconds=LEAST_ORPHAN_SECONDS))
    """After a restart: how long a generation that the edge does not know goes on, until its client is back. At least
    4s: other edges say every 2 s what they deliver, and what it has not heard of by then it cancels."""
    idempotency_retention: timedelta = Field(default=timedelta(hours=24), ge=timedelta(seconds=1))
    """How long an Idempotency-Key stands for its first request."""
    response_retention: timedelta = Field(default=timedelta(days=30), ge=timedelta(seconds=1))
    """How long a stored response is found by its id."""
    keepalive_interval: timedelta = Field(default=timedelta(seconds=15), ge=timedelta(milliseconds=50))
    """A stream silent for so long gets a comment line, so that no proxy cuts it."""
    body_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """A request body that has not arrived by then is refused with 408."""
    idle_timeout: timedelta = Field(default=timedelta(seconds=75), ge=timedelta(milliseconds=100))
    """A connection on which no whole request head has come for so long is closed: idle, or one byte at a time."""
    unread_timeout: timedelta = Field(default=timedelta(minutes=2), ge=timedelta(milliseconds=100))
    """A connection whose client takes nothing of what was sent for so long is ended (on Linux)."""
    max_body_bytes: int = Field(default=4 << 20, ge=1024, le=7 << 20)
    """A larger request body is refused with 413; the broker's largest message is the upper bound."""
    max_active_requests: int = Field(default=4096, ge=1)
    """Requests answered at once; more are refused with 503 and Retry-After."""
    max_changes_per_minute: int = Field(default=120, ge=1)
    """Changes that one tenant's administrators make, at all edges; more are 429. Revoking and deleting never are."""
    max_reports: int = Field(default=4, ge=1)
    """Reports of one tenant at once, at all edges: usage, costs, analytics, requests, invoices; more are 429."""
    max_operator_reports: int = Field(default=16, ge=1)
    """The same of all operators together, exports included."""
    max_unsent_bytes: int = Field(default=1 << 20, ge=4096)
    """A stream whose client leaves more than this unread is ended and its generation cancelled."""

    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may call the API from a browser, as JSON (["https://app.example"]); "*" for any."""

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        cors_of(origins)
        return origins

    @field_validator("bus_issuer_seed")
    @classmethod
    def _is_issuer(cls, seed: SecretStr | None) -> SecretStr | None:
        if seed is not None:
            Issuer(seed.get_secret_value())
        return seed

    @field_validator("http_tls_key")
    @classmethod
    def _whole_http_tls(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        return together(key, info, "http_tls_cert")

    @property
    def bus_issuer(self) -> Issuer | None:
        """None: nobody comes straight onto the queue."""
        return None if self.bus_issuer_seed is None else Issuer(self.bus_issuer_seed.get_secret_value())

    @property
    def scheduler_addresses(self) -> tuple[str, ...]:
        return tuple(self.scheduler_address.split(",")) if self.scheduler_address else ()

    @property
    def batch_addresses(self) -> tuple[str, ...]:
        return tuple(self.batch_address.split(",")) if self.batch_address else ()

    @property
    def http_tls(self) -> TlsFiles | None:
        """What clients of the public API see; None: plain text."""
        if self.http_tls_cert is None or self.http_tls_key is None:
            return None
        return TlsFiles(self.http_tls_cert, self.http_tls_key)
