"""What a model on Triton is, as its own configuration says it.

TensorRT-LLM has two unrelated families there. A is engine based: ``ensemble`` and ``tensorrt_llm_bls`` take text, and
the core model ``tensorrt_llm`` takes token ids. B is made of the LLM API: one model, also named ``tensorrt_llm``, that
takes text. A family is told by its inputs, not by its name.
"""

import hashlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

from inferbus_worker.core.start_faults import start_failed
from inferbus_worker.engines.triton_client import AbsentModelError

Read = Callable[[str], Awaitable[Any]]
"""The ModelConfig of a model by name. Raises AbsentModelError."""


class Family(Enum):
    CORE = "core"
    """A, ids in and ids out."""
    TEXT = "text"
    """A, text in and text out."""
    LLMAPI = "llmapi"
    """B."""


_INPUTS_OF = {
    Family.CORE: frozenset({"input_ids", "request_output_len"}),
    Family.LLMAPI: frozenset({"text_input", "sampling_param_max_tokens"}),
    Family.TEXT: frozenset({"text_input", "max_tokens"}),
}
_TRUE = ("true", "1", "t", "y", "yes")


@dataclass(frozen=True, slots=True)
class Served:
    """The model that generates. ``inputs`` and ``outputs``: names of its tensors. ``batched``: they have a batch
    dimension. ``cumulative``: each response has the whole text so far. ``core``: where a stop request goes, if a cancel
    does not reach it by itself. ``adds_special``: it puts special tokens around a text."""

    name: str
    family: Family
    inputs: frozenset[str]
    outputs: frozenset[str]
    batched: bool
    cumulative: bool
    core: str
    adds_special: bool
    digest: str
    models: frozenset[str]
    """Those whose figures on the metrics page are its own."""

    @property
    def guided(self) -> bool:
        return {"guided_decoding_guide", "guided_decoding_guide_type"} <= self.inputs


async def served_of(name: str, read: Read, *, ids: bool) -> Served:
    """Of the model ``name``. ``ids``: with a text model of family A, its core model is taken if it is there.

    Raises InferBusError for a model that cannot be served, and whatever ``read`` raises.
    """
    config = await read(name)
    family = family_of(config)
    if family is None:
        names = sorted(one.name for one in config.input)
        text = f"the model '{name}' is none of TensorRT-LLM's: it has the inputs {names}"
        raise start_failed(f"{text}. To serve its tensors as they are, set neither a tokenizer nor a context length")
    if family is Family.CORE and not ids:
        raise start_failed(f"the model '{name}' takes token ids: set the tokenizer, or name its text model")
    if family is not Family.TEXT:
        return _served(config, family, "")
    core = await _core_of(config, read)
    if ids and core is not None:
        return _served(core, Family.CORE, "")
    adds_special = await _adds_special(config, read)
    # The ensemble's scheduler looks at no cancel while a step runs. Of a BLS the core's requests have names of its own.
    stop = core.name if core is not None and _steps(config) else ""
    behind = {core.name} if core is not None else set()
    return _served(config, family, stop, adds_special=adds_special, behind=behind)


def _served(
    config: Any, family: Family, core: str, *, adds_special: bool = True, behind: Collection[str] = ()
) -> Served:
    if not config.model_transaction_policy.decoupled:
        what = (
            "decoupled_mode:true" if family is not Family.LLMAPI else "decoupled: true in triton_config of model.yaml"
        )
        raise start_failed(f"the model '{config.name}' cannot stream, since it is not decoupled: set {what}")
    return Served(
        name=config.name,
        family=family,
        inputs=frozenset(one.name for one in config.input),
        outputs=frozenset(one.name for one in config.output),
        batched=config.max_batch_size > 0,
        cumulative=family is Family.LLMAPI or _parameter(config, "accumulate_tokens").lower() in _TRUE,
        core=core,
        adds_special=adds_special,
        digest=hashlib.sha256(config.SerializeToString(deterministic=True)).hexdigest(),
        models=frozenset({config.name, *behind}),
    )


def family_of(config: Any) -> Family | None:
    """None: it is none of TensorRT-LLM's."""
    names = {one.name for one in config.input}
    return next((family for family, needed in _INPUTS_OF.items() if needed <= names), None)


async def _core_of(config: Any, read: Read) -> Any | None:
    """The core model of a text model of family A; None if it is not to be had."""
    named = _parameter(config, "tensorrt_llm_model_name") or "tensorrt_llm"
    for name in _steps(config) or [named]:
        if (core := await _maybe(name, read)) is not None and _INPUTS_OF[Family.CORE] <= {x.name for x in core.input}:
            return core
    return None


async def _adds_special(config: Any, read: Read) -> bool:
    for name in _steps(config) or ["preprocessing"]:
        if (before := await _maybe(name, read)) is not None and (said := _parameter(before, "add_special_tokens")):
            return said.lower() in _TRUE
    return True


async def _maybe(name: str, read: Read) -> Any | None:
    """None if there is no such model."""
    try:
        return await read(name)
    except AbsentModelError:
        return None


def _steps(config: Any) -> list[str]:
    return [step.model_name for step in config.ensemble_scheduling.step]


def _parameter(config: Any, name: str) -> str:
    """Empty if it is not set; a template leaves ``${name}`` in what nobody has filled in."""
    value = str(config.parameters[name].string_value) if name in config.parameters else ""
    return "" if value.startswith("${") else value
