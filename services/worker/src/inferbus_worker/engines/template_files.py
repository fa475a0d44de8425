"""The chat template in a folder of Hugging Face's files, whichever of its places it is in."""

from pathlib import Path
from typing import Any

from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate


def template_in(folder: Path, config: dict[str, Any]) -> ChatTemplate | None:
    """``config``: of the folder's tokenizer_config.json. None: a model that takes text only.

    Raises OSError, KeyError for a list of templates that is none, and jinja2's TemplateError.
    """
    source = config.get("chat_template")
    if (file := folder / "chat_template.jinja").exists():
        source = file.read_text()
    if isinstance(source, list):  # several by name
        source = next((one["template"] for one in source if one["name"] == "default"), None)
    if not source:
        return None
    return ChatTemplate(source, text_of(config.get("bos_token")), text_of(config.get("eos_token")))


def text_of(token: Any) -> str:
    """A token's text; it may come with its properties."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")
