"""What is a checkpoint, and what an export must say of itself. The real library is asked in test_checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_prepare.checkpoint import CheckpointPlan, prepare_checkpoint
from inferbus_prepare.errors import PrepareError
from inferbus_prepare.modelopt import FORMATS, calibration_texts, fault_of_checkpoint, fault_of_export
from inferbus_prepare.safetensors_file import fault_of_safetensors
from inferbus_prepare.work import Work

from .checkpoints import WEIGHTS, safetensors, small_checkpoint

WHOLE = safetensors({"a": ("BF16", [2, 3], bytes(12)), "b": ("F8_E4M3", [5], bytes(5))})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "small")


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(WHOLE[:-1])


def _no_shard(folder: Path) -> None:
    index = {"weight_map": {"a": WEIGHTS, "c": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_a_whole_one_has_no_fault(checkpoint: Path) -> None:
    assert fault_of_checkpoint(checkpoint) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without("config.json"), "no config.json"),
        (_without("tokenizer.json"), "no tokenizer"),
        (_without(WEIGHTS), "no *.safetensors"),
        (_cut, "16 bytes of weights, and its header names 17"),
        (_no_shard, "model-00002-of-00002.safetensors of 2 files is missing"),
    ],
)
def test_what_is_missing_is_named_before_any_library_runs(
    checkpoint: Path, damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    damage(checkpoint)
    plan = CheckpointPlan("m", checkpoint, "fp8", tmp_path / "no-python")
    with Work(tmp_path / "work") as work:
        prepared = prepare_checkpoint(plan, work)
    assert not prepared.validation.passed
    assert prepared.record is None
    (figure,) = prepared.validation.figures
    assert figure.name == "structure"
    assert said in figure.detail


def test_without_the_library_it_says_what_installs_it(checkpoint: Path, tmp_path: Path) -> None:
    plan = CheckpointPlan("m", checkpoint, "fp8", tmp_path / "no-python")
    with Work(tmp_path / "work") as work, pytest.raises(PrepareError, match="make modelopt"):
        prepare_checkpoint(plan, work)


def test_what_is_quantized_already_is_no_original(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    plan = CheckpointPlan("m", checkpoint, "fp8", tmp_path / "no-python")
    with Work(tmp_path / "work") as work, pytest.raises(PrepareError, match="small is quantized already"):
        prepare_checkpoint(plan, work)


def test_a_precision_of_files_is_none_of_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    plan = CheckpointPlan("m", checkpoint, "q8_0", tmp_path / "no-python")
    with Work(tmp_path / "work") as work, pytest.raises(PrepareError, match="fp8, nvfp4, int4_awq, int8_sq"):
        prepare_checkpoint(plan, work)


@given(st.integers(0, len(WHOLE) - 1))
def test_a_file_that_is_cut_off_anywhere_has_a_fault(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("cut") / WEIGHTS
    path.write_bytes(WHOLE[:length])
    assert fault_of_safetensors(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_and_raise_nothing(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / WEIGHTS
    path.write_bytes(content)
    assert fault_of_safetensors(path)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({"dtype": "BF16", "shape": [2], "data_offsets": [0, 3]}, "needs 4 bytes"),
        ({"dtype": "Q8", "shape": [2], "data_offsets": [0, 2]}, "'Q8', which is not known"),
        ({"dtype": "U8", "shape": [2], "data_offsets": [2, 0]}, "needs 2 bytes"),
        ({"dtype": "U8", "shape": ["x"], "data_offsets": [0, 1]}, "not described"),
        ({"shape": [2]}, "not described"),
        (7, "not described"),
    ],
)
def test_a_tensor_that_is_none_is_named(tmp_path: Path, tensor: object, said: str) -> None:
    path = tmp_path / WEIGHTS
    path.write_bytes(safetensors({}, odd=tensor))
    fault = fault_of_safetensors(path)
    assert fault is not None
    assert "odd" in fault
    assert said in fault


@pytest.mark.parametrize("precision", FORMATS)
def test_an_export_says_of_itself_that_it_is_what_was_asked_for(checkpoint: Path, precision: str) -> None:
    assert "does not say" in (fault_of_export(checkpoint, precision) or "")
    told = checkpoint / "hf_quant_config.json"
    told.write_text(json.dumps({"quantization": {"quant_algo": "FP6"}}))
    assert "by FP6" in (fault_of_export(checkpoint, precision) or "")
    told.write_text(json.dumps({"quantization": {"quant_algo": FORMATS[precision].algorithm}}))
    assert fault_of_export(checkpoint, precision) is None


def test_texts_to_calibrate_on_are_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two\\nlines"}\n')
    assert calibration_texts(path) == ("one", "two\nlines")
    for content, said in (("plain", "line 1"), ('{"text": "a"}\n{"text": 3}', "line 2"), ("\n", "no text")):
        path.write_text(content)
        with pytest.raises(PrepareError, match=said):
            calibration_texts(path)
