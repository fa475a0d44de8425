"""What the worker itself reads of a model's folder: its lengths, its tokenizer, its chat template."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferbus_runtime.errors import InferBusError
from jinja2 import TemplateError
from tokenizers import Tokenizer

from inferbus_worker.config import TransformersConfig
from inferbus_worker.core.start_faults import refusal
from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate
from inferbus_worker.engines.template_files import template_in, text_of
from inferbus_worker.engines.tensorrt_llm_model import read_folder
from inferbus_worker.engines.tensorrt_llm_text import Encoder, UnknownTokenizerError, Vocabulary, vocabulary_of

log = logging.getLogger(__name__)

_MODEL, _TOKENIZER = "TRANSFORMERS__MODEL_PATH", "TRANSFORMERS__TOKENIZER_PATH"


@dataclass(frozen=True, slots=True)
class Files:
    """``logits``: how many the model makes a token; no id is above. ``end_ids``: tokens that end an output.
    ``digest``: names their content."""

    path: Path
    context_length: int
    logits: int
    encoder: Encoder
    words: Vocabulary
    template: ChatTemplate | None
    end_ids: tuple[int, ...]
    digest: str


def read(settings: TransformersConfig) -> Files:
    """Blocks for a second or two. Raises InferBusError for what cannot be served."""
    folder = read_folder(settings.model_path, settings.tokenizer_path, _MODEL)
    if folder.backend != "pytorch" or not folder.logits or not folder.context_length:
        raise refusal(_MODEL, "its config.json says no vocab_size, or no max_position_embeddings")
    place = settings.tokenizer_path or folder.path
    try:
        tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
        words = vocabulary_of(tokenizer.to_str(), folder.logits)
        config = json.loads((place / "tokenizer_config.json").read_text())
    except UnknownTokenizerError as error:
        raise refusal(_TOKENIZER, str(error)) from error
    except Exception as error:  # the package's own errors are plain Exceptions
        raise refusal(_TOKENIZER, f"{place} holds no tokenizer that can be read: {error!r}") from error
    if len(words.texts) > folder.logits:
        # The model would be asked for embeddings that it has not, which on a GPU ends the process.
        why = f"it has {len(words.texts)} tokens, and the model {folder.logits}"
        raise refusal(_TOKENIZER, why)
    named = tokenizer.token_to_id(text_of(config.get("eos_token")))
    ends = [*([] if named is None else [named]), *folder.end_ids]
    drawn = f" drawn {settings.random_seed}" if settings.random_weights else ""
    digest = hashlib.sha256(f"{folder.digest}{drawn} {settings.dtype}".encode()).hexdigest()[:12]
    return Files(
        folder.path, folder.context_length, folder.logits, Encoder(tokenizer), words, _template(place, config),
        tuple(dict.fromkeys(ends)), digest,
    )  # fmt: skip


def _template(place: Path, config: dict[str, Any]) -> ChatTemplate | None:
    """None: a model that takes text only, or whose template is written for something else than Jinja."""
    try:
        return template_in(place, config)
    except (TemplateError, InferBusError) as error:
        log.warning("the model's chat template cannot be read: it serves no chat", extra={"error": repr(error)})
        return None
