"""What every preparation is: steps that are done once each, and at their end a report and a revision."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from inferbus.bus.v1.revision_pb2 import RevisionRecord, Validation
from inferbus_runtime import clock

from inferbus_prepare.errors import PrepareError
from inferbus_prepare.measured import Measured
from inferbus_prepare.validation import sound, verdict
from inferbus_prepare.work import Work, write_whole

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class KeptFile:
    """One of a revision's files, where it is now. ``sha256``: in hexadecimal."""

    name: str
    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """``record``: None where no revision can be made of it. ``files``: of the record, in its order."""

    validation: Validation
    record: RevisionRecord | None
    files: tuple[KeptFile, ...]


class Preparing:
    """One run over a work folder; a kind of weights has its own steps."""

    def __init__(self, work: Work, progress: Progress) -> None:
        self.work = work
        self.progress = progress

    def step(self, name: str, key: Any, run: Callable[[], Any], makes: tuple[Path, ...] = ()) -> Any:
        self.progress(name, 0.0)
        result = self.work.step(name, key, run, makes)
        self.progress(name, 1.0)
        return result

    def reported(self, record: RevisionRecord, files: tuple[KeptFile, ...]) -> Prepared:
        text = json.dumps(MessageToDict(record, preserving_proto_field_name=True), indent=1)
        write_whole(self.work.folder / "report.json", text)
        return Prepared(record.validation, record, files)


def damaged(fault: str) -> Prepared:
    """Of a source that no engine should have."""
    return Prepared(verdict([sound("structure", fault)], "", clock.now(), timedelta(0)), None, ())


def identity(path: Path) -> list[Any]:
    """Another one for a file that was written since. Raises PrepareError if there is none."""
    try:
        stat = path.stat()
    except OSError as error:
        raise PrepareError(f"{path} cannot be read: {error.strerror}") from None
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_measured(path: Path) -> Measured:
    return Measured.from_dict(json.loads(path.read_text()))
