"""Whether a worker may serve a revision, and what it is told by it."""

import re
from collections.abc import Mapping

from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage

ARTIFACTS = "{artifacts}"
# Both become names of folders.
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def why_not(record: RevisionRecord) -> str:
    """Why it is not to be served; empty: it may be."""
    if record.stage == RevisionStage.REVISION_STAGE_RETIRED:
        return "it is retired"
    if record.HasField("validation") and not record.validation.passed:
        failed = ", ".join(figure.name for figure in record.validation.figures if not figure.passed)
        return f"it failed its validation ({failed or 'no figure is named'})"
    if not _REVISION.fullmatch(record.revision):
        return "its name is none of a revision"
    for artifact in record.artifacts:
        if any(part in ("", ".", "..") for part in artifact.name.split("/")) or len(artifact.sha256) != 32:
            return f"its artifact {artifact.name!r} has no usable name or digest"
    if not record.artifacts and any(ARTIFACTS in value for value in record.settings.values()):
        return f"its settings name {ARTIFACTS}, and it has none"
    return ""


def placed(settings: Mapping[str, str], folder: str) -> dict[str, str]:
    """The settings with the folder of the artifacts where they name it."""
    return {name: value.replace(ARTIFACTS, folder) for name, value in settings.items()}
