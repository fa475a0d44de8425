"""``inferbus model``: made, measured by the real engine, registered, shown. The figures libs/prepare tests."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from inferbus_cli.__main__ import cli
from inferbus_prepare.shipped import shipped_file

from .conftest import RunningStack

pytestmark = pytest.mark.timeout(600)
# The shipped file against itself: nothing is quantized, and both are measured in seconds.
QUICK = ("--precision", "as_is", "--reference", "q4_1", "--prompts", "1", "--tokens", "2", "--positions", "4")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def test_a_revision_is_registered_with_its_report(stack: RunningStack, work: Path) -> None:
    options = ("--as", "prepared", "--revision", "good", *QUICK, "--work-dir", str(work))
    said = stack.run("model", "prepare", *options).stdout
    assert "Validation: passed" in said
    assert "inferbus deploy prepared good" in said
    listed = stack.json("model", "list", "prepared")["revisions"]
    assert [one["revision"]["revision"] for one in listed] == ["good"]
    shown = stack.run("model", "show", "prepared", "good").stdout
    for told in ("model.gguf", "greedy_agreement", "kl_divergence", "perplexity_ratio", "setting: LLAMA_CPP__WEIGHTS="):
        assert told in shown
    assert stack.run("model", "prepare", *options).exit_code == 0, "again it is the same"


def test_one_that_fails_is_not_registered_unless_kept_and_never_deployed(stack: RunningStack, work: Path) -> None:
    options = ("--as", "prepared", "--revision", "bad", *QUICK, "--work-dir", str(work), "--max-size", "0.5")
    failed = stack.run("model", "prepare", *options, check=False)
    assert failed.exit_code == 1
    assert "FAILED by size_ratio" in failed.stdout
    assert stack.run("model", "show", "prepared", "bad", check=False).exit_code == 2
    assert stack.run("model", "prepare", *options, "--keep", check=False).exit_code == 1
    assert "FAILED by size_ratio" in stack.run("model", "show", "prepared", "bad").stdout
    refused = stack.run("deploy", "prepared", "bad", check=False)
    assert refused.exit_code == 2
    assert "size_ratio" in refused.output


def test_without_a_stack_it_is_made_and_judged(tmp_path: Path) -> None:
    """And a damaged file is an answer: exit code 1, and what is wrong with it."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(shipped_file().read_bytes()[:-5000])
    options = ["--as", "m", "--no-register", "--work-dir", str(tmp_path / "work"), "--json"]
    done = CliRunner().invoke(cli, ["model", "prepare", str(path), *options])
    assert done.exit_code == 1
    figures = json.loads(done.stdout)["validation"]["figures"]
    assert [one["name"] for one in figures] == ["structure"]
    assert "bytes are missing" in figures[0]["detail"]


def test_without_a_stack_nothing_is_begun_that_could_not_be_registered(tmp_path: Path) -> None:
    options = ["--as", "m", "--home", str(tmp_path), "--work-dir", str(tmp_path / "work")]
    done = CliRunner().invoke(cli, ["model", "prepare", *options])
    assert done.exit_code == 2
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("file", ["--precision", "fp8"], "folder of a Hugging Face checkpoint"),
        ("file", ["--calibration-samples", "4"], "--calibration-samples is for the folder"),
        ("folder", ["--precision", "q8_0"], "from a folder one of fp8, nvfp4, int4_awq, int8_sq"),
        ("folder", ["--reference", "f16"], "--reference is for a GGUF file"),
        ("folder", ["--calibration", "texts"], 'line 1 of texts is no {"text": "..."}'),
    ],
)
def test_what_is_for_the_other_kind_of_weights_is_refused(
    tmp_path: Path, source: str, options: list[str], said: str
) -> None:
    (tmp_path / "file").write_text("weights")
    (tmp_path / "folder").mkdir()
    (tmp_path / "texts").write_text("not JSON")
    given = [str(tmp_path / "texts") if one == "texts" else one for one in options]
    work = ["--as", "m", "--no-register", "--work-dir", str(tmp_path / "work")]
    done = CliRunner().invoke(cli, ["model", "prepare", str(tmp_path / source), *given, *work])
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "work").exists()


def test_a_folder_that_is_no_checkpoint_is_an_answer(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    options = ["--as", "m", "--no-register", "--work-dir", str(tmp_path / "work"), "--json"]
    done = CliRunner().invoke(cli, ["model", "prepare", str(tmp_path / "folder"), *options])
    assert done.exit_code == 1
    (figure,) = json.loads(done.stdout)["validation"]["figures"]
    assert figure["detail"] == "folder holds no config.json that is an object: it is no Hugging Face checkpoint"
