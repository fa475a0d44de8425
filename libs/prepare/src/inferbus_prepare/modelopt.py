"""A Hugging Face checkpoint, measured as it is and quantized by NVIDIA Model Optimizer, in a process of its own.

The library is called as its own examples call it (``mtq.quantize``, ``export_hf_checkpoint``), in :mod:`.optimize`,
by a Python that has it: PyTorch and it are gigabytes which no service needs.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferbus_prepare import optimize
from inferbus_prepare.errors import EngineError, PrepareError
from inferbus_prepare.measured import Measured
from inferbus_prepare.measuring import answer_of, measured_of
from inferbus_prepare.safetensors_file import fault_of_safetensors
from inferbus_prepare.workload import PROMPTS, Workload, held_out_text

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# What a server reads beside config and weights. Copied from the source: a newer transformers writes it in words that an
# older one, as TensorRT-LLM has it, does not know.
_READ_BESIDE = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "generation_config")


@dataclass(frozen=True, slots=True)
class Format:
    """``config``: of modelopt.torch.quantization. ``algorithm``: what the exported checkpoint must say that it has."""

    config: str
    algorithm: str


FORMATS: Mapping[str, Format] = {
    "fp8": Format("FP8_DEFAULT_CFG", "FP8"),
    "nvfp4": Format("NVFP4_DEFAULT_CFG", "NVFP4"),  # the library quantizes to it on NVIDIA GPUs only
    "int4_awq": Format("INT4_AWQ_CFG", "W4A16_AWQ"),
    "int8_sq": Format("INT8_SMOOTHQUANT_CFG", "W8A8_SQ_PER_CHANNEL"),
}


@dataclass(frozen=True, slots=True)
class Calibration:
    """Up to ``samples`` of up to ``tokens`` each, of ``texts`` in their order; without texts, of what the model writes
    itself, sampled with a fixed seed."""

    texts: tuple[str, ...] = ()
    samples: int = 16
    tokens: int = 128


@dataclass(frozen=True, slots=True)
class Optimizer:
    """``python``: of an environment with torch, transformers and nvidia-modelopt (``make modelopt``)."""

    python: Path
    workload: Workload
    calibration: Calibration = Calibration()

    def fault(self) -> str | None:
        """Why it cannot be asked at all; None: it can."""
        if not self.python.is_file():
            return f"{self.python} is not there: `make modelopt` makes it, or name another with Model Optimizer"
        return None

    def measure(self, checkpoint: Path, progress: Callable[[float], None]) -> Measured:
        """The checkpoint as it is. Raises EngineError. Blocks for minutes."""
        return measured_of(self._ask(checkpoint, "", None, progress), checkpoint.name)

    def quantize(
        self, checkpoint: Path, precision: str, target: Path, progress: Callable[[float], None]
    ) -> tuple[Measured, str]:
        """(measured in simulation; empty, or why ``target`` was not made). Raises EngineError. Blocks for minutes.

        ``target`` is a folder that is whole, or is not there.
        """
        making = target.with_name(f".making-{target.name}")
        for left in (making, target):
            shutil.rmtree(left, ignore_errors=True)
        answer = self._ask(checkpoint, FORMATS[precision].config, making, progress)
        measured = measured_of(answer, checkpoint.name)
        fault = str(answer.get("export_error") or "")
        if not fault:
            _complete(making, checkpoint)
            fault = fault_of_export(making, precision) or ""
        if not fault:
            making.rename(target)
        return measured, fault

    def _ask(
        self, checkpoint: Path, config: str, export: Path | None, progress: Callable[[float], None]
    ) -> dict[str, Any]:
        task = {
            "checkpoint": str(checkpoint),
            "config": config,
            "export": str(export or ""),
            "threads": self.workload.threads,
            "calibration_texts": self.calibration.texts[: self.calibration.samples],
            "calibration_samples": self.calibration.samples,
            "calibration_tokens": self.calibration.tokens,
            "text": held_out_text(),
            "positions": self.workload.positions,
            "top": self.workload.top,
            "prompts": PROMPTS[: self.workload.prompts],
            "tokens": self.workload.tokens,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(task, file)
            file.flush()
            # -I: beside the program lies this module, which has the library's name.
            command = [str(self.python), "-I", str(optimize.__file__), "--task", file.name]
            return answer_of(command, checkpoint.name, progress)


def calibration_texts(path: Path) -> tuple[str, ...]:
    """Of a file with an object ``{"text": "..."}`` a line. Raises PrepareError with the line that is none."""
    texts = []
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        try:
            text = json.loads(line)["text"] if line.strip() else None
        except (ValueError, KeyError, TypeError):
            raise PrepareError(f'line {number} of {path.name} is no {{"text": "..."}}') from None
        if text is not None and (not isinstance(text, str) or not text):
            raise PrepareError(f"line {number} of {path.name} has a text that is none")
        texts += [text] if text else []
    if not texts:
        raise PrepareError(f"{path.name} has no text")
    return tuple(texts)


def fault_of_checkpoint(folder: Path) -> str | None:
    """Why it is no folder that can be quantized, by its files' structure; None: it looks like one. Raises OSError."""
    if config_of(folder) is None:
        return f"{folder.name} holds no config.json that is an object: it is no Hugging Face checkpoint"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        return f"{folder.name} holds no *.safetensors"
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return f"{folder.name} holds no tokenizer"
    return _fault_of_shards(folder, weights) or next(filter(None, map(fault_of_safetensors, weights)), None)


def _fault_of_shards(folder: Path, weights: list[Path]) -> str | None:
    if not (folder / _INDEX).is_file():
        return None
    try:
        named = set(json.loads((folder / _INDEX).read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_INDEX} does not say where the weights are: {error!r}"
    missing = sorted(map(str, named - {path.name for path in weights}))
    return f"{', '.join(missing[:3])} of {len(named)} files is missing" if missing else None


def fault_of_export(folder: Path, precision: str) -> str | None:
    """Why what was exported is not what was asked for; None: it says that it is."""
    if fault := fault_of_checkpoint(folder):
        return fault
    try:
        told = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]["quant_algo"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{folder.name} does not say how it is quantized: {error!r}"
    wanted = FORMATS[precision].algorithm
    return None if told == wanted else f"it is quantized by {told}, and not by {wanted}"


def config_of(folder: Path) -> dict[str, Any] | None:
    """Its config.json; None if there is none."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _complete(made: Path, source: Path) -> None:
    """The source's own config with what the weights became, and its tokenizer. Raises EngineError."""
    before, after = config_of(source), config_of(made)
    if before is None or after is None or "quantization_config" not in after:
        raise EngineError(f"what was exported of {source.name} does not say how it is quantized")
    merged = before | {"quantization_config": after["quantization_config"]}
    (made / "config.json").write_text(json.dumps(merged, indent=2))
    for path in source.iterdir():
        if path.is_file() and path.name.startswith(_READ_BESIDE) and path.suffix != ".safetensors":
            shutil.copyfile(path, made / path.name)
