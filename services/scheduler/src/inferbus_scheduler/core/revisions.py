"""What a revision must be like, and where it may be moved by hand."""

import re
from collections.abc import Mapping

from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage

from inferbus_scheduler.core.deployments import MAX_NAME, Fault
from inferbus_scheduler.core.request import base_of

DRAFT = RevisionStage.REVISION_STAGE_DRAFT
DEPRECATED = RevisionStage.REVISION_STAGE_DEPRECATED
RETIRED = RevisionStage.REVISION_STAGE_RETIRED
BY_HAND: Mapping[int, frozenset[int]] = {
    DRAFT: frozenset({RETIRED}),
    DEPRECATED: frozenset({DRAFT, RETIRED}),
    RETIRED: frozenset(),
}
"""Rollouts make a revision CANARY, STABLE and DEPRECATED; whatever one of those serves is moved by none but them."""
MAX_ARTIFACTS = 4096
MAX_SETTINGS = 256
_MAX_VALUE = 4096
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_SETTING = re.compile(r"[A-Z][A-Z0-9_]{0,127}")
_ENGINES = frozenset(("llama_cpp", "minilm", "openai", "synthetic", "tensorrt_llm", "transformers", "triton"))
# Who a worker is and where it stands is no part of what it serves; and what opens doors is stored with no revision.
_NOT_OURS = frozenset(("NAME", "MODEL", "REVISION", "ENGINE", "MODEL_CACHE", "NODE", "ZONE", "DIE_WITH_PARENT"))
_NOT_OURS_FROM = (
    "NATS_", "GRPC_", "RPC_", "READY_", "TLS_", "METRICS_", "DRAIN_", "LOG_", "OTLP_", "OTEL_", "GPU__", "ARTIFACTS_",
)  # fmt: skip
_SECRET = ("KEY", "SEED", "TOKEN", "PASSWORD", "SECRET")


def fault_of(record: RevisionRecord) -> Fault | None:
    """Why it cannot be made; None: it can."""
    if not record.model or len(record.model) > MAX_NAME or record.model != base_of(record.model):
        return Fault("model", f"Name a model, of at most {MAX_NAME} characters and without an adapter.")
    if not _REVISION.fullmatch(record.revision):
        return Fault("revision", "Name the revision with up to 128 of the characters A-Z a-z 0-9 . _ + and -.")
    if record.engine not in _ENGINES:
        return Fault("engine", f"'engine' is one of {', '.join(sorted(_ENGINES))}.")
    return _settings_fault(record.settings) or _artifacts_fault(record)


def _settings_fault(settings: Mapping[str, str]) -> Fault | None:
    if len(settings) > MAX_SETTINGS or any(len(value) > _MAX_VALUE for value in settings.values()):
        return Fault("settings", f"'settings' has at most {MAX_SETTINGS} values of up to {_MAX_VALUE} characters.")
    for name in settings:
        if not _SETTING.fullmatch(name) or name in _NOT_OURS or name.startswith(_NOT_OURS_FROM):
            return Fault("settings", f"'{name[:64]}' is no setting of what a worker serves.")
        if name.rpartition("_")[2] in _SECRET:
            return Fault("settings", f"'{name[:64]}' is a secret: set it in the worker's own environment.")
    return None


def _artifacts_fault(record: RevisionRecord) -> Fault | None:
    names = [artifact.name for artifact in record.artifacts]
    if len(names) > MAX_ARTIFACTS or len(set(names)) < len(names):
        return Fault("artifacts", f"'artifacts' has at most {MAX_ARTIFACTS} files, each name once.")
    for artifact in record.artifacts:
        parts = artifact.name.split("/")
        if not artifact.name or len(artifact.name) > _MAX_VALUE or any(part in ("", ".", "..") for part in parts):
            return Fault("artifacts", "The name of an artifact is a path below the revision's folder, without '..'.")
        if len(artifact.sha256) != 32:
            return Fault("artifacts", f"'{artifact.name[:64]}' needs its SHA-256, of 32 bytes.")
    return None


def same(one: RevisionRecord, other: RevisionRecord) -> bool:
    """Whether both are the same build, wherever they stand."""
    left, right = RevisionRecord(), RevisionRecord()
    for made, record in ((left, one), (right, other)):
        made.CopyFrom(record)
        for name in ("stage", "create_time", "update_time"):
            made.ClearField(name)
    return left == right


def why_not_served(record: RevisionRecord) -> str:
    """Why no rollout may begin with it; empty: one may."""
    if record.stage == RETIRED:
        return "It is retired."
    if record.HasField("validation") and not record.validation.passed:
        failed = ", ".join(figure.name for figure in record.validation.figures if not figure.passed)
        return f"It failed its validation ({failed or 'see its report'})."
    return ""
