"""What the meter is told. Variables are ``INFERBUS_METER_`` + the field's name."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from inferbus_runtime.config import ServiceConfig
from inferbus_webhooks.signing import secret_of
from pydantic import Field, SecretStr, ValidationInfo, field_validator

PREFIX = "INFERBUS_METER_"


class Config(ServiceConfig):
    """Meter, and ``python -m inferbus_meter.migrate`` (which needs the user that may create tables)."""

    name: str = Field(default="meter", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")
    """Names this process in logs, on the bus and in its claims; two meters that run at once never share one."""
    clickhouse_url: str = Field(default="http://127.0.0.1:8123", pattern=r"^https?://")
    """ClickHouse's HTTP interface. While it is away frames wait in the stream, and are inserted when it is back."""
    clickhouse_user: str = "default"
    """Needs SELECT and INSERT on the database; for the migrations CREATE as well."""
    clickhouse_password: SecretStr = SecretStr("")
    """Empty: none."""
    clickhouse_read_user: str = ""
    """Asks what reports, requests and analytics show; needs SELECT only. Empty: the user above, who also stores."""
    clickhouse_read_password: SecretStr = SecretStr("")
    """Empty: none."""
    clickhouse_repair_user: str = ""
    """For a replay: may also create, delete and attach in the database. Empty: a replay is refused."""
    clickhouse_repair_password: SecretStr = SecretStr("")
    """Empty: none."""
    clickhouse_capture_writer: str = ""
    """Inserts text of requests whose tenants asked for it, and does nothing else. Empty: none is kept. If the store
    refuses him, the ingest waits, of bills too."""
    clickhouse_capture_writer_password: SecretStr = SecretStr("")
    """Empty: none."""
    clickhouse_capture_reader: str = ""
    """Reads that text, and nothing else. Empty: it is shown to nobody."""
    clickhouse_capture_reader_password: SecretStr = SecretStr("")
    """Empty: none."""
    clickhouse_database: str = Field(default="inferbus", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Holds all tables of the platform; the migrations create it."""
    clickhouse_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """A call that takes longer has failed; an insert is then tried again."""
    flush_tokens: int = Field(default=100_000, ge=1, le=500_000)
    """One insert has about this many tokens; it is one block of the store, so it must stay below a million rows."""
    flush_interval: timedelta = Field(default=timedelta(seconds=1), gt=timedelta(0))
    """What is there is inserted this often, however small; an insert costs the store some 10 ms whatever its size."""
    gpu_hour_price: Decimal | None = Field(default=None, ge=0)
    """What a GPU costs you by the hour, for the margin's report; absent: it says nothing of it."""
    kwh_price: Decimal | None = Field(default=None, ge=0)
    """What a kWh costs you, for the margin's report; absent: it says nothing of it."""
    cost_currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    """Of both. Revenue in other currencies is shown and not counted in the margin."""
    gpus_per_worker: int = Field(default=1, ge=0)
    """How many GPUs a worker holds that names none itself (no NVIDIA driver)."""
    retention_tokens: timedelta = Field(default=timedelta(days=30), ge=timedelta(0))
    """Rows of single tokens are dropped after so many days, at least 4 (the log's 3, and the audit's); 0: never."""
    retention_requests: timedelta = Field(default=timedelta(days=396), ge=timedelta(0))
    """Requests with their charges; at least 62 days, so that a month is invoiced and summed before; 0: never."""
    retention_deliveries: timedelta = Field(default=timedelta(days=90), ge=timedelta(0))
    """What edges said that they delivered; at least 4 days; 0: never."""
    retention_captures: timedelta = Field(default=timedelta(days=30), ge=timedelta(days=1))
    """Text of requests whose tenants asked for it to be kept; whole days, and never for ever."""
    lease_ttl: timedelta = Field(default=timedelta(seconds=6), ge=timedelta(seconds=2))
    """A meter that shows no sign of life for this long is taken for dead, and another does what it had begun."""
    webhook_secret: SecretStr | None = None
    """whsec_ and base64 of 24 to 64 bytes: signs webhooks of budgets. None: no budget can have a webhook."""
    dead_edge_delay: timedelta = Field(default=timedelta(minutes=10), ge=timedelta(seconds=1))
    """What an edge was granted of budgets stays taken for so long after its last sign of life, at least: retries of its
    requests under idempotency keys may still publish them."""
    invoice_font: Path | None = None
    """A TrueType file that PDFs of invoices are set in, put into them. None: Helvetica, in which what Western European
    languages do not need is a question mark."""
    invoice_font_bold: Path | None = None
    """The same for what is bold. None: as invoice_font."""

    @field_validator("webhook_secret")
    @classmethod
    def _signs(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secret_of(secret.get_secret_value())
        return secret

    @field_validator("retention_captures")
    @classmethod
    def _is_whole_days(cls, keep: timedelta) -> timedelta:
        if keep % timedelta(days=1):
            raise ValueError("a whole number of days")
        return keep

    @field_validator("retention_tokens", "retention_requests", "retention_deliveries")
    @classmethod
    def _is_kept_long_enough(cls, keep: timedelta, info: ValidationInfo) -> timedelta:
        least = timedelta(days=62 if info.field_name == "retention_requests" else 4)
        if keep and (keep < least or keep % timedelta(days=1)):
            raise ValueError(f"a whole number of days, {least.days} at least, or 0 for ever")
        return keep
