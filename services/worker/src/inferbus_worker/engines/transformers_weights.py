"""The model in the child: read from its folder, or drawn."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


class RefusedError(Exception):
    """What the settings ask for cannot be had here. ``setting``: which, after INFERBUS_WORKER_."""

    def __init__(self, setting: str, why: str) -> None:
        super().__init__(why)
        self.setting = setting


@dataclass(frozen=True, slots=True)
class Weights:
    """``model``: a PreTrainedModel in evaluation mode, on ``device`` (cuda or cpu). ``attention``: by whom."""

    model: Any
    device: str
    attention: str


def weights_of(settings: dict[str, Any]) -> Weights:
    """Minutes for a large model. Raises RefusedError."""
    try:
        torch, transformers = import_module("torch"), import_module("transformers")
    except ImportError as error:
        raise RefusedError("ENGINE", f"its packages are not installed (make transformers): {error}") from error
    torch.set_num_threads(settings["threads"])
    device = _device(settings["device"], torch)
    attention = _attention(settings["attention"], device, transformers)
    folder = settings["model_path"]
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        options = {"dtype": _dtype(settings["dtype"], device, config, torch), "attn_implementation": attention}
        if settings["random_weights"]:
            torch.manual_seed(settings["random_seed"])
            with torch.device(device):
                model = transformers.AutoModelForCausalLM.from_config(config, **options)
        else:
            options["local_files_only"] = True
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise RefusedError("TRANSFORMERS__MODEL_PATH", f"its model cannot be made: {error}") from error
    # A GPU that is too small says so here: the worker tells it as a failed start, with the last words of this process.
    return Weights(model.to(device).eval(), device, attention)


def _device(wanted: str, torch: Any) -> str:
    has = bool(torch.cuda.is_available())
    if wanted == "cuda" and not has:
        raise RefusedError("TRANSFORMERS__DEVICE", "PyTorch sees no GPU")
    return "cuda" if has and wanted != "cpu" else "cpu"


def _dtype(wanted: str, device: str, config: Any, torch: Any) -> Any:
    if wanted != "auto":
        return getattr(torch, wanted)
    said = getattr(config.get_text_config(), "dtype", None)
    if device == "cpu" or said is None:
        return torch.float32 if device == "cpu" else torch.bfloat16
    return said if isinstance(said, torch.dtype) else getattr(torch, said)


def _attention(wanted: str, device: str, transformers: Any) -> str:
    """Flash attentions only if they are installed: the library would fetch one from its hub."""
    installed = [
        f"flash_attention_{version}"
        for version in (3, 2)
        if device == "cuda" and getattr(transformers.utils, f"is_flash_attn_{version}_available", bool)()
    ]
    if wanted == "auto":
        return installed[0] if installed else "sdpa"
    if wanted.startswith("flash") and wanted not in installed:
        raise RefusedError("TRANSFORMERS__ATTENTION", f"{wanted} is not installed, or there is no GPU for it")
    return wanted
