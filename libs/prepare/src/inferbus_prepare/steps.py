"""From a GGUF file to a validated revision, step by step; each is done once, whatever is killed between."""

import json
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from inferbus.bus.v1.revision_pb2 import Validation
from inferbus_runtime import clock

from inferbus_prepare.errors import EngineError, PrepareError
from inferbus_prepare.gguf_file import fault_of
from inferbus_prepare.header import read_header
from inferbus_prepare.measuring import measure
from inferbus_prepare.plan import AS_IS, MODEL_FILE, TEMPLATE_FILE, Plan, record_of, revision_name
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
from inferbus_prepare.quantize import PRECISIONS, is_already, quantize
from inferbus_prepare.validation import Side, compare, sound, verdict
from inferbus_prepare.work import Work, write_whole

# In this order; what a step is called in progress and in state.json.
STEPS = ("check source", "make reference", "quantize", "hash", "measure reference", "measure candidate", "judge")


def prepare(plan: Plan, work: Work, progress: Progress = lambda step, part: None) -> Prepared:
    """All steps on this machine. Blocks for minutes.

    A damaged file, one that the engine dies of, and one that is too coarse are answers: their validation says so.
    Raises PrepareError where there is nothing to judge: the reference itself is damaged or does not run.
    """
    if plan.precision != AS_IS and plan.precision not in PRECISIONS:
        raise PrepareError(f"{plan.precision!r} is no precision: {', '.join(PRECISIONS)}")
    return _Preparing(plan, work, progress).run()


class _Preparing(Preparing):
    def __init__(self, plan: Plan, work: Work, progress: Progress) -> None:
        super().__init__(work, progress)
        self._plan = plan

    def run(self) -> Prepared:
        plan = self._plan
        source = self.step("check source", identity(plan.source), lambda: _checked(plan.source))
        if source["fault"]:
            return damaged(source["fault"])
        reference = self._reference(source)
        candidate = self._candidate(source)
        kept = self.step("hash", [candidate[0], identity(candidate[1])], lambda: _checked(candidate[1]))
        if kept["fault"]:
            return damaged(kept["fault"])
        files = (KeptFile(MODEL_FILE, candidate[1], kept["sha256"], kept["size"]), *self._template())
        same = [reference["sha256"], asdict(plan.workload)]
        first = self._measured("measure reference", same, Path(reference["path"]), "reference.json")
        if first["error"]:
            raise PrepareError(f"the reference does not run: {first['error']}")
        own = [kept["sha256"], asdict(plan.workload)]
        second = self._measured("measure candidate", own, candidate[1], "candidate.json")
        sizes = (reference["size"], kept["size"])
        judged = self.step(
            "judge", [same, own, asdict(plan.thresholds)], lambda: self._judged(reference, first, second, sizes)
        )
        validation = ParseDict(judged, Validation())
        return self._prepared(source, reference["revision"], files, validation)

    def _reference(self, source: dict[str, Any]) -> dict[str, Any]:
        """{path, sha256, size, revision}. Raises PrepareError if it is damaged."""
        wanted = self._plan.reference
        if isinstance(wanted, Path):
            return self.step("make reference", identity(wanted), lambda: _reference_of(wanted, ""))  # type: ignore[no-any-return]
        target = self.work.folder / f"reference-{wanted}.gguf"
        run = partial(self._make_reference, wanted, target)
        copied = is_already(read_header(self._plan.source), wanted)
        return self.step(  # type: ignore[no-any-return]
            "make reference", [source["sha256"], wanted], run, () if copied else (target,)
        )

    def _make_reference(self, precision: str, target: Path) -> dict[str, Any]:
        if is_already(read_header(self._plan.source), precision):
            target = self._plan.source
        else:
            quantize(self._plan.source, target, precision, partial(self.progress, "make reference"))
        return _reference_of(target, precision)

    def _candidate(self, source: dict[str, Any]) -> tuple[list[Any], Path]:
        """(what it depends on, where it is)."""
        if self._plan.precision == AS_IS:
            return [source["sha256"], AS_IS], self._plan.source
        target = self.work.folder / f"{self._plan.precision}.gguf"
        key = [source["sha256"], self._plan.precision]
        told = partial(self.progress, "quantize")
        self.step("quantize", key, lambda: quantize(self._plan.source, target, self._plan.precision, told), (target,))
        return key, target

    def _template(self) -> tuple[KeptFile, ...]:
        path = self._plan.chat_template
        if path is None:
            return ()
        return (KeptFile(TEMPLATE_FILE, path, sha256_of(path), path.stat().st_size),)

    def _measured(self, step: str, key: list[Any], model: Path, name: str) -> dict[str, Any]:
        """{error, seconds}; what was measured lies in the file ``name`` unless there is an error."""
        target = self.work.folder / name
        told = partial(self.progress, step)

        def run() -> dict[str, Any]:
            started = clock.monotonic()
            try:
                measured = measure(model, self._plan.workload, told)
            except EngineError as error:
                write_whole(target, "{}")
                return {"error": str(error), "seconds": clock.monotonic() - started}
            write_whole(target, json.dumps(measured.as_dict()))
            return {"error": "", "seconds": clock.monotonic() - started}

        return self.step(step, key, run, (target,))  # type: ignore[no-any-return]

    def _judged(
        self, reference: dict[str, Any], first: dict[str, Any], second: dict[str, Any], sizes: tuple[int, int]
    ) -> dict[str, Any]:
        figures = [sound("structure", None), sound("runs", second["error"])]
        if not second["error"]:
            one, other = (read_measured(self.work.folder / name) for name in ("reference.json", "candidate.json"))
            figures += compare(Side(one, sizes[0]), Side(other, sizes[1]), self._plan.thresholds)
        took = timedelta(seconds=first["seconds"] + second["seconds"])
        told = f"{reference['revision']} ({Path(reference['path']).name}, sha256 {reference['sha256']})"
        made = verdict(figures, told, clock.now(), took)
        return MessageToDict(made, preserving_proto_field_name=True)

    def _prepared(
        self, source: dict[str, Any], reference: str, files: tuple[KeptFile, ...], validation: Validation
    ) -> Prepared:
        plan = self._plan
        made_by = "" if plan.precision == AS_IS else f", to {plan.precision} by gguf {version('gguf')}"
        told = f"{plan.source.name}, sha256 {source['sha256']}{made_by}"
        header = read_header(files[0].path)
        derived = "" if isinstance(plan.reference, Path) else reference
        record = record_of(plan, files, header, told, plan.derived_from or derived, validation)
        return self.reported(record, files)


def _checked(path: Path) -> dict[str, Any]:
    return {"fault": fault_of(path), "sha256": sha256_of(path), "size": path.stat().st_size}


def _reference_of(path: Path, precision: str) -> dict[str, Any]:
    checked = _checked(path)
    if checked["fault"]:
        raise PrepareError(f"the reference is damaged: {checked['fault']}")
    name = revision_name(precision or "reference", checked["sha256"])
    return {"path": str(path), "sha256": checked["sha256"], "size": checked["size"], "revision": name}
