"""What the batch service is told. Variables are ``INFERBUS_BATCH_`` + the field's name."""

from datetime import timedelta
from pathlib import Path

from inferbus_objects.s3_settings import S3Settings
from inferbus_runtime.config import ServiceConfig
from inferbus_webhooks.signing import secret_of
from pydantic import Field, SecretStr, field_validator

from inferbus_batch.files import FileLimits
from inferbus_batch.jobs import JobLimits

PREFIX = "INFERBUS_BATCH_"


class Config(ServiceConfig):
    """The batch service, with all that several of them share by leases."""

    s3: S3Settings | None = None
    """Where the content of files is. None: in the object store of the bus."""
    max_file_bytes: int = Field(default=2 << 30, ge=1)
    """A file that comes as a whole and is larger is refused, 400 file_too_large; in parts it may have 8 GiB."""
    tenant_file_bytes: int | None = Field(default=None, ge=1)
    """Of all files and open uploads of a tenant; then 429 file_quota_exceeded until some are deleted. Unset: no end."""
    batch_file_retention: timedelta = Field(default=timedelta(days=30), ge=timedelta(hours=1))
    """Inputs of batches whose senders name no time are deleted after so long."""
    scratch_folder: Path | None = None
    """Inputs lie here while they are validated, in a folder under this one that is named after the process and emptied
    at its start; a full disk ends the job that needs it. Unset: a new folder in the system's place for such files."""
    max_batch_lines: int = Field(default=1_000_000, ge=1, le=1 << 28)
    """Of one batch; one that has more fails."""
    tenant_batches: int = Field(default=200, ge=1)
    """Of a tenant, that have not ended; then 429 batch_limit_exceeded."""
    batch_retention: timedelta = Field(default=timedelta(days=30), ge=timedelta(hours=1))
    """So long a batch is found after its end; its files have times of their own."""
    line_timeout: timedelta = Field(default=timedelta(minutes=30), ge=timedelta(minutes=1), le=timedelta(minutes=50))
    """A line that has waited and run for longer is asked again. The queue keeps a request for an hour."""
    webhook_secret: SecretStr | None = None
    """whsec_ and base64 of 24 to 64 bytes. Webhooks of batches are signed with what is made of it for each project, and
    its owner can read. None: no batch can have a webhook."""
    webhook_anywhere: bool = False
    """Tenants choose the URLs of webhooks: without this they lead to public addresses alone, and not into a network
    that this service happens to be in."""
    lease_ttl: timedelta = Field(default=timedelta(seconds=6), ge=timedelta(seconds=2), le=timedelta(minutes=1))
    """After a batch service was killed, another one goes on with its jobs this much later. Whole seconds."""

    @field_validator("webhook_secret")
    @classmethod
    def _signs(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            secret_of(secret.get_secret_value())
        return secret

    @property
    def jobs(self) -> JobLimits:
        return JobLimits(
            active=self.tenant_batches,
            retention=self.batch_retention,
            webhooks=self.webhook_secret is not None,
            webhooks_anywhere=self.webhook_anywhere,
        )

    @property
    def files(self) -> FileLimits:
        return FileLimits(
            file_bytes=self.max_file_bytes,
            tenant_bytes=self.tenant_file_bytes,
            batch_expire_after=self.batch_file_retention,
        )
