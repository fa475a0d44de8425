"""``llama_cpp`` in the contract suite with weights and a template of its own: any GGUF by its path."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from inferbus_worker.engine import Engine
from inferbus_worker.engines.llama_cpp_model import prepare

from services.worker.tests import engine_llama_cpp
from services.worker.tests.contract.behaviours import BEHAVIOURS
from services.worker.tests.engine_llama_cpp import CAN as CAN
from services.worker.tests.engine_llama_cpp import CAPABILITIES as CAPABILITIES
from services.worker.tests.engine_llama_cpp import NAME as NAME
from services.worker.tests.engine_llama_cpp import PREFILL_WORDS as PREFILL_WORDS
from services.worker.tests.engine_llama_cpp import SMALL_CACHE as SMALL_CACHE
from services.worker.tests.engine_llama_cpp import WHY as WHY
from services.worker.tests.engine_llama_cpp import held as held
from services.worker.tests.engine_llama_cpp import kill as kill
from services.worker.tests.engine_llama_cpp import missing as missing

TITLE = "`llama_cpp`, a GGUF"
# What does not depend on where the weights come from is shown by the other column.
_SHOWN = {"streaming", "length", "prompts", "refusals", "ids", "tokenize", "tools", "unload"}
SOAK = frozenset(BEHAVIOURS) - _SHOWN


@asynccontextmanager
async def made(cache: Path, **changes: Any) -> AsyncIterator[Engine]:
    """F32 weights, as the other column's: greedy texts are compared with those of neighbours."""
    section = {"weights": prepare(cache, "f32").path, **changes.pop("llama_cpp", {})}
    async with engine_llama_cpp.made(cache, llama_cpp=section, **changes) as engine:
        yield engine
