"""Models that no worker has served yet: known by their first stable revision, so that a request may wake them."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0
# What engines can do at least, until their first worker says exactly what it can.
_CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    "minilm": ("embeddings",),
    "llama_cpp": ("chat", "completions", "tools", "structured_output", "logprobs", "logit_bias"),
}
_TEXT = ("chat", "completions")


def record_of(revision: RevisionRecord) -> ModelRecord:
    """What is known of its model before a worker has told it: how long its context is, is not."""
    return ModelRecord(
        name=revision.model,
        revision=revision.revision,
        engine=revision.engine,
        owned_by="inferbus",
        capabilities=_CAPABILITIES.get(revision.engine, _TEXT),
        create_time=clock.timestamp(clock.now_us()),
    )


class ModelRecords:
    """Announces a model when a revision of it is stable and nobody has; ``decides``: whether that is for us to do. The
    worker's own record, as soon as there is one, takes its place."""

    def __init__(
        self, models: Registry[ModelRecord], revisions: Registry[RevisionRecord], decides: Callable[[], bool]
    ) -> None:
        self._models = models
        self._revisions = revisions
        self._decides = decides
        self._changed = asyncio.Event()
        revisions.on_change(lambda name, record: self._changed.set())

    async def run(self) -> None:
        """For ever. Who comes to decide looks at all of them."""
        decided = False
        while True:
            try:
                async with asyncio.timeout(_RETRY_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                if self._decides() == decided:
                    continue
            self._changed.clear()
            decided = self._decides()
            if decided:
                await self._announce()

    async def _announce(self) -> None:
        for revision in list(self._revisions.items().values()):
            if revision.stage != RevisionStage.REVISION_STAGE_STABLE or self._models.get(revision.model) is not None:
                continue
            try:
                await self._models.put(revision.model, record_of(revision))
            except InferBusError as error:
                log.warning("model not announced", extra={"model": revision.model, "error": str(error)})
                self._changed.set()
            else:
                log.info("model announced", extra={"model": revision.model, "revision": revision.revision})
