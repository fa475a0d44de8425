"""A loaded model: the engine built for it, its tokenizer, its template, and how it is asked for one generation."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from inferbus_runtime.errors import InferBusError
from jinja2 import TemplateError

from inferbus_worker.config import Config
from inferbus_worker.core.start_faults import refusal
from inferbus_worker.engines.llama_cpp_prompt import ChatTemplate
from inferbus_worker.engines.tensorrt_llm_args import Plan, plan
from inferbus_worker.engines.tensorrt_llm_model import ModelFolder, read_folder
from inferbus_worker.engines.tensorrt_llm_output import FINISHES
from inferbus_worker.engines.tensorrt_llm_package import Package, load
from inferbus_worker.engines.tensorrt_llm_text import Encoder, UnknownTokenizerError, Vocabulary, vocabulary_of

log = logging.getLogger(__name__)

_BLOCK_TOKENS = 32


@dataclass(slots=True)
class Served:
    """``end_ids``: tokens that end an output, the first the one that grammars end with. ``honoured``: of the parameters
    that samplers forget, those that work. ``tells_cached``: results say how much of a prompt was cached."""

    llm: Any
    package: Package
    folder: ModelFolder
    plan: Plan
    encoder: Encoder
    words: Vocabulary
    template: ChatTemplate | None
    end_ids: tuple[int, ...]
    honoured: frozenset[str]
    capabilities: tuple[str, ...]
    block_tokens: int
    priority: float | None
    lora: Any = None
    tells_cached: bool = False

    def ask(self, ids: Sequence[int], arguments: dict[str, Any], salt: bytes = b"") -> Any:
        """The result of a generation that has begun, to be iterated. Needs a running event loop, of which it is.

        Raises ValueError or TypeError for what the engine does not take, its RequestError, and anything if it is gone.
        """
        options: dict[str, Any] = {"streaming": True, "sampling_params": self._parameters(arguments)}
        if salt and "cache_salt" in self.package.features.generate:
            options["cache_salt"] = salt.hex()
        if self.priority is not None:
            options["priority"] = self.priority
        if self.lora is not None:
            options["lora_request"] = self.lora
        return self.llm.generate_async(list(ids), **options)

    def _parameters(self, arguments: dict[str, Any]) -> Any:
        known = self.package.features.sampling
        given: dict[str, Any] = {"detokenize": False, **arguments}
        # Said by us, since versions differ in where they look for them; -1 is no token: such an output never ends.
        given["end_id"] = self.end_ids[0] if self.end_ids else -1
        if self.end_ids[1:]:
            given["stop_token_ids"] = list(self.end_ids[1:])
        if not self.tells_cached and "return_perf_metrics" in known:
            given["return_perf_metrics"] = True
        return self.package.sampling_params(**given)

    async def prove(self) -> None:
        """One token, whatever it is: an engine that makes one works. Raises what it raises."""
        result = self.ask([next(iter(self.encoder.encode("a", add_special=False)), 0)], {"top_k": 1, "max_tokens": 1})
        async for _ in result:
            pass
        if (finish := result.outputs[0].finish_reason) not in FINISHES:
            raise RuntimeError(f"the first generation ended with {finish!r}")
        self.tells_cached = self.folder.backend == "pytorch" and hasattr(result, "cached_tokens")

    @property
    def has_tags(self) -> bool:
        """Whether the engine takes structural tags."""
        return "structural_tag" in self.package.features.guides and self.folder.backend == "pytorch"

    def torch(self) -> Any:
        """The package, which the engine has loaded long ago."""
        return import_module("torch")


def serve(config: Config) -> Served:
    """Blocks for as long as the weights take, minutes. Raises InferBusError if the settings cannot be served."""
    settings = config.tensorrt_llm
    folder = read_folder(settings.model_path, settings.tokenizer_path)
    package = load(folder.backend)
    planned = plan(config, folder, package)
    about = {"version": package.features.version, "quantization": folder.quantization, "backend": folder.backend}
    log.info("building the engine", extra=about)
    try:
        llm = package.llm(model=str(folder.path), **planned.arguments)
    except Exception as error:
        # Its own message names its argument; memory, GPUs and MPI are the usual reasons.
        raise refusal("TENSORRT_LLM__MODEL_PATH", f"LLM({sorted(planned.arguments)}) failed: {error!r}") from error
    try:
        return _served(config, llm, package, folder, planned)
    except BaseException:
        llm.shutdown()
        raise


def _served(config: Config, llm: Any, package: Package, folder: ModelFolder, planned: Plan) -> Served:
    tokenizer = getattr(llm.tokenizer, "tokenizer", llm.tokenizer)  # its wrapper, or what it wraps
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise refusal("TENSORRT_LLM__TOKENIZER_PATH", "the model has no fast tokenizer (tokenizer.json)")
    try:
        words = vocabulary_of(fast.to_str(), folder.logits)
    except UnknownTokenizerError as error:
        raise refusal("TENSORRT_LLM__TOKENIZER_PATH", str(error)) from error
    template = _template(tokenizer)
    settings = config.tensorrt_llm
    honoured = package.features.honoured(settings.sampler, speculating=settings.speculation != "none")
    own_end = tokenizer.eos_token_id
    ends = [*([] if own_end is None else [own_end]), *folder.end_ids]
    cache = getattr(getattr(llm, "args", None), "kv_cache_config", None)
    return Served(
        llm=llm,
        package=package,
        folder=folder,
        plan=planned,
        encoder=Encoder(fast),
        words=words,
        template=template,
        end_ids=tuple(dict.fromkeys(ends)),
        honoured=honoured,
        capabilities=_capabilities(folder, planned, template),
        block_tokens=settings.kv_block_tokens or getattr(cache, "tokens_per_block", None) or _BLOCK_TOKENS,
        priority=settings.priority,
        lora=None if planned.adapter is None else package.lora_request(*planned.adapter),
    )


def _template(tokenizer: Any) -> ChatTemplate | None:
    """None: a model that takes text only, or whose template is written for something else than Jinja."""
    source = getattr(tokenizer, "chat_template", None)
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        return None
    try:
        return ChatTemplate(source, tokenizer.bos_token or "", tokenizer.eos_token or "")
    except (TemplateError, InferBusError) as error:
        log.warning("the model's chat template cannot be read: it serves no chat", extra={"error": repr(error)})
        return None


def _capabilities(folder: ModelFolder, planned: Plan, template: ChatTemplate | None) -> tuple[str, ...]:
    able = [
        ("chat", template is not None),
        ("completions", True),
        ("tools", template is not None and planned.guided == "llguidance"),
        ("structured_output", planned.guided != "none"),
        ("logprobs", folder.backend == "pytorch"),  # a built engine must gather its logits for them
        ("logit_bias", folder.logits > 0),
        ("reasoning", template is not None and template.reasoning),
    ]
    return tuple(name for name, is_able in able if is_able)
