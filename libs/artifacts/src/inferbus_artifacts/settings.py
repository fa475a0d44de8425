"""Where artifacts are, if not on the bus."""

from inferbus_objects.s3_settings import S3Settings
from inferbus_runtime.config import Section
from pydantic import Field


class ArtifactsS3(S3Settings):
    """As any bucket, with a prefix of its own: it may be the one that other content is in, too."""

    prefix: str = Field(default="artifacts", pattern=r"^([^/\s]+(/[^/\s]+)*)?$")
    """Goes before all names. Empty: none."""


class ArtifactsSettings(Section):
    """Where a process finds artifacts."""

    s3: ArtifactsS3 | None = None
    """Bucket of an S3-compatible store; unset: the bus keeps them (`OBJ_artifacts`)."""
