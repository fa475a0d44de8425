"""From a Hugging Face checkpoint to a validated revision for TensorRT-LLM, step by step; each is done once."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from inferbus.bus.v1.revision_pb2 import Artifact, RevisionRecord, Validation
from inferbus_runtime import clock
from inferbus_sizing.configuration import architecture_of
from inferbus_sizing.errors import SizingError

from inferbus_prepare.errors import EngineError, PrepareError
from inferbus_prepare.modelopt import FORMATS, Calibration, Optimizer, config_of, fault_of_checkpoint
from inferbus_prepare.plan import DEFAULT_KV_TOKENS, revision_name
from inferbus_prepare.preparing import (
    KeptFile,
    Prepared,
    Preparing,
    Progress,
    damaged,
    identity,
    read_measured,
    sha256_of,
)  # fmt: skip
from inferbus_prepare.validation import Side, Thresholds, compare, sound, verdict
from inferbus_prepare.work import Work, write_whole
from inferbus_prepare.workload import Workload

# In this order; what a step is called in progress and in state.json.
STEPS = ("check source", "measure reference", "quantize", "judge")
ENGINE = "tensorrt_llm"
_MEASURED = ("reference.json", "candidate.json")
_WEIGHTS = ".safetensors"
_KV_BYTES = 2  # FP16 or BF16, which TensorRT-LLM takes where nothing else is asked for
_SHORT = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}


@dataclass(frozen=True, slots=True)
class CheckpointPlan:
    """``source``: a folder. ``precision``: of modelopt.FORMATS. ``python``: the one that has Model Optimizer.
    ``revision``, ``derived_from``: empty for ``<precision>-<digest>`` of what was made and of the source."""

    model: str
    source: Path
    precision: str
    python: Path
    calibration: Calibration = field(default_factory=Calibration)
    revision: str = ""
    derived_from: str = ""
    thresholds: Thresholds = field(default_factory=Thresholds)
    workload: Workload = field(default_factory=Workload)


def prepare_checkpoint(plan: CheckpointPlan, work: Work, progress: Progress = lambda step, part: None) -> Prepared:
    """All steps on this machine. Blocks for minutes to hours.

    A damaged checkpoint, one that is too coarse, and one that cannot be written in the format are answers: their
    validation says so. Raises PrepareError where there is nothing to judge: Model Optimizer is not there, or refuses.
    """
    if plan.precision not in FORMATS:
        raise PrepareError(f"{plan.precision!r} is no format of Model Optimizer's: {', '.join(FORMATS)}")
    return _Preparing(plan, work, progress).run()


class _Preparing(Preparing):
    def __init__(self, plan: CheckpointPlan, work: Work, progress: Progress) -> None:
        super().__init__(work, progress)
        self._plan = plan
        self._optimizer = Optimizer(plan.python, plan.workload, plan.calibration)
        self._made = work.folder / plan.precision

    def run(self) -> Prepared:
        plan = self._plan
        source = self.step("check source", _identities(plan.source), lambda: _checked(plan.source))
        if source["fault"]:
            return damaged(source["fault"])
        if "quantization_config" in (config_of(plan.source) or {}):
            raise PrepareError(f"{plan.source.name} is quantized already: a revision is made of the original")
        if fault := self._optimizer.fault():
            raise PrepareError(fault)
        reference, candidate = (self.work.folder / name for name in _MEASURED)
        same = [source["sha256"], asdict(plan.workload)]
        first = self.step("measure reference", same, lambda: self._measure(reference), (reference,))
        own = [*same, plan.precision, asdict(plan.calibration)]
        second = self.step("quantize", own, lambda: self._quantize(candidate), (candidate, self._made))
        took = first["seconds"] + second["seconds"]
        key = [own, second["kept"]["sha256"], asdict(plan.thresholds)]
        judged = self.step("judge", key, lambda: self._judged(source, second, took))
        return self._prepared(source, second["kept"], ParseDict(judged, Validation()))

    def _measure(self, target: Path) -> dict[str, Any]:
        started = clock.monotonic()
        try:
            measured = self._optimizer.measure(self._plan.source, partial(self.progress, "measure reference"))
        except EngineError as error:
            raise PrepareError(f"the reference does not run: {error}") from None
        write_whole(target, json.dumps(measured.as_dict()))
        return {"seconds": clock.monotonic() - started}

    def _quantize(self, target: Path) -> dict[str, Any]:
        plan, started = self._plan, clock.monotonic()
        told = partial(self.progress, "quantize")
        measured, fault = self._optimizer.quantize(plan.source, plan.precision, self._made, told)
        write_whole(target, json.dumps(measured.as_dict()))
        kept = _NOTHING if fault else _checked(self._made)
        return {"fault": fault or kept["fault"], "kept": kept, "seconds": clock.monotonic() - started}

    def _judged(self, source: dict[str, Any], second: dict[str, Any], took: float) -> dict[str, Any]:
        one, other = (read_measured(self.work.folder / name) for name in _MEASURED)
        figures = [sound("structure", None), sound("exports", second["fault"])]
        sides = Side(one, source["weights"]), Side(other, second["kept"]["weights"])
        figures += [
            each for each in compare(*sides, self._plan.thresholds) if each.name != "size_ratio" or not second["fault"]
        ]
        told = f"{self._reference(source)} ({self._plan.source.name}, sha256 {source['sha256']})"
        return MessageToDict(
            verdict(figures, told, clock.now(), timedelta(seconds=took)), preserving_proto_field_name=True
        )

    def _reference(self, source: dict[str, Any]) -> str:
        config = config_of(self._plan.source) or {}
        wide = str(config.get("dtype") or config.get("torch_dtype") or "reference")
        return revision_name(_SHORT.get(wide, wide), source["sha256"])

    def _prepared(self, source: dict[str, Any], kept: dict[str, Any], validation: Validation) -> Prepared:
        plan = self._plan
        files = tuple(
            KeptFile(one["name"], self._made / one["name"], one["sha256"], one["size"]) for one in kept["files"]
        )
        if not files:
            return Prepared(validation, None, ())
        revision = plan.revision or revision_name(plan.precision, kept["sha256"])
        derived_from = plan.derived_from or self._reference(source)
        made_by = json.loads((self._made / "hf_quant_config.json").read_text()).get("producer", {})
        by = f"{made_by.get('name', 'Model Optimizer')} {made_by.get('version', '')}".strip()
        record = RevisionRecord(
            model=plan.model,
            revision=revision,
            engine=ENGINE,
            settings={"TENSORRT_LLM__MODEL_PATH": "{artifacts}"},
            artifacts=[
                Artifact(name=one.name, sha256=bytes.fromhex(one.sha256), size_bytes=one.size_bytes) for one in files
            ],
            precision=plan.precision,
            memory_bytes=_memory(kept["weights"], config_of(plan.source) or {}),
            validation=validation,
            source=f"{plan.source.name}, sha256 {source['sha256']}, to {plan.precision} by {by}",
            derived_from="" if derived_from == revision else derived_from,
        )
        return self.reported(record, files)


_NOTHING: Mapping[str, Any] = {"fault": "", "sha256": "", "files": [], "weights": 0}


def _identities(folder: Path) -> list[Any]:
    """Raises PrepareError if it cannot be read."""
    return [identity(path) for path in _files(folder)] or identity(folder)


def _files(folder: Path) -> list[Path]:
    """Of the folder itself: what lies deeper is read by no engine."""
    return sorted(path for path in folder.glob("*") if path.is_file())


def _checked(folder: Path) -> dict[str, Any]:
    """Its digest is that of its files' digests and names, as ``sha256sum`` writes them."""
    paths = _files(folder)
    sizes = {path.name: path.stat().st_size for path in paths}
    digests = {path.name: sha256_of(path) for path in paths}
    listed = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return {
        "fault": fault_of_checkpoint(folder) or "",
        "sha256": hashlib.sha256(listed.encode()).hexdigest(),
        "files": [{"name": name, "sha256": digest, "size": sizes[name]} for name, digest in digests.items()],
        "weights": sum(size for name, size in sizes.items() if name.endswith(_WEIGHTS)),
    }


def _memory(weights: int, config: dict[str, Any]) -> int:
    """Weights and the KV cache of DEFAULT_KV_TOKENS, in bytes; 0, which is "not told", of a shape that is not known."""
    try:
        return weights + architecture_of(config).kv_elements_per_token * _KV_BYTES * DEFAULT_KV_TOKENS
    except SizingError:
        return 0
