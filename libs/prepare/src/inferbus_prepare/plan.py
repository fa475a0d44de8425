"""What is to be prepared, and the record that comes of it. Pure but for the sizes of files."""

from dataclasses import dataclass, field
from pathlib import Path

from inferbus.bus.v1.revision_pb2 import Artifact, RevisionRecord, Validation

from inferbus_prepare.header import Header
from inferbus_prepare.preparing import KeptFile
from inferbus_prepare.validation import Thresholds
from inferbus_prepare.workload import Workload

# The file as it is, made elsewhere.
AS_IS = "as_is"
ENGINE = "llama_cpp"
MODEL_FILE, TEMPLATE_FILE = "model.gguf", "chat_template.jinja"
# What a worker has without a setting: INFERBUS_WORKER_LLAMA_CPP__KV_TOKENS, in F32.
DEFAULT_KV_TOKENS = 16_384


@dataclass(frozen=True, slots=True)
class Plan:
    """``precision``: of quantize.PRECISIONS, or AS_IS. ``reference``: a precision that ``source`` is brought to, or a
    file. ``revision``, ``derived_from``: empty for ``<precision>-<digest>`` of the file and of the reference."""

    model: str
    source: Path
    precision: str
    reference: str | Path = "f16"
    revision: str = ""
    derived_from: str = ""
    chat_template: Path | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    workload: Workload = field(default_factory=Workload)


def revision_name(precision: str, sha256: str) -> str:
    return f"{precision}-{sha256[:8]}"


def record_of(
    plan: Plan, files: tuple[KeptFile, ...], header: Header, source: str, derived_from: str, validation: Validation
) -> RevisionRecord:
    """As POST /inferbus/v1/revisions takes it. ``files``: the model first, then its template if it has one."""
    model = files[0]
    precision = plan.precision if plan.precision != AS_IS else _most(header)
    settings = {"LLAMA_CPP__WEIGHTS": f"{{artifacts}}/{MODEL_FILE}"}
    if len(files) > 1:
        settings["LLAMA_CPP__CHAT_TEMPLATE"] = f"{{artifacts}}/{TEMPLATE_FILE}"
    revision = plan.revision or revision_name(precision, model.sha256)
    return RevisionRecord(
        model=plan.model,
        revision=revision,
        engine=ENGINE,
        settings=settings,
        artifacts=[
            Artifact(name=one.name, sha256=bytes.fromhex(one.sha256), size_bytes=one.size_bytes) for one in files
        ],
        precision=precision,
        memory_bytes=model.size_bytes + header.kv_bytes_per_token() * DEFAULT_KV_TOKENS,
        validation=validation,
        source=source,
        derived_from="" if derived_from == revision else derived_from,
    )


def _most(header: Header) -> str:
    """The type of most of its bytes."""
    sizes: dict[str, int] = {}
    for tensor in header.tensors:
        name = tensor.kind.name.lower()
        sizes[name] = sizes.get(name, 0) + tensor.size_bytes
    return max(sizes, key=lambda name: sizes[name])
