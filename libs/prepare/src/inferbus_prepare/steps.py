"""From weights to a validated revision, step by step; each is done once, whatever is killed between."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from google.protobuf.json_format import MessageToDict, ParseDict
from inferbus.bus.v1.revision_pb2 import RevisionRecord, Validation
from inferbus_runtime import clock

from inferbus_prepare.errors import DamagedError, EngineError, PrepareError
from inferbus_prepare.gguf_file import fault_of
from inferbus_prepare.header import read_header
from inferbus_prepare.measured import Measured
from inferbus_prepare.measuring import measure
from inferbus_prepare.plan import AS_IS, MODEL_FILE, TEMPLATE_FILE, KeptFile, Plan, record_of, revision_name
from inferbus_prepare.quantize import PRECISIONS, is_already, quantize
from inferbus_prepare.validation import Side, compare, sound, verdict
from inferbus_prepare.work import Work, write_whole

# In this order; what a step is called in progress and in state.json.
STEPS = (
    *("check source", "make reference", "quantize", "hash", "measure reference", "measure candidate", "judge"),
    *("upload", "register"),
)
Progress = Callable[[str, float], None]


class Uploads(Protocol):
    """Where a revision's files go, by their digest."""

    async def put(self, path: Path, sha256: str) -> bool:
        """True: it was not there. Raises what the store raises."""
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """``record``: None where the file is damaged: none can be made of it. ``files``: of the record, in its order."""

    validation: Validation
    record: RevisionRecord | None
    files: tuple[KeptFile, ...]


def prepare(plan: Plan, work: Work, progress: Progress = lambda step, part: None) -> Prepared:
    """All steps on this machine. Blocks for minutes.

    A damaged file, one that the engine dies of, and one that is too coarse are answers: their validation says so.
    Raises PrepareError where there is nothing to judge: the reference itself is damaged or does not run.
    """
    if plan.precision != AS_IS and plan.precision not in PRECISIONS:
        raise PrepareError(f"{plan.precision!r} is no precision: {', '.join(PRECISIONS)}")
    return _Preparing(plan, work, progress).run()


async def publish(
    prepared: Prepared,
    uploads: Uploads,
    register: Callable[[RevisionRecord], None],
    progress: Progress = lambda step, part: None,
) -> None:
    """Files first, then the record: who sees it can have them. Both may be done again, and then change nothing.

    Raises DamagedError if a file is no longer the one that was measured, and what the store and ``register`` raise.
    """
    if prepared.record is None:
        raise PrepareError("there is no file to make a revision of")
    for number, file in enumerate(prepared.files):
        progress("upload", number / len(prepared.files))
        if _sha256(file.path) != file.sha256:
            raise DamagedError(f"{file.path} is no longer the file that was measured")
        await uploads.put(file.path, file.sha256)
    progress("upload", 1.0)
    register(prepared.record)
    progress("register", 1.0)


class _Preparing:
    def __init__(self, plan: Plan, work: Work, progress: Progress) -> None:
        self._plan = plan
        self._work = work
        self._progress = progress

    def run(self) -> Prepared:
        plan = self._plan
        source = self._step("check source", _identity(plan.source), lambda: _checked(plan.source))
        if source["fault"]:
            return self._damaged(source)
        reference = self._reference(source)
        candidate = self._candidate(source)
        kept = self._step("hash", [candidate[0], _identity(candidate[1])], lambda: _checked(candidate[1]))
        if kept["fault"]:
            return self._damaged(kept)
        files = (KeptFile(MODEL_FILE, candidate[1], kept["sha256"], kept["size"]), *self._template())
        same = [reference["sha256"], asdict(plan.workload)]
        first = self._measured("measure reference", same, Path(reference["path"]), "reference.json")
        if first["error"]:
            raise PrepareError(f"the reference does not run: {first['error']}")
        own = [kept["sha256"], asdict(plan.workload)]
        second = self._measured("measure candidate", own, candidate[1], "candidate.json")
        sizes = (reference["size"], kept["size"])
        judged = self._step(
            "judge", [same, own, asdict(plan.thresholds)], lambda: self._judged(reference, first, second, sizes)
        )
        validation = ParseDict(judged, Validation())
        return self._prepared(source, reference["revision"], files, validation)

    def _step(self, name: str, key: Any, run: Callable[[], Any], makes: tuple[Path, ...] = ()) -> Any:
        self._progress(name, 0.0)
        result = self._work.step(name, key, run, makes)
        self._progress(name, 1.0)
        return result

    def _reference(self, source: dict[str, Any]) -> dict[str, Any]:
        """{path, sha256, size, revision}. Raises PrepareError if it is damaged."""
        wanted = self._plan.reference
        if isinstance(wanted, Path):
            return self._step("make reference", _identity(wanted), lambda: _reference_of(wanted, ""))  # type: ignore[no-any-return]
        target = self._work.folder / f"reference-{wanted}.gguf"
        run = partial(self._make_reference, wanted, target)
        copied = is_already(read_header(self._plan.source), wanted)
        return self._step(  # type: ignore[no-any-return]
            "make reference", [source["sha256"], wanted], run, () if copied else (target,)
        )

    def _make_reference(self, precision: str, target: Path) -> dict[str, Any]:
        if is_already(read_header(self._plan.source), precision):
            target = self._plan.source
        else:
            quantize(self._plan.source, target, precision, partial(self._progress, "make reference"))
        return _reference_of(target, precision)

    def _candidate(self, source: dict[str, Any]) -> tuple[list[Any], Path]:
        """(what it depends on, where it is)."""
        if self._plan.precision == AS_IS:
            return [source["sha256"], AS_IS], self._plan.source
        target = self._work.folder / f"{self._plan.precision}.gguf"
        key = [source["sha256"], self._plan.precision]
        told = partial(self._progress, "quantize")
        self._step("quantize", key, lambda: quantize(self._plan.source, target, self._plan.precision, told), (target,))
        return key, target

    def _template(self) -> tuple[KeptFile, ...]:
        path = self._plan.chat_template
        if path is None:
            return ()
        return (KeptFile(TEMPLATE_FILE, path, _sha256(path), path.stat().st_size),)

    def _measured(self, step: str, key: list[Any], model: Path, name: str) -> dict[str, Any]:
        """{error, seconds}; what was measured lies in the file ``name`` unless there is an error."""
        target = self._work.folder / name
        told = partial(self._progress, step)

        def run() -> dict[str, Any]:
            started = clock.monotonic()
            try:
                measured = measure(model, self._plan.workload, told)
            except EngineError as error:
                write_whole(target, "{}")
                return {"error": str(error), "seconds": clock.monotonic() - started}
            write_whole(target, json.dumps(measured.as_dict()))
            return {"error": "", "seconds": clock.monotonic() - started}

        return self._step(step, key, run, (target,))  # type: ignore[no-any-return]

    def _judged(
        self, reference: dict[str, Any], first: dict[str, Any], second: dict[str, Any], sizes: tuple[int, int]
    ) -> dict[str, Any]:
        figures = [sound("structure", None), sound("runs", second["error"])]
        if not second["error"]:
            one, other = (_read_measured(self._work.folder / name) for name in ("reference.json", "candidate.json"))
            figures += compare(Side(one, sizes[0]), Side(other, sizes[1]), self._plan.thresholds)
        took = timedelta(seconds=first["seconds"] + second["seconds"])
        told = f"{reference['revision']} ({Path(reference['path']).name}, sha256 {reference['sha256']})"
        made = verdict(figures, told, clock.now(), took)
        return MessageToDict(made, preserving_proto_field_name=True)

    def _damaged(self, checked: dict[str, Any]) -> Prepared:
        figures = [sound("structure", checked["fault"])]
        return Prepared(verdict(figures, "", clock.now(), timedelta(0)), None, ())

    def _prepared(
        self, source: dict[str, Any], reference: str, files: tuple[KeptFile, ...], validation: Validation
    ) -> Prepared:
        plan = self._plan
        made_by = "" if plan.precision == AS_IS else f", to {plan.precision} by gguf {version('gguf')}"
        told = f"{plan.source.name}, sha256 {source['sha256']}{made_by}"
        header = read_header(files[0].path)
        derived = "" if isinstance(plan.reference, Path) else reference
        record = record_of(plan, files, header, told, plan.derived_from or derived, validation)
        text = json.dumps(MessageToDict(record, preserving_proto_field_name=True), indent=1)
        write_whole(self._work.folder / "report.json", text)
        return Prepared(validation, record, files)


def _identity(path: Path) -> list[Any]:
    """Another one for a file that was written since. Raises PrepareError if there is none."""
    try:
        stat = path.stat()
    except OSError as error:
        raise PrepareError(f"{path} cannot be read: {error.strerror}") from None
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _checked(path: Path) -> dict[str, Any]:
    return {"fault": fault_of(path), "sha256": _sha256(path), "size": path.stat().st_size}


def _reference_of(path: Path, precision: str) -> dict[str, Any]:
    checked = _checked(path)
    if checked["fault"]:
        raise PrepareError(f"the reference is damaged: {checked['fault']}")
    name = revision_name(precision or "reference", checked["sha256"])
    return {"path": str(path), "sha256": checked["sha256"], "size": checked["size"], "revision": name}


def _read_measured(path: Path) -> Measured:
    return Measured.from_dict(json.loads(path.read_text()))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
