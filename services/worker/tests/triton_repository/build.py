"""A model repository for a real tritonserver: TensorRT-LLM's two families with a real small model behind, and models
that write no text (:mod:`.classic`).

Each ``config.pbtxt`` is written here, from the tables of :mod:`.tensors`; the models' code lies in ``models/``.
"""

import shutil
from pathlib import Path

from services.worker.tests.triton_repository import classic, tensors

_HERE = Path(__file__).resolve().parent
_BATCH = 64
_CORE = (tensors.CORE_INPUTS, tensors.CORE_OUTPUTS)
_TEXT = (tensors.TEXT_INPUTS, tensors.TEXT_OUTPUTS)
_LLMAPI = (tensors.LLMAPI_INPUTS, tensors.LLMAPI_OUTPUTS)
_UNGUIDED = tuple("\n".join(line for line in table.split("\n") if "guided" not in line) for table in _CORE)


def write(folder: Path, llama_cpp: str) -> Path:
    """The repository below ``folder``. ``llama_cpp``: host:port of the server behind the models.

    tensorrt_llm, tensorrt_llm_bls, ensemble (with preprocessing and postprocessing) are family A; ``llmapi`` is B.
    Variants: ``accumulating`` (BLS), ``unguided`` (core), ``coupled`` (B as shipped: not decoupled), ``narrow`` (B that
    runs one request at a time and lets one more wait).
    """
    root = folder / "repository"
    core = _python(_CORE, llama_cpp, batch=_BATCH, scalars=True)
    _model(root, "tensorrt_llm", "tensorrt_llm", core)
    _model(root, "unguided", "tensorrt_llm", _python(_UNGUIDED, llama_cpp, batch=_BATCH, scalars=True))
    bls = _python(_TEXT, llama_cpp, batch=_BATCH, tensorrt_llm_model_name="tensorrt_llm", polls_cancel="no")
    _model(root, "tensorrt_llm_bls", "tensorrt_llm_bls", bls)
    accumulating = _python(_TEXT, llama_cpp, batch=_BATCH, accumulate_tokens="true", polls_cancel="no")
    _model(root, "accumulating", "tensorrt_llm_bls", accumulating)
    _model(root, "llmapi", "llmapi", _python(_LLMAPI, llama_cpp, batch=0))
    _model(root, "coupled", "llmapi", _python(_LLMAPI, llama_cpp, batch=0, decoupled=False))
    queue = "dynamic_batching { default_queue_policy { max_queue_size: 1 } }\n"
    # A queue needs a batch dimension.
    _model(root, "narrow", "llmapi", _python(_LLMAPI, llama_cpp, batch=1, max_inflight="1") + queue)
    before = (tensors.PREPROCESSING_INPUTS, tensors.PREPROCESSING_OUTPUTS)
    _model(root, "preprocessing", "preprocessing", _python(before, llama_cpp, batch=_BATCH, decoupled=False))
    after = (tensors.POSTPROCESSING_INPUTS, tensors.POSTPROCESSING_OUTPUTS)
    _model(root, "postprocessing", "postprocessing", _python(after, llama_cpp, batch=_BATCH, decoupled=False))
    ensemble = f'platform: "ensemble"\nmax_batch_size: {_BATCH}\n' + _both(_ensemble_tables()) + tensors.steps()
    _model(root, "ensemble", None, ensemble)
    for name, (code, *_) in classic.CONFIGS.items():
        _model(root, name, code, classic.config(name))
    return root


def _ensemble_tables() -> tuple[str, str]:
    """An ensemble may only name what its steps have."""
    mapped = tensors.steps()
    return tuple(  # type: ignore[return-value]
        "\n".join(line for line in table.split("\n") if line and f'value: "{line.split()[0].rstrip("?")}"' in mapped)
        for table in _TEXT
    )


def _python(
    tables: tuple[str, ...],
    llama_cpp: str,
    *,
    batch: int,
    scalars: bool = False,
    decoupled: bool = True,
    **parameters: str,
) -> str:
    config = f'backend: "python"\nmax_batch_size: {batch}\n' + _both(tables, scalars=scalars)
    config += "instance_group [ { count: 1 kind: KIND_CPU } ]\n"
    if decoupled:
        config += "model_transaction_policy { decoupled: true }\n"
    for key, value in {"llama_cpp": llama_cpp, **parameters}.items():
        config += f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
    return config


def _both(tables: tuple[str, ...], *, scalars: bool = False) -> str:
    inputs, outputs = tables
    return tensors.tensors("input", inputs, scalars=scalars) + tensors.tensors("output", outputs)


def _model(root: Path, name: str, code: str | None, config: str) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}')
    if code is not None:  # a stub imports from its own folder only
        for file in (_HERE / "models" / code / "model.py", *(_HERE / "lib").glob("*.py")):
            shutil.copy(file, folder)
