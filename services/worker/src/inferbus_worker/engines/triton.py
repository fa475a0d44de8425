"""A model of TensorRT-LLM behind a tritonserver, spoken to over its gRPC streams.

The server is somebody else's: it batches, and it may be shared. Each generation is one request on a stream of its own;
all streams are coalesced here into steps. With a tokenizer and a core model requests go by token ids, and a resumed
stream goes on exactly; else by text. Triton keeps no tenants apart in its KV cache: ``cache_salt`` has no effect there.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import grpc
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_worker.config import Config, TritonConfig
from inferbus_worker.core.coalesce import StepBuilder
from inferbus_worker.core.sampling import fault_of
from inferbus_worker.core.stops import StopFilter, reader_of
from inferbus_worker.engine import (
    UNKNOWN_TOKEN,
    Chat,
    EngineDiedError,
    EngineInfo,
    Finish,
    Finished,
    Generation,
    Prompt,
    Step,
    Tokens,
)
from inferbus_worker.engines.llama_cpp_grammar import Follower
from inferbus_worker.engines.llama_cpp_http import known
from inferbus_worker.engines.triton_errors import Trouble, engine_failed, error_of, trouble_of
from inferbus_worker.engines.triton_health import Health, HealthLimits, described
from inferbus_worker.engines.triton_metrics import MetricsReader, ServerLoad
from inferbus_worker.engines.triton_prompt import Prompts, grammar_for
from inferbus_worker.engines.triton_request import capabilities_of, sampling_fault
from inferbus_worker.engines.triton_run import Run
from inferbus_worker.engines.triton_service import Service, start
from inferbus_worker.engines.triton_stream import Delta, Reader

log = logging.getLogger(__name__)

DEFAULT_CAPACITY = 64
# Responses of one engine step arrive within this time; a step in which everybody moved does not wait for it.
_COALESCE_SECONDS = 0.001
_BUFFERED_TOKENS = 4096


class Triton:
    """Engine ``triton``. ``load``: what the server says of itself, if its metrics are read."""

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
        self._waiting: deque[Run] = deque()
        self._running: dict[bytes, Run] = {}
        self._steps = StepBuilder()
        self._ready = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._timer: asyncio.TimerHandle | None = None
        self._up: Service | None = None
        self._prompts_or_none: Prompts | None = None
        self._health = Health(self._probe, self._owed, self._stalled, self._limits)
        self._metrics: MetricsReader | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def load(self) -> ServerLoad:
        return self._metrics.load if self._metrics is not None else ServerLoad()

    async def start(self) -> EngineInfo:
        """Waits for the server and its model, which is loaded where that is allowed. Raises InferBusError."""
        service = self._up = await start(self._settings, self._context_length)
        prompts = self._prompts_or_none = Prompts(service)
        self._capabilities = capabilities_of(service.served, chat=prompts.chats, reasons=prompts.reasons)
        self._health.moved()
        self._tasks = [asyncio.create_task(self._watch(self._health), name="engine-watch")]
        if self._settings.metrics_url is not None:
            interval = self._settings.metrics_interval.total_seconds()
            self._metrics = MetricsReader(self._settings.metrics_url, service.served.models, interval)
            self._tasks.append(asyncio.create_task(self._metrics.run(), name="engine-metrics"))
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
        try:
            run = self._run_of(generation)
        except InferBusError as error:
            self._steps.finish(Finished(generation.key, Finish.ERROR, 0, error=error))
            self._moved()
            return
        self._waiting.append(run)
        self._admit()

    def _run_of(self, generation: Generation) -> Run:
        """Raises InferBusError for what this model cannot do."""
        service, prompts, sampling = self._service, self._prompts, generation.sampling
        fault = fault_of(generation, self._capabilities) or sampling_fault(service.served, sampling)
        if fault is not None:
            raise fault
        if service.tokenizer is not None:
            known([token for token, _ in sampling.logit_bias], service.tokenizer.pieces, "logit_bias")
        if service.by_ids:
            known(generation.resume_ids, prompts.tokenizer.pieces, "messages")
        return Run(
            generation=generation,
            prompt=prompts.content_of(generation.input),
            grammar=grammar_for(generation),
            filter=StopFilter(sampling.stop, reader_of(generation, reasons=prompts.reasons)),
            by_ids=service.by_ids,
            tokenizer=service.tokenizer,
        )

    def close(self, key: bytes) -> None:
        run = self._running.pop(key, None)
        if run is None:
            run = next((waiting for waiting in self._waiting if waiting.key == key), None)
            if run is None:
                return
            self._waiting.remove(run)
        self._end(run, Finish.CANCELLED)

    async def steps(self) -> AsyncIterator[Step]:
        while self._up is not None:
            await self._ready.wait()
            self._ready.clear()
            health = self._health
            if self._steps:
                self._cancel_timer()
                yield self._steps.take(clock.now_us())
                self._room.set()
            if health.death and self._health is health:
                raise EngineDiedError(health.death)

    async def tokenize(
        self, source: Prompt | Chat, *, parse_special: bool = True, add_special: bool = True, open_turn: bool = True
    ) -> Tokens:
        prompts = self._prompts
        return await prompts.tokens_of(
            source, parse_special=parse_special, add_special=add_special, open_turn=open_turn
        )

    async def detokenize(self, ids: Sequence[int]) -> bytes:
        tokenizer = self._prompts.tokenizer
        known(ids, tokenizer.pieces, "tokens")
        return tokenizer.decode(ids)

    async def stop(self) -> None:
        tasks = [run.task for run in self._running.values() if run.task is not None] + self._tasks
        service, ready, health = self._up, self._ready, self._health
        self._cancel_timer()
        self._reset()
        ready.set()  # whoever waits for a step sees that there is no server any more
        health.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if service is not None:
            await service.stop()

    # --- who runs ---------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._capacity:
            run = self._waiting.popleft()
            if not self._running:
                self._health.moved()
            self._running[run.key] = run
            run.task = asyncio.create_task(self._generate(run), name="generation")

    def _end(self, run: Run, reason: Finish, error: InferBusError | None = None) -> None:
        """The one end of a generation, whatever ended it."""
        self._running.pop(run.key, None)
        if run.task is not None and run.task is not asyncio.current_task():
            run.task.cancel()  # closes its stream, which is the server's cancel
        found = None
        if reason in (Finish.STOP, Finish.LENGTH):
            if held := run.filter.flush():
                self._steps.add(run.key, [], held.encode())
            found = run.filter.found
            reason = reason if found is None else Finish.STOP
        self._steps.finish(run.finished(reason, error, found))
        self._moved()
        self._admit()

    # --- one generation ---------------------------------------------------------------------------------------------

    async def _generate(self, run: Run) -> None:
        service = self._service
        try:
            if await self._ended_before(run):
                return
            task = await self._prompts.task_of(run)
            if task is None:
                self._end(run, Finish.LENGTH)
                return
            reader = service.reader(task.max_new, run.ids if run.grammar is None else [])
            async with aclosing(service.stream(task)) as responses:
                async for response in responses:
                    run.moved_at = self._health.moved()
                    if self._running.get(run.key) is not run:
                        return  # closed while this response was already here
                    if response.error_message:
                        await self._failed(run, response.error_message)
                        return
                    delta = reader.feed(response.infer_response)
                    self._measure(run, reader)
                    if delta is not None and self._take(run, delta):
                        return
                    if reader.done:
                        break
                    if not self._room.is_set():
                        await self._room.wait()
            self._complete(run, reader)
        except InferBusError as error:
            self._end(run, Finish.ERROR, error)
        except grpc.RpcError as error:
            await self._suspected(run, described(error))
        except Exception as error:  # an answer of the server that we do not understand ends this generation only
            log.exception("a generation failed")
            self._end(run, Finish.ERROR, engine_failed(repr(error)))

    async def _ended_before(self, run: Run) -> bool:
        """Ends it if there is nothing to generate: refused, or complete already."""
        if run.grammar is not None:
            run.follower = await asyncio.to_thread(Follower, run.grammar)
        # A stop string may have begun, or ended, in what an earlier attempt delivered.
        if run.generation.resume_ids and run.filter.feed(run.given_text()).stopped:
            self._end(run, Finish.STOP)
            return True
        max_tokens = run.generation.sampling.max_tokens
        if max_tokens is not None and max_tokens <= len(run.ids):
            self._end(run, Finish.LENGTH)
            return True
        return False

    def _take(self, run: Run, delta: Delta) -> bool:
        """True if it has ended."""
        if not run.fits(delta.text):
            self._left_form(run)
            return True
        fresh = run.fresh(delta)
        if fresh is None:
            self._differs(run)
            return True
        if fresh.token_ids or fresh.text:
            cut = run.filter.feed(fresh.text)
            run.ids += fresh.token_ids
            run.text.append(fresh.text)
            self._steps.add(run.key, fresh.token_ids, cut.text.encode())
            if self._steps.tokens >= _BUFFERED_TOKENS:
                self._room.clear()
            self._moved()
            if cut.stopped:
                self._end(run, Finish.STOP)
                return True
        return False

    def _measure(self, run: Run, reader: Reader) -> None:
        """What the server counts is right; but it counts what it was given, with what an earlier attempt had said."""
        run.counted = reader.counted
        if reader.input_tokens is not None:
            given = len(run.generation.resume_ids) if run.goes_on else 0
            run.input_tokens = reader.input_tokens - given
            run.estimated = bool(given)
        if reader.reused_blocks:
            run.cached_tokens = min(run.input_tokens, reader.reused_blocks * self._settings.kv_block_tokens)

    def _complete(self, run: Run, reader: Reader) -> None:
        """The server has ended it."""
        rest, reason = reader.end()
        if rest is not None and self._take(run, rest):
            return
        if run.repeats or run.repeats_text:
            self._differs(run)
        elif reason is Finish.STOP and run.follower is not None and not run.follower.complete():
            self._left_form(run)
        else:
            if not reader.counted and (more := run.uncounted()):
                self._steps.add(run.key, [UNKNOWN_TOKEN] * more, b"")
            self._end(run, reason)

    def _left_form(self, run: Run) -> None:
        assert run.follower is not None  # noqa: S101
        error = run.follower.broken()
        log.warning("an output left its form", extra={"tokens": len(run.ids), "error": error.diagnostic})
        self._end(run, Finish.ERROR, error)

    def _differs(self, run: Run) -> None:
        self._end(run, Finish.ERROR, engine_failed("a generation made again under its guide came out differently"))

    async def _failed(self, run: Run, text: str) -> None:
        """The server says an error instead of a response."""
        trouble = trouble_of(text)
        log.info("engine refused", extra={"trouble": trouble.value, "error": text})
        if trouble is Trouble.GONE:
            await self._suspected(run, text)
        elif trouble is Trouble.TOO_LONG and run.ids:
            self._end(run, Finish.LENGTH)  # it fitted when it began: what has grown too long is its output
        else:
            self._end(run, Finish.ERROR, error_of(trouble, text, run.generation.input, run.input_tokens))

    async def _suspected(self, run: Run, text: str) -> None:
        """A broken stream mostly means a dead model: then steps() says so, once for all."""
        if await self._health.check():
            self._end(run, Finish.ERROR, engine_failed(text))

    async def _probe(self) -> None:
        await self._service.probe()

    def _owed(self) -> bool:
        return bool(self._running) and self._room.is_set()

    async def _watch(self, health: Health) -> None:
        await health.run()
        self._ready.set()

    def _stalled(self, before: float) -> None:
        """Ends those that began and got nothing since ``before``, though others did."""
        for run in list(self._running.values()):
            if run.moved_at is not None and run.moved_at < before:
                self._end(run, Finish.ERROR, engine_failed(f"its stream stands still after {len(run.ids)} tokens"))

    @property
    def _service(self) -> Service:
        if self._up is None:
            raise engine_failed("it is not started, or about to be started again")
        return self._up

    @property
    def _prompts(self) -> Prompts:
        if self._prompts_or_none is None:
            raise engine_failed("it is not started, or about to be started again")
        return self._prompts_or_none

    # --- steps ------------------------------------------------------------------------------------------------------

    def _moved(self) -> None:
        """Ready at once if everybody has moved, else when the rest of this engine step had time to arrive."""
        if self._steps.moved() >= len(self._running):
            self._ready.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_COALESCE_SECONDS, self._ready.set)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
