"""Where an S3-compatible store is, and who we are there."""

from datetime import timedelta
from pathlib import Path

from inferbus_runtime.config import Section
from pydantic import Field, SecretStr, ValidationInfo, field_validator


class S3Settings(Section):
    """One bucket. It wants a lifecycle rule that aborts incomplete multipart uploads: those of a process that was
    killed cannot be seen as objects."""

    bucket: str = Field(min_length=3, max_length=63)
    """Must be there: it is not created. What is named as content is, and is none of this installation, is removed: two
    of them need prefixes of their own."""
    prefix: str = Field(default="", pattern=r"^([^/\s]+(/[^/\s]+)*)?$")
    """Goes before all names, for a bucket that holds other things, too. Empty: none."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^\s/]+$")
    """The store's address; http:// sends content and names in plain text. Unset: AWS_ENDPOINT_URL, else AWS itself."""
    region: str = Field(default="us-east-1", min_length=1)
    """What requests are signed for; many stores other than AWS take any."""
    bucket_in_host: bool = False
    """The bucket is a part of the host name and not of the path, as AWS prefers it."""
    access_key_id: str | None = None
    """Unset: AWS_ACCESS_KEY_ID and its like, else what the machine or its Kubernetes account is given."""
    secret_access_key: SecretStr | None = None
    """Of that key."""
    ca: Path | None = None
    """PEM certificate of the authority that signed the store's, beside the system's. Read at the start."""
    silence: timedelta = Field(default=timedelta(seconds=60), ge=timedelta(seconds=1))
    """A request has failed when nothing came back for so long: it must be enough to send 8 MiB."""
    retry_for: timedelta = Field(default=timedelta(seconds=10), ge=timedelta(0))
    """A request that failed is repeated for so long; then the store is away, and the caller is told so."""

    @field_validator("secret_access_key")
    @classmethod
    def _whole_key(cls, secret: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if (secret is None) != (info.data.get("access_key_id") is None):
            raise ValueError("set access_key_id and secret_access_key together, or neither")
        return secret
