"""What the meter is told. Variables are ``INFERBUS_METER_`` + the field's name."""

from datetime import timedelta

from inferbus_runtime.config import ServiceConfig
from pydantic import Field, SecretStr

PREFIX = "INFERBUS_METER_"


class Config(ServiceConfig):
    """Meter, and ``python -m inferbus_meter.migrate`` (which needs the user that may create tables)."""

    name: str = Field(default="meter", min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")
    """Names this process in logs, on the bus and as holder of the ingest's lease; two processes never share one."""
    clickhouse_url: str = Field(default="http://127.0.0.1:8123", pattern=r"^https?://")
    """ClickHouse's HTTP interface. While it is away frames wait in the stream, and are inserted when it is back."""
    clickhouse_user: str = "default"
    """Needs SELECT and INSERT on the database; for the migrations CREATE as well."""
    clickhouse_password: SecretStr = SecretStr("")
    """Empty: none."""
    clickhouse_database: str = Field(default="inferbus", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Holds all tables of the platform; the migrations create it."""
    clickhouse_timeout: timedelta = Field(default=timedelta(seconds=30), gt=timedelta(0))
    """A call that takes longer has failed; an insert is then tried again."""
    flush_tokens: int = Field(default=100_000, ge=1, le=500_000)
    """A batch is inserted when it has this many tokens (and is one block, so it must stay below a million rows)."""
    flush_interval: timedelta = Field(default=timedelta(seconds=1), gt=timedelta(0))
    """A batch is inserted at this age, however small; an insert costs the store some 10 ms whatever its size."""
    lease_ttl: timedelta = Field(default=timedelta(seconds=6), ge=timedelta(seconds=2))
    """After a meter was killed, another one ingests after at most this long."""
