"""The shipped model, prepared for real: measured by the engine, killed and gone on with, damaged and found out.

The measurements are few and shared: one of the reference, one of each candidate.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from inferbus.bus.v1.revision_pb2 import RevisionRecord, Validation
from inferbus_prepare.errors import DamagedError, PrepareError
from inferbus_prepare.header import read_header
from inferbus_prepare.plan import AS_IS, Plan
from inferbus_prepare.preparing import Prepared
from inferbus_prepare.publishing import publish
from inferbus_prepare.shipped import shipped_file
from inferbus_prepare.steps import STEPS, prepare
from inferbus_prepare.validation import Thresholds
from inferbus_prepare.work import Work
from inferbus_prepare.workload import Workload

from .test_gguf_file import write_model

pytestmark = pytest.mark.timeout(600)
MODEL = "smollm2-135m-instruct"
FEW = Workload(prompts=3, tokens=8, positions=32, top=300)
_KILLED_AT = (("quantize", 0.2), ("measure candidate", 0.05))
_CHILD = """
import json, sys
from pathlib import Path
from inferbus_prepare.plan import Plan
from inferbus_prepare.steps import prepare
from inferbus_prepare.work import Work
from inferbus_prepare.workload import Workload
source, folder, workload = sys.argv[1:]
plan = Plan("smollm2-135m-instruct", Path(source), "q8_0", workload=Workload(**json.loads(workload)))
with Work(Path(folder)) as work:
    prepare(plan, work, lambda step, part: print(json.dumps([step, part]), flush=True))
"""


@dataclass
class Run:
    """One preparation and what was told of it."""

    prepared: Prepared
    folder: Path
    told: list[tuple[str, float]] = field(default_factory=list)

    @property
    def worked(self) -> set[str]:
        """Steps that took more than a look: something was told between their begin and end."""
        return {step for step, part in self.told if 0 < part < 1}

    @property
    def failed(self) -> list[str]:
        return [one.name for one in self.prepared.validation.figures if not one.passed]

    def value(self, name: str) -> float:
        return next(one.value for one in self.prepared.validation.figures if one.name == name)


def run(plan: Plan, folder: Path) -> Run:
    told: list[tuple[str, float]] = []
    with Work(folder) as work:
        return Run(prepare(plan, work, lambda step, part: told.append((step, part))), folder, told)


def run_and_kill(folder: Path, step: str, part: float) -> None:
    """In a process of its own, which gets SIGKILL when it has told of that much."""
    command = [sys.executable, "-c", _CHILD, str(shipped_file()), str(folder), json.dumps(FEW.as_dict())]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    guard = threading.Timer(400, child.kill)
    guard.start()
    assert child.stdout is not None
    reached = False
    for line in child.stdout:
        told = json.loads(line)
        if told[0] == step and told[1] >= part:
            os.kill(child.pid, signal.SIGKILL)
            reached = True
            break
    child.stdout.close()
    assert child.wait() == -signal.SIGKILL
    assert reached, f"it never came to {step}"
    guard.cancel()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prepare")


@pytest.fixture(scope="module")
def kept(folder: Path) -> dict[str, int]:
    """Two kills; when the files were written that were whole at the last one."""
    for step, part in _KILLED_AT:
        run_and_kill(folder, step, part)
        if step == "quantize":
            assert not (folder / "q8_0.gguf").exists(), "a half written file has no name of its own"
            assert list(folder.glob(".making-*"))
    return {name: (folder / name).stat().st_mtime_ns for name in ("reference-f16.gguf", "q8_0.gguf", "reference.json")}


@pytest.fixture(scope="module")
def fine(folder: Path, kept: dict[str, int]) -> Run:
    """F16 to Q8_0, gone on with after both kills."""
    return run(Plan(MODEL, shipped_file(), "q8_0", workload=FEW), folder)


@pytest.fixture(scope="module")
def coarse(fine: Run) -> Run:
    """F16 to Q4_0."""
    return run(Plan(MODEL, shipped_file(), "q4_0", workload=FEW), fine.folder)


@pytest.fixture
def made_elsewhere(fine: Run, tmp_path: Path) -> Iterator[Any]:
    """Judges a file as it is against the F16 that was measured; its candidate is no part of the shared folder."""

    def judge(path: Path) -> Run:
        return run(Plan(MODEL, path, AS_IS, fine.folder / "reference-f16.gguf", workload=FEW), fine.folder)

    return judge


def test_it_goes_on_where_it_was_killed(fine: Run, kept: dict[str, int]) -> None:
    assert fine.worked == {"measure candidate"}, "all before was done once"
    assert {name: (fine.folder / name).stat().st_mtime_ns for name in kept} == kept
    assert not list(fine.folder.glob(".making-*"))
    assert list(dict.fromkeys(step for step, part in fine.told if part == 1.0)) == list(STEPS)


def test_eight_bits_pass(fine: Run) -> None:
    assert fine.prepared.validation.passed, fine.failed
    assert 0 < fine.value("kl_divergence") < 0.02
    assert fine.value("same_first_token") > 0.9
    assert 0.97 < fine.value("perplexity_ratio") < 1.03
    assert fine.value("size_ratio") == pytest.approx(0.5346, abs=0.001)


def test_the_record_says_what_a_worker_needs(fine: Run) -> None:
    record = fine.prepared.record
    assert record is not None
    model = record.artifacts[0]
    assert (model.name, model.size_bytes) == ("model.gguf", 144_811_072)
    assert record.revision == f"q8_0-{model.sha256.hex()[:8]}"
    assert dict(record.settings) == {"LLAMA_CPP__WEIGHTS": "{artifacts}/model.gguf"}
    assert record.memory_bytes == 144_811_072 + 46_080 * 16_384
    assert record.derived_from.startswith("f16-")
    report = json.loads((fine.folder / "report.json").read_text())
    assert ParseDict(report, RevisionRecord()).model == MODEL


def test_too_coarse_fails_with_the_figures_that_show_it(coarse: Run) -> None:
    assert not coarse.prepared.validation.passed
    assert {"kl_divergence", "same_first_token"} <= set(coarse.failed)
    assert coarse.value("kl_divergence") > 0.1
    assert "measure reference" not in coarse.worked, "it is the same reference"


def test_bounds_are_the_operators(coarse: Run) -> None:
    """Nothing is measured again for another bound."""
    anything = Thresholds(min_agreement=0, min_same_first=0, max_kl=9, max_perplexity_ratio=9)
    again = run(Plan(MODEL, shipped_file(), "q4_0", thresholds=anything, workload=FEW), coarse.folder)
    assert again.prepared.validation.passed
    assert again.worked == set()


def test_one_flipped_bit_in_the_scale_of_a_block_is_seen(coarse: Run, made_elsewhere: Any, tmp_path: Path) -> None:
    content = bytearray((coarse.folder / "q8_0.gguf").read_bytes())
    header = read_header(coarse.folder / "q8_0.gguf")
    tensor = next(one for one in header.tensors if one.name == "blk.2.ffn_down.weight")
    content[tensor.offset + 34 * 1000 + 1] ^= 0x40  # the highest bit of a scale's exponent: 65,536 times as much
    path = tmp_path / "flipped.gguf"
    path.write_bytes(content)
    judged = made_elsewhere(path)
    assert judged.value("structure") == judged.value("runs") == 1, "by its structure nothing is wrong"
    assert "kl_divergence" in judged.failed


def test_a_file_that_is_cut_off_fails_before_the_engine_has_it(fine: Run, made_elsewhere: Any, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes((fine.folder / "q8_0.gguf").read_bytes()[:-1_000_000])
    judged = made_elsewhere(path)
    assert judged.failed == ["structure"]
    assert "1,000,000 bytes are missing" in judged.prepared.validation.figures[0].detail
    assert judged.prepared.record is None


def test_a_file_that_the_engine_refuses_fails_by_that(made_elsewhere: Any, tmp_path: Path) -> None:
    judged = made_elsewhere(write_model(tmp_path / "no-real-model.gguf"))
    assert judged.failed == ["runs"]
    assert "could not run no-real-model.gguf" in judged.prepared.validation.figures[1].detail


def test_a_damaged_reference_judges_nothing(fine: Run, tmp_path: Path) -> None:
    path = tmp_path / "reference.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 400)
    with pytest.raises(PrepareError, match="reference is damaged"):
        run(Plan(MODEL, shipped_file(), "q8_0", path, workload=FEW), fine.folder)


class Folder:
    """A store in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def put(self, path: Path, sha256: str) -> bool:
        target = self.path / sha256
        if target.exists():
            return False
        target.write_bytes(path.read_bytes())
        return True


async def test_files_are_there_before_the_record_and_again_is_the_same(fine: Run, tmp_path: Path) -> None:
    seen: list[RevisionRecord] = []

    def register(record: RevisionRecord) -> None:
        assert all((tmp_path / one.sha256.hex()).stat().st_size == one.size_bytes for one in record.artifacts)
        seen.append(record)

    for _ in range(2):
        await publish(fine.prepared, Folder(tmp_path), register)
    assert seen == [fine.prepared.record] * 2


async def test_a_file_that_changed_since_it_was_measured_is_not_sent(coarse: Run, tmp_path: Path) -> None:
    path = coarse.prepared.files[0].path
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\x01")
    try:
        with pytest.raises(DamagedError, match="no longer"):
            await publish(coarse.prepared, Folder(tmp_path), lambda record: None)
    finally:
        path.write_bytes(whole)
    assert list(tmp_path.iterdir()) == []


def test_one_folder_is_worked_in_by_one_process(fine: Run) -> None:
    with Work(fine.folder), pytest.raises(PrepareError, match="another process"), Work(fine.folder):
        pass


def test_a_validation_survives_its_json(fine: Run) -> None:
    validation = fine.prepared.validation
    assert ParseDict(json.loads(json.dumps(MessageToDict(validation))), Validation()) == validation
