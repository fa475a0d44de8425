"""A checkpoint for TensorRT-LLM: NVIDIA Model Optimizer's own program, ``hf_ptq.py``, in a process of its own.

**It has never run here**: it needs an NVIDIA GPU, PyTorch and Model Optimizer. The arguments are those of its public
source (``examples/llm_ptq/hf_ptq.py``, which newer releases call ``examples/hf_ptq/hf_ptq.py``); what is tested is how
they are made, what is refused, and how a run's end and output are judged.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inferbus_prepare.errors import EngineError, PrepareError

# Our name of a precision -> --qformat, and the quantization that the exported checkpoint must say that it has.
FORMATS: Mapping[str, tuple[str, str]] = {
    "fp8": ("fp8", "FP8"),
    "nvfp4": ("nvfp4", "NVFP4"),
    "int4_awq": ("int4_awq", "W4A16_AWQ"),
    "int8_sq": ("int8_sq", "W8A8_SQ_PER_CHANNEL"),
}
KV_FORMATS = ("none", "fp8", "nvfp4")
_DEVICE_LIMIT = 64
_LAST_WORDS = 4000


@dataclass(frozen=True, slots=True)
class Quantization:
    """``checkpoint``: a Hugging Face folder. ``script``: hf_ptq.py. ``python``: where Model Optimizer is.

    ``calibration``: samples, of at most ``calibration_tokens`` each. ``batch``: 0 for as many as fit. ``datasets``: of
    Model Optimizer's names; none: its own choice, which it downloads.
    """

    checkpoint: Path
    precision: str
    script: Path
    python: Path
    kv_format: str = "none"
    calibration: int = 512
    calibration_tokens: int = 512
    batch: int = 0
    datasets: tuple[str, ...] = ()
    tensor_parallel: int = 1


def command(wanted: Quantization, target: Path) -> list[str]:
    """What is run. Raises PrepareError for what the program would refuse, or silently take for something else."""
    if wanted.precision not in FORMATS:
        raise PrepareError(f"{wanted.precision!r} is no format of Model Optimizer's: {', '.join(FORMATS)}")
    if wanted.kv_format not in KV_FORMATS:
        raise PrepareError(f"{wanted.kv_format!r} is no format of a KV cache: {', '.join(KV_FORMATS)}")
    if wanted.calibration < 1 or wanted.calibration_tokens < 1 or wanted.batch < 0:
        raise PrepareError("calibration needs at least one sample of at least one token")
    if not 1 <= wanted.tensor_parallel <= _DEVICE_LIMIT:
        raise PrepareError(f"tensor parallel is 1 to {_DEVICE_LIMIT}")
    arguments = {
        "--pyt_ckpt_path": str(wanted.checkpoint),
        "--qformat": FORMATS[wanted.precision][0],
        # Without it, a newer release quantizes the KV cache as well.
        "--kv_cache_qformat": wanted.kv_format,
        "--calib_size": str(wanted.calibration),
        "--calib_seq": str(wanted.calibration_tokens),
        "--batch_size": str(wanted.batch),
        "--inference_tensor_parallel": str(wanted.tensor_parallel),
        "--export_path": str(target),
    }
    if wanted.datasets:
        arguments["--dataset"] = ",".join(wanted.datasets)
    return [str(wanted.python), str(wanted.script), *(part for pair in arguments.items() for part in pair)]


def fault_of_checkpoint(folder: Path) -> str | None:
    """Why it is no folder that can be quantized; None: it looks like one."""
    if not (folder / "config.json").is_file():
        return f"{folder} holds no config.json: it is no Hugging Face checkpoint"
    if not list(folder.glob("*.safetensors")):
        return f"{folder} holds no *.safetensors"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return f"{folder} holds no tokenizer"
    return None


def fault_of_export(folder: Path, precision: str) -> str | None:
    """Why what was exported is not what was asked for; None: it says that it is."""
    if fault := fault_of_checkpoint(folder):
        return fault
    try:
        told = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]["quant_algo"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder} does not say how it is quantized: {error!r}"
    wanted = FORMATS[precision][1]
    return None if told == wanted else f"it is quantized by {told}, and not by {wanted}"


def quantize_checkpoint(wanted: Quantization, target: Path) -> None:
    """Runs it; ``target`` is whole when this returns. Blocks for minutes to hours.

    Raises PrepareError for a folder that is no checkpoint, EngineError with the program's last words if it fails.
    """
    if fault := fault_of_checkpoint(wanted.checkpoint):
        raise PrepareError(fault)
    making = target.with_name(f".making-{target.name}")
    shutil.rmtree(making, ignore_errors=True)  # of a run that was ended
    with tempfile.TemporaryFile() as output:
        run = subprocess.run(
            command(wanted, making), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
        )
        size = output.tell()
        output.seek(max(0, size - _LAST_WORDS))
        words = output.read().decode(errors="replace").strip()
    if run.returncode:
        raise EngineError(f"hf_ptq.py ended with code {run.returncode}: {words}")
    if fault := fault_of_export(making, wanted.precision):
        raise EngineError(f"{fault}: {words}")
    making.rename(target)
