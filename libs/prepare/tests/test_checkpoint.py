"""The shipped model as a checkpoint, quantized by the real Model Optimizer on this machine's CPU. On no GPU yet."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from inferbus_prepare.checkpoint import STEPS, CheckpointPlan, prepare_checkpoint
from inferbus_prepare.errors import DamagedError, PrepareError
from inferbus_prepare.modelopt import Calibration, fault_of_checkpoint
from inferbus_prepare.preparing import Prepared
from inferbus_prepare.publishing import publish
from inferbus_prepare.validation import Thresholds
from inferbus_prepare.work import Work
from inferbus_prepare.workload import Workload

from .checkpoints import PYTHON, WEIGHTS, missing, shipped_checkpoint

pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(bool(missing()), reason=missing() or "installed")]
MODEL = "smollm2-135m-instruct"
FEW = Workload(prompts=2, tokens=6, positions=64, top=300)
# Of a small model calibrated on three lines: wider than the defaults, and what a coarse one does not keep.
BOUNDS = Thresholds(min_agreement=0.0, min_same_first=0.7, max_kl=0.15, max_perplexity_ratio=1.3)
TEXTS = (
    "The ship left the harbour at dawn, and by noon the coast was a thin grey line behind it.",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Question: How many legs has a spider?\nAnswer: A spider has eight legs.",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def plan(folder: Path) -> CheckpointPlan:
    source = shipped_checkpoint(folder / "source")
    calibration = Calibration(TEXTS, tokens=32)
    return CheckpointPlan(MODEL, source, "fp8", PYTHON, calibration, thresholds=BOUNDS, workload=FEW)


def run(plan: CheckpointPlan, folder: Path) -> tuple[Prepared, set[str]]:
    """(what was prepared, the steps that took more than a look)."""
    told: list[tuple[str, float]] = []
    with Work(folder) as work:
        prepared = prepare_checkpoint(plan, work, lambda step, part: told.append((step, part)))
    assert [step for step, part in told if part == 0.0] == list(STEPS)
    return prepared, {step for step, part in told if 0 < part < 1}


def values(prepared: Prepared) -> dict[str, float]:
    return {one.name: one.value for one in prepared.validation.figures}


def failed(prepared: Prepared) -> set[str]:
    return {one.name for one in prepared.validation.figures if not one.passed}


@pytest.fixture(scope="module")
def fp8(plan: CheckpointPlan, folder: Path) -> Prepared:
    return run(plan, folder / "work")[0]


def test_eight_bits_pass_and_are_a_whole_checkpoint(fp8: Prepared, plan: CheckpointPlan, folder: Path) -> None:
    assert fp8.validation.passed, fp8.validation
    figures = values(fp8)
    assert 0 < figures["kl_divergence"] < 0.15
    assert figures["size_ratio"] == pytest.approx(0.606, abs=0.01), "the embedding stays as wide as it was"
    assert "tokens_per_second_ratio" not in figures, "it was simulated"
    made = folder / "work" / "fp8"
    assert fault_of_checkpoint(made) is None
    before, after = (json.loads((where / "config.json").read_text()) for where in (plan.source, made))
    assert after.pop("quantization_config")["quant_algo"] == "FP8"
    assert after == before, "in the words of the source, which the engine's transformers knows"


def test_the_record_says_what_a_worker_needs(fp8: Prepared) -> None:
    record = fp8.record
    assert record is not None
    assert (record.engine, record.precision) == ("tensorrt_llm", "fp8")
    assert dict(record.settings) == {"TENSORRT_LLM__MODEL_PATH": "{artifacts}"}
    assert {"config.json", "hf_quant_config.json", "tokenizer.json", WEIGHTS} <= {one.name for one in record.artifacts}
    weights = next(one.size_bytes for one in record.artifacts if one.name == WEIGHTS)
    # 30 layers, 3 heads of 64 for keys and as many for values, of two bytes.
    assert record.memory_bytes == weights + 30 * 2 * 3 * 64 * 2 * 16_384
    assert "to fp8 by modelopt 0." in record.source
    assert record.derived_from.startswith("bf16-")


def test_another_bound_is_judged_without_measuring(fp8: Prepared, plan: CheckpointPlan, folder: Path) -> None:
    assert fp8.validation.passed
    strict, worked = run(replace(plan, thresholds=Thresholds(max_kl=1e-4)), folder / "work")
    assert "kl_divergence" in failed(strict)
    assert worked == set()


def test_a_speed_that_was_not_measured_is_not_kept(fp8: Prepared, plan: CheckpointPlan, folder: Path) -> None:
    assert fp8.validation.passed
    judged, _ = run(replace(plan, thresholds=replace(BOUNDS, min_speed_ratio=0.1)), folder / "work")
    assert failed(judged) == {"tokens_per_second_ratio"}


def test_four_bits_fail_with_the_figures_that_show_it(fp8: Prepared, plan: CheckpointPlan, folder: Path) -> None:
    """And cannot be written either: this model's 576 columns are no whole blocks of 128."""
    assert fp8.validation.passed
    coarse, worked = run(replace(plan, precision="int4_awq"), folder / "work")
    assert {"exports", "kl_divergence"} <= failed(coarse)
    assert coarse.record is None
    assert worked == {"quantize"}, "it is the same reference"
    assert not (folder / "work" / "int4_awq").exists()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU")
def test_what_needs_a_gpu_says_so(fp8: Prepared, plan: CheckpointPlan, folder: Path) -> None:
    assert fp8.validation.passed
    with pytest.raises(PrepareError, match="needs an NVIDIA GPU"):
        run(replace(plan, precision="nvfp4"), folder / "work")


async def test_files_are_sent_if_they_are_those_that_were_hashed(fp8: Prepared, folder: Path) -> None:
    class Uploads:
        names: list[str] = []  # noqa: RUF012

        async def put(self, path: Path, sha256: str) -> bool:
            self.names.append(path.name)
            return True

    seen: list[object] = []
    await publish(fp8, Uploads(), seen.append)
    assert seen == [fp8.record]
    assert Uploads.names == [one.name for one in fp8.files]
    path = folder / "work" / "fp8" / WEIGHTS
    whole = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(DamagedError, match="no longer"):
            await publish(fp8, Uploads(), seen.append)
    finally:
        path.write_bytes(whole)


def test_a_damaged_source_is_refused_before_it_is_loaded(plan: CheckpointPlan, tmp_path: Path) -> None:
    source = tmp_path / "cut"
    source.mkdir()
    for path in plan.source.iterdir():
        (source / path.name).write_bytes(path.read_bytes()[: -1000 if path.name == WEIGHTS else None])
    with Work(tmp_path / "work") as work:
        prepared = prepare_checkpoint(replace(plan, source=source), work)
    assert failed(prepared) == {"structure"}
    assert "bytes of weights, and its header names" in prepared.validation.figures[0].detail
