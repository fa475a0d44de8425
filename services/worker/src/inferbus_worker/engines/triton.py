"""A model behind a tritonserver: one of TensorRT-LLM, spoken to over its gRPC streams, or any other, by calls.

The server is somebody else's: it batches, and it may be shared. Each generation is one request on a stream of its own;
all streams are coalesced here into steps. With a tokenizer and a core model requests go by token ids, and a resumed
stream goes on exactly; else by text. Triton keeps no tenants apart in its KV cache: ``cache_salt`` has no effect there.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

from inferbus_runtime.errors import InferBusError, invalid

from inferbus_worker.config import Config, TritonConfig
from inferbus_worker.core.ends import engine_failed
from inferbus_worker.core.sampling import check_ids, fault_of
from inferbus_worker.core.stops import StopFilter, reader_of
from inferbus_worker.engine import (
    Chat,
    EngineInfo,
    EngineStatistics,
    Finish,
    Finished,
    Generation,
    Prompt,
    Step,
    Tokens,
)
from inferbus_worker.engines.outbox import Outbox
from inferbus_worker.engines.runs import End, Runs, not_up
from inferbus_worker.engines.triton_calls import Calls
from inferbus_worker.engines.triton_generate import Generating
from inferbus_worker.engines.triton_health import Health, HealthLimits
from inferbus_worker.engines.triton_metrics import MetricsReader, ServerLoad
from inferbus_worker.engines.triton_prompt import Prompts, grammar_for
from inferbus_worker.engines.triton_request import capabilities_of, sampling_fault
from inferbus_worker.engines.triton_run import Run
from inferbus_worker.engines.triton_service import Service, start
from inferbus_worker.engines.triton_tensors import TensorService

log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 64


class Triton:
    """Engine ``triton``."""

    def __init__(
        self, model: str | None, capacity: int, context_length: int | None, stall_seconds: float, settings: TritonConfig
    ) -> None:
        self._model = model or settings.server_model
        self._capacity = capacity
        self._context_length = context_length
        self._settings = settings
        self._limits = HealthLimits(
            interval=settings.probe_interval.total_seconds(),
            timeout=settings.probe_timeout.total_seconds(),
            stall=stall_seconds,
        )
        self._reset()

    @classmethod
    def from_config(cls, config: Config) -> "Triton":
        capacity, stall = config.capacity or DEFAULT_CAPACITY, config.engine_stall.total_seconds()
        return cls(config.model, capacity, config.context_length, stall, config.triton)

    def _reset(self) -> None:
        self._runs: Runs[Run] = Runs(self._capacity)
        self._outbox = Outbox(self._runs.running)
        self._up: Service | None = None
        self._calls: Calls | None = None
        self._prompts_or_none: Prompts | None = None
        self._generating: Generating | None = None
        self._health = Health(self._probe, self._owed, self._stalled, self._limits)
        self._metrics: MetricsReader | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> EngineInfo:
        """Waits for the server and its model, which is loaded where that is allowed. Raises InferBusError."""
        found = await start(self._settings, self._context_length)
        if self._settings.metrics_url is not None:
            interval = self._settings.metrics_interval.total_seconds()
            self._metrics = MetricsReader(self._settings.metrics_url, found.models, interval)
            self._tasks.append(asyncio.create_task(self._metrics.run(), name="engine-metrics"))
        if isinstance(found, TensorService):
            self._calls = Calls(found, self._capacity, self._limits)
            log.info("model found", extra={"family": "tensors", "served": found.tensors.name})
            return self._calls.info(self._model)
        service = self._up = found
        prompts = self._prompts_or_none = Prompts(service)
        self._capabilities = capabilities_of(service.served, chat=prompts.chats, reasons=prompts.reasons)
        self._generating = Generating(service, prompts, self._runs, self._outbox, self._health)
        self._health.moved()
        self._tasks.append(asyncio.create_task(_watch(self._health, self._outbox), name="engine-watch"))
        self._outbox.open()
        log.info("model found", extra={"family": service.served.family.value, "served": service.served.name})
        return EngineInfo(
            engine="triton",
            model=self._model,
            revision=service.revision,
            capacity=self._capacity,
            context_length=service.context_length,
            capabilities=self._capabilities,
            resumes_by_text=not service.by_ids,
        )

    def submit(self, generation: Generation) -> None:
        if self._calls is not None:
            self._calls.submit(generation)
            return
        try:
            run = self._run_of(generation)
        except InferBusError as error:
            self._outbox.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            return
        self._runs.waiting.append(run)
        self._admit()

    def _run_of(self, generation: Generation) -> Run:
        """Raises InferBusError for what this model cannot do."""
        service, prompts, sampling = self._service, self._prompts, generation.sampling
        fault = fault_of(generation, self._capabilities) or sampling_fault(service.served, sampling)
        if fault is not None:
            raise fault
        if service.tokenizer is not None:
            check_ids([token for token, _ in sampling.logit_bias], len(service.tokenizer.pieces), "logit_bias")
        if service.by_ids:
            check_ids(generation.resume_ids, len(prompts.tokenizer.pieces), "messages")
        return Run(
            generation=generation,
            prompt=prompts.content_of(generation.input),
            grammar=grammar_for(generation),
            filter=StopFilter(sampling.stop, reader_of(generation, reasons=prompts.reasons)),
            by_ids=service.by_ids,
            tokenizer=service.tokenizer,
        )

    def close(self, key: bytes) -> None:
        if self._calls is not None:
            self._calls.close(key)
            return
        if (run := self._runs.take(key)) is not None:
            self._end(run, End(Finish.CANCELLED))

    def steps(self) -> AsyncIterator[Step]:
        return self._calls.steps() if self._calls is not None else self._outbox.steps()

    def statistics(self) -> EngineStatistics:
        """What of it is the server's comes from its metrics page, if that is read."""
        load = self._metrics.load if self._metrics is not None else ServerLoad()
        if self._calls is not None:
            return load.statistics(self._calls.running, self._calls.waiting)
        return load.statistics(len(self._runs.running), len(self._runs.waiting))

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        prompts = self._prompts
        return await prompts.tokens_of(
            source, parse_special=parse_special, add_special=add_special, open_turn=open_turn
        )

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        tokenizer = self._prompts.tokenizer
        check_ids(ids, len(tokenizer.pieces), "tokens")
        return tokenizer.decode(ids)

    async def stop(self) -> None:
        tasks = self._runs.tasks() + self._tasks
        service, health, calls = self._up, self._health, self._calls
        self._outbox.close()
        self._reset()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await health.stop()
        if service is not None:
            await service.stop()
        if calls is not None:
            await calls.stop()

    # --- who runs ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while (run := self._runs.next()) is not None:
            if not self._runs.running:
                self._health.moved()
            self._runs.begin(run, self._run(run))

    async def _run(self, run: Run) -> None:
        if self._generating is None:
            self._end(run, End(Finish.ERROR, not_up()))
        elif (end := await self._generating.generate(run)) is not None and self._runs.has(run):
            self._end(run, end)

    def _end(self, run: Run, end: End) -> None:
        """The one end of a generation, whatever ended it. Its stream is closed with its task, which is the server's
        cancel."""
        self._runs.leave(run)
        text, reason = run.filter.end(end.reason)
        if text:
            self._outbox.add(run.key, [], text)
        self._outbox.finish(run.finished(reason, end.error, run.filter.found))
        self._admit()

    # --- its health -------------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        await self._service.probe()

    def _owed(self) -> bool:
        return bool(self._runs.running) and self._outbox.room.is_set()

    def _stalled(self, before: float) -> None:
        """Ends those that began and got nothing since ``before``, though others did."""
        for run in list(self._runs.running.values()):
            if run.moved_at is not None and run.moved_at < before:
                why = f"its stream stands still after {len(run.ids)} tokens"
                self._end(run, End(Finish.ERROR, engine_failed(why)))

    @property
    def _service(self) -> Service:
        if self._up is None:
            raise not_up()
        return self._up

    @property
    def _prompts(self) -> Prompts:
        if self._calls is not None:
            text = "This model reads tensors; it has no tokens."
            raise invalid(text, param="prompt", reason="unsupported_parameter")
        if self._prompts_or_none is None:
            raise not_up()
        return self._prompts_or_none


async def _watch(health: Health, outbox: Outbox) -> None:
    await health.run()
    outbox.die(health.death)
