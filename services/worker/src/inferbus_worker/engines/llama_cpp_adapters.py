"""LoRA adapters of the CPU engine: files in GGUF that the child has loaded, each applied where a request names it."""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from inferbus_runtime.errors import invalid

from inferbus_worker.core.start_faults import refusal


def adapters_of(settings: Iterable[str]) -> Mapping[str, Path]:
    """By name, in their order. Raises InferBusError for one that is not name=file, or not there."""
    adapters: dict[str, Path] = {}
    for entry in settings:
        name, _, path = entry.partition("=")
        if not name or ":" in name or name in adapters or not Path(path).is_file():
            raise refusal("LLAMA_CPP__LORA", f"'{entry}' is not name=file with a name of its own, or it is not there")
        adapters[name] = Path(path)
    return adapters


def scales_of(adapters: Mapping[str, Path], wanted: str) -> tuple[float, ...]:
    """How much of each is applied where ``wanted`` is asked for. Raises InferBusError for one that is not here."""
    if wanted and wanted not in adapters:
        raise invalid(f"This model has no adapter `{wanted[:128]}`.", param="model")
    return tuple(1.0 if name == wanted else 0.0 for name in adapters)


async def digest_of(adapters: Mapping[str, Path]) -> str:
    """Names what they change; empty without any."""
    if not adapters:
        return ""
    digests = [await asyncio.to_thread(_digest, path) for path in adapters.values()]
    return f" {' '.join(f'{name}={digest}' for name, digest in zip(adapters, digests, strict=True))}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
