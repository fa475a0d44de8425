"""What is told to NVIDIA Model Optimizer's program, and what is made of its end. The program itself never ran here: in
its place a script of a few lines, which says so."""

import sys
from pathlib import Path

import pytest
from inferbus_prepare.errors import EngineError, PrepareError
from inferbus_prepare.modelopt import FORMATS, Quantization, command, fault_of_export, quantize_checkpoint

DOUBLE = """# a double of hf_ptq.py: it writes what the real one exports, without any weights
import json, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(given["--export_path"])
if given["--calib_size"] == "13":
    print("CUDA out of memory"); sys.exit(3)
folder.mkdir()
for name in ("config.json", "tokenizer.json", "model.safetensors"):
    (folder / name).write_text("{}")
algorithm = {"fp8": "FP8", "nvfp4": "FP8"}[given["--qformat"]]
(folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": algorithm}}))
"""


@pytest.fixture
def wanted(tmp_path: Path) -> Quantization:
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (checkpoint / name).write_text("{}")
    script = tmp_path / "hf_ptq.py"
    script.write_text(DOUBLE)
    return Quantization(checkpoint, "fp8", script, Path(sys.executable))


def changed(wanted: Quantization, **values: object) -> Quantization:
    from dataclasses import replace

    return replace(wanted, **values)


@pytest.mark.parametrize("precision", FORMATS)
def test_each_precision_has_its_format(wanted: Quantization, precision: str) -> None:
    made = command(changed(wanted, precision=precision, datasets=("a", "b")), Path("/out"))
    told = dict(zip(made[2::2], made[3::2], strict=True))
    assert made[:2] == [sys.executable, str(wanted.script)]
    assert told["--qformat"] == precision
    assert told["--kv_cache_qformat"] == "none", "or a newer release quantizes it unasked"
    assert told["--export_path"] == "/out"
    assert told["--dataset"] == "a,b"


@pytest.mark.parametrize(
    "values",
    [{"precision": "q8_0"}, {"kv_format": "int3"}, {"calibration": 0}, {"batch": -1}, {"tensor_parallel": 0}],
)
def test_what_the_program_does_not_know_is_refused(wanted: Quantization, values: dict[str, object]) -> None:
    with pytest.raises(PrepareError):
        command(changed(wanted, **values), Path("/out"))


def test_a_run_leaves_a_whole_folder(wanted: Quantization, tmp_path: Path) -> None:
    quantize_checkpoint(wanted, tmp_path / "fp8")
    assert fault_of_export(tmp_path / "fp8", "fp8") is None


def test_a_run_that_fails_says_its_last_words_and_leaves_nothing(wanted: Quantization, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="code 3: CUDA out of memory"):
        quantize_checkpoint(changed(wanted, calibration=13), tmp_path / "fp8")
    assert not (tmp_path / "fp8").exists()


def test_an_export_of_another_precision_is_none(wanted: Quantization, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="by FP8, and not by NVFP4"):
        quantize_checkpoint(changed(wanted, precision="nvfp4"), tmp_path / "nvfp4")


def test_a_folder_without_weights_is_refused_before_anything_runs(wanted: Quantization, tmp_path: Path) -> None:
    (wanted.checkpoint / "model.safetensors").unlink()
    with pytest.raises(PrepareError, match="safetensors"):
        quantize_checkpoint(wanted, tmp_path / "fp8")
