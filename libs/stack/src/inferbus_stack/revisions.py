"""What a worker of a registered revision is started with."""

from collections.abc import Iterable, Mapping

from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage

_PREFIX = "INFERBUS_WORKER_"
# What an operator has set for the stack's own model says nothing of another one.
_OF_A_MODEL = ("MODEL", "REVISION", "ENGINE", "CAPACITY", "CONTEXT_LENGTH", "MAX_ENGINE_RESTARTS")
_OF_ENGINES = ("ENGINE_", "LLAMA_CPP__", "SYNTHETIC__", "OPENAI__", "TRITON__", "TENSORRT_LLM__", "TRANSFORMERS__")


def stable(records: Iterable[RevisionRecord], model: str) -> RevisionRecord | None:
    """The one that a worker of ``model`` is started from where nobody names one: of several stable ones the last."""
    found = [
        one for one in records if one.model == model and one.stage == RevisionStage.REVISION_STAGE_STABLE
    ]  # fmt: skip
    return max(found, key=lambda one: (one.update_time.ToNanoseconds(), one.revision), default=None)


def settings_of(record: RevisionRecord) -> dict[str, str]:
    """Variables without their prefix: the worker reads the rest of the record itself."""
    return {"MODEL": record.model, "REVISION": record.revision}


def machine_only(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what was set for the workers of one model."""
    return {name: value for name, value in environ.items() if not _of_a_model(name)}


def _of_a_model(name: str) -> bool:
    own = name.removeprefix(_PREFIX)
    return own != name and (own in _OF_A_MODEL or own.startswith(_OF_ENGINES))
